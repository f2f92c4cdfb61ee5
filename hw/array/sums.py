"""The sums of all columns: ternary products, and the adders that reduce them."""

from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.arch.reduction import REDUCTIONS, chain_stages, rows_of_stage
from tritloom.hw.cell import GROUP, TRIT_BITS, PairAdder, ProductAdder, TernaryCell

__all__ = ["ColumnSums", "sum_bits", "sums_formula"]


def sum_bits(rows: int) -> int:
    """Width of the signed sum of the products of ``rows`` rows, one carry left out."""
    return ACTIVATION_BITS + (rows - 1).bit_length()


def sums_formula(activations: np.ndarray, trits: np.ndarray) -> np.ndarray:
    """Sums (columns,) of activations (rows,) and trits (columns, rows)."""
    return np.asarray(trits, np.int64) @ np.asarray(activations, np.int64)


class _Sums(NamedTuple):
    """A number for every column of a group, and a carry for each that has yet to be added."""

    values: data.View
    carries: Signal


class ColumnSums(wiring.Component):
    """``sum[c] + carry[c]`` is the sum over all rows ``r`` of ``trit * activation``, pipelined, one word of activations a clock.

    The sum of the activations of clock ``t`` is there in clock ``t + reduction_latency(rows, reduction)``; the trits of row ``r`` must be
    given in clock ``t + row_delay(r, rows, reduction)`` (:mod:`tritloom.hw.arch.reduction`).

    A negative weight adds the one's complement and a carry. The ``rows`` carries enter as the carry-ins of adders that are there
    anyway, one of them only in the accumulator; so a sum of ``n`` products without its last carry lies in ``-128 * n .. 128 * n - 1``
    and needs ``8 + ceil(log2(n))`` bits.

    Parameters
    ----------
    rows : :class:`int`
        4, 8, 12 or a multiple of 16. A core has a power of two (:mod:`tritloom.hw.arch.parameters`).
    columns : :class:`int`
    reduction : :class:`str`
        ``tree`` or ``chain``.

    Members
    -------
    activations : :py:`In(ArrayLayout(signed(8), rows))`
    trits : :py:`In(ArrayLayout(2, rows * columns))`
        Trit ``column * rows + row`` multiplies activation ``row`` into sum ``column``.
    sums : :py:`Out(ArrayLayout(signed(8 + log2(rows)), columns))`
    carries : :py:`Out(columns)`
    """

    def __init__(self, *, rows: int, columns: int, reduction: str) -> None:
        if rows < 4 or rows % (4 * chain_stages(rows)):
            raise ValueError(f"Rows must be 4, 8, 12 or a multiple of 16, not {rows!r}")
        if columns < 1:
            raise ValueError(f"Columns must be at least 1, not {columns!r}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"Reduction must be one of {REDUCTIONS}, not {reduction!r}")
        self._rows, self._columns, self._reduction = rows, columns, reduction
        super().__init__({
            "activations": In(data.ArrayLayout(signed(ACTIVATION_BITS), rows)), "trits": In(data.ArrayLayout(TRIT_BITS, rows * columns)),
            "sums": Out(data.ArrayLayout(signed(sum_bits(rows)), columns)), "carries": Out(columns),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        build = self._chains if self._reduction == "chain" else self._products
        delayed = self._delayed_activations(m) if self._reduction == "chain" else [self.activations]
        for first in range(0, self._columns, GROUP):
            columns = range(first, min(first + GROUP, self._columns))
            level, terms = 0, build(m, columns, delayed)
            while len(terms) > 1:
                level += 1
                pairs = enumerate(zip_longest(terms[::2], terms[1::2]))
                terms = [self._sum(m, f"{first}_{level}_{index}", left, right) for index, (left, right) in pairs]
            for index, column in enumerate(columns):
                m.d.comb += [self.sums[column].eq(terms[0].values[index]), self.carries[column].eq(terms[0].carries[index])]
        return m

    def _cell(self, m: Module, column: int, row: int, activation: Value) -> TernaryCell:
        m.submodules[f"cell_{column}_{row}"] = cell = TernaryCell()
        m.d.comb += [cell.activation.eq(activation), cell.trit.eq(self.trits[column * self._rows + row])]
        return cell

    def _products(self, m: Module, columns: range, delayed: list[data.View]) -> list[_Sums]:
        """A registered product for each row. The register is behind the cell, whose table has one to itself on every family."""
        terms = []
        for row in range(self._rows):
            term = _registers(f"product_{columns[0]}_{row}", len(columns), ACTIVATION_BITS)
            for index, column in enumerate(columns):
                cell = self._cell(m, column, row, delayed[0][row])
                m.d.sync += [term.values[index].eq(cell.addend), term.carries[index].eq(cell.carry)]
            terms.append(term)
        return terms

    def _delayed_activations(self, m: Module) -> list[data.View]:
        """The activations as each stage of the running sums needs them."""
        delayed = [self.activations]
        for stage in range(chain_stages(self._rows)):
            delayed.append(Signal.like(self.activations, name=f"activations_{stage}", reset_less=True))
            m.d.sync += delayed[-1].eq(delayed[-2])
        return delayed[1:]

    def _chains(self, m: Module, columns: range, delayed: list[data.View]) -> list[_Sums]:
        """The running sums after their last stage. The first product is a cell, the others are inside the carry cells."""
        running: list[_Sums | None] = [None] * len(rows_of_stage(0, self._rows))
        for stage, activations in enumerate(delayed):
            for chain, pair in enumerate(rows_of_stage(stage, self._rows)):
                name = f"{columns[0]}_{chain}_{stage}"
                before = running[chain]
                if before is None:
                    values = Signal(data.ArrayLayout(signed(ACTIVATION_BITS), len(columns)), name=f"first_{name}")
                    carries = Signal(len(columns), name=f"first_carries_{name}")
                    for index, column in enumerate(columns):
                        cell = self._cell(m, column, pair[0], activations[pair[0]])
                        m.d.comb += [values[index].eq(cell.addend), carries[index].eq(cell.carry)]
                    before, rest = _Sums(values, carries), pair[1:]
                else:
                    rest = pair
                for row in rest:
                    count = 2 * stage + row % 2 + 1  # products in the sum after this one
                    width = ACTIVATION_BITS + (count - 1).bit_length()
                    before = _Sums(self._product(m, f"{name}_{row}", columns, before.values, row, activations[row], width), before.carries)
                after = _registers(f"running_{name}", len(columns), len(before.values[0]))
                m.d.sync += [after.values.eq(before.values), after.carries.eq(before.carries)]
                running[chain] = after
        return [term for term in running if term is not None]

    def _product(self, m: Module, name: str, columns: range, partial: data.View, row: int, activation: Value, width: int) -> data.View:
        adder = ProductAdder(columns=len(columns), partial_bits=len(partial[0]), sum_bits=width)
        m.submodules[f"product_{name}"] = adder
        m.d.comb += [
            adder.activation.eq(activation), adder.partial.eq(partial),
            adder.trits.eq(Cat(self.trits[column * self._rows + row] for column in columns)),
        ]  # fmt: skip
        return adder.sum

    def _sum(self, m: Module, name: str, left: _Sums, right: _Sums | None) -> _Sums:
        """The registered sum of two terms: the carry of the left one goes in, that of the right one waits. A term without a partner waits as a whole."""
        columns, bits = len(left.carries), len(left.values[0])
        if right is None:
            waiting = _registers(f"sum_{name}", columns, bits + 1)
            m.d.sync += [waiting.values[index].eq(left.values[index]) for index in range(columns)]
            m.d.sync += waiting.carries.eq(left.carries)
            return waiting
        m.submodules[f"pair_{name}"] = adder = PairAdder(columns=columns, bits=bits)
        total = _registers(f"sum_{name}", columns, bits + 1)
        m.d.comb += [adder.left.eq(left.values), adder.right.eq(right.values), adder.carry.eq(left.carries)]
        m.d.sync += [total.values.eq(adder.sum), total.carries.eq(right.carries)]
        return total


def _registers(name: str, columns: int, bits: int) -> _Sums:
    values = Signal(data.ArrayLayout(signed(bits), columns), name=name, reset_less=True)
    return _Sums(values, Signal(columns, name=f"{name}_carries", reset_less=True))
