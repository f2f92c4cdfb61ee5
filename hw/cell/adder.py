"""Adders of the array: a ternary product onto running sums, and plain sums, for several columns at once.

Columns come in groups because one ECP5 carry chain can hold the adders of several: nextpnr pays four cells for every chain. The
sums are the same on every platform; only how they are built differs.
"""

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.cell.cell import TRIT_BITS
from tritloom.hw.cell.ecp5 import ADD, ADD_PRODUCT, ADD_SELECTED, ChainAdder, carry_chain, has_carry_chains

__all__ = ["GROUP", "AccumulatorAdder", "PairAdder", "ProductAdder"]

GROUP = 4
"""Columns whose adders are built together. Longer shared carry chains look slow to nextpnr's timing analysis, which follows the carry
through the cells between two adders; shorter ones cost four more cells each."""


def _extended(value: Value, width: int) -> list[Value]:
    """Bits of a signed value, its sign repeated up to ``width``."""
    return [value[min(bit, len(value) - 1)] for bit in range(width)]


class ProductAdder(wiring.Component):
    """``sum[i] = partial[i] + trit[i] * activation``, combinational.

    On ECP5 add, subtract and skip are inside the table of the carry cell: one 4-input table a bit.

    Parameters
    ----------
    columns : :class:`int`
        Sums, all with the same activation.
    partial_bits, sum_bits : :class:`int`
        Widths of the signed sums before and after; the caller proves that the sum fits.

    Members
    -------
    activation : :py:`In(signed(8))`
    trits : :py:`In(ArrayLayout(2, columns))`
    partial : :py:`In(ArrayLayout(signed(partial_bits), columns))`
    sum : :py:`Out(ArrayLayout(signed(sum_bits), columns))`
    """

    def __init__(self, *, columns: int, partial_bits: int, sum_bits: int) -> None:
        if columns < 1:
            raise ValueError(f"Columns must be at least 1, not {columns!r}")
        self._columns, self._bits = columns, sum_bits
        super().__init__({
            "activation": In(signed(ACTIVATION_BITS)), "trits": In(data.ArrayLayout(TRIT_BITS, columns)),
            "partial": In(data.ArrayLayout(signed(partial_bits), columns)), "sum": Out(data.ArrayLayout(signed(sum_bits), columns)),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        adders = []
        for column in range(self._columns):
            nonzero, negative = self.trits[column]
            if has_carry_chains(platform):
                left, right = _extended(self.partial[column], self._bits), _extended(self.activation, self._bits)
                select = [(negative, nonzero)] * self._bits
                adders.append(ChainAdder(ADD_PRODUCT, left, right, select, carry=negative))
            else:
                term = (self.activation ^ negative.replicate(ACTIVATION_BITS)) & nonzero.replicate(ACTIVATION_BITS)
                m.d.comb += self.sum[column].eq(self.partial[column] + term[:ACTIVATION_BITS].as_signed() + negative)
        _connect(m, adders, self.sum)
        return m


class PairAdder(wiring.Component):
    """``sum[i] = left[i] + right[i] + carry[i]``, combinational.

    Parameters
    ----------
    columns, bits : :class:`int`
        Sums, and the width of the signed terms; a sum has one bit more. ``carry`` has one bit a column.
    """

    def __init__(self, *, columns: int, bits: int) -> None:
        self._columns, self._bits = columns, bits
        terms = data.ArrayLayout(signed(bits), columns)
        super().__init__({
            "left": In(terms), "right": In(terms), "carry": In(columns), "sum": Out(data.ArrayLayout(signed(bits + 1), columns)),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        adders = []
        for column in range(self._columns):
            if has_carry_chains(platform):
                left, right = (_extended(term[column], self._bits + 1) for term in (self.left, self.right))
                adders.append(ChainAdder(ADD, left, right, [(0, 1)] * (self._bits + 1), carry=self.carry[column]))
            else:
                m.d.comb += self.sum[column].eq(self.left[column] + self.right[column] + self.carry[column])
        _connect(m, adders, self.sum)
        return m


class AccumulatorAdder(wiring.Component):
    """``following[i] = accumulator[i] + (triple ? 2 * accumulator[i] : sum[i] + carry[i])``, combinational; it wraps.

    Parameters
    ----------
    columns, accumulator_bits, sum_bits : :class:`int`
        Accumulators, and the widths of accumulators and sums, all signed.
    """

    def __init__(self, *, columns: int, accumulator_bits: int, sum_bits: int) -> None:
        self._columns, self._bits = columns, accumulator_bits
        accumulators = data.ArrayLayout(signed(accumulator_bits), columns)
        super().__init__({
            "triple": In(1), "carry": In(columns), "sum": In(data.ArrayLayout(signed(sum_bits), columns)),
            "accumulator": In(accumulators), "following": Out(accumulators),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        adders = []
        for column in range(self._columns):
            accumulator, carry = self.accumulator[column], Signal(name=f"carry_{column}")
            m.d.comb += carry.eq(self.carry[column] & ~self.triple)
            if has_carry_chains(platform):
                doubled = [0, *_extended(accumulator, self._bits - 1)]
                select = [(bit, ~self.triple) for bit in doubled]
                adders.append(
                    ChainAdder(
                        ADD_SELECTED, _extended(accumulator, self._bits), _extended(self.sum[column], self._bits), select, carry=carry
                    )
                )
            else:
                term = Signal(signed(self._bits), name=f"term_{column}")
                m.d.comb += [
                    term.eq(Mux(self.triple, accumulator << 1, self.sum[column])),
                    self.following[column].eq(accumulator + term + carry),
                ]
        _connect(m, adders, self.following)
        return m


def _connect(m: Module, adders: Sequence[ChainAdder], sums: data.View) -> None:
    """Build the chain of ``adders``, where there are any, and hand their sums on."""
    if adders:
        for column, bits in enumerate(carry_chain(m, adders)):
            m.d.comb += sums[column].eq(Cat(bits))
