"""Scalar instructions: registers of 32 bits, for addresses, trip counts, and the scales of block floating point.

One program word each: ``opcode`` in bits 7:0, the registers ``target``, ``left`` and ``right`` in bits 12:8, 17:13 and 22:18, bit 23 set where
``immediate`` (bits 63:32) takes the place of register ``right``. ``second`` below is the one or the other. Registers hold 32 bits; they are not
negative numbers where an instruction does not say ``signed``, and results wrap.

Registers from :data:`ARGUMENT` on have a use outside of scalar instructions:

=============  ==  ========================================================================================
ARGUMENT       20  written by VECTOR: the number of the result that is its statistic LARGEST
STATISTIC      21  written by VECTOR: its statistic
STEP_A         22  added to ``a_step`` of the loop behind the ``counted`` one
STEP_B         23  added to ``b_step`` of the loop behind the ``counted`` one
SHIFT          24  places by which VECTOR shifts operand A to the right, 16 bits, signed
FACTOR         25  the factor of VECTOR, 18 bits, signed
OUT_SHIFT      26  places by which VECTOR shifts its results to the right, 0 to 63
ADDEND         27  added by VECTOR to its results, signed
INDEX_A        28  added to ``a`` of an instruction with ``index_a``
INDEX_B        29  added to ``b`` of an instruction with ``index_b``
INDEX_O        30  added to ``o`` of an instruction with ``index_o``
COUNT          31  iterations minus one of the loops of a ``counted`` instruction whose ``last`` is 65535
=============  ==  ========================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from math import isqrt

__all__ = [
    "ADDEND", "ARGUMENT", "COUNT", "FACTOR", "GENERAL_REGISTERS", "INDEX_A", "INDEX_B", "INDEX_O", "MEANING", "OUT_SHIFT", "REGISTERS", "REGISTER_BITS", "SHIFT",
    "STATISTIC", "STEP_A", "STEP_B", "Condition", "Scalar", "ScalarOpcode", "arithmetic", "as_signed", "condition_holds",
]  # fmt: skip

REGISTERS = 32
REGISTER_BITS = 32
GENERAL_REGISTERS = 20
ARGUMENT, STATISTIC, STEP_A, STEP_B, SHIFT, FACTOR, OUT_SHIFT, ADDEND, INDEX_A, INDEX_B, INDEX_O, COUNT = range(
    GENERAL_REGISTERS, REGISTERS
)

_MASK = (1 << REGISTER_BITS) - 1


class ScalarOpcode(IntEnum):
    """What is done: :data:`MEANING`."""

    SET = 0x80
    ADD = 0x81
    SUBTRACT = 0x82
    MULTIPLY = 0x83
    SHIFT_RIGHT = 0x84
    LENGTH = 0x85
    MINIMUM = 0x86
    MAXIMUM = 0x87
    KEEP = 0x88
    DIVIDE = 0x89
    ROOT = 0x8A
    LOAD = 0x8B
    STORE = 0x8C
    BRANCH = 0x90


MEANING = {
    ScalarOpcode.SET: "``second``",
    ScalarOpcode.ADD: "``left + second``",
    ScalarOpcode.SUBTRACT: "``second - left``",
    ScalarOpcode.MULTIPLY: "the product of the lower 16 bits of ``left`` and ``second``",
    ScalarOpcode.SHIFT_RIGHT: "``left`` shifted to the right by ``second`` (signed, negative is to the left) places; 0 from 32 places on",
    ScalarOpcode.LENGTH: "the number of bits of ``left`` minus ``second``",
    ScalarOpcode.MINIMUM: "the smaller one of ``left`` and ``second``, both signed",
    ScalarOpcode.MAXIMUM: "the larger one of ``left`` and ``second``, both signed",
    ScalarOpcode.KEEP: "``second`` where ``left`` is not 0, else 0",
    ScalarOpcode.DIVIDE: "``second / left`` rounded down; 2**32 - 1 where ``left`` is 0",
    ScalarOpcode.ROOT: "the square root of ``left`` rounded down",
    ScalarOpcode.LOAD: "the four bytes of the activation memory at byte ``left + second``, a multiple of 4",
    ScalarOpcode.STORE: "nothing: register ``target`` is written to the four bytes at byte ``left + second``, a multiple of 4",
    ScalarOpcode.BRANCH: "nothing: if ``left`` meets the condition of number ``target``, the program goes on at word ``second``",
}
"""What ``target`` becomes."""


class Condition(IntEnum):
    """When a BRANCH is taken; ``left`` is signed."""

    ALWAYS = 0
    ZERO = 1
    NOT_ZERO = 2
    NEGATIVE = 3
    NOT_NEGATIVE = 4


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One scalar instruction. ``right`` is ``None`` where ``immediate`` is used. ``trips`` above 0, of a BRANCH back, is how often the instructions from its
    destination to itself run one time after the other: a promise of who wrote the program, for counting clocks; it is not encoded."""

    opcode: ScalarOpcode
    target: int = 0
    left: int = 0
    right: int | None = None
    immediate: int = 0
    trips: int = field(default=0, compare=False)

    @property
    def words(self) -> int:
        """Length in program memory, in program words."""
        return 1

    def encode(self) -> int:
        """The program word. Raises :class:`ValueError` for a register or an immediate that does not exist."""
        for name, register in (("target", self.target), ("left", self.left), ("right", self.right or 0)):
            if not 0 <= register < REGISTERS:
                raise ValueError(f"{self.opcode.name}: register {name} must be from 0 to {REGISTERS - 1}, not {register}")
        if not -(1 << 31) <= self.immediate <= _MASK:
            raise ValueError(f"{self.opcode.name}: immediate must have 32 bits, not {self.immediate}")
        if self.right is not None and self.immediate:
            raise ValueError(f"{self.opcode.name}: has both a register and an immediate")
        registers = self.target << 8 | self.left << 13 | (self.right or 0) << 18
        return int(self.opcode) | registers | (self.right is None) << 23 | (self.immediate & _MASK) << 32

    @classmethod
    def decode(cls, word: int) -> "Scalar":
        """Inverse of :meth:`encode`; immediates are signed. Raises :class:`ValueError` for a word that is no scalar instruction."""
        opcode = ScalarOpcode(word & 0xFF)
        by_register = not word >> 23 & 1
        return cls(
            opcode=opcode,
            target=word >> 8 & 31,
            left=word >> 13 & 31,
            right=word >> 18 & 31 if by_register else None,
            immediate=0 if by_register else as_signed(word >> 32),
        )


def as_signed(value: int) -> int:
    """A register's 32 bits as a number with sign."""
    value &= _MASK
    return value - (1 << REGISTER_BITS) if value >> (REGISTER_BITS - 1) else value


def _shifted(left: int, second: int) -> int:
    places = as_signed(second)
    if abs(places) >= REGISTER_BITS:
        return 0
    return left >> places if places >= 0 else left << -places


_ARITHMETIC: dict[ScalarOpcode, Callable[[int, int], int]] = {
    ScalarOpcode.SET: lambda left, second: second,
    ScalarOpcode.ADD: lambda left, second: left + second,
    ScalarOpcode.SUBTRACT: lambda left, second: second - left,
    ScalarOpcode.MULTIPLY: lambda left, second: (left & 0xFFFF) * (second & 0xFFFF),
    ScalarOpcode.SHIFT_RIGHT: _shifted,
    ScalarOpcode.LENGTH: lambda left, second: left.bit_length() - second,
    ScalarOpcode.MINIMUM: lambda left, second: min(as_signed(left), as_signed(second)),
    ScalarOpcode.MAXIMUM: lambda left, second: max(as_signed(left), as_signed(second)),
    ScalarOpcode.KEEP: lambda left, second: second if left else 0,
    ScalarOpcode.DIVIDE: lambda left, second: second // left if left else _MASK,
    ScalarOpcode.ROOT: lambda left, second: isqrt(left),
}


def arithmetic(opcode: ScalarOpcode, left: int, second: int) -> int:
    """What ``target`` becomes, of operands from 0 to ``2**32 - 1``, in the same range; not for LOAD, STORE and BRANCH."""
    return _ARITHMETIC[opcode](left, second) & _MASK


def condition_holds(condition: Condition, value: int) -> bool:
    """Whether a register's value meets a condition."""
    return {
        Condition.ALWAYS: True,
        Condition.ZERO: value == 0,
        Condition.NOT_ZERO: value != 0,
        Condition.NEGATIVE: as_signed(value) < 0,
        Condition.NOT_NEGATIVE: as_signed(value) >= 0,
    }[condition]
