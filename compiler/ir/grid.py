"""Operations on integers whose scale is known when the model is compiled: what loops compute beside blocks (:mod:`tritloom.compiler.ir.block`).

Elements have up to 32 bits. Sums, differences, comparisons and logic are all one operation, a sum that is limited: ``a > b`` is ``a - b`` limited to
0..1, ``not a`` is ``1 - a``, ``a and b`` is ``a + b - 1`` limited to 0..1. The rules stand in ``docs/numerics.md`` and in :mod:`tritloom.compiler.golden.grid`.
"""

from dataclasses import dataclass, field

import numpy as np

from tritloom.compiler.ir.vector import GoldenOperation

__all__ = ["FACTOR_BITS", "Align", "ClampedSum", "GridOperation", "Magnitude", "Prepend", "Reduce"]

FACTOR_BITS = 16
"""Bits without sign of a factor of :class:`ClampedSum`; an operand that is multiplied by one other than 1 and -1 is at most ``2**16`` in magnitude."""


@dataclass(frozen=True, kw_only=True)
class GridOperation(GoldenOperation):
    """Base: operations with one result and no scale tensor of it."""


@dataclass(frozen=True, kw_only=True)
class ClampedSum(GridOperation):
    """``clamp(left_factor * left + right_factor * right + constant, low, high)``, element by element; without ``right`` it counts as 0.

    Both operands and the result have one shape. The sum needs at most 48 bits, its limits are those of the result's tensor or narrower.
    """

    left: str
    right: str = ""
    left_factor: int = 1
    right_factor: int = 1
    constant: int = 0
    low: int
    high: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.left, self.right) if name)


@dataclass(frozen=True, kw_only=True)
class Magnitude(GridOperation):
    """``abs(input)``."""

    input: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Reduce(GridOperation):
    """The largest element of the whole tensor, with ``smallest`` the smallest one, as (1, 1, 1)."""

    input: str
    smallest: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Align(GridOperation):
    """A block tensor brought to one scale for all pixels: ``round(value / step)``, half up, limited to 16 bits.

    ``constant`` is the scale (mantissa, exponent) of the input's constant scale over the step of the result.
    """

    input: str
    input_scale: str = ""
    constant: tuple[int, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)


@dataclass(frozen=True, kw_only=True)
class Prepend(GridOperation):
    """``input`` (C, 1, W) behind the constant ``columns`` int16 (C, K): (C, 1, K + W)."""

    input: str
    columns: np.ndarray = field(compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)
