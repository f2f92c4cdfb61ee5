"""What a name of a language model's graph can stand for, the tables of its rules, and what the rules share; see :mod:`tritloom.compiler.frontend.sequence`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import onnx
from onnx import helper

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.hw.arch.blockfloat import MANTISSA_BITS

if TYPE_CHECKING:
    from tritloom.compiler.frontend.sequence import SequenceReader

__all__ = [
    "GAIN_BITS",
    "HANDLERS",
    "PLAIN",
    "SMALL",
    "STEPS",
    "ZERO",
    "Block",
    "Cache",
    "Handler",
    "Integers",
    "Scores",
    "Size",
    "Square",
    "Step",
    "Tokens",
    "Trip",
    "Turning",
    "Value",
    "attribute",
    "integers",
    "last_axis",
    "need_block",
    "operator",
    "same",
    "scale_pair",
    "single",
]

GAIN_BITS = 15
"""Bits without sign of constants that multiply channels."""

SMALL = Fraction(1, 10_000)
"""The largest number that is taken for a guard against a division by zero."""


@dataclass(frozen=True, eq=False)
class Size:
    """A value that depends on the number P of earlier tokens alone."""

    name: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """The input, one token."""


@dataclass(frozen=True, eq=False)
class Block:
    """``index`` has the shape of the ONNX value and holds element numbers of ``tensor``; ``codes`` when the elements are quantised to at most 8 bits."""

    tensor: str
    scale: str
    constant: Fraction
    index: np.ndarray
    codes: bool = False


@dataclass(frozen=True, eq=False)
class Cache:
    """A state whose columns are tokens; ``axes`` name the axes of the ONNX value: ``h`` heads, ``n`` tokens, ``c`` channels, ``1`` others."""

    tensor: str
    scale: str
    constant: Fraction
    shape: tuple[int, int]
    axes: str


@dataclass(frozen=True, eq=False)
class Scores:
    """Queries times keys, times ``factor``; ``weights`` after the Softmax."""

    queries: Block
    keys: Cache
    factor: Fraction
    weights: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """A step of what one operation does and the model writes out in several nodes. Every class of steps has handlers of its own; where steps meet, the higher ``rank`` has its say."""

    rank: ClassVar[int] = 0


@dataclass(frozen=True, eq=False)
class Square(Step):
    """The square of a block, or with ``centre`` of what it differs from its mean, as ``node`` computes it: perhaps on its way into a mean."""

    block: Block
    node: onnx.NodeProto
    centre: bool = False


@dataclass(frozen=True, eq=False)
class Turning(Step):
    """A step of a rotation; see :mod:`tritloom.compiler.frontend.operators_rotation`.

    ``block`` is what is turned or stored, ``angles`` the name of the angles or of their cosine or sine, ``before`` the key of the token before.
    """

    stage: str
    before: Block | None = None
    block: Block | None = None
    angles: str = ""


ZERO = -1
"""Entry of an index that stands for the constant 0."""


@dataclass(frozen=True, eq=False)
class Integers:
    """Integers as the model has them. ``index`` has the shape of the ONNX value and holds element numbers of ``tensor``, or :data:`ZERO`."""

    tensor: str
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Trip:
    """The number of a trip of a loop, counted from 0, plus ``offset``."""

    loop: str
    offset: int
    shape: tuple[int, ...]


Value = np.ndarray | Size | Tokens | Block | Cache | Scores | Step | Integers | Trip

Handler = Callable[["SequenceReader", onnx.NodeProto, list[Any]], Value | tuple[Value | None, ...]]

HANDLERS: dict[str, Handler] = {}
"""The value of a node's output, or of all its outputs, by operator; those of other domains as ``domain.operator``."""

STEPS: dict[type[Step], dict[str, Handler]] = {}
"""The same where an operand is a step."""

PLAIN: dict[type[Step], Callable[["SequenceReader", Any], Block]] = {}
"""What a step is to a node that does not go on with it; there is none for steps that mean nothing by themselves."""


_Handler = TypeVar("_Handler", bound=Handler)


def operator(*names: str, of: tuple[type[Step], ...] = ()) -> Callable[[_Handler], _Handler]:
    """Register a handler of operators, or of the steps ``of``."""

    def register(handler: _Handler) -> _Handler:
        for table in [STEPS.setdefault(kind, {}) for kind in of] or [HANDLERS]:
            table.update(dict.fromkeys(names, handler))
        return handler

    return register


def scale_pair(value: Fraction | float) -> tuple[int, int]:
    """The scale (mantissa, exponent) nearest to a number that is not negative."""
    if not value:
        return 0, 0
    mantissa, exponent = math.frexp(float(value))
    rounded = round(mantissa * (1 << MANTISSA_BITS))
    return (rounded >> 1, exponent + 1 - MANTISSA_BITS) if rounded >> MANTISSA_BITS else (rounded, exponent - MANTISSA_BITS)


def integers(values: np.ndarray, bits: int) -> tuple[np.ndarray, Fraction]:
    """``codes * step`` near ``values``: int16 codes of ``bits`` bits without sign, and a step that is a power of two."""
    largest = float(np.abs(values).max(initial=0))
    step = Fraction(2) ** (math.frexp(largest)[1] - bits)
    codes = np.rint(values.astype(np.float64) / float(step))
    return np.clip(codes, -(1 << bits), (1 << bits) - 1).astype(np.int16), step


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def single(value: Any) -> Fraction | None:
    """A constant of one element."""
    return Fraction(float(value.ravel()[0])) if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu" else None


def need_block(value: Any, what: str) -> Block:
    if not isinstance(value, Block):
        raise RefusalError(f"{what} is not a value that a core computes", "quantise it by the largest magnitude of a token")
    return value


def same(left: Any, right: Any) -> bool:
    """Whether two blocks are the same elements of one tensor."""
    return left is right or (
        isinstance(left, Block)
        and isinstance(right, Block)
        and (left.tensor, left.constant) == (right.tensor, right.constant)
        and np.array_equal(left.index, right.index)
    )


def last_axis(node: onnx.NodeProto, operands: list[Any], dimensions: int) -> bool:
    """Whether a reduction goes over the last axis alone, which stays."""
    axes = operands[1] if len(operands) > 1 else np.array(attribute(node, "axes", []))
    return axes is not None and bool(attribute(node, "keepdims", 1)) and np.array_equal(np.ravel(axes) % dimensions, [dimensions - 1])
