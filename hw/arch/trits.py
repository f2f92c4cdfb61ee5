"""Encodings of trits in memory: ``trit2`` and ``trit5``.

A weight word holds ``rows * columns`` trits; trit ``column * rows + row`` multiplies activation lane ``row`` into
accumulator ``column``.

``trit2``: two bits a trit, bit 0 non-zero, bit 1 negative (0 -> 0b00, +1 -> 0b01, -1 -> 0b11; 0b10 never occurs),
trit ``i`` at bits ``2i`` and ``2i + 1`` of the word, little endian.

``trit5``: byte ``b`` holds trits ``5b .. 5b+4``. The code is the one of the ASTC texture format for five digits in 8 bits (Khronos
Data Format Specification 1.3, section 23.12, "Integer Sequence Encoding"), which needs no arithmetic to decode: a digit 2 is told by
bits that no other digits give. The digits 0, 1, 2 are the trits 0, 1, -1, so that the byte 0 is five zero trits and pads the last byte of a
word. Of the bytes that decode to the same trits the smallest is written.
"""

import numpy as np

__all__ = ["TRIT5_ZERO", "decode_trit2", "decode_trit5", "digit_planes", "encode_trits", "plane_count"]

TRIT5_ZERO = 0

_TRIT_OF_DIGIT = np.array([0, 1, -1], np.int8)


def _digits_of_byte(byte: int) -> tuple[int, int, int, int, int]:
    """Digits 0 to 2 of a ``trit5`` byte, the first trit's first."""
    bit = [byte >> index & 1 for index in range(8)]
    if byte >> 2 & 7 == 7:
        rest, fourth, fifth = byte >> 5 << 2 | byte & 3, 2, 2
    else:
        rest = byte & 31
        fourth, fifth = (bit[7], 2) if byte >> 5 & 3 == 3 else (byte >> 5 & 3, bit[7])
    if rest & 3 == 3:
        first, second, third = rest >> 2 & 3, rest >> 4, 2
    elif rest >> 2 & 3 == 3:
        first, second, third = rest & 3, 2, 2
    else:
        first, second, third = rest & 3, rest >> 2 & 3, rest >> 4
    return (2 if first == 3 else first), second, third, fourth, fifth


_DIGITS = np.array([_digits_of_byte(byte) for byte in range(256)])
_PLACES = 3 ** np.arange(5)
_BYTES = np.zeros(3**5, np.uint8)
_BYTES[(_DIGITS @ _PLACES)[::-1]] = np.arange(256)[::-1]
"""The smallest byte of five digits, by ``sum_k digit_k * 3**k``."""


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
    return _BYTES[padded.reshape(words, -1, 5) % 3 @ _PLACES]


def decode_trit2(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of ``encode_trits(.., "trit2")``: uint8 (words, bytes) to int8 (words, count)."""
    codes = (np.asarray(data, np.uint8)[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    codes = codes.reshape(len(data), -1)[:, :count]
    return np.where(codes & 1, np.where(codes & 2, -1, 1), 0).astype(np.int8)


def decode_trit5(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of ``encode_trits(.., "trit5")``: uint8 (words, bytes) to int8 (words, count)."""
    trits = _TRIT_OF_DIGIT[_DIGITS[np.asarray(data, np.uint8)]]
    return trits.reshape(len(data), -1)[:, :count]
