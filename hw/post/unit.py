"""The way of every result from its source to the activation memory."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.hw.arch.parameters import ACTIVATION_BITS, CoreParameters
from tritloom.hw.arch.record import RECORD_BYTES
from tritloom.hw.arch.timing import REQUANTISE_LATENCY, VALUE_LATENCY
from tritloom.hw.memory import ActivationWrite, address_bits
from tritloom.hw.post.requantise import RecordLayout, Requantiser

__all__ = ["PostUnit", "ResultCommand", "lane_bits"]

_RAW_BYTES = 4


def lane_bits(parameters: CoreParameters) -> int:
    """Width of the number of a lane of the post unit; 0 for a single one."""
    return exact_log2(parameters.post_lanes)


class ResultCommand(data.StructLayout):
    """One piece of one result, or, in a ``wide`` instruction, of one in each lane; ``address`` is the byte address of the (first) result.

    ``lane`` is the accumulator among those that the drain register shows, or in a ``wide`` instruction the last lane that is written.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        super().__init__({
            "valid": 1, "first": 1, "last": 1, "final": 1, "lane": lane_bits(parameters), "address": address_bits(parameters.activation_bytes),
        })  # fmt: skip


class PostUnit(wiring.Component):
    """Turns results into writes of the activation memory.

    For the command of clock ``t`` (its record's address goes to the record memory in the same clock), ``drained`` or ``bytes`` must
    be there in clock ``t + 1``, ``record`` and ``maximum`` in clock ``t + 2``. The write is on the port in clock ``t + 3`` for a raw
    accumulator or a maximum, and ``REQUANTISE_LATENCY`` clocks later for a code.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    command : :py:`In(ResultCommand(parameters))`
    flush : :py:`In(1)`
        Forget every result that is under way.
    raw, wide, pool, elementwise, two_operands, low, high : in
        The instruction's mode; ``pool`` and ``elementwise`` are set for these opcodes. Static.
    drained : :py:`In(ArrayLayout(signed(accumulator_bits), post_lanes))`
    bytes : :py:`In(ArrayLayout(signed(8), post_lanes))`
    maximum : :py:`In(ArrayLayout(signed(8), rows))`
    record : :py:`In(128 * post_lanes)`
    shift : :py:`Out(1)`
        The drain register may go on to its next accumulators.
    write : :py:`Out(ActivationWrite)`
    done : :py:`Out(1)`
        The instruction's last write is on the port in the next clock.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        super().__init__({
            "command": In(ResultCommand(p)), "flush": In(1),
            "raw": In(1), "wide": In(1), "pool": In(1), "elementwise": In(1), "two_operands": In(1),
            "low": In(signed(ACTIVATION_BITS)), "high": In(signed(ACTIVATION_BITS)),
            "drained": In(data.ArrayLayout(signed(p.accumulator_bits), p.post_lanes)),
            "bytes": In(data.ArrayLayout(signed(ACTIVATION_BITS), p.post_lanes)),
            "maximum": In(data.ArrayLayout(signed(ACTIVATION_BITS), p.rows)), "record": In(8 * p.record_word_bytes),
            "shift": Out(1), "write": Out(ActivationWrite(rows=p.rows, depth=p.activation_words)), "done": Out(1),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        p = self._parameters
        lanes = range(p.post_lanes)
        requantisers = [Requantiser(accumulator_bits=p.accumulator_bits, scaled_bits=p.scaled_bits) for _ in lanes]

        commands = [self.command]
        for stage in range(VALUE_LATENCY + REQUANTISE_LATENCY):
            commands.append(Signal.like(self.command, name=f"command_{stage + 1}"))
            m.d.sync += commands[-1].eq(commands[-2])
            with m.If(self.flush):
                m.d.sync += commands[-1].valid.eq(0)
        now, late = commands[VALUE_LATENCY], commands[-1]
        shown = commands[1]
        # A narrow instruction takes the accumulators that are shown one by one through lane 0.
        chosen = Mux(self.wide, 0, shown.lane)
        m.d.comb += self.shift.eq(shown.valid & shown.last & (self.wide | (shown.lane == p.post_lanes - 1)))
        direct = Signal()
        m.d.comb += direct.eq(self.raw | self.pool)
        values = []
        for lane, requantiser in enumerate(requantisers):
            m.submodules[f"requantiser_{lane}"] = requantiser
            value = Signal(signed(p.accumulator_bits), name=f"value_{lane}", reset_less=True)
            values.append(value)
            accumulator = self.drained[lane] if lane or p.post_lanes == 1 else self.drained[chosen]
            record = self.record.word_select(lane, 8 * RECORD_BYTES)
            m.d.sync += value.eq(Mux(self.elementwise, self.bytes[lane], accumulator))
            m.d.comb += [
                requantiser.value.eq(value), requantiser.record.eq(record[: RecordLayout().size]),
                requantiser.valid.eq(now.valid & ~direct), requantiser.first.eq(now.first), requantiser.last.eq(now.last),
                requantiser.flush.eq(self.flush), requantiser.two_operands.eq(self.two_operands),
                requantiser.low.eq(self.low), requantiser.high.eq(self.high),
            ]  # fmt: skip
        codes = [Mux(self.wide, requantiser.code, requantisers[0].code) for requantiser in requantisers]

        source = Signal.like(self.command)
        m.d.comb += source.eq(Mux(direct, now.as_value(), late.as_value()))
        ready = Signal()
        m.d.comb += ready.eq(Mux(direct, now.valid, requantisers[0].done) & ~self.flush)
        byte_bits = address_bits(p.rows)
        byte, word = source.address[:byte_bits], source.address[byte_bits:]
        accumulator = Signal(signed(8 * _RAW_BYTES))
        m.d.comb += accumulator.eq(values[0])
        m.d.comb += self.done.eq(ready & source.final)
        m.d.sync += [self.write.mask.eq(0), self.write.address.eq(word)]
        with m.If(ready):
            with m.If(self.pool):
                m.d.sync += self.write.mask.eq(Const(-1, p.rows))
            with m.Elif(self.raw):
                m.d.sync += self.write.mask.eq(Cat((byte >> 2) == index // _RAW_BYTES for index in range(p.rows)))
            with m.Else():
                group, place = byte >> lane_bits(p), byte[: lane_bits(p)]
                within = [Mux(self.wide, lane <= source.lane, lane == place) for lane in lanes]
                m.d.sync += self.write.mask.eq(
                    Cat((group == index // p.post_lanes) & within[index % p.post_lanes] for index in range(p.rows))
                )
        for index in range(p.rows):
            result = Mux(self.raw, accumulator.word_select(index % _RAW_BYTES, 8), codes[index % p.post_lanes])
            m.d.sync += self.write.lanes[index].eq(Mux(self.pool, self.maximum[index], result))
        return m
