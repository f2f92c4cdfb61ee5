"""NumPy meaning of QuEST's operations on blocks, built of the formulas of :mod:`tritloom.hw.arch.blockfloat`.

All take and return int64; every product has factors of at most 16 bits and sign.
"""

import numpy as np

from tritloom.hw.arch import blockfloat

__all__ = ["hadamard", "quantise_by_deviation"]


def hadamard(values: np.ndarray, size: int) -> np.ndarray:
    """Blocks of ``size`` channels of (N, C, H, W), integers, times Sylvester's matrix: ``out[i] = sum_j (-1) ** bits(i & j) * values[j]``, ``bits`` the number of ones.

    ``log2(size)`` passes of sums and differences of pairs, one bit more each; exact.
    """
    samples, channels, *pixels = values.shape
    stride, result = 1, values
    while stride < size:
        pairs = result.reshape(samples, channels // (2 * stride), 2, stride, *pixels)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        result = np.stack([first + second, first - second], axis=2).reshape(values.shape)
        stride *= 2
    return result


def quantise_by_deviation(
    values: np.ndarray, levels: int, ratio: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Codes of blocks (N, C, H, W) along the channels, and the root of the sum of their squares as a scale.

    1. ``a`` are the values normalised to 15 bits, ``u`` the sum of their squares, without its lowest bits where it has more than 31, as a scale;
    2. ``r = ratio / sqrt(u)`` as a scale, so that ``t = a * r`` counts in distances of two levels; the product has 31 bits and sign;
    3. ``code = floor(t + 1/2)`` for an odd number of levels, ``2 * ceil(t) - 1`` for an even one, clamped to the outermost levels;
    4. the scale is ``u * (1 / sqrt(u))``, of a block of zeros (0, :data:`tritloom.hw.arch.blockfloat.NOTHING`).

    A tie at 0 between -1 and 1 is -1, as with ``round(t + 1/2)`` to even; so the codes of a block of zeros are -1 where the levels are even.
    """
    elements, right = blockfloat.normalise(values, 1)
    dropped = blockfloat.norm_shift(values.shape[1])
    power = blockfloat.scale_of((elements * elements).sum(axis=1, keepdims=True) >> dropped, dropped)
    root = blockfloat.root_reciprocal(power)
    mantissa, exponent = blockfloat.scale_product(root, ratio)
    places = np.clip(-exponent, 1, 62)
    if levels % 2:
        codes = np.clip((elements * mantissa + (np.int64(1) << (places - 1))) >> places, -(levels // 2), levels // 2)
    else:
        codes = np.clip(-2 * ((-elements * mantissa) >> places) - 1, 1 - levels, levels - 1)
    deviation = blockfloat.scale_product(power, root)
    return codes, (deviation[0], np.where(power[0] > 0, deviation[1] + right, blockfloat.NOTHING))
