"""The state of a value while the graph is executed symbolically.

A value is a :class:`Constant`, or a :class:`Value`: elements of a *base* (integers that exist or are about to be made), picked by a
*view*, each taken through a *chain* of exact elementwise steps. Shape operators change the view and cost nothing.
Everything is analysed for a batch of one; axis 0 of a graph input or output is the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.rounding import Rounding
from tritloom.compiler.ir.program import HostOp, Tensor
from tritloom.compiler.quantize.chain import compose, entry, is_curved
from tritloom.compiler.quantize.curves import rises
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step

if TYPE_CHECKING:
    from tritloom.compiler.frontend.builder import Builder

__all__ = [
    "LARGEST_ACTIVATION", "LARGEST_BATCH", "Base", "Codes", "Constant", "Grid", "Operand", "Pending", "Source", "Tail", "Unknown", "Value", "affine_of", "canonical_shape", "channels_of", "check_size",
    "direction", "dequantising", "exact_values", "fractions", "identity_view", "moves_only",
    "take_channels",
]  # fmt: skip

Shape = tuple[int, int, int]

LARGEST_ACTIVATION = 1 << 24
"""Elements of the largest activation; a damaged size must not ask for all memory."""

LARGEST_BATCH = 1 << 20
"""Largest declared batch; samples are computed one by one whatever it is."""


@dataclass(frozen=True)
class Grid:
    """Where a constant came out of a quantiser: ``array == codes * scale`` exactly, arrays of the constant's shape.

    ``blocked`` when the scales are those of blocks: weights on unlike scales are then never approximated.
    """

    codes: np.ndarray
    scale: np.ndarray
    blocked: bool = False


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the input, as the float graph has it, with its grid where one is known."""

    array: np.ndarray
    grid: Grid | None = None

    def moved(self, movement: Callable[[np.ndarray], np.ndarray]) -> "Constant":
        grid = None if self.grid is None else replace(self.grid, codes=movement(self.grid.codes), scale=movement(self.grid.scale))
        return Constant(movement(self.array), grid)


@dataclass(frozen=True)
class Unknown:
    """Result of a node that was refused, or of one that depends on such a node."""


@dataclass(eq=False, kw_only=True)
class Base:
    """Elements (channels, height, width) that a view picks from."""

    shape: Shape

    @property
    def pixels(self) -> int:
        return self.shape[1] * self.shape[2]

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """Bounds of an element where it is an integer of known range."""
        return None, None


@dataclass(eq=False, kw_only=True)
class Source(Base):
    """A graph input, in its own element order."""

    name: str
    declared: tuple[int | str, ...]
    dtype: np.dtype

    @property
    def reach(self) -> tuple[int | None, int | None]:
        if self.dtype.kind not in "iu":
            return None, None
        return int(np.iinfo(self.dtype).min), int(np.iinfo(self.dtype).max)


@dataclass(eq=False, kw_only=True)
class Codes(Base):
    """An integer tensor of the program. ``origin`` is the value that was quantised to it, where that starts from other codes."""

    tensor: Tensor
    origin: "Value | None" = None

    @property
    def reach(self) -> tuple[int | None, int | None]:
        return self.tensor.low, self.tensor.high


@dataclass(eq=False, kw_only=True)
class Pending(Base):
    """An operation whose integers are not yet codes: :meth:`finish` emits it with the step function of chain and quantiser."""

    label: str
    from_integers: ClassVar[bool] = False
    """Whether chains start at the integers of :meth:`raw`, and not at the real values that these stand for."""

    def finish(self, builder: "Builder", chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        raise NotImplementedError

    def raw(self, builder: "Builder", name: str) -> Tensor | None:
        """Emit the operation with its 32-bit result, or ``None`` where there is no such form."""
        return None

    def codes(self, builder: "Builder", value: "Value") -> "Value | None":
        """``value``, which starts from this base, as codes without a new quantiser; ``None`` where one is needed."""
        return None


@dataclass(eq=False, kw_only=True)
class Tail(Base):
    """A float result that only the host computes (Softmax, Sigmoid, ArgMax); ``inner`` is what it starts from."""

    inner: "Value"
    operator: str


@dataclass(eq=False, kw_only=True)
class Value:
    """Elements of ``base``.

    ``view`` has the value's ONNX shape (batch of one included) and holds flat element numbers of the base. ``chain`` leads from a
    base element to the real value, with one entry or one a base channel; ``None`` when no chain can say it. ``trail`` are
    the same steps as the host would do them, from the base elements picked by ``start``; ``None`` when the host cannot
    (the batch axis was moved). The first ``head`` of them only turn integers into reals. ``witness`` names the ONNX value that ``start`` stands for. A value with a ``quantiser`` is what
    comes out of it, chain and trail lead to its input; with ``integer`` it is the code before ``quantiser.offset`` and not
    the real value that the code stands for. With a ``rounding`` the chain leads to what is rounded.
    """

    name: str
    base: Base
    view: np.ndarray
    chain: tuple[Step, ...] | None
    trail: tuple[HostOp, ...] | None
    start: np.ndarray
    witness: str
    label: str = ""
    quantiser: Quantiser | None = None
    integer: bool = False
    rounding: Rounding | None = None
    source: str = "quantiser"
    head: int = 1
    stages: dict[int, str] = field(default_factory=dict)
    """ONNX names of the values in front of this one on its chain, by length of the chain there; its own is among them."""
    settled: "Value | None" = field(default=None, init=False)
    """What the builder made of this value, so that it makes it once."""
    inside: "Callable[[], Operand] | None" = field(default=None, init=False)
    """For a :class:`Tail` that the network could compute as well: the same value from integer operations, made once."""

    def __post_init__(self) -> None:
        check_size(self.view.shape)
        if self.chain is not None:
            # A node that makes several steps names the last of them only.
            self.stages = {length: name for length, name in self.stages.items() if name != self.name} | {len(self.chain): self.name}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape


Operand = Value | Constant | Unknown | None


def canonical_shape(shape: tuple[int, ...]) -> Shape:
    """(channels, height, width) of an ONNX shape whose axis 0 is a batch of one."""
    rest = shape[1:] if shape and shape[0] == 1 else shape
    if len(rest) <= 1:
        return (rest[0] if rest else 1, 1, 1)
    if len(rest) == 2:
        return (rest[0], 1, rest[1])
    return (rest[0], rest[1], prod(rest[2:]))


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse activations that are too large to be looked at element by element."""
    if prod(shape) > LARGEST_ACTIVATION:
        raise RefusalError(
            f"an activation of shape {list(shape)} is too large", f"use activations of at most {LARGEST_ACTIVATION} elements a sample"
        )


def identity_view(shape: tuple[int, ...]) -> np.ndarray:
    """Element numbers in order. Raises :class:`RefusalError` beyond :data:`LARGEST_ACTIVATION`."""
    check_size(shape)
    return np.arange(prod(shape), dtype=np.int64).reshape(shape)


def fractions(values: np.ndarray) -> tuple[Fraction, ...]:
    """Exact rationals of a float or integer array."""
    flat = np.asarray(values).ravel()
    if flat.dtype.kind in "iub":
        return tuple(Fraction(int(value)) for value in flat)
    flat = flat.astype(np.float64)
    if not np.isfinite(flat).all():
        raise RefusalError("a constant is infinite or not a number", "replace the constant by a finite one")
    return tuple(Fraction(float(value)) for value in flat)


def exact_values(constant: Constant, picks: np.ndarray) -> tuple[Fraction, ...]:
    """Rationals of the elements ``picks`` (flat) of a constant: code times scale where its grid is known."""
    if constant.grid is None:
        return fractions(constant.array.ravel()[picks])
    codes, scale = constant.grid.codes.ravel()[picks], constant.grid.scale.ravel()[picks]
    return tuple(Fraction(int(code)) * step for code, step in zip(codes, fractions(scale), strict=True))


def channels_of(constant: Constant, view: np.ndarray, base: Base) -> tuple[Fraction, ...] | None:
    """Values of a constant that broadcasts to ``view``, by base channel; one entry when all are equal, ``None`` when pixels differ."""
    if constant.array.size == 1:
        return exact_values(constant, np.zeros(1, np.int64))
    picks = np.broadcast_to(np.arange(constant.array.size).reshape(constant.array.shape), view.shape).ravel()
    values = constant.array.ravel()[picks]
    if not values.size:
        return (Fraction(0),)
    if (values == values[0]).all():
        return exact_values(constant, picks[:1])
    channel = view.ravel() // base.pixels
    first = np.zeros(base.shape[0], np.int64)
    first[channel[::-1]] = np.arange(len(channel))[::-1]
    if not (values == values[first][channel]).all():
        return None
    return exact_values(constant, picks[first])


def take_channels(values: tuple, channels: np.ndarray) -> tuple:
    """Per-channel entries picked by channel number; a single entry stays single."""
    return values if len(values) == 1 else tuple(values[int(channel)] for channel in channels)


def affine_of(chain: tuple[Step, ...] | None) -> Affine | None:
    """The chain as one affine step, or ``None``."""
    if chain is None or not all(isinstance(step, Affine) for step in chain):
        return None
    if len(chain) == 1 and isinstance(chain[0], Affine) and len(chain[0].gain) == len(chain[0].offset) == 1:
        return chain[0]
    gain: tuple[Fraction, ...] = (Fraction(1),)
    offset: tuple[Fraction, ...] = (Fraction(0),)
    for step in chain:
        assert isinstance(step, Affine)
        count = max(len(gain), len(offset), len(step.gain), len(step.offset))
        if count > 1 and len(step.gain) == 1 and step.gain[0] == 1 and len(gain) == 1 and len(offset) == 1 and len(set(step.offset)) == 1:
            count = 1
        offset = tuple(entry(offset, c) * entry(step.gain, c) + entry(step.offset, c) for c in range(count))
        gain = tuple(entry(gain, c) * entry(step.gain, c) for c in range(count))
    return Affine(gain if len(set(gain)) > 1 else gain[:1], offset if len(set(offset)) > 1 else offset[:1])


def direction(chain: tuple[Step, ...], channel: int) -> int:
    """1 when the chain never decreases in this channel, -1 when it never increases, 0 when it does both (or a curve may)."""
    for index, step in enumerate(chain):
        if is_curved((step,)):
            return direction(chain[:index], channel) * direction(chain[index + 1 :], channel) if rises(step) else 0
    gains = [segment.gain for segment in compose(chain, channel)]
    if all(gain >= 0 for gain in gains):
        return 1
    return -1 if all(gain <= 0 for gain in gains) else 0


def dequantising(tensor: Tensor) -> Affine:
    """Codes of a tensor to real values."""
    count = max(len(tensor.scale), len(tensor.zero_point))
    return Affine(tensor.scale, tuple(-entry(tensor.scale, c) * entry(tensor.zero_point, c) for c in range(count)))


def moves_only(trail: tuple[HostOp, ...]) -> bool:
    """Whether the host would only move elements, not compute."""
    return all(step.kind in ("Gather", "Reshape", "Transpose") for step in trail)
