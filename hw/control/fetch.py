"""Fetch unit: reads an instruction from the program memory, one word a clock."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import FIELDS, HEADER_WORDS, LOOP_WORDS, MAX_LOOPS, PROGRAM_WORD_BYTES, Opcode
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_value
from tritloom.hw.memory import READ_LATENCY

__all__ = ["Fetch"]


class Fetch(wiring.Component):
    """Puts the words of one instruction on the bus, the first one ``FETCH_LATENCY`` clocks after ``go``.

    HALT and words that are no instruction stop it at their first word.

    Parameters
    ----------
    address_bits : :class:`int`
        Width of a program address.

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
    halt, bad : :py:`Out(1)`
        With ``word``: it is a HALT, or no instruction; nothing follows.
    """

    def __init__(self, *, address_bits: int) -> None:
        self._bits = address_bits
        super().__init__({
            "go": In(1), "pc": In(address_bits), "flush": In(1), "address": Out(address_bits), "data": In(8 * PROGRAM_WORD_BYTES), "bus": Out(InstructionBus()),
            "word": Out(1), "ending": Out(1), "halt": Out(1), "bad": Out(1),
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
            with m.Case(*(kind for kind in Opcode if kind != Opcode.HALT)):
                m.d.comb += known.eq((count >= 1) & (count <= MAX_LOOPS))
        m.d.comb += [
            self.bus.word.eq(self.data), self.bus.header.eq(header | first), self.bus.loop.eq(loop),
            self.word.eq(first | header.any() | loop.any()),
            self.halt.eq(first & (opcode == Opcode.HALT)), self.bad.eq(first & (opcode != Opcode.HALT) & ~known),
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
