"""The way of every result from its source to the activation memory."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS, CoreParameters
from tritloom.hw.arch.timing import REQUANTISE_LATENCY, VALUE_LATENCY
from tritloom.hw.memory import ActivationWrite, address_bits
from tritloom.hw.post.requantise import RecordLayout, Requantiser

__all__ = ["PostUnit", "ResultCommand"]

_RAW_BYTES = 4


class ResultCommand(data.StructLayout):
    """One piece of one result; ``address`` is the byte address of the result."""

    def __init__(self, parameters: CoreParameters) -> None:
        super().__init__({"valid": 1, "first": 1, "last": 1, "final": 1, "address": address_bits(parameters.activation_bytes)})


class PostUnit(wiring.Component):
    """Turns results into writes of the activation memory.

    For the command of clock ``t`` (its record's address goes to the record memory in the same clock), ``drained`` or ``byte`` must
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
    raw, pool, elementwise, two_operands, low, high : in
        The instruction's mode; ``pool`` and ``elementwise`` are set for these opcodes. Static.
    drained : :py:`In(signed(accumulator_bits))`
    byte : :py:`In(signed(8))`
    maximum : :py:`In(ArrayLayout(signed(8), rows))`
    record : :py:`In(128)`
    shift : :py:`Out(1)`
        The drain register may go on to its next column.
    write : :py:`Out(ActivationWrite)`
    done : :py:`Out(1)`
        The instruction's last write is on the port in the next clock.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        lanes = data.ArrayLayout(signed(ACTIVATION_BITS), p.rows)
        super().__init__({
            "command": In(ResultCommand(p)), "flush": In(1),
            "raw": In(1), "pool": In(1), "elementwise": In(1), "two_operands": In(1),
            "low": In(signed(ACTIVATION_BITS)), "high": In(signed(ACTIVATION_BITS)),
            "drained": In(signed(p.accumulator_bits)), "byte": In(signed(ACTIVATION_BITS)), "maximum": In(lanes), "record": In(128),
            "shift": Out(1), "write": Out(ActivationWrite(rows=p.rows, depth=p.activation_words)), "done": Out(1),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.requantiser = requantiser = Requantiser(accumulator_bits=p.accumulator_bits)

        commands = [self.command]
        for stage in range(VALUE_LATENCY + REQUANTISE_LATENCY):
            commands.append(Signal.like(self.command, name=f"command_{stage + 1}"))
            m.d.sync += commands[-1].eq(commands[-2])
            with m.If(self.flush):
                m.d.sync += commands[-1].valid.eq(0)
        value = Signal(signed(p.accumulator_bits), reset_less=True)
        m.d.sync += value.eq(Mux(self.elementwise, self.byte, self.drained))
        m.d.comb += self.shift.eq(commands[1].valid & commands[1].last)

        now, late = commands[VALUE_LATENCY], commands[-1]
        direct = Signal()
        m.d.comb += [
            direct.eq(self.raw | self.pool),
            requantiser.value.eq(value), requantiser.record.eq(self.record[: RecordLayout().size]),
            requantiser.valid.eq(now.valid & ~direct), requantiser.first.eq(now.first), requantiser.last.eq(now.last),
            requantiser.flush.eq(self.flush), requantiser.two_operands.eq(self.two_operands),
            requantiser.low.eq(self.low), requantiser.high.eq(self.high),
        ]  # fmt: skip

        source = Signal.like(self.command)
        m.d.comb += source.eq(Mux(direct, now.as_value(), late.as_value()))
        ready = Signal()
        m.d.comb += ready.eq(Mux(direct, now.valid, requantiser.done) & ~self.flush)
        lane_bits = address_bits(p.rows)
        lane, word = source.address[:lane_bits], source.address[lane_bits:]
        accumulator = Signal(signed(8 * _RAW_BYTES))
        m.d.comb += accumulator.eq(value)
        m.d.comb += self.done.eq(ready & source.final)
        m.d.sync += [self.write.mask.eq(0), self.write.address.eq(word)]
        with m.If(ready):
            with m.If(self.pool):
                m.d.sync += self.write.mask.eq(Const(-1, p.rows))
            with m.Elif(self.raw):
                m.d.sync += self.write.mask.eq(Cat((lane >> 2) == index // _RAW_BYTES for index in range(p.rows)))
            with m.Else():
                m.d.sync += self.write.mask.eq(Cat(lane == index for index in range(p.rows)))
        for index in range(p.rows):
            result = Mux(self.raw, accumulator.word_select(index % _RAW_BYTES, 8), requantiser.code)
            m.d.sync += self.write.lanes[index].eq(Mux(self.pool, self.maximum[index], result))
        return m
