"""Fetch unit: reads an instruction from the program memory, one word a clock."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import COUNTED, FIELDS, HEADER_WORDS, LOOP_FIELDS, LOOP_WORDS, MAX_LOOPS, PROGRAM_WORD_BYTES, Opcode
from tritloom.hw.arch.scalar import REGISTER_BITS, ScalarOpcode
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_value
from tritloom.hw.memory import READ_LATENCY

__all__ = ["FETCH_REGISTERS", "Fetch"]

FETCH_REGISTERS = ("index_a", "index_b", "index_o", "step_a", "step_b", "count")
"""Registers of :mod:`tritloom.hw.arch.scalar` that change instructions."""


class Fetch(wiring.Component):
    """Puts the words of one instruction on the bus, the first one ``FETCH_LATENCY`` clocks after ``go``.

    HALT, scalar instructions and words that are no instruction stop it at their first word. With registers, the fields that an instruction
    takes from them are changed on the way to the bus.

    Parameters
    ----------
    address_bits : :class:`int`
        Width of a program address.
    registers : :class:`bool`
        Whether the core has a vector unit, and with it scalar instructions and registers.

    Members
    -------
    go : :py:`In(1)`
        Begin; ``address`` is the first word's in this clock.
    pc : :py:`In(address_bits)`
        Address of the first word, in the clock of ``go``.
    flush : :py:`In(1)`
        Stop.
    address : :py:`Out(address_bits)`
        Address for the program memory, which answers :data:`tritloom.hw.memory.READ_LATENCY` clocks later on ``data``.
    data : :py:`In(64)`
    bus : :py:`Out(InstructionBus())`
    word : :py:`Out(1)`
        A word is on the bus.
    ending : :py:`Out(1)`
        With ``word``: the next one is the last one.
    halt, scalar, bad : :py:`Out(1)`
        With ``word``: it is a HALT, a scalar instruction, or no instruction; nothing follows.
    index_a, index_b, index_o, step_a, step_b, count : :py:`In(32)`
        Registers of :mod:`tritloom.hw.arch.scalar`.
    """

    def __init__(self, *, address_bits: int, registers: bool = False) -> None:
        self._bits, self._registers = address_bits, registers
        super().__init__({
            "go": In(1), "pc": In(address_bits), "flush": In(1), "address": Out(address_bits), "data": In(8 * PROGRAM_WORD_BYTES), "bus": Out(InstructionBus()),
            "word": Out(1), "ending": Out(1), "halt": Out(1), "scalar": Out(1), "bad": Out(1),
            **{name: In(REGISTER_BITS) for name in FETCH_REGISTERS},
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        following = Signal(self._bits)
        m.d.comb += self.address.eq(Mux(self.go, self.pc, following))
        m.d.sync += following.eq(self.address + 1)

        waiting = Signal(READ_LATENCY)
        m.d.sync += waiting.eq((waiting << 1) | self.go)
        first = waiting[-1]

        # `header` and `loop` are one-hot positions of the word that comes next; both are zero when no instruction is under way.
        header, loop = Signal(HEADER_WORDS), Signal(LOOP_WORDS)
        last_loop = Signal(LOOP_INDEX_BITS)
        opcode, count = field_value(self.data, FIELDS["opcode"]), field_value(self.data, FIELDS["loops"])
        known = Signal()
        with m.Switch(opcode):
            with m.Case(*(kind for kind in Opcode if kind != Opcode.HALT and (self._registers or kind != Opcode.VECTOR))):
                m.d.comb += known.eq((count >= 1) & (count <= MAX_LOOPS))
        if self._registers:
            with m.Switch(opcode):
                with m.Case(*ScalarOpcode):
                    m.d.comb += self.scalar.eq(first)
        m.d.comb += [
            self.bus.word.eq(self._changed(m, first, header, loop) if self._registers else self.data), self.bus.header.eq(header | first), self.bus.loop.eq(loop),
            self.word.eq(first | header.any() | loop.any()),
            self.halt.eq(first & (opcode == Opcode.HALT)), self.bad.eq(first & (opcode != Opcode.HALT) & ~known & ~self.scalar),
            self.ending.eq(loop[-2] & (self.bus.index == last_loop)),
        ]  # fmt: skip
        m.d.sync += [header.eq(header << 1), loop.eq(loop << 1)]
        with m.If(first):
            m.d.sync += [header.eq(known << 1), last_loop.eq(count - 1), self.bus.index.eq(0)]
        with m.If(header[-1]):
            m.d.sync += loop.eq(1)
        with m.If(loop[-1]):
            m.d.sync += [loop.eq(self.bus.index != last_loop), self.bus.index.eq(self.bus.index + 1)]
        with m.If(self.flush):
            m.d.sync += [waiting.eq(0), header.eq(0), loop.eq(0)]
        return m

    def _changed(self, m: Module, first: Signal, header: Signal, loop: Signal) -> Value:
        """The word with what an instruction takes from registers: an addend for either half, or the count of a loop."""
        flags = {name: Signal(name=f"takes_{name}") for name in ("index_b", "index_o", "counted")}
        with m.If(first):
            m.d.sync += [flag.eq(field_value(self.data, FIELDS[name])) for name, flag in flags.items()]
        # `counted` speaks of the loop on the bus, `behind` of the one before it.
        takes_count, counted, behind = Signal(), Signal(), Signal()
        m.d.comb += takes_count.eq(loop[0] & flags["counted"] & (field_value(self.data, LOOP_FIELDS["last"]) == COUNTED))
        with m.If(first):
            m.d.sync += behind.eq(0)
        with m.If(loop[0]):
            m.d.sync += counted.eq(takes_count)
        with m.If(loop[-1]):
            m.d.sync += behind.eq(counted)
        low, high = Signal(REGISTER_BITS), Signal(REGISTER_BITS)
        with m.If(header[1] & flags["index_b"]):
            m.d.comb += low.eq(self.index_b)
        with m.If(loop[1] & behind):
            m.d.comb += low.eq(self.step_b)
        with m.If(first & field_value(self.data, FIELDS["index_a"])):
            m.d.comb += high.eq(self.index_a)
        with m.If(header[3] & flags["index_o"]):
            m.d.comb += high.eq(self.index_o)
        with m.If(loop[0] & behind):
            m.d.comb += high.eq(self.step_a)
        lower = (self.data[:REGISTER_BITS] + low)[:REGISTER_BITS]
        count = Cat(self.count[: LOOP_FIELDS["last"].width], self.data[LOOP_FIELDS["last"].width : REGISTER_BITS])
        return Cat(Mux(takes_count, count, lower), (self.data[REGISTER_BITS:] + high)[:REGISTER_BITS])
