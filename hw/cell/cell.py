"""Portable ternary cell: add, subtract or skip an activation."""

import numpy as np
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS

__all__ = ["TRIT_BITS", "TernaryCell", "cell_formula"]

TRIT_BITS = 2
"""Bits of a trit code: bit 0 non-zero, bit 1 negative; 0b10 never occurs (:mod:`tritloom.hw.arch.trits`)."""


def cell_formula(activation: np.ndarray, trit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Addend and carry of the cell for activations and trits (-1, 0, 1) of one shape; ``addend + carry == trit * activation``."""
    activation, trit = np.asarray(activation), np.asarray(trit)
    return np.where(trit == 0, 0, np.where(trit < 0, ~activation, activation)), (trit < 0).astype(np.int64)


class TernaryCell(wiring.Component):
    """``addend + carry == trit * activation``, combinational.

    A negative weight gives the one's complement of the activation; the missing 1 is ``carry``, which the adder tree takes as the
    carry-in of an adder that it has anyway. So the cell costs one 4-input table a bit, and no sum needs a bit more.

    Members
    -------
    activation : :py:`In(signed(8))`
    trit : :py:`In(2)`
        Code of the weight.
    addend : :py:`Out(signed(8))`
    carry : :py:`Out(1)`
    """

    def __init__(self) -> None:
        super().__init__({
            "activation": In(signed(ACTIVATION_BITS)), "trit": In(TRIT_BITS),
            "addend": Out(signed(ACTIVATION_BITS)), "carry": Out(1),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        nonzero, negative = self.trit
        inverted = self.activation ^ negative.replicate(ACTIVATION_BITS)
        m.d.comb += [self.addend.eq(inverted & nonzero.replicate(ACTIVATION_BITS)), self.carry.eq(negative)]
        return m
