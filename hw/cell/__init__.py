"""The ternary cell: multiplies one activation by one trit."""

from tritloom.hw.cell.cell import TRIT_BITS, TernaryCell, cell_formula

__all__ = ["TRIT_BITS", "TernaryCell", "cell_formula"]
