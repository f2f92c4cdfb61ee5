"""Requantisation records: how the post unit turns an accumulator into an 8-bit code.

A step function is a list of pieces. The post unit takes the last piece whose ``start`` is not above the accumulator
(the first piece always applies) and computes ``v = multiplier * acc + bias``, then ``v >> shift`` (arithmetic, that is
floor), or with ``half_even`` ``(v + 2**(shift-1) - 1 + bit shift of v) >> shift`` (ties to the even result), then clamps
to the instruction's bounds. Rounding half up is floor with ``2**(shift-1)`` in the bias. Thresholds are pieces with
multiplier 0. Of ``start`` as many low bits are compared as the accumulator has.

For a sum of two tensors there are exactly two records a channel and no choice: ``v = m0 * a + bias0 + m1 * b``; shift and
half_even come from the first record.

A record is one 128-bit word, little endian; a word of the record memory holds one for each lane of the post unit, lane 0 first:

====== ====== ==================================
bits   width  field
====== ====== ==================================
0      32     start, signed
32     25     multiplier, signed
57     56     bias, signed
113    6      shift, 0 to 55
119    1      half_even
120    8      zero
====== ====== ==================================
"""

from dataclasses import dataclass

__all__ = ["BIAS_BITS", "HALF_EVEN_BITS", "MULTIPLIER_BITS", "RECORD_BYTES", "Record", "SHIFT_BITS", "START_BITS", "START_MIN", "evaluate"]

START_BITS, MULTIPLIER_BITS, BIAS_BITS, SHIFT_BITS, HALF_EVEN_BITS = 32, 25, 56, 6, 1
RECORD_BYTES = 16
START_MIN = -(1 << (START_BITS - 1))
MAX_SHIFT = 55


@dataclass(frozen=True)
class Record:
    """One piece of a step function; see the module's text for the meaning of the fields."""

    start: int
    multiplier: int
    bias: int
    shift: int
    half_even: bool = False

    def __post_init__(self) -> None:
        for name, width in (("start", START_BITS), ("multiplier", MULTIPLIER_BITS), ("bias", BIAS_BITS)):
            value = getattr(self, name)
            if not -(1 << (width - 1)) <= value < 1 << (width - 1):
                raise ValueError(f"record {name} must fit in {width} signed bits, not {value}")
        if not 0 <= self.shift <= MAX_SHIFT:
            raise ValueError(f"record shift must be from 0 to {MAX_SHIFT}, not {self.shift}")

    def to_bytes(self) -> bytes:
        word, position = 0, 0
        for value, width in ((self.start, START_BITS), (self.multiplier, MULTIPLIER_BITS), (self.bias, BIAS_BITS),
                             (self.shift, SHIFT_BITS), (int(self.half_even), HALF_EVEN_BITS)):  # fmt: skip
            word |= (value & ((1 << width) - 1)) << position
            position += width
        return word.to_bytes(RECORD_BYTES, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        word, position, fields = int.from_bytes(data, "little"), 0, []
        for width, signed in ((START_BITS, True), (MULTIPLIER_BITS, True), (BIAS_BITS, True), (SHIFT_BITS, False), (HALF_EVEN_BITS, False)):
            value = (word >> position) & ((1 << width) - 1)
            fields.append(value - (1 << width) if signed and value >> (width - 1) else value)
            position += width
        return cls(*fields[:4], half_even=bool(fields[4]))


def shift_round(value: int, shift: int, half_even: bool) -> int:
    """``value / 2**shift`` rounded by floor, or half to even."""
    if half_even and shift > 0:
        value += (1 << (shift - 1)) - 1 + ((value >> shift) & 1)
    return value >> shift


def evaluate(records: list[Record], acc: int, low: int, high: int) -> int:
    """Exact meaning of a step function on one accumulator value, in Python integers."""
    chosen = records[0]
    for record in records[1:]:
        if acc >= record.start:
            chosen = record
    return min(max(shift_round(chosen.multiplier * acc + chosen.bias, chosen.shift, chosen.half_even), low), high)
