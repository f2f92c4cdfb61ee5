"""Chains with curved steps: their runs of equal codes, by looking at every reachable integer.

All integers are evaluated in float64 at once. Where that comes within :data:`_DOUBT` of a place at which the code changes (or near a jump of
a function), the value is computed again in rationals cut to 60 digits, so that every code is that of the real function: a tie is taken for
one only where the value is exactly half a code.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.quantize.chain import Affine, Clip, Fork, Function, LeakyRelu, Quantised, Quantiser, Relu, Run, Step, entry
from tritloom.compiler.quantize.functions import FUNCTIONS
from tritloom.errors import ModelError

__all__ = ["LARGEST_TABLE", "curved_runs", "evaluate_exact", "of_channel", "rises", "round_codes"]

LARGEST_TABLE = 1 << 20
"""Most reachable integers of one channel; a front end that would need more puts codes in front of the function."""

_DOUBT = 2.0**-20
"""In codes. The float64 value of a chain is off by 2**-30 of a code at most, unless its terms cancel to a millionth."""

_SHORT = 64
"""Stretches of doubtful integers that are no longer are evaluated one by one, longer ones (a function that has come close to its limit) by
bisection, because they are monotone."""

_OPERATORS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


class _Sampler:
    """Float64 values of a chain of one channel, and where they are doubtful."""

    def __init__(self, channel: int, count: int) -> None:
        self._channel = channel
        self.doubtful = np.zeros(count, bool)

    def run(self, chain: Sequence[Step], x: np.ndarray) -> np.ndarray:
        for step in chain:
            x = self._step(step, x)
        return x

    def _step(self, step: Step, x: np.ndarray) -> np.ndarray:
        channel = self._channel
        match step:
            case Affine():
                return float(entry(step.gain, channel)) * x + float(entry(step.offset, channel))
            case Relu():
                return np.maximum(x, 0)
            case LeakyRelu():
                slope = entry(step.slope, channel) if isinstance(step.slope, tuple) else step.slope
                return np.where(x < 0, float(slope) * x, x)
            case Clip():
                x = x if step.low is None else np.maximum(x, float(step.low))
                return x if step.high is None else np.minimum(x, float(step.high))
            case Function():
                curve = FUNCTIONS[step.name]
                for jump in curve.jumps(*step.parameters):
                    self.doubtful |= np.abs(x - float(jump)) <= _DOUBT * (1 + abs(float(jump)))
                return curve.fast(x, *step.parameters)
            case Fork():
                left, right = self.run(step.left, x), self.run(step.right, x)
                if step.operator == "Div":
                    self.doubtful |= np.abs(right) <= _DOUBT
                return _OPERATORS[step.operator](left, right)
            case Quantised():
                codes = self.codes(step.quantiser, x)
                scale, zero = step.quantiser.parameters(channel)
                return (codes - float(zero + step.quantiser.offset)) * float(scale)

    def codes(self, quantiser: Quantiser, x: np.ndarray) -> np.ndarray:
        """Codes as float64; NaN where there is no value, infinities at the bounds."""
        if quantiser.thresholds is not None:
            return self._counted(quantiser, x)
        scale, zero = quantiser.parameters(self._channel)
        before = zero if quantiser.clip_first or quantiser.bipolar else 0
        scaled = x / float(scale) + before
        edge = scaled if quantiser.bipolar else scaled - (0.5 if quantiser.rounding.startswith("half") else 0.0)
        with np.errstate(invalid="ignore"):
            distance = np.abs(edge - np.rint(edge)) if not quantiser.bipolar else np.abs(edge)
        inside = (scaled > quantiser.low - zero + before - 2) & (scaled < quantiser.high - zero + before + 2)
        self.doubtful |= (inside | quantiser.bipolar) & (distance <= _DOUBT)
        return round_codes(scaled, quantiser, zero - before)

    def _counted(self, quantiser: Quantiser, x: np.ndarray) -> np.ndarray:
        """Codes of a quantiser that counts thresholds; within a millionth of the largest threshold a value is doubtful."""
        thresholds = np.array([float(threshold) for threshold in entry(quantiser.thresholds or ((),), self._channel)])
        if len(thresholds):
            nearest = np.clip(np.searchsorted(thresholds, x), 0, len(thresholds) - 1)
            distance = np.minimum(np.abs(x - thresholds[nearest]), np.abs(x - thresholds[np.maximum(nearest - 1, 0)]))
            self.doubtful |= distance <= _DOUBT * (1 + np.abs(thresholds).max())
        counted = np.searchsorted(thresholds, x, side="right") + float(quantiser.low + quantiser.offset)
        return np.where(np.isnan(x), np.nan, counted)


def round_codes(scaled: np.ndarray, quantiser: Quantiser, shift: int) -> np.ndarray:
    """``clamp(round(scaled) + shift, low, high) + offset`` in float64, as the mode of ``quantiser`` rounds; not exact at ties."""
    if quantiser.bipolar:
        codes = np.where(scaled >= 0, float(quantiser.high), float(quantiser.low))
        return np.where(np.isnan(scaled), np.nan, codes) + quantiser.offset
    match quantiser.rounding:
        case "floor":
            rounded = np.floor(scaled)
        case "ceil":
            rounded = np.ceil(scaled)
        case "toward_zero":
            rounded = np.trunc(scaled)
        case "away_from_zero":
            rounded = np.where(scaled >= 0, np.ceil(scaled), np.floor(scaled))
        case _:
            rounded = np.rint(scaled)
    return np.clip(rounded + shift, quantiser.low, quantiser.high) + quantiser.offset


def evaluate_exact(chain: Sequence[Step], x: Fraction, channel: int) -> Fraction:
    """The chain at one value. Raises :class:`ArithmeticError` where it has no finite value."""
    for step in chain:
        match step:
            case Affine():
                x = entry(step.gain, channel) * x + entry(step.offset, channel)
            case Relu():
                x = max(x, Fraction(0))
            case LeakyRelu():
                x = x if x >= 0 else x * (entry(step.slope, channel) if isinstance(step.slope, tuple) else step.slope)
            case Clip():
                x = x if step.low is None else max(x, step.low)
                x = x if step.high is None else min(x, step.high)
            case Function():
                x = FUNCTIONS[step.name].exact(x, *step.parameters)
            case Fork():
                left, right = evaluate_exact(step.left, x, channel), evaluate_exact(step.right, x, channel)
                x = (
                    {"Add": left + right, "Sub": left - right, "Mul": left * right}[step.operator]
                    if step.operator != "Div"
                    else left / right
                )
            case Quantised():
                scale, zero = step.quantiser.parameters(channel)
                x = scale * (step.quantiser.code(x, channel) - step.quantiser.offset - zero)
    return x


def _correct(codes: np.ndarray, doubtful: np.ndarray, chain: Sequence[Step], quantiser: Quantiser, channel: int, low: int) -> None:
    """Write the exact codes over the doubtful ones."""

    def exact(index: int) -> float:
        try:
            return float(quantiser.code(evaluate_exact(chain, Fraction(low + index), channel), channel))
        except (ArithmeticError, ValueError):
            return float(codes[index])

    def bisect(first: int, last: int) -> None:
        """Codes of ``first + 1`` to ``last - 1``; those at both ends are right."""
        if last - first < 2:
            return
        if codes[first] == codes[last] and last - first > _SHORT:
            codes[first:last] = codes[first]
            return
        middle = (first + last) // 2
        codes[middle] = exact(middle)
        bisect(first, middle)
        bisect(middle, last)

    indices = np.flatnonzero(doubtful)
    if not len(indices):
        return
    for stretch in np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1):
        first, last = int(stretch[0]), int(stretch[-1])
        codes[first], codes[last] = exact(first), exact(last)
        bisect(first, last)


def curved_runs(chain: Sequence[Step], quantiser: Quantiser, channel: int, low: int, high: int) -> list[Run]:
    """Runs of ``quantiser(chain(x))`` over the integers ``low..high``, one by one.

    An infinite value takes the code at the bound. Raises :class:`ModelError` for more than :data:`LARGEST_TABLE` integers, and where the
    chain has no value at one of them (the logarithm of a negative number).
    """
    if high - low >= LARGEST_TABLE:
        raise ModelError(
            f"a curved function of {high - low + 1} sums is more than the {LARGEST_TABLE} that are looked at; put a quantiser in front of it"
        )
    x = np.arange(low, high + 1, dtype=np.float64)
    sampler = _Sampler(channel, len(x))
    with np.errstate(all="ignore"):
        values = sampler.run(chain, x)
        codes = sampler.codes(quantiser, values)
        _correct(codes, sampler.doubtful, chain, quantiser, channel, low)
    if np.isnan(codes).any():
        names = " and ".join(dict.fromkeys(step.name for step in _functions(chain))) or "a division"
        raise ModelError(
            f"the input of {names} reaches values where it has none; put a Clip or Relu in front of it that keeps to its domain"
        )
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    ends = np.concatenate([starts[1:], [len(codes)]])
    # The slope only tells where to look for a record first; beyond 9 digits it is rounding.
    scale = float(quantiser.parameters(channel)[0])
    with np.errstate(all="ignore"):
        slopes = (values[np.minimum(ends, len(codes) - 1)] - values[starts]) / (
            scale * np.maximum(np.minimum(ends, len(codes) - 1) - starts, 1)
        )
    return [
        Run(low + int(start), low + int(end) - 1, int(codes[start]), float(f"{slope:.9g}") if np.isfinite(slope) else 0.0)
        for start, end, slope in zip(starts, ends, slopes, strict=True)
    ]


def _functions(chain: Sequence[Step]) -> list[Function]:
    found = []
    for step in chain:
        if isinstance(step, Function):
            found.append(step)
        elif isinstance(step, Fork):
            found += [*_functions(step.left), *_functions(step.right)]
    return found


def rises(step: Step) -> bool:
    """Whether a curved step never decreases."""
    return isinstance(step, Quantised) or (isinstance(step, Function) and FUNCTIONS[step.name].rising)


def of_channel(chain: Sequence[Step], channel: int) -> tuple[Step, ...]:
    """The chain with the constants of one channel: equal for channels with equal functions."""
    found: list[Step] = []
    for step in chain:
        if isinstance(step, Affine):
            step = Affine((entry(step.gain, channel),), (entry(step.offset, channel),))
        elif isinstance(step, LeakyRelu) and isinstance(step.slope, tuple):
            step = LeakyRelu(entry(step.slope, channel))
        elif isinstance(step, Fork):
            step = replace(step, left=of_channel(step.left, channel), right=of_channel(step.right, channel))
        elif isinstance(step, Quantised):
            scale, zero = step.quantiser.parameters(channel)
            thresholds = None if step.quantiser.thresholds is None else (entry(step.quantiser.thresholds, channel),)
            step = replace(step, quantiser=replace(step.quantiser, scale=scale, zero_point=zero, thresholds=thresholds))
        found.append(step)
    return tuple(found)
