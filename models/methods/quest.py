"""QuEST (Panferov and others: arXiv 2502.05003): Hadamard rotation, grids that are best for a Gaussian, gradients only where the grid is trusted.

A row of weights or of activations is rotated in blocks, ``xh = x H`` with ``H`` orthonormal, which makes its elements nearly Gaussian. With
``sigma = sqrt(mean(xh ** 2))`` and ``A = a * sigma`` the ``L`` levels are spread evenly from ``-A`` to ``A``, none of them 0 when ``L`` is even:
``d = 2 A / (L - 1)``, ``value = round(clip(xh, -A, A) / d + 1/2) * d - d/2``, half to even. Because weights and activations are rotated by the same ``H``,
their product needs no rotation back.

``a`` minimises the mean squared error on a normal distribution. The gradient passes where the error is an ordinary rounding error, at most half a step;
with one bit, where ``|xh| <= 1.3 A``. Levels are kept as integers: odd ones from ``-(L - 1)`` to ``L - 1`` in units of ``d / 2``, or -1, 0 and 1 in units of ``A``
for three levels (log2 3 = 1.585 bits). An odd integer of ``b`` bits is a sum of ``b`` planes of -1 and 1, so hardware that adds and subtracts takes it in ``b`` passes.
"""

import math
from typing import TypeVar

import numpy as np

from tritloom.errors import UserError

__all__ = [
    "BLOCK",
    "COEFFICIENTS",
    "ONE_BIT_CLIP",
    "block_size",
    "hadamard",
    "levels",
    "planes",
    "quantise",
    "rotate",
    "trusted",
    "unit_of",
]

COEFFICIENTS = {
    1: 0.7978845587140913,
    1.585: 1.2240089519030855,
    2: 1.4935346200015913,
    3: 2.051068354131873,
    4: 2.513930578568423,
    8: 3.884938678807525,
}
"""``a`` by bits: the half-width of the grid in standard deviations; for one bit ``sqrt(2 / pi)``."""

BLOCK = 128
"""Largest block of the rotation."""

SMALLEST_BLOCK = 16
"""A rotation of fewer elements does not make them Gaussian."""

ONE_BIT_CLIP = 1.30
"""With one bit the gradient passes up to this multiple of ``A``."""

SLACK = 1e-9
"""On the border of the trust region, relative to the half-width of the grid: float arithmetic may put it on either side."""

Array = TypeVar("Array")


def levels(bits: float) -> int:
    """Levels of a grid: 2, 3, 4, 8, 16 or 256. Raises :class:`UserError` for other widths."""
    if bits not in COEFFICIENTS:
        raise UserError(f"QuEST has grids of {', '.join(f'{key:g}' for key in COEFFICIENTS)} bits, not of {bits:g}")
    return 3 if bits == 1.585 else 2 ** int(bits)


def hadamard(size: int) -> np.ndarray:
    """Sylvester's matrix, int8 (size, size) with entries -1 and 1: ``H @ H.T = size * I``. Raises :class:`UserError` unless a power of two."""
    if size < 1 or size & (size - 1):
        raise UserError(f"a Hadamard matrix of this kind has a power of two of rows, not {size}")
    index = np.arange(size)
    parity = np.bitwise_count(index[:, None] & index[None, :]) & 1
    return (1 - 2 * parity.astype(np.int8)).astype(np.int8)


def block_size(features: int) -> int:
    """Block of a rotation of so many features: the largest power of two that divides them, at most 128; 1 (no rotation) if that is below 16."""
    found = min(features & -features, BLOCK)
    return found if found >= SMALLEST_BLOCK else 1


def rotate(x: Array, axis: int = -1) -> Array:
    """``x`` times the block-diagonal orthonormal Hadamard matrix along ``axis``; its own inverse. NumPy or PyTorch, shape and dtype stay."""
    moved = x.swapaxes(axis, -1)  # type: ignore[attr-defined]
    size = block_size(moved.shape[-1])
    if size == 1:
        return x
    matrix = hadamard(size)
    matrix = matrix.astype(x.dtype) if isinstance(x, np.ndarray) else x.new_tensor(matrix)  # type: ignore[attr-defined]
    # Divided last: sums of values on a grid are exact, and a sum of 0, which lies on the border of two levels, stays 0.
    turned = (moved.reshape(*moved.shape[:-1], -1, size) @ matrix) / math.sqrt(size)
    return turned.reshape(moved.shape).swapaxes(axis, -1)


def unit_of(sigma: Array | float, bits: float) -> Array | float:
    """The real value of code 1: half a step of the grid, the whole ``A`` for three levels."""
    return sigma * (COEFFICIENTS[bits] if levels(bits) == 3 else COEFFICIENTS[bits] / (levels(bits) - 1))  # type: ignore[operator, return-value]


def quantise(x: Array, bits: float, unit: Array | float) -> Array:
    """Codes of values that are rotated already.

    Parameters
    ----------
    x
        Float array or tensor, NumPy or PyTorch.
    bits
        A key of :data:`COEFFICIENTS`.
    unit
        From :func:`unit_of`, above 0; broadcast against ``x``.

    Returns
    -------
    Array
        Whole numbers of the kind and dtype of ``x``, odd unless there are three levels; ``codes * unit`` is the value. A tie goes to the level whose step number
        is even; with one bit 0 becomes -1.
    """
    count = levels(bits)
    if count == 3:
        return (x / unit).clip(-1, 1).round()  # type: ignore[operator]
    return ((x / unit).clip(1 - count, count - 1) / 2 + 0.5).round() * 2 - 1  # type: ignore[operator]


def trusted(x: Array, codes: Array, bits: float, unit: Array | float) -> Array:
    """Where the gradient passes: the error is at most half a step, or ``|x| <= 1.3 A`` with one bit. Booleans like ``x``."""
    if bits == 1:
        return abs(x) <= ONE_BIT_CLIP * unit  # type: ignore[arg-type, operator, return-value]
    half_step = unit / 2 if levels(bits) == 3 else unit  # type: ignore[operator]
    return abs(codes * unit - x) <= half_step * (1 + SLACK)  # type: ignore[arg-type, operator, return-value]


def planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Planes of -1 and 1, int8 (bits, ...), least significant first: ``codes = sum(2 ** j * planes[j])``.

    ``codes`` are odd integers from ``1 - 2 ** bits`` to ``2 ** bits - 1``. Raises :class:`UserError` for others.
    """
    whole = np.asarray(codes).astype(np.int64)
    if not np.array_equal(whole, codes) or (whole % 2 == 0).any() or (abs(whole) >= 2**bits).any():
        raise UserError(f"planes are made of odd integers below {2**bits}")
    positive = (whole + 2**bits - 1) // 2
    return np.stack([(positive >> plane & 1) * 2 - 1 for plane in range(bits)]).astype(np.int8)
