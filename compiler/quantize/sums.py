"""The sum of two quantised tensors on a third grid, as one pair of records a channel."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import lcm

import numpy as np

from tritloom.compiler.ir.program import Proof, StepFunction
from tritloom.compiler.quantize.chain import Affine, Quantiser, Step, compose, entry, is_curved
from tritloom.compiler.quantize.curves import round_codes
from tritloom.errors import ModelError
from tritloom.hw.arch.record import BIAS_BITS, MULTIPLIER_BITS, START_MIN, Record

__all__ = ["derive_add", "is_clamped_line", "pair_codes"]

_HINT = "put a quantiser right after the Add"
_MULTIPLIER_MAX = (1 << (MULTIPLIER_BITS - 1)) - 1
_BIAS_MAX = (1 << (BIAS_BITS - 1)) - 1
_SHIFT_MAX = 46

_STEPS = [step for step in product((-1, 0, 1), repeat=2) if step != (0, 0)]
_SEARCH_MOVES = 40


class _Pairs:
    """Inequalities of one channel: rows of (a, b, level) that the sum must reach, and must stay below."""

    def __init__(self, a: np.ndarray, b: np.ndarray, codes: np.ndarray, low: int, high: int) -> None:
        reach, stay = codes > low, codes < high
        grid_a, grid_b = np.broadcast_to(a[:, None], codes.shape), np.broadcast_to(b[None, :], codes.shape)
        self.reach = grid_a[reach], grid_b[reach], codes[reach]
        self.stay = grid_a[stay], grid_b[stay], codes[stay] + 1

    def biases(self, m0: int, m1: int, shift: int, half_even: bool) -> tuple[int, int]:
        """Least and greatest bias that meet every inequality (none does when the first exceeds the second)."""
        least, most = -_BIAS_MAX, _BIAS_MAX
        for a, b, level in (self.reach, self.stay):
            if not len(a):
                continue
            edge = (level << shift) - m0 * a - m1 * b
            if half_even:
                edge += (level & 1) - (1 << (shift - 1))
            if a is self.reach[0]:
                least = max(least, int(edge.max()))
            else:
                most = min(most, int(edge.min()) - 1)
        return least, most


def _search(pairs: _Pairs, gains: tuple[float, float], modes: tuple[bool, ...], shift_max: int) -> tuple[int, int, int, bool, int, int]:
    """Multipliers, shift, mode and bias interval, the interval not empty where the search succeeds.

    It starts at the rounded real slopes and climbs the width of the interval, which is concave in the multipliers. After
    :data:`_SEARCH_MOVES` moves there is nothing to be found: the multipliers differ from the slopes by their rounding alone.
    """
    largest = max(abs(gain) for gain in gains)
    shift = shift_max
    while shift > 0 and largest * 2.0**shift > _MULTIPLIER_MAX:
        shift -= 1
    start = round(gains[0] * 2.0**shift), round(gains[1] * 2.0**shift)
    best = None
    for half_even in modes if shift else (False,):
        point, (least, most) = start, pairs.biases(*start, shift, half_even)
        span, moves = 16, 0
        while least > most and span and moves < _SEARCH_MOVES:
            moved, moves = False, moves + 1
            for dx, dy in _STEPS:
                candidate = point[0] + dx * span, point[1] + dy * span
                if max(abs(candidate[0]), abs(candidate[1])) > _MULTIPLIER_MAX:
                    continue
                interval = pairs.biases(*candidate, shift, half_even)
                if interval[1] - interval[0] > most - least:
                    point, (least, most), moved = candidate, interval, True
            span = span if moved else span // 2
        if best is None or most - least > best[0]:
            best = (most - least, (*point, shift, half_even, least, most))
        if least <= most:
            break
    assert best is not None
    return best[1]


def pair_codes(
    a: np.ndarray, b: np.ndarray, gains: tuple[Fraction, Fraction], offset: Fraction, quantiser: Quantiser, channel: int
) -> np.ndarray:
    """Exact code of every pair: float64 where it cannot be wrong, rationals near every rounding boundary."""
    scale, zero = quantiser.parameters(channel)
    before = zero if quantiser.clip_first or quantiser.bipolar else 0
    parts = gains[0] / scale, gains[1] / scale, offset / scale + before
    left, right = float(parts[0]) * a, float(parts[1]) * b
    value = left[:, None] + right[None, :] + float(parts[2])
    error = 1e-12 * (1.0 + float(np.abs(left).max()) + float(np.abs(right).max()) + abs(float(parts[2])))
    value = np.where(np.isfinite(value), value, 0.0)
    codes = round_codes(value, quantiser, zero - before).astype(np.int64)
    i, j = np.nonzero(np.abs(2 * value - np.rint(2 * value)) <= 2 * error)
    # Over their common denominator the sums are integers.
    denominator = lcm(*(part.denominator for part in parts))
    factors = [part.numerator * (denominator // part.denominator) for part in parts]
    fits = 2 * max(denominator, 256 * (abs(factors[0]) + abs(factors[1])) + abs(factors[2])) < 1 << 62
    kind = np.int64 if fits else object
    numerators = factors[0] * a[i].astype(kind) + factors[1] * b[j].astype(kind) + factors[2]
    if quantiser.bipolar:
        exact = np.where(numerators >= 0, quantiser.high, quantiser.low)
    else:
        exact = np.clip(_round_ratio(numerators, denominator, quantiser.rounding) + (zero - before), quantiser.low, quantiser.high)
    codes[i, j] = exact.astype(np.int64) + quantiser.offset
    return codes


def _round_ratio(numerators: np.ndarray, denominator: int, rounding: str) -> np.ndarray:
    """``numerators / denominator`` rounded, in integers: int64 where twice each number fits, else an array of Python integers."""
    whole = numerators // denominator
    rest = numerators - whole * denominator
    negative = numerators < 0
    match rounding:
        case "floor":
            up = np.zeros(len(whole), bool)
        case "ceil":
            up = rest > 0
        case "toward_zero":
            up = (rest > 0) & negative
        case "away_from_zero":
            up = (rest > 0) & ~negative.astype(bool)
        case _:
            tie = (2 * rest == denominator).astype(bool)
            at_tie = {"half_even": whole % 2 == 1, "half_up": True, "half_away": ~negative.astype(bool), "half_toward_zero": negative}[
                rounding
            ]
            up = (2 * rest > denominator) | (tie & at_tie)
    return whole + np.asarray(up).astype(numerators.dtype)


def _linear(chain: Sequence[Step], quantiser: Quantiser, channel: int) -> tuple[Fraction, Fraction, int, int]:
    """The chain as ``gain * x + offset`` and the codes it is clamped to. Raises :class:`ModelError` when it is not of that form."""
    if is_curved(chain):
        raise ModelError(f"the elementwise steps after an Add are curved; {_HINT}")
    segments = compose(chain, channel)
    sloped = [index for index, segment in enumerate(segments) if segment.gain != 0]
    if len(sloped) > 1:
        raise ModelError(f"the elementwise steps after an Add are not a clamped straight line; {_HINT}")
    low, high = quantiser.low + quantiser.offset, quantiser.high + quantiser.offset
    if not sloped:
        code = quantiser.code(segments[0].offset, channel)
        return Fraction(0), segments[0].offset, code, code
    index = sloped[0]
    flat = [quantiser.code(segments[i].offset, channel) if 0 <= i < len(segments) else None for i in (index - 1, index + 1)]
    if segments[index].gain < 0:
        flat.reverse()
    return segments[index].gain, segments[index].offset, low if flat[0] is None else flat[0], high if flat[1] is None else flat[1]


def is_clamped_line(chain: Sequence[Step], quantiser: Quantiser, channels: int) -> bool:
    """Whether :func:`derive_add` has a form for this chain: one slope a channel, clamped to the same codes in all of them.

    Thresholds have none: their steps are not evenly spaced.
    """
    if quantiser.thresholds is not None:
        return False
    try:
        return len({_linear(chain, quantiser, channel)[2:] for channel in range(channels)}) == 1
    except ModelError:
        return False


def derive_add(
    left: Affine,
    right: Affine,
    chain: Sequence[Step],
    quantiser: Quantiser,
    left_range: tuple[int, int],
    right_range: tuple[int, int],
    channels: int,
) -> StepFunction:
    """Step function of ``quantiser(chain(left(a) + right(b)))`` over all pairs of codes ``a`` and ``b`` in their ranges.

    ``left`` and ``right`` map codes to real values. Two records a channel: ``v = m0 * a + bias + m1 * b``. The chain must be a
    straight line with clamps (affine, Relu, Clip), the clamps equal in every channel; anything else raises :class:`ModelError`.
    The proof counts pairs of codes, channel by channel.
    """
    a = np.arange(left_range[0], left_range[1] + 1, dtype=np.int64)
    b = np.arange(right_range[0], right_range[1] + 1, dtype=np.int64)
    lines = [_linear(chain, quantiser, channel) for channel in range(channels)]
    if len({line[2:] for line in lines}) > 1:
        raise ModelError(f"the channels of an Add are clamped to unlike codes; {_HINT}")
    low, high = lines[0][2:]
    cases: dict[tuple, tuple[tuple[Record, Record], int, int]] = {}
    keys = []
    for channel, (gain, offset, _, _) in enumerate(lines):
        gains = (gain * Fraction(entry(left.gain, channel)), gain * Fraction(entry(right.gain, channel)))
        constant = offset + gain * (Fraction(entry(left.offset, channel)) + Fraction(entry(right.offset, channel)))
        scale, zero = quantiser.parameters(channel)
        key = (gains, constant, scale, zero)
        keys.append(key)
        if key in cases:
            continue
        codes = np.clip(pair_codes(a, b, gains, constant, quantiser, channel), low, high)
        slopes = float(gains[0] / scale), float(gains[1] / scale)
        modes = (False, True) if quantiser.rounding == "half_even" else (False,)
        if quantiser.bipolar:
            # Only the sign counts: the steepest line that fits.
            steep = _MULTIPLIER_MAX / (max(abs(slopes[0]), abs(slopes[1])) or 1.0)
            slopes, modes = (slopes[0] * steep, slopes[1] * steep), (False,)
        m0, m1, shift, even, *interval = _search(_Pairs(a, b, codes, low, high), slopes, modes, 0 if quantiser.bipolar else _SHIFT_MAX)
        trials = []
        for bias in (sum(interval) // 2, *interval):
            value = m0 * a[:, None] + m1 * b[None, :] + bias
            if even:
                value += (1 << (shift - 1)) - 1 + ((value >> shift) & 1)
            error = np.abs(np.clip(value >> shift, low, high) - codes)
            trials.append((int(np.count_nonzero(error)), int(error.max()), bias))
        differing, largest, bias = min(trials)
        records = Record(START_MIN, m0, bias, shift, even), Record(START_MIN, m1, 0, shift, even)
        cases[key] = records, differing, largest
    differing = sum(cases[key][1] for key in keys)
    return StepFunction(
        records=tuple(cases[key][0] for key in keys),
        low=low,
        high=high,
        proof=Proof(
            exact=differing == 0, reachable=len(a) * len(b) * channels, differing=differing, largest=max(case[2] for case in cases.values())
        ),
    )
