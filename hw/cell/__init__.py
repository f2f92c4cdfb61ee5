"""The ternary cell, which multiplies an activation by a trit, and the adders that sum what it gives."""

from tritloom.hw.cell.adder import GROUP, AccumulatorAdder, PairAdder, ProductAdder
from tritloom.hw.cell.cell import TRIT_BITS, TernaryCell, cell_formula

__all__ = ["GROUP", "TRIT_BITS", "AccumulatorAdder", "PairAdder", "ProductAdder", "TernaryCell", "cell_formula"]
