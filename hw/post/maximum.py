"""Lane-wise signed maximum over a reduction, for maximum pooling."""

import numpy as np
from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS

__all__ = ["LaneMaximum", "maximum_formula"]


def maximum_formula(words: np.ndarray) -> np.ndarray:
    """Maximum of a reduction: int8 (elements, rows) to int8 (rows,)."""
    return np.asarray(words, np.int8).max(axis=0)


class LaneMaximum(wiring.Component):
    """Keeps the largest value of every lane; one word a clock, the result one clock after the word.

    Members
    -------
    word : :py:`In(ArrayLayout(signed(8), rows))`
    valid : :py:`In(1)`
    clear : :py:`In(1)`
        With ``valid``: the word begins a reduction.
    maximum : :py:`Out(ArrayLayout(signed(8), rows))`
    """

    def __init__(self, *, rows: int) -> None:
        self._rows = rows
        layout = data.ArrayLayout(signed(ACTIVATION_BITS), rows)
        super().__init__({"word": In(layout), "valid": In(1), "clear": In(1), "maximum": Out(layout)})

    @property
    def rows(self) -> int:
        return self._rows

    def elaborate(self, platform) -> Module:
        m = Module()
        for lane in range(self._rows):
            with m.If(self.valid & (self.clear | (self.word[lane] > self.maximum[lane]))):
                m.d.sync += self.maximum[lane].eq(self.word[lane])
        return m
