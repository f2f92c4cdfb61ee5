"""The function of a VECTOR instruction: what happens to an element on its way through the vector unit.

Sizes are logarithms of bytes: 0, 1 and 2 for elements of 8, 16 and 32 bits with sign at a multiple of their size. In order:

1. ``a`` is read, and ``b`` when :attr:`VectorFunction.second` is FACTOR, ADDEND, SUBTRAHEND or SHIFT. With TABLE ``t`` is the element at ``b + (a << b_size)``, with POWER the
   one at ``b + ((a & 255) << b_size)``.
2. ``x``, 32 bits: ``a`` shifted to the right by register SHIFT when ``shifted`` (with SHIFT as ``second``: by SHIFT - b, 16 bits each), negative to the left, from -16 to 47 places;
   ``t`` with TABLE; ``t >> -(a >> 8)`` with POWER, at most 47 places, none where ``a`` is positive.
3. ``p``, 36 bits: the lower 18 bits of ``x``, signed, times register FACTOR, times the lower 18 bits of ``b`` or of ``x``, or just ``x``.
4. ``q``, 48 bits: the sum of ``p`` over the reduction.
5. ``r = q >> out_shift`` (63: register OUT_SHIFT), rounded half up when ``rounded``, else down; plus ``b`` with ADDEND, minus ``b`` with SUBTRAHEND (then nothing is rounded up); plus register ADDEND when ``addend``.
6. ``r`` is limited to ``low .. 2**bits - 1``, with ``low`` of SYMMETRIC ``-(2**bits - 1)``, TWO ``-2**bits``, ZERO 0.
7. ``r`` is written to ``o``, as many of its lower bits as an element has (``o_size`` 3: it is not), and counts for the ``statistic``: the largest magnitude, the sum (32 bits, wraps), or the
   largest value and the number of the result that had it first, which go to the registers STATISTIC and ARGUMENT.

On a core with ``L`` = ``vector_lanes`` an instruction does this to ``L`` elements at once unless ``lanes`` is ONE; those of register ``a`` and the next ``L - 1`` behind it (with SAME the
one element at ``a`` for all of them), and so for ``b``. With EACH and SAME every lane has a reduction and a result of its own, ``L`` results that follow each other at ``o``, the first one
counted first; with JOINED ``q`` is the sum over the lanes too, and there is one result. An address of ``L`` elements is a multiple of their bytes. ``second`` is
NONE, FACTOR, ADDEND or SUBTRAHEND then, with JOINED NONE or FACTOR.
"""

from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "FUNCTION_BITS",
    "NOT_WRITTEN",
    "OUT_SHIFT_REGISTER",
    "Factor",
    "Lanes",
    "Low",
    "Second",
    "Statistic",
    "VectorFunction",
    "function_fields",
]

FUNCTION_BITS = 32
NOT_WRITTEN = 3
"""``o_size`` of an instruction that writes nothing."""

OUT_SHIFT_REGISTER = 63
"""``out_shift`` of an instruction that takes register OUT_SHIFT."""


class Second(IntEnum):
    NONE = 0
    FACTOR = 1
    ADDEND = 2
    SHIFT = 3
    TABLE = 4
    POWER = 5
    SUBTRAHEND = 6


class Factor(IntEnum):
    ONE = 0
    REGISTER = 1
    ITSELF = 2
    OPERAND = 3


class Low(IntEnum):
    SYMMETRIC = 0
    TWO = 1
    ZERO = 2


class Statistic(IntEnum):
    NONE = 0
    MAGNITUDE = 1
    SUM = 2
    LARGEST = 3


class Lanes(IntEnum):
    ONE = 0
    EACH = 1
    SAME = 2
    JOINED = 3


_IN_LANES = (Second.NONE, Second.FACTOR, Second.ADDEND, Second.SUBTRAHEND)


@dataclass(frozen=True, kw_only=True)
class VectorFunction:
    """Fields in the order of their bits, lowest first."""

    a_size: int = 2
    b_size: int = 2
    o_size: int = 2
    second: Second = Second.NONE
    shifted: bool = False
    factor: Factor = Factor.ONE
    addend: bool = False
    rounded: bool = False
    out_shift: int = 0
    bits: int = 31
    low: Low = Low.TWO
    statistic: Statistic = Statistic.NONE
    lanes: Lanes = Lanes.ONE

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 31:
            raise ValueError(f"vector function: bits must be from 1 to 31, not {self.bits}")
        if self.addend and self.second in (Second.ADDEND, Second.SUBTRAHEND):
            raise ValueError("vector function: there is one addend only")
        if self.rounded and self.second == Second.SUBTRAHEND:
            raise ValueError("vector function: a difference is not rounded")
        if (self.factor == Factor.OPERAND) != (self.second == Second.FACTOR):
            raise ValueError(f"factor {self.factor.name} does not go with second operand {self.second.name}")
        if self.lanes != Lanes.ONE and self.second not in _IN_LANES[: 2 if self.lanes == Lanes.JOINED else 4]:
            raise ValueError(f"lanes {self.lanes.name} do not go with second operand {self.second.name}")

    @property
    def reads(self) -> int:
        """Elements read for each one."""
        return 1 if self.second == Second.NONE else 2

    def encode(self) -> int:
        """Raises :class:`ValueError` for a value that does not fit."""
        value = 0
        for name, (bit, width) in function_fields().items():
            field = int(getattr(self, name))
            if not 0 <= field < 1 << width:
                raise ValueError(f"vector function: {name} must be from 0 to {(1 << width) - 1}, not {field}")
            value |= field << bit
        return value

    @classmethod
    def decode(cls, value: int) -> "VectorFunction":
        """Inverse of :meth:`encode`. Raises :class:`ValueError` for a function that does not exist."""
        fields = {name: value >> bit & (1 << width) - 1 for name, (bit, width) in function_fields().items()}
        kinds = {
            "second": Second,
            "factor": Factor,
            "low": Low,
            "statistic": Statistic,
            "lanes": Lanes,
            "shifted": bool,
            "addend": bool,
            "rounded": bool,
        }
        function = cls(**{name: kinds.get(name, int)(field) for name, field in fields.items()})  # type: ignore[arg-type]
        if function.encode() != value:
            raise ValueError(f"vector function {value:#x} has unknown bits")
        return function


_WIDTHS = {
    "a_size": 2, "b_size": 2, "o_size": 2, "second": 3, "shifted": 1, "factor": 2, "addend": 1, "rounded": 1, "out_shift": 6, "bits": 5, "low": 2,
    "statistic": 2, "lanes": 2,
}  # fmt: skip


def function_fields() -> dict[str, tuple[int, int]]:
    """Lowest bit and width of each field."""
    fields, bit = {}, 0
    for name, width in _WIDTHS.items():
        fields[name] = bit, width
        bit += width
    return fields
