"""Loop nest: counts the iterations of up to seven loops, one element a clock."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import FIELDS, LOOP_FIELDS, MAX_LOOPS
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_register, field_value

__all__ = ["LoopNest"]


class LoopNest(wiring.Component):
    """Where in its loop nest an instruction is. All outputs speak of the present element, and change in the clock after ``step``.

    They are registers, and the counters behind them are one element ahead: what follows from seven counters does not add to the path of
    the element that is issued. Loops that an instruction does not have are loops of one iteration, and cost nothing.

    Members
    -------
    bus : :py:`In(InstructionBus())`
    step : :py:`In(1)`
        Go on to the next element.
    ready : :py:`Out(1)`
        From the next clock on the outputs are those of an element; not before the clock after the last word of the last loop.
    index : :py:`Out(3)`
        The loop that ``step`` advances: the innermost one that is not in its last iteration; 0 when ``final``.
    first : :py:`Out(1)`
        The element is the first one of its reduction.
    last : :py:`Out(1)`
        It is the last one of its reduction.
    final : :py:`Out(1)`
        It is the last one of the instruction.
    tail : :py:`Out(1)`
        The tile loop is in its last iteration, or there is none.
    triple : :py:`Out(1)`
        The plane loop has advanced to this element inside a reduction.
    """

    def __init__(self) -> None:
        super().__init__({
            "bus": In(InstructionBus()), "step": In(1), "ready": Out(1), "index": Out(LOOP_INDEX_BITS),
            "first": Out(1), "last": Out(1), "final": Out(1), "tail": Out(1), "triple": Out(1),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        place = LOOP_FIELDS["last"]
        begin, loading = self.bus.header[0], self.bus.loop.any()
        # The counters have their first values in the clock after the last loop word: then the first element goes into the registers.
        loaded, filled, advance = Signal(), Signal(), Signal()
        m.d.sync += loaded.eq(loading)
        m.d.comb += [self.ready.eq(filled | (loaded & ~loading)), advance.eq(self.step | (loaded & ~loading))]
        m.d.sync += filled.eq(self.ready & ~begin)
        index, first, last, triple = Signal(LOOP_INDEX_BITS), Signal(), Signal(), Signal()
        # A counter holds the iterations left minus two, so that its sign says that the loop is in its last one. Counters take their
        # first value with every loop word, the last of which comes after all first values are known.
        first_left = Signal(signed(place.width + 1))
        m.d.comb += first_left.eq(field_value(self.bus.word, place) - 1)
        ended = Signal(MAX_LOOPS)  # loops in their last iteration
        # All loops inside of one are. Kept as wires, or synthesis makes the enables of the counters one long chain that begins with `advance`.
        inner_ended = [Signal(name=f"inner_ended_{loop}", attrs={"keep": 1}) for loop in range(MAX_LOOPS)]
        for loop in range(MAX_LOOPS):
            reload = Signal(signed(place.width + 1), name=f"reload_{loop}")
            left = Signal(signed(place.width + 1), name=f"left_{loop}")
            with m.If(begin):
                m.d.sync += reload.eq(-1)
            with m.Elif(self.bus.loop[place.word] & (self.bus.index == loop)):
                m.d.sync += reload.eq(first_left)
            m.d.comb += inner_ended[loop].eq(ended[:loop].all())
            with m.If(loading | (advance & inner_ended[loop])):
                m.d.sync += left.eq(Mux(loading | ended[loop], reload, left - 1))
            m.d.comb += ended[loop].eq(left < 0)

        with m.Switch(ended):
            for loop in range(MAX_LOOPS):
                with m.Case("-" * (MAX_LOOPS - 1 - loop) + "0" + "1" * loop):
                    m.d.comb += index.eq(loop)

        outer = Signal(MAX_LOOPS)  # loops that are not part of the reduction
        reduce_loops = FIELDS["reduce_loops"]
        with m.If(self.bus.header[reduce_loops.word]):
            m.d.sync += outer.eq(Cat(field_value(self.bus.word, reduce_loops) <= loop for loop in range(MAX_LOOPS)))
        planes = field_register(m, self.bus, "plane_loop")
        tiles = field_register(m, self.bus, "tile_loop")
        tail = Signal()
        m.d.comb += [last.eq((ended | outer).all()), tail.eq(1)]
        with m.Switch(tiles):
            for loop in range(MAX_LOOPS):
                with m.Case(loop):
                    m.d.comb += tail.eq(ended[loop])
        with m.If(begin):
            m.d.sync += [first.eq(1), triple.eq(0)]
        with m.Elif(advance):
            m.d.sync += [first.eq(last), triple.eq(~last & (index == planes))]
        with m.If(advance):
            m.d.sync += [
                self.index.eq(index), self.first.eq(first), self.last.eq(last), self.final.eq(ended.all()), self.tail.eq(tail),
                self.triple.eq(triple),
            ]  # fmt: skip
        return m
