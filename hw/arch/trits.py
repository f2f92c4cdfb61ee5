"""Encodings of trits in memory: ``trit2`` and ``trit5``.

A weight word holds ``rows * columns`` trits; trit ``column * rows + row`` multiplies activation lane ``row`` into
accumulator ``column``.

``trit2``: two bits a trit, bit 0 non-zero, bit 1 negative (0 -> 0b00, +1 -> 0b01, -1 -> 0b11; 0b10 never occurs),
trit ``i`` at bits ``2i`` and ``2i + 1`` of the word, little endian.

``trit5``: byte ``b`` holds trits ``5b .. 5b+4`` as ``sum_k (t_k + 1) * 3**k``, at most 242. The byte 121 is five
zero trits and pads the last byte of a word. Bytes 243 to 255 never occur and decode like five zero trits.
"""

import numpy as np

__all__ = ["TRIT5_ZERO", "decode_trit2", "decode_trit5", "digit_planes", "encode_trits", "plane_count"]

TRIT5_ZERO = 121

_POWERS = 3 ** np.arange(5)


def plane_count(largest: int) -> int:
    """Digit planes needed for any integer of magnitude ``largest``: ``ceil(log3(2 * largest + 1))``, at least 1."""
    planes = 1
    while (3**planes - 1) // 2 < largest:
        planes += 1
    return planes


def digit_planes(weights: np.ndarray, planes: int) -> np.ndarray:
    """Split integers into balanced ternary digits: ``weights == sum_p 3**p * result[p]``, digits int8 in -1..1.

    Raises :class:`ValueError` when a weight needs more than ``planes`` digits.
    """
    rest = np.asarray(weights, dtype=np.int64)
    digits = np.empty((planes, *rest.shape), dtype=np.int8)
    for plane in range(planes):
        digit = (rest + 1) % 3 - 1
        digits[plane] = digit
        rest = (rest - digit) // 3
    if rest.any():
        raise ValueError(f"weights up to {int(np.abs(weights).max())} do not fit in {planes} digit planes")
    return digits


def encode_trits(trits: np.ndarray, encoding: str) -> np.ndarray:
    """Encode words of trits, int array (words, trits), into bytes, uint8 array (words, bytes)."""
    trits = np.asarray(trits, dtype=np.int64)
    words, count = trits.shape
    if encoding == "trit2":
        codes = np.where(trits == 0, 0, np.where(trits > 0, 1, 3)).astype(np.uint8)
        padded = np.zeros((words, -(-count // 4) * 4), np.uint8)
        padded[:, :count] = codes
        return (padded.reshape(words, -1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2, dtype=np.uint8)
    padded = np.zeros((words, -(-count // 5) * 5), np.int64)
    padded[:, :count] = trits
    return ((padded.reshape(words, -1, 5) + 1) @ _POWERS).astype(np.uint8)


def decode_trit2(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of ``encode_trits(.., "trit2")``: uint8 (words, bytes) to int8 (words, count)."""
    codes = (np.asarray(data, np.uint8)[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    codes = codes.reshape(len(data), -1)[:, :count]
    return np.where(codes & 1, np.where(codes & 2, -1, 1), 0).astype(np.int8)


def decode_trit5(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of ``encode_trits(.., "trit5")``: uint8 (words, bytes) to int8 (words, count)."""
    values = np.where(np.asarray(data) > 242, TRIT5_ZERO, np.asarray(data)).astype(np.int64)
    digits = values[:, :, None] // _POWERS % 3 - 1
    return digits.reshape(len(values), -1)[:, :count].astype(np.int8)
