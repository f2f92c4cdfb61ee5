"""One column of the array: a pipelined adder tree of ternary cells and an accumulator."""

from collections.abc import Callable

import numpy as np
from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.cell import TRIT_BITS, TernaryCell

__all__ = ["TernaryTile", "tile_formula", "tile_latency"]


def tile_latency(rows: int) -> int:
    """Clocks from the operands to the clock in which their sum can be added: one for each level of the tree."""
    return (rows - 1).bit_length()


def tile_formula(accumulator: int, activations: np.ndarray, trits: np.ndarray, *, clear: bool, triple: bool, bits: int) -> int:
    """Accumulator after one operation, wrapped to ``bits`` in two's complement; ``activations`` and ``trits`` are int (rows,)."""
    value = 3 * accumulator if triple else (0 if clear else accumulator) + int(np.dot(np.asarray(activations, np.int64), trits))
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


class TernaryTile(wiring.Component):
    """Sum of ``rows`` ternary products, accumulated over clocks.

    The tree has a register behind every adder, so operands of clock ``t`` reach the accumulator's adder in clock
    ``t + tile_latency(rows)``; ``add``, ``clear`` and ``triple`` belong to that clock, and the accumulator shows the result one
    clock later. Level ``l`` is ``8 + l`` bits wide and cannot overflow: the ``rows`` carries of the negative weights enter as the
    carry-ins of the ``rows - 1`` tree adders and of the accumulator's adder, so a partial sum of ``n`` cells holds ``n - 1``
    carries and lies in ``-128 * n .. 128 * n - 1``.

    Parameters
    ----------
    rows : :class:`int`
        Cells, a power of two from 2.
    accumulator_bits : :class:`int`
        Width of the signed accumulator; it wraps.
    cell : callable
        Makes the cell; any component with the ports of :class:`tritloom.hw.cell.TernaryCell` and no latency.

    Members
    -------
    activations : :py:`In(ArrayLayout(signed(8), rows))`
    trits : :py:`In(ArrayLayout(2, rows))`
    add : :py:`In(1)`
        Add the tree's sum to the accumulator.
    clear : :py:`In(1)`
        With ``add``: begin from zero.
    triple : :py:`In(1)`
        Instead of ``add``: multiply the accumulator by three.
    accumulator : :py:`Out(signed(accumulator_bits))`
    """

    def __init__(self, *, rows: int, accumulator_bits: int, cell: Callable[[], wiring.Component] = TernaryCell) -> None:
        if rows < 2 or rows & (rows - 1):
            raise ValueError(f"Rows must be a power of two from 2, not {rows!r}")
        if accumulator_bits < ACTIVATION_BITS + tile_latency(rows):
            raise ValueError(f"Accumulator must have at least {ACTIVATION_BITS + tile_latency(rows)} bits, not {accumulator_bits!r}")
        self._rows, self._bits, self._cell = rows, accumulator_bits, cell
        super().__init__({
            "activations": In(data.ArrayLayout(signed(ACTIVATION_BITS), rows)), "trits": In(data.ArrayLayout(TRIT_BITS, rows)),
            "add": In(1), "clear": In(1), "triple": In(1), "accumulator": Out(signed(accumulator_bits)),
        })  # fmt: skip

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def accumulator_bits(self) -> int:
        return self._bits

    def elaborate(self, platform) -> Module:
        m = Module()
        sums, carries = [], []
        for row in range(self._rows):
            m.submodules[f"cell_{row}"] = cell = self._cell()
            m.d.comb += [cell.activation.eq(self.activations[row]), cell.trit.eq(self.trits[row])]
            sums.append(cell.addend)
            carries.append(cell.carry)
        width = ACTIVATION_BITS
        while len(sums) > 1:
            width += 1
            level, pending = [], []
            for index in range(0, len(sums), 2):
                total = Signal(signed(width), name=f"sum_{width - ACTIVATION_BITS}_{index // 2}", reset_less=True)
                carry = Signal(name=f"carry_{width - ACTIVATION_BITS}_{index // 2}", reset_less=True)
                m.d.sync += [total.eq(sums[index] + sums[index + 1] + carries[index]), carry.eq(carries[index + 1])]
                level.append(total)
                pending.append(carry)
            sums, carries = level, pending
        base, addend = Signal(signed(self._bits)), Signal(signed(self._bits))
        m.d.comb += [
            base.eq(Mux(self.clear, 0, self.accumulator)),
            addend.eq(Mux(self.triple, self.accumulator << 1, sums[0])),
        ]
        with m.If(self.add | self.triple):
            m.d.sync += self.accumulator.eq(base + addend + (carries[0] & ~self.triple))
        return m
