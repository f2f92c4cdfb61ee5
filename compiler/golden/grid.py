"""NumPy meaning of the operations on integers of a fixed scale; every intermediate value has at most 48 bits."""

import numpy as np

from tritloom.compiler.ir.grid import Align, ClampedSum, GridOperation, Magnitude, Prepend, Reduce
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat

__all__ = ["ALIGNED_BITS", "align_block", "run_grid"]

ALIGNED_BITS = 16
"""Bits of the results of :class:`~tritloom.compiler.ir.grid.Align`, with sign."""

_LARGEST_SHIFT = 47


def align_block(values: np.ndarray, scale: tuple[np.ndarray, np.ndarray], constant: tuple[int, int]) -> np.ndarray:
    """``values * scale * constant`` rounded to integers of 16 bits, int64, blocks along axis 1; scales are mantissas and exponents (N, 1, H, W).

    1. ``a`` are the values normalised to 15 bits, ``m * 2**-k`` the product of their scale and ``constant``;
    2. ``floor((a * m + 2**(k - 1)) / 2**k)``, the product 31 bits and sign, limited to 16 bits. With ``k`` below 1 an ``a`` other than 0 lies beyond
       them already, because ``m`` has its highest bit set unless it is 0: the product is limited as it is.
    """
    elements, right = blockfloat.normalise(values, 1)
    factor = blockfloat.scale_product((scale[0], scale[1] + right), (np.array(constant[0], np.int64), np.array(constant[1], np.int64)))
    places = np.clip(-factor[1], 0, _LARGEST_SHIFT)
    steps = (elements * factor[0] + ((np.int64(1) << places) >> 1)) >> places
    limit = 1 << (ALIGNED_BITS - 1)
    return np.clip(steps, -limit, limit - 1)


def run_grid(operation: GridOperation, operands: list[np.ndarray]) -> np.ndarray:
    """The result, int64 (N, C, H, W), of one operation on ``operands`` in the order of its inputs. Raises :class:`ModelError` for one of unknown kind."""
    first = operands[0].astype(np.int64)
    match operation:
        case ClampedSum():
            total = operation.left_factor * first + operation.constant
            if operation.right:
                total = total + operation.right_factor * operands[1].astype(np.int64)
            return np.clip(total, operation.low, operation.high)
        case Magnitude():
            return np.abs(first)
        case Reduce():
            flat = first.reshape(len(first), -1)
            return (flat.min(axis=1) if operation.smallest else flat.max(axis=1)).reshape(-1, 1, 1, 1)
        case Align():
            one = np.array(1 << (blockfloat.MANTISSA_BITS - 1)), np.array(1 - blockfloat.MANTISSA_BITS)
            scale = (operands[1][:, :1].astype(np.int64), operands[1][:, 1:].astype(np.int64)) if operation.input_scale else one
            return align_block(first, scale, operation.constant)
        case Prepend():
            columns = np.broadcast_to(operation.columns.astype(np.int64)[:, None], (len(first), *operation.columns[:, None].shape))
            return np.concatenate([columns, first], axis=3)
        case _:
            raise ModelError(f"operation {operation.name!r} of kind {type(operation).__name__} is not known")
