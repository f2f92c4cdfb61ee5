"""Loop nest: counts the iterations of up to seven loops, one element a clock."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import FIELDS, LOOP_FIELDS, MAX_LOOPS
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_register, field_value

__all__ = ["LoopNest"]


class LoopNest(wiring.Component):
    """Where in its loop nest an instruction is. All outputs speak of the present element, and change in the clock after ``step``.

    Loops that an instruction does not have are loops of one iteration, and cost nothing.

    Members
    -------
    bus : :py:`In(InstructionBus())`
    step : :py:`In(1)`
        Go on to the next element.
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
            "bus": In(InstructionBus()), "step": In(1), "index": Out(LOOP_INDEX_BITS),
            "first": Out(1), "last": Out(1), "final": Out(1), "tail": Out(1), "triple": Out(1),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        place = LOOP_FIELDS["last"]
        begin = self.bus.header[0]
        # A counter holds the iterations left minus two, so that its sign says that the loop is in its last one. Counters take their
        # first value with every loop word, the last of which comes after all first values are known.
        first_left = Signal(signed(place.width + 1))
        m.d.comb += first_left.eq(field_value(self.bus.word, place) - 1)
        ended = Signal(MAX_LOOPS)  # loops in their last iteration
        for loop in range(MAX_LOOPS):
            reload = Signal(signed(place.width + 1), name=f"reload_{loop}")
            left = Signal(signed(place.width + 1), name=f"left_{loop}")
            with m.If(begin):
                m.d.sync += reload.eq(-1)
            with m.Elif(self.bus.loop[place.word] & (self.bus.index == loop)):
                m.d.sync += reload.eq(first_left)
            with m.If(self.bus.loop.any() | (self.step & ended[:loop].all())):
                m.d.sync += left.eq(Mux(self.bus.loop.any() | ended[loop], reload, left - 1))
            m.d.comb += ended[loop].eq(left < 0)

        with m.Switch(ended):
            for loop in range(MAX_LOOPS):
                with m.Case("-" * (MAX_LOOPS - 1 - loop) + "0" + "1" * loop):
                    m.d.comb += self.index.eq(loop)

        outer = Signal(MAX_LOOPS)  # loops that are not part of the reduction
        reduce_loops = FIELDS["reduce_loops"]
        with m.If(self.bus.header[reduce_loops.word]):
            m.d.sync += outer.eq(Cat(field_value(self.bus.word, reduce_loops) <= loop for loop in range(MAX_LOOPS)))
        planes = field_register(m, self.bus, "plane_loop")
        tiles = field_register(m, self.bus, "tile_loop")
        m.d.comb += [self.last.eq((ended | outer).all()), self.final.eq(ended.all()), self.tail.eq(1)]
        with m.Switch(tiles):
            for loop in range(MAX_LOOPS):
                with m.Case(loop):
                    m.d.comb += self.tail.eq(ended[loop])
        with m.If(begin):
            m.d.sync += [self.first.eq(1), self.triple.eq(0)]
        with m.Elif(self.step):
            m.d.sync += [self.first.eq(self.last), self.triple.eq(~self.last & (self.index == planes))]
        return m
