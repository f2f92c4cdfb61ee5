"""Block floating point: integers that share a scale which is only known at run time. The formulas of the vector operations, in NumPy.

A *scale* is ``mantissa * 2**exponent``: ``mantissa`` an integer of 16 bits whose highest bit is set, ``exponent`` an integer of 16 bits with
sign. The scale of nothing (a block of zeros) is (0, 0), and whatever is multiplied by it is 0. A *block* is what shares a scale, the channels
of a pixel for instance. All functions take int64 arrays and return int64 arrays; every product has two factors of at most 16 bits and sign,
so that one 18-bit multiplier does it, and no intermediate value needs more than 48 bits.

Shifts to the right round towards minus infinity, like those of hardware; rounding to nearest is said where it happens, and is half up.
"""

import math

import numpy as np

__all__ = [
    "BLOCK_BITS", "COSINES", "EXPONENT_STEPS", "MANTISSA_BITS", "POWERS", "add_blocks", "bit_length", "cosine", "normalise", "power_of_two", "quantise_block", "reciprocal", "root_reciprocal",
    "scale_of", "scale_product", "shifted",
]  # fmt: skip

MANTISSA_BITS = 16
BLOCK_BITS = 15
"""Bits without sign of the elements of a normalised block."""

EXPONENT_STEPS = 256
"""Entries of :data:`POWERS`; logarithms have ``log2(256) = 8`` fraction bits."""

LEVELS = 127
"""Largest code of a quantised block."""

_RATIO_BITS = 23


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
    return mantissas, np.where(mantissas > 0, excess + exponents, 0)


def scale_product(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Product of two scales: 32 bits, of which the upper 16 stay."""
    return scale_of(left[0] * right[0], left[1] + right[1])


def reciprocal(scale: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``1 / scale``: ``floor(2**31 / mantissa)``, 17 bits only where the mantissa is ``2**15``; nothing for nothing. One division of 32 by 16 bits."""
    mantissas, exponents = scale
    quotients = np.where(mantissas > 0, (np.int64(1) << 31) // np.maximum(mantissas, 1), 0)
    return scale_of(quotients, -exponents - 31)


def root_reciprocal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``1 / sqrt(values)`` as a scale, of integers that are not negative and below ``2**62``; nothing for 0.

    The value is shifted to 31 or 32 bits by an even number ``2 k``, bits beyond are dropped; ``root = floor(sqrt(.))`` has 16 bits, and the
    result is ``floor(2**31 / root) * 2**(-31 - k)``.
    """
    length = bit_length(values)
    excess = length + (length & 1) - 32
    # Below 2**32 the float64 root of k**2 - 1 is below k by far more than its rounding: cutting it is exact.
    roots = np.sqrt(shifted(values, excess).astype(np.float64)).astype(np.int64)
    return reciprocal((roots, np.where(values > 0, excess >> 1, 0)))


def normalise(values: np.ndarray, axis: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks along ``axis`` shifted so that the largest magnitude has 15 bits, and by how much to the right (the axes stay, with length 1).

    ``values`` are below ``2**47`` in magnitude. An element may become ``-2**15``, as negative ones are rounded down.
    """
    right = bit_length(np.abs(values).max(axis=axis, keepdims=True)) - BLOCK_BITS
    right = np.where(right == -BLOCK_BITS, 0, right)
    return shifted(values, right), right


def quantise_block(values: np.ndarray, axis: int | tuple[int, ...]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Codes -127..127 of blocks along ``axis`` whose largest magnitude becomes 127, and ``largest`` as a scale: ``value = code * largest / 127``.

    1. ``a`` are the values normalised to 15 bits, ``m`` the largest of their magnitudes, ``2**14 .. 2**15``;
    2. ``r = floor(127 * 2**23 / m)``, 16 bits;
    3. ``code = floor((a * r + 2**22) / 2**23)``, clamped to -127..127.

    The codes of a block of zeros are 0, its scale is nothing. BitNet's quantiser of activations (arXiv 2402.17764, section 2), with a ratio of 16 bits.
    """
    elements, right = normalise(values, axis)
    largest = np.abs(values).max(axis=axis, keepdims=True)
    top = np.maximum(shifted(largest, right), 1)
    ratio = (np.int64(LEVELS) << _RATIO_BITS) // top
    codes = np.clip((elements * ratio + (1 << (_RATIO_BITS - 1))) >> _RATIO_BITS, -LEVELS, LEVELS)
    empty = largest == 0
    mantissas, exponents = scale_of(np.where(empty, 0, top), right)
    return np.where(empty, 0, codes), (mantissas, exponents)


def add_blocks(
    left: np.ndarray, left_scale: tuple[np.ndarray, np.ndarray], right: np.ndarray, right_scale: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Sum of two normalised blocks (15 bits and sign) with scales, and the scale of the sum, a power of two.

    Each product of an element and its mantissa (31 bits and sign) is shifted to the larger exponent plus 1 and added: 31 bits and sign.
    """
    there = np.where(left_scale[0] > 0, left_scale[1], right_scale[1]), np.where(right_scale[0] > 0, right_scale[1], left_scale[1])
    exponent = np.maximum(*there) + 1
    total = shifted(left * left_scale[0], exponent - there[0]) + shifted(right * right_scale[0], exponent - there[1])
    empty = (left_scale[0] == 0) & (right_scale[0] == 0)
    return total, (np.where(empty, 0, 1 << (MANTISSA_BITS - 1)), np.where(empty, 0, exponent - (MANTISSA_BITS - 1)))


def cosine(turns: np.ndarray) -> np.ndarray:
    """``cos(2 * pi * turns / 2**16)`` with 14 fraction bits; the sine is that of ``turns - 2**14``.

    ``turns`` are rounded to 12 bits, and a table of a quarter wave, :data:`COSINES`, gives the rest: ``round(2**14 * cos(2 * pi * i / 4096))``.
    """
    place = ((np.asarray(turns) + 8) >> 4) & 4095
    half = np.minimum(place, 4096 - place)
    return np.where(half <= 1024, COSINES[np.minimum(half, 1024)], -COSINES[np.clip(2048 - half, 0, 1024)])


COSINES = np.array([round((1 << 14) * math.cos(2 * math.pi * index / 4096)) for index in range(1025)], np.int64)
"""Quarter wave of :func:`cosine`. No entry lies within 1e-5 of a half, far beyond the rounding of any libm."""


def _power_table() -> np.ndarray:
    """``round(2**15 * 2**(-i / 256))`` for i from 0 to 255, each decided in integers: ``2 * y - 1 <= 2**16 * 2**(-i / 256)``, both sides to the power of 256."""
    entries = []
    for index in range(EXPONENT_STEPS):
        low, high = 1 << 14, 1 << 15
        while low < high:
            middle = (low + high + 1) >> 1
            if (2 * middle - 1) ** EXPONENT_STEPS <= 1 << (16 * EXPONENT_STEPS - index):
                low = middle
            else:
                high = middle - 1
        entries.append(low)
    return np.array(entries, np.int64)


POWERS = _power_table()
"""Table of :func:`power_of_two`, 16 bits an entry."""


def power_of_two(steps: np.ndarray) -> np.ndarray:
    """``2**15 * 2**(-steps / 256)`` for ``steps`` from 0 up: an entry of :data:`POWERS` shifted to the right by whole octaves."""
    return POWERS[steps & (EXPONENT_STEPS - 1)] >> np.minimum(steps >> 8, 16)
