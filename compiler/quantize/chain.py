"""Elementwise chains in exact rationals: composition into a piecewise linear function and its runs of equal codes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple, TypeVar

from tritloom.errors import ModelError

__all__ = [
    "ROUNDINGS", "Affine", "Clip", "Fork", "Function", "LeakyRelu", "Quantised", "Quantiser", "Relu", "Run", "Segment", "Step", "compose", "entry",
    "find_runs", "is_curved", "round_exact",
]  # fmt: skip

ROUNDINGS = ("half_even", "half_up", "half_away", "half_toward_zero", "floor", "ceil", "toward_zero", "away_from_zero")
"""Rounding modes of a :class:`Quantiser`. ``half_up`` sends ties towards plus infinity, ``half_away`` away from zero."""

_HALF = Fraction(1, 2)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Affine:
    """``gain * x + offset``; each tuple has one entry, or one a channel."""

    gain: tuple[Fraction, ...]
    offset: tuple[Fraction, ...]


@dataclass(frozen=True)
class Relu:
    """``max(x, 0)``."""


@dataclass(frozen=True)
class LeakyRelu:
    """``x`` where it is not negative, else ``slope * x``: one slope, or a tuple with one a channel. A negative slope is allowed."""

    slope: Fraction | tuple[Fraction, ...]


@dataclass(frozen=True)
class Clip:
    """``min(max(x, low), high)``; ``None`` leaves a side open."""

    low: Fraction | None
    high: Fraction | None


@dataclass(frozen=True)
class Function:
    """A curve of :data:`tritloom.compiler.quantize.functions.FUNCTIONS` with its parameters. ``value`` is the ONNX name of its input."""

    name: str
    parameters: tuple[Fraction, ...] = ()
    value: str = field(default="", compare=False)


@dataclass(frozen=True)
class Fork:
    """``operator(left(x), right(x))`` with ``operator`` one of Add, Sub, Mul and Div. ``value`` is the ONNX name of ``x`` where it has one."""

    operator: str
    left: "tuple[Step, ...]"
    right: "tuple[Step, ...]"
    value: str = field(default="", compare=False)


@dataclass(frozen=True)
class Quantised:
    """The real value that the code of ``quantiser`` stands for: a quantiser inside a chain. ``value`` as for :class:`Function`."""

    quantiser: "Quantiser"
    value: str = field(default="", compare=False)


Step = Affine | Relu | LeakyRelu | Clip | Function | Fork | Quantised


def is_curved(chain: "Sequence[Step]") -> bool:
    """Whether the chain holds a step that is not continuous and piecewise linear, so that :func:`compose` cannot take it."""
    return any(isinstance(step, Function | Fork | Quantised) for step in chain)


@dataclass(frozen=True)
class Quantiser:
    """Real value to code: ``clamp(round(x / scale) + zero_point, low, high) + offset``.

    ``scale`` and ``zero_point`` are one value, or a tuple with one entry a channel. With ``clip_first`` the order is that of QONNX,
    ``round(clamp(x / scale + zero_point, low, high)) + offset``: the zero point is added before rounding; clamping before or after gives
    the same code, because rounding is monotone and leaves the integer bounds where they are. With ``bipolar`` the code is
    ``high`` where ``x / scale + zero_point >= 0``, else ``low``, and nothing in between. ``low`` and ``high`` bound the
    code before ``offset``, which folds an unsigned grid to signed codes without disturbing roundings that depend on the sign.
    With ``thresholds``, one rising tuple for all channels or one a channel, the code is ``low`` plus the number of thresholds that are not
    above the real value; scale and zero point then only say which real value a code stands for.
    Raises :class:`ModelError` for an unknown rounding, a scale that is not positive, or an empty range.
    """

    scale: Fraction | tuple[Fraction, ...]
    zero_point: int | tuple[int, ...]
    low: int
    high: int
    rounding: str = "half_even"
    bipolar: bool = False
    clip_first: bool = False
    offset: int = 0
    thresholds: tuple[tuple[Fraction, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise ModelError(f"rounding must be one of {', '.join(ROUNDINGS)}, not {self.rounding!r}")
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if any(scale <= 0 for scale in scales):
            raise ModelError(f"the scale of a quantiser must be positive, not {float(min(scales))!r}")
        if not -128 <= self.low + self.offset <= self.high + self.offset <= 127:
            raise ModelError(f"the codes of a quantiser must lie in -128..127, not {self.low + self.offset}..{self.high + self.offset}")

    def parameters(self, channel: int) -> tuple[Fraction, int]:
        """Scale and zero point of one channel."""
        scale = entry(self.scale, channel) if isinstance(self.scale, tuple) else self.scale
        zero = entry(self.zero_point, channel) if isinstance(self.zero_point, tuple) else self.zero_point
        return Fraction(scale), int(zero)

    def code(self, value: Fraction, channel: int = 0) -> int:
        """Code of one real value, exactly."""
        if self.thresholds is not None:
            return self.low + bisect_right(entry(self.thresholds, channel), value) + self.offset
        scale, zero = self.parameters(channel)
        scaled = Fraction(value) / scale
        if self.bipolar:
            return (self.high if scaled + zero >= 0 else self.low) + self.offset
        rounded = round_exact(scaled + zero, self.rounding) if self.clip_first else round_exact(scaled, self.rounding) + zero
        return min(max(rounded, self.low), self.high) + self.offset


def entry(values: tuple[_Value, ...], channel: int) -> _Value:
    """Entry of a per-channel tuple; a tuple of one entry holds for every channel."""
    return values[channel if len(values) > 1 else 0]


def round_exact(value: Fraction, rounding: str) -> int:
    """Integer of an exact value under one of :data:`ROUNDINGS`."""
    match rounding:
        case "half_even":
            return round(value)
        case "half_up":
            return floor(value + _HALF)
        case "half_away":
            return floor(value + _HALF) if value >= 0 else ceil(value - _HALF)
        case "half_toward_zero":
            return ceil(value - _HALF) if value >= 0 else floor(value + _HALF)
        case "floor":
            return floor(value)
        case "ceil":
            return ceil(value)
        case "toward_zero":
            return floor(value) if value >= 0 else ceil(value)
        case _:
            return ceil(value) if value >= 0 else floor(value)


class Segment(NamedTuple):
    """``gain * x + offset`` from ``start`` (``None``: minus infinity) to the next segment. The whole is continuous."""

    start: Fraction | None
    gain: Fraction
    offset: Fraction


class Run(NamedTuple):
    """Integers ``start..end`` (both inside) have this ``code``; ``slope`` is the real slope there, in codes a unit."""

    start: int
    end: int
    code: int
    slope: float


def _split(segments: list[Segment], value: Fraction) -> list[Segment]:
    """Cut every segment where it crosses ``value``."""
    result = []
    for index, segment in enumerate(segments):
        result.append(segment)
        if segment.gain == 0:
            continue
        crossing = (value - segment.offset) / segment.gain
        end = segments[index + 1].start if index + 1 < len(segments) else None
        if (segment.start is None or crossing > segment.start) and (end is None or crossing < end):
            result.append(Segment(crossing, segment.gain, segment.offset))
    return result


def _inside(segments: list[Segment], index: int) -> Fraction:
    """Value of a segment at a point strictly inside it."""
    start = segments[index].start
    end = segments[index + 1].start if index + 1 < len(segments) else None
    if start is not None:
        point = (start + end) / 2 if end is not None else start + 1
    else:
        point = end - 1 if end is not None else Fraction(0)
    return segments[index].gain * point + segments[index].offset


def _join(segments: list[Segment]) -> list[Segment]:
    return [s for i, s in enumerate(segments) if i == 0 or s[1:] != segments[i - 1][1:]]


def compose(chain: Sequence[Step], channel: int) -> list[Segment]:
    """The chain of one channel, which must not be curved, as continuous linear segments from left to right."""
    segments = [Segment(None, Fraction(1), Fraction(0))]
    for step in chain:
        if isinstance(step, Affine):
            gain, offset = Fraction(entry(step.gain, channel)), Fraction(entry(step.offset, channel))
            segments = [Segment(s.start, s.gain * gain, s.offset * gain + offset) for s in segments]
        elif isinstance(step, (Relu, LeakyRelu)):
            slope = step.slope if isinstance(step, LeakyRelu) else Fraction(0)
            slope = Fraction(entry(slope, channel) if isinstance(slope, tuple) else slope)
            segments = _split(segments, Fraction(0))
            segments = [
                Segment(s.start, s.gain * slope, s.offset * slope) if _inside(segments, i) < 0 else s for i, s in enumerate(segments)
            ]
        elif isinstance(step, Clip):
            for bound, side in ((step.low, -1), (step.high, 1)):
                if bound is None:
                    continue
                bound = Fraction(bound)
                segments = _split(segments, bound)
                segments = [
                    Segment(s.start, Fraction(0), bound) if (_inside(segments, i) - bound) * side > 0 else s for i, s in enumerate(segments)
                ]
        else:
            raise TypeError(f"{type(step).__name__} is not piecewise linear")
        segments = _join(segments)
    return segments


def _boundary(level: int, rounding: str) -> tuple[int, bool]:
    """``round(w) >= level`` exactly when ``2 * w >= bound`` (or ``>`` when the second result is false)."""
    match rounding:
        case "half_even":
            return 2 * level - 1, level % 2 == 0
        case "half_up":
            return 2 * level - 1, True
        case "half_away":
            return 2 * level - 1, level > 0
        case "half_toward_zero":
            return 2 * level - 1, level <= 0
        case "floor":
            return 2 * level, True
        case "ceil":
            return 2 * level - 2, False
        case "toward_zero":
            return (2 * level, True) if level > 0 else (2 * level - 2, False)
        case _:
            return (2 * level - 2, False) if level > 0 else (2 * level, True)


def _monotone_runs(gain: Fraction, offset: Fraction, quantiser: Quantiser, channel: int, first: int, last: int) -> list[Run]:
    """Runs of ``quantiser(gain * x + offset)`` over the integers ``first..last``, by exact integer division at each level."""
    if gain < 0:
        mirrored = _monotone_runs(-gain, offset, quantiser, channel, -last, -first)
        return [Run(-run.end, -run.start, run.code, -run.slope) for run in reversed(mirrored)]
    scale, zero = quantiser.parameters(channel)
    slope = float(gain / scale)
    bottom, top = quantiser.code(gain * first + offset, channel), quantiser.code(gain * last + offset, channel)
    if bottom == top:
        return [Run(first, last, bottom, slope)]
    before = zero if quantiser.clip_first or quantiser.bipolar else 0
    shift = quantiser.offset + zero - before
    g, h = gain / scale, offset / scale + before
    # 2 * (g * x + h) >= bound, over the common denominator: numerator * x >= bound * denominator - constant.
    denominator = g.denominator * h.denominator
    numerator, constant = 2 * g.numerator * h.denominator, 2 * h.numerator * g.denominator
    starts, codes = [first], [bottom]
    levels = [top] if quantiser.bipolar else range(bottom + 1, top + 1)
    for code in levels:
        if quantiser.thresholds is not None:
            reached = entry(quantiser.thresholds, channel)[code - quantiser.low - quantiser.offset - 1]
            start = ceil((reached - offset) / gain)
        else:
            bound, closed = (0, True) if quantiser.bipolar else _boundary(code - shift, quantiser.rounding)
            need = bound * denominator - constant
            start = -(-need // numerator) if closed else need // numerator + 1
        if start == starts[-1]:
            codes[-1] = code
        else:
            starts.append(start)
            codes.append(code)
    ends = [start - 1 for start in starts[1:]] + [last]
    return [Run(*run, slope) for run in zip(starts, ends, codes, strict=True)]


def find_runs(segments: list[Segment], quantiser: Quantiser, channel: int, low: int, high: int) -> list[Run]:
    """Exact runs of equal codes over the integers ``low..high``, cut at the segments' ends as well."""
    starts = [ceil(s.start) for s in segments[1:] if s.start is not None]
    runs: list[Run] = []
    first = low
    while first <= high:
        index = bisect_right(starts, first)
        last = min(high, starts[index] - 1) if index < len(starts) else high
        runs += _monotone_runs(segments[index].gain, segments[index].offset, quantiser, channel, first, last)
        first = last + 1
    return runs
