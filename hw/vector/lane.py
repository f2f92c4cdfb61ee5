"""A lane of the vector unit: shift, multiply, accumulate, shift, add and limit."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.scalar import REGISTER_BITS
from tritloom.hw.arch.vector import FUNCTION_BITS, OUT_SHIFT_REGISTER, Factor, Low, Second, function_fields

__all__ = ["EXPONENT_BITS", "LARGEST_SHIFT", "LEFTMOST", "PRODUCT_BITS", "TERM_STAGE", "FunctionLayout", "VectorControls", "VectorLane"]

FACTOR_BITS, PRODUCT_BITS, SUM_BITS = 18, 36, 48
EXPONENT_BITS = 16
LEFTMOST = 16
"""Places by which operand A can be shifted to the left."""

LARGEST_SHIFT = 47
TERM_STAGE = 4
"""Clocks from the meeting of an element's operands to its product."""

_ADDEND_STAGES = 3
"""Clocks from the sum with an element's product to the addition behind the shift of the result."""


class FunctionLayout(data.StructLayout):
    """Fields of the function word."""

    def __init__(self) -> None:
        fields = {name: width for name, (_, width) in function_fields().items()}
        super().__init__({**fields, "unused": FUNCTION_BITS - sum(fields.values())})


class VectorControls(data.StructLayout):
    """The registers that a vector instruction uses."""

    def __init__(self) -> None:
        super().__init__({"shift": signed(EXPONENT_BITS), "factor": signed(FACTOR_BITS), "out_shift": 6, "addend": signed(REGISTER_BITS)})


class VectorLane(wiring.Component):
    """Steps 2 to 6 of :mod:`tritloom.hw.arch.vector` on one element.

    Clock 0 is that in which an element's operands meet: ``second`` is its own in clock 0, ``value`` and ``places`` in clock 1, ``term`` in clock :data:`TERM_STAGE`. What the
    sum takes comes back on ``addition``, ``term_clocks`` later; ``limited`` is there five clocks after that.

    Parameters
    ----------
    term_clocks : :class:`int`
        Clocks from ``term`` to ``addition``.

    Members
    -------
    function, controls : in
        Static.
    value : :py:`In(signed(32))`
    places : :py:`In(6)`
        16 more than the places by which the value is shifted to the right.
    second : :py:`In(signed(32))`
    term : :py:`Out(signed(36))`
        The product.
    add, first : :py:`In(1)`
        ``addition`` goes into the sum; it begins a new one.
    addition : :py:`In(signed(39))`
    limited : :py:`Out(signed(32))`
    """

    def __init__(self, *, term_clocks: int) -> None:
        self._term_clocks = term_clocks
        super().__init__({
            "function": In(FunctionLayout()), "controls": In(VectorControls()), "value": In(signed(32)), "places": In(6), "second": In(signed(32)),
            "term": Out(signed(PRODUCT_BITS)), "add": In(1), "first": In(1), "addition": In(signed(PRODUCT_BITS + 3)), "limited": Out(signed(32)),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        f, controls = self.function, self.controls
        seconds: list[Value] = [self.second]
        for stage in range(TERM_STAGE + self._term_clocks + _ADDEND_STAGES):
            seconds.append(Signal(signed(32), name=f"second_{stage + 1}", reset_less=True))
            m.d.sync += seconds[-1].eq(seconds[-2])

        # x = value >> (places - 16), in two steps.
        wide = Signal(signed(32 + LEFTMOST))
        m.d.comb += wide.eq(self.value << LEFTMOST)
        coarse, fine = Signal(signed(32 + 7), reset_less=True), Signal(3, reset_less=True)
        m.d.sync += [coarse.eq(wide >> (self.places & 0b111000)), fine.eq(self.places[:3])]
        x = Signal(signed(32))
        m.d.comb += x.eq(coarse >> fine)
        left, right, passed = (
            Signal(signed(FACTOR_BITS), reset_less=True),
            Signal(signed(FACTOR_BITS), reset_less=True),
            Signal(signed(32), reset_less=True),
        )
        m.d.sync += [
            left.eq(x), passed.eq(x),
            right.eq(Mux(f.factor == Factor.ITSELF, x, Mux(f.factor == Factor.OPERAND, seconds[2], controls.factor))),
        ]  # fmt: skip
        product, through = Signal(signed(PRODUCT_BITS), reset_less=True), Signal(signed(32), reset_less=True)
        m.d.sync += [product.eq(left * right), through.eq(passed)]
        m.d.comb += self.term.eq(Mux(f.factor == Factor.ONE, through, product))
        total = Signal(signed(SUM_BITS), reset_less=True)
        with m.If(self.add):
            m.d.sync += total.eq(Mux(self.first, 0, total) + self.addition)

        # r = (total >> out_shift) + rounding + addend; the bit that rounds is kept below the lowest one.
        out_places = Signal(6, reset_less=True)
        m.d.sync += out_places.eq(Mux(f.out_shift == OUT_SHIFT_REGISTER, controls.out_shift, f.out_shift))
        above, above_fine = Signal(signed(SUM_BITS + 1), reset_less=True), Signal(signed(SUM_BITS + 1), reset_less=True)
        doubled = Cat(Const(0, 1), total).as_signed()
        m.d.sync += [above.eq(doubled >> (out_places & 0b111000)), above_fine.eq(above >> out_places[:3])]
        # A difference is the sum with the complement, and with the carry that rounding has no use for then.
        subtracts = f.second == Second.SUBTRAHEND
        addend = Mux(f.second == Second.ADDEND, seconds[-1], Mux(subtracts, ~seconds[-1], Mux(f.addend, controls.addend, 0)))
        result = Signal(signed(SUM_BITS + 1), reset_less=True)
        m.d.sync += result.eq(above_fine[1:].as_signed() + addend + ((above_fine[0] & f.rounded) | subtracts))

        # Limits.
        beyond = Signal(SUM_BITS + 1, reset_less=True)  # the bits that a result within the limits repeats its sign in
        m.d.sync += beyond.eq(Const(-1, SUM_BITS + 1) << f.bits)
        negative = result[-1]
        over = ~negative & (result & beyond).any()
        under = negative & ((~result & beyond).any() | ((f.low == Low.SYMMETRIC) & ~(result & ~beyond).any()) | (f.low == Low.ZERO))
        lowest = Mux(f.low == Low.ZERO, 0, Mux(f.low == Low.SYMMETRIC, beyond | 1, beyond))
        limited = Signal(signed(32), reset_less=True)
        m.d.sync += limited.eq(Mux(over, ~beyond, Mux(under, lowest, result))[:32].as_signed())
        m.d.comb += self.limited.eq(limited)
        return m
