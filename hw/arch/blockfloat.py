"""Block floating point: integers that share a scale which is only known at run time. The formulas of the vector operations, in NumPy.

A *scale* is ``mantissa * 2**exponent``: ``mantissa`` an integer of 16 bits whose highest bit is set, ``exponent`` an integer of 16 bits with
sign. The scale of a quantised block of zeros is (0, :data:`NOTHING` + exponent of its input's scale), below every other one, so that it decides no common exponent. A *block* is what shares a scale, the channels
of a pixel for instance. Zeros need no rules of their own elsewhere: what the formulas give for them has no effect. All functions take int64 arrays and return int64 arrays; every product has two factors of at most 16 bits and sign,
so that one 18-bit multiplier does it, and no intermediate value needs more than 48 bits.

Shifts to the right round towards minus infinity, like those of hardware; rounding to nearest is said where it happens, and is half up.
"""

import math

import numpy as np

__all__ = [
    "BLOCK_BITS", "COSINES", "CURVE_BITS", "EXPONENT_STEPS", "LEVELS", "MANTISSA_BITS", "NOTHING", "POWERS", "RANDOM_MULTIPLIER", "RATIO_BITS", "add_blocks", "bit_length", "cosine", "mixing_shift", "norm_shift", "normalise", "power_of_two", "quantise_block", "reciprocal", "root_reciprocal",
    "scale_of", "scale_product", "scale_sum", "shifted",
]  # fmt: skip

MANTISSA_BITS = 16
BLOCK_BITS = 15
"""Bits without sign of the elements of a normalised block."""

EXPONENT_STEPS = 256
"""Entries of :data:`POWERS`; logarithms have ``log2(256) = 8`` fraction bits."""

RANDOM_MULTIPLIER = 36969
"""Of the generator of random numbers: ``state = 36969 * (state mod 2**16) + state div 2**16`` (multiply with carry, G. Marsaglia, "Diehard", 1995)."""

NOTHING = -(1 << 14)
"""Exponent of the scale of a block of zeros."""

CURVE_BITS = 6
"""Fraction bits of the values that index a table of a curve."""

LEVELS = 127
"""Largest code of a quantised block."""

RATIO_BITS = 23
"""Fraction bits of the factor of a quantised block."""


def bit_length(values: np.ndarray) -> np.ndarray:
    """Number of bits of integers that are not negative, int64; 0 for 0."""
    rest, length = np.asarray(values).astype(np.int64), np.zeros(np.shape(values), np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        wide = rest >> step > 0
        length += np.where(wide, step, 0)
        rest = np.where(wide, rest >> step, rest)
    return length + (rest > 0)


def shifted(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``values`` shifted to the right, where ``right`` is negative to the left; beyond 62 places nothing but the sign is left."""
    right = np.asarray(right)
    return np.where(right >= 0, values >> np.clip(right, 0, 62), values << np.clip(-right, 0, 62))


def scale_of(values: np.ndarray, exponents: np.ndarray | int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The scale ``values * 2**exponents``; of a value with more than 16 bits the lower ones are dropped. ``values`` are not negative, below ``2**62``."""
    excess = bit_length(values) - MANTISSA_BITS
    mantissas = shifted(values, excess)
    return mantissas, excess + exponents


def scale_product(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Product of two scales: 32 bits, of which the upper 16 stay."""
    return scale_of(left[0] * right[0], left[1] + right[1])


def reciprocal(scale: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``1 / scale``: ``floor(2**31 / mantissa)``, 17 bits only where the mantissa is ``2**15``, and ``2**32 - 1`` where it is 0. One division of 32 by 16 bits."""
    mantissas, exponents = scale
    quotients = np.where(mantissas > 0, (np.int64(1) << 31) // np.maximum(mantissas, 1), (1 << 32) - 1)
    return scale_of(quotients, -exponents - 31)


def scale_sum(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of two scales, at the larger exponent: 17 bits, of which the upper 16 stay."""
    exponent = np.maximum(left[1], right[1])
    return scale_of(shifted(left[0], exponent - left[1]) + shifted(right[0], exponent - right[1]), exponent)


def root_reciprocal(scale: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``1 / sqrt(scale)``.

    The mantissa is shifted to the left by 16 places, by 15 where the exponent is odd, so that the rest of the exponent is even, ``2 k``;
    ``root = floor(sqrt(.))`` has 16 bits, and the result is ``floor(2**31 / root) * 2**(-31 - k)``.
    """
    mantissas, exponents = scale
    odd = exponents & 1
    # Below 2**32 the float64 root of k**2 - 1 is below k by far more than its rounding: cutting it is exact.
    roots = np.sqrt((mantissas << (16 - odd)).astype(np.float64)).astype(np.int64)
    return reciprocal((roots, (exponents >> 1) - 8 + odd))


def normalise(values: np.ndarray, axis: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks along ``axis`` shifted so that the largest magnitude has 15 bits, and by how much to the right (the axes stay, with length 1).

    ``values`` are below ``2**47`` in magnitude. An element may become ``-2**15``, as negative ones are rounded down.
    """
    right = bit_length(np.abs(values).max(axis=axis, keepdims=True)) - BLOCK_BITS
    return shifted(values, right), right


def quantise_block(values: np.ndarray, axis: int | tuple[int, ...]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Codes -127..127 of blocks along ``axis`` whose largest magnitude becomes 127, and ``largest`` as a scale: ``value = code * largest / 127``.

    1. ``a`` are the values normalised to 15 bits, ``m`` the largest of their magnitudes, ``2**14 .. 2**15``;
    2. ``r = floor(127 * 2**23 / m)``, 16 bits;
    3. ``code = floor((a * r + 2**22) / 2**23)``, clamped to -127..127.

    The codes of a block of zeros are 0, and the exponent of its scale is :data:`NOTHING`. BitNet's quantiser of activations (arXiv 2402.17764, section 2), with a ratio of 16 bits.
    """
    elements, right = normalise(values, axis)
    top = shifted(np.abs(values).max(axis=axis, keepdims=True), right)
    ratio = (np.int64(LEVELS) << RATIO_BITS) // np.maximum(top, 1)
    codes = np.clip((elements * ratio + (1 << (RATIO_BITS - 1))) >> RATIO_BITS, -LEVELS, LEVELS)
    mantissas, exponents = scale_of(top, right)
    return codes, (mantissas, np.where(top > 0, exponents, NOTHING))


def add_blocks(
    left: np.ndarray, left_scale: tuple[np.ndarray, np.ndarray], right: np.ndarray, right_scale: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Sum of two normalised blocks (15 bits and sign) with scales, and the scale of the sum, a power of two.

    Each product of an element and its mantissa (31 bits and sign) is shifted to the larger exponent plus 1 and added: 31 bits and sign.
    """
    exponent = np.maximum(left_scale[1], right_scale[1]) + 1
    total = shifted(left * left_scale[0], exponent - left_scale[1]) + shifted(right * right_scale[0], exponent - right_scale[1])
    return total, (np.full_like(exponent, 1 << (MANTISSA_BITS - 1)), exponent - (MANTISSA_BITS - 1))


def cosine(turns: np.ndarray) -> np.ndarray:
    """``cos(2 * pi * turns / 2**16)`` with 14 fraction bits; the sine is that of ``turns - 2**14``.

    ``turns`` are rounded to 12 bits, and a table of a quarter wave, :data:`COSINES`, gives the rest: ``round(2**14 * cos(2 * pi * i / 4096))``.
    """
    place = ((np.asarray(turns) + 8) >> 4) & 4095
    half = np.minimum(place, 4096 - place)
    return np.where(half <= 1024, COSINES[np.minimum(half, 1024)], -COSINES[np.clip(2048 - half, 0, 1024)])


COSINES = np.array([round((1 << 14) * math.cos(2 * math.pi * index / 4096)) for index in range(1025)], np.int64)
"""Quarter wave of :func:`cosine`. No entry lies within 1e-5 of a half, far beyond the rounding of any libm."""


def norm_shift(channels: int) -> int:
    """Lowest bits of a sum of squares of 15 bits that are dropped, so that 31 stay."""
    return max(0, (channels - 1).bit_length() - 1)


def mixing_shift(columns: int) -> int:
    """Lowest bits of the weighted sum of values that are dropped, so that 31 stay."""
    return max(0, (columns - 1).bit_length() - 9)


def _power_table() -> np.ndarray:
    """``round(2**15 * 2**(i / 256))`` for i from 0 to 255, each decided in integers: ``2 * y - 1 <= 2**16 * 2**(i / 256)``, both sides to the power of 256."""
    entries = []
    for index in range(EXPONENT_STEPS):
        low, high = 1 << 15, 1 << 16
        while low < high:
            middle = (low + high + 1) >> 1
            if (2 * middle - 1) ** EXPONENT_STEPS <= 1 << (16 * EXPONENT_STEPS + index):
                low = middle
            else:
                high = middle - 1
        entries.append(low)
    return np.array(entries, np.int64)


POWERS = _power_table()
"""Table of :func:`power_of_two`, 17 bits an entry with its sign."""


def power_of_two(steps: np.ndarray) -> np.ndarray:
    """``2**15 * 2**(steps / 256)`` for ``steps`` from 0 down: an entry of :data:`POWERS` shifted to the right by whole octaves."""
    return POWERS[steps & (EXPONENT_STEPS - 1)] >> np.minimum(-(steps >> 8), 47)
