"""The array: the sums of all columns, their accumulators, and the register that hands finished accumulators on."""

import numpy as np
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.arch.reduction import reduction_latency
from tritloom.hw.array.sums import ColumnSums, sum_bits
from tritloom.hw.cell import GROUP, TRIT_BITS, AccumulatorAdder

__all__ = ["MeshCommand", "TernaryMesh", "accumulator_formula", "mesh_latency"]


COLUMNS_PER_COPY = 12
"""Columns that share a register of the command to triple."""


def mesh_latency(rows: int, reduction: str) -> int:
    """Clocks from the activations of a reduction's last element to the clock in which ``drained`` shows its first accumulators."""
    return reduction_latency(rows, reduction) + 1


def accumulator_formula(accumulators: np.ndarray, sums: np.ndarray, *, triple: bool, bits: int) -> np.ndarray:
    """Accumulators (int64, columns) after one operation, wrapped to ``bits`` in two's complement."""
    values = 3 * accumulators if triple else accumulators + sums
    return (values + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


class MeshCommand(data.Struct):
    """What happens with the operands of a clock."""

    add: 1
    """Add their products."""
    triple: 1
    """Multiply the accumulators by three instead."""
    last: 1
    """With ``add``: the accumulators are finished; hand them to the drain register and begin from zero."""


class TernaryMesh(wiring.Component):
    """``columns`` sums that share their activations, an accumulator for each, and a drain register.

    The command of clock ``t`` walks along with the products of the activations of clock ``t``. What it finishes goes from the
    accumulators' adders straight to the drain register, while the accumulators are reset for the next reduction, which may follow at
    once. The drain register shows its first ``lanes`` columns from clock ``t + mesh_latency(rows, reduction)`` on, and the
    next ones in the clock after each ``shift``; a new reduction wins over a shift in the same clock.

    Parameters
    ----------
    rows, columns, accumulator_bits : :class:`int`
        See :class:`tritloom.hw.arch.parameters.CoreParameters`.
    reduction : :class:`str`
        ``tree`` or ``chain``, see :mod:`tritloom.hw.arch.reduction`.
    lanes : :class:`int`
        Accumulators shown at once; divides ``columns``.

    Members
    -------
    activations : :py:`In(ArrayLayout(signed(8), rows))`
    trits : :py:`In(ArrayLayout(2, rows * columns))`
        Those of row ``r`` in clock ``t + row_delay(r, rows, reduction)``, see :class:`ColumnSums`.
    command : :py:`In(MeshCommand)`
    flush : :py:`In(1)`
        Forget every command that is under way, and what has been accumulated.
    shift : :py:`In(1)`
    drained : :py:`Out(ArrayLayout(signed(accumulator_bits), lanes))`
    """

    def __init__(self, *, rows: int, columns: int, accumulator_bits: int, reduction: str = "tree", lanes: int = 1) -> None:
        if accumulator_bits < sum_bits(rows):
            raise ValueError(f"Accumulator must have at least {sum_bits(rows)} bits, not {accumulator_bits!r}")
        if lanes < 1 or columns % lanes:
            raise ValueError(f"Lanes must divide the {columns} columns, not {lanes!r}")
        self._rows, self._columns, self._bits, self._reduction, self._lanes = rows, columns, accumulator_bits, reduction, lanes
        super().__init__({
            "activations": In(data.ArrayLayout(signed(ACTIVATION_BITS), rows)), "trits": In(data.ArrayLayout(TRIT_BITS, rows * columns)),
            "command": In(MeshCommand), "flush": In(1), "shift": In(1), "drained": Out(data.ArrayLayout(signed(accumulator_bits), lanes)),
        })  # fmt: skip

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def columns(self) -> int:
        return self._columns

    @property
    def lanes(self) -> int:
        return self._lanes

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.sums = sums = ColumnSums(rows=self._rows, columns=self._columns, reduction=self._reduction)
        m.d.comb += [sums.activations.eq(self.activations), sums.trits.eq(self.trits)]

        command, latency = self.command, reduction_latency(self._rows, self._reduction)
        for stage in range(latency):
            following = Signal(MeshCommand, name=f"command_{stage + 1}")
            m.d.sync += following.eq(command)
            with m.If(self.flush):
                m.d.sync += following.eq(0)
            command = following
        triples = self._copied_triple(m, latency)

        drain: list[Signal] = [Signal(signed(self._bits), name=f"drain_{column}", reset_less=True) for column in range(self._columns)]
        for first in range(0, self._columns, GROUP):
            columns = range(first, min(first + GROUP, self._columns))
            m.submodules[f"accumulate_{first}"] = adder = AccumulatorAdder(
                columns=len(columns), accumulator_bits=self._bits, sum_bits=sum_bits(self._rows)
            )
            accumulators, triple = (
                Signal.like(adder.accumulator, name=f"accumulators_{first}"),
                triples[first * len(triples) // self._columns],
            )
            m.d.comb += [adder.accumulator.eq(accumulators), adder.triple.eq(triple)]
            with m.If(command.add | triple):
                m.d.sync += accumulators.eq(adder.following)
            with m.If(command.last | self.flush):
                m.d.sync += accumulators.eq(0)
            for index, column in enumerate(columns):
                m.d.comb += [adder.sum[index].eq(sums.sums[column]), adder.carry[index].eq(sums.carries[column])]
                with m.If(command.last):
                    m.d.sync += drain[column].eq(adder.following[index])
                with m.Elif(self.shift):
                    m.d.sync += drain[column].eq(drain[min(column + self._lanes, self._columns - 1)])
        for lane in range(self._lanes):
            m.d.comb += self.drained[lane].eq(drain[lane])
        return m

    def _copied_triple(self, m: Module, latency: int) -> list[Signal]:
        """The command's ``triple`` after ``latency`` clocks, one register for each ``COLUMNS_PER_COPY`` columns (as far as they double).

        The line from it through the accumulators' adders bounds the clock of wide arrays. Synthesis merges registers with equal
        inputs, so of two copies one starts as 1: that triples accumulators which are still zero.
        """
        copies: list = [self.command.triple]
        for stage in range(latency):
            wanted = -(-self._columns // (COLUMNS_PER_COPY << (latency - 1 - stage)))
            registers = [
                Signal(init=index >= len(copies), name=f"triple_{stage + 1}_{index}") for index in range(min(wanted, 2 * len(copies)))
            ]
            for index, register in enumerate(registers):
                m.d.sync += register.eq(copies[index % len(copies)])
                with m.If(self.flush):
                    m.d.sync += register.eq(0)
            copies = registers
        return copies
