"""Operations that golden defines and that no core has instructions for yet: products of activations, normalisation, Softmax.

Each makes integer accumulators and ends like every other operation in a step function, or in raw 32-bit accumulators at a graph output.
A program that holds one of them cannot be scheduled; :func:`obstacles` says why. The rules, with the width of every intermediate
value, stand in ``docs/numerics.md`` and in :mod:`tritloom.compiler.golden.vector`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tritloom.compiler.ir.program import Operation, Program, StepFunction

__all__ = [
    "NORMALISED_BITS",
    "POWER_BITS",
    "PROBABILITY_BITS",
    "GoldenOperation",
    "MatrixProduct",
    "Normalise",
    "Product",
    "Softmax",
    "VectorOperation",
    "obstacles",
]

NORMALISED_BITS = 16
"""Fraction bits of the accumulators of :class:`Normalise`."""

POWER_BITS = 24
"""Width of the entries of :attr:`Softmax.powers`, unsigned."""

PROBABILITY_BITS = 24
"""Fraction bits of the accumulators of :class:`Softmax`."""


@dataclass(frozen=True, kw_only=True)
class GoldenOperation(Operation):
    """Base of the operations beyond the array and its post unit. ``obstacle`` says what a core lacks, if it cannot run all of them."""

    obstacle: ClassVar[str] = ""

    @property
    def missing(self) -> str:
        """What a core lacks for this one, empty if nothing."""
        return self.obstacle


@dataclass(frozen=True, kw_only=True)
class VectorOperation(GoldenOperation):
    """One that makes accumulators. ``step`` is ``None`` where these are the result; ``acc_low`` and ``acc_high`` bound every one of them."""

    step: StepFunction | None
    acc_low: int
    acc_high: int


@dataclass(frozen=True, kw_only=True)
class Product(VectorOperation):
    """``acc = (left - left_zero) * (right - right_zero)``, element by element, of two tensors of one shape."""

    obstacle: ClassVar[str] = "it has no multiplier for two activations"

    left: str
    right: str
    left_zero: int = 0
    right_zero: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, kw_only=True)
class MatrixProduct(VectorOperation):
    """``acc[n, b, m] = sum_k (left[k, b, m] - left_zero) * (right[k, b, n] - right_zero)``.

    Tensors are (K, B, M) and (K, B, N), the result is (N, B, M): what is summed lies in the channels of both operands, ``b`` counts the
    matrices (the heads of an attention), and the rows of the right operand become the channels of the result.
    """

    obstacle: ClassVar[str] = "its array multiplies activations by constant weights only"

    left: str
    right: str
    left_zero: int = 0
    right_zero: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, kw_only=True)
class Normalise(VectorOperation):
    """Codes divided by their root mean square, or with ``centre`` by their standard deviation after their mean is taken off.

    Normalised together are the channels of one of ``groups`` groups, of each pixel alone, or with ``pixels`` of all pixels.
    ``zero_point`` is taken off the codes first. The accumulator is the result times ``2**16``. ``epsilon``, an integer, is added to
    the variance times ``count**2 * 2**fraction``; it stands for epsilon on the scale of the codes. Scale and bias of the model belong to the step function.
    """

    obstacle: ClassVar[str] = "it has no square root and no division"

    input: str
    groups: int = 1
    pixels: bool = False
    centre: bool = True
    zero_point: int = 0
    epsilon: int = 0
    fraction: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True, kw_only=True)
class Softmax(VectorOperation):
    """Softmax over the channels of each pixel; the accumulator is the probability times ``2**24``.

    ``powers``, int32, holds ``round((2**24 - 1) * exp(-scale * d))`` for every difference ``d`` between the largest code of a pixel and
    another one, from 0 up. Where ``mask``, uint8 (C, H, W), is 0 an element does not take part: its probability is 0. Every pixel has an element that does.
    """

    obstacle: ClassVar[str] = "it has no exponential and no division"

    input: str
    powers: np.ndarray = field(compare=False)
    mask: np.ndarray | None = field(default=None, compare=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


def obstacles(program: Program) -> tuple[str, ...]:
    """One sentence, without its full stop, for each operation of ``program`` that only golden can do, in order; none where a core can run it."""
    return tuple(
        f"layer {operation.name!r} ({type(operation).__name__}) cannot run on a core yet: {operation.missing}"
        for operation in program.walk()
        if isinstance(operation, GoldenOperation) and operation.missing
    )
