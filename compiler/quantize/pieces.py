"""Runs of equal codes realised as few requantisation records, by exact integer inequalities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tritloom.compiler.quantize.chain import Run
from tritloom.hw.arch.record import BIAS_BITS, MULTIPLIER_BITS, START_MIN, Record

__all__ = ["MAX_PIECES", "differences", "realise"]

MAX_PIECES = 256
"""More pieces than this are not realised: a piece costs a clock for every value."""

_MULTIPLIER_MAX = (1 << (MULTIPLIER_BITS - 1)) - 1
_BIAS_MAX = (1 << (BIAS_BITS - 1)) - 1
# (code << shift) and (multiplier * acc) stay below 2**55, so every sum below fits int64.
_SHIFT_MAX = 46


class _Table(NamedTuple):
    """Runs as arrays: int64 starts, ends and codes, float64 slopes."""

    starts: np.ndarray
    ends: np.ndarray
    codes: np.ndarray
    slopes: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "_Table":
        starts, ends, codes, slopes = zip(*runs, strict=True)
        return cls(np.array(starts, np.int64), np.array(ends, np.int64), np.array(codes, np.int64), np.array(slopes))

    def part(self, first: int, last: int) -> "_Table":
        return _Table(*(array[first:last] for array in self))


class _System:
    """Inequalities of an increasing (or mirrored decreasing) stretch of runs; codes at the clamps leave their side free."""

    def __init__(self, runs: _Table, low: int, high: int, tolerance: int) -> None:
        starts, ends, codes = runs.starts, runs.ends, runs.codes
        self.mirrored = bool(codes[-1] < codes[0])
        if self.mirrored:
            starts, ends, codes = -ends[::-1], -starts[::-1], codes[::-1]
        floor, ceiling = codes - tolerance, codes + tolerance + 1
        lower, upper = floor > low, ceiling <= high
        self.lower_x, self.lower_y = starts[lower], floor[lower]
        self.upper_x, self.upper_y = ends[upper], ceiling[upper]

    def bias(self, multiplier: int, shift: int, half_even: bool) -> int | None:
        """A bias that meets every inequality, or ``None``: ``multiplier * x + bias`` reaches each level where it must and no sooner."""

        def border(levels: np.ndarray) -> np.ndarray:
            edge = levels << shift
            return edge - (1 << (shift - 1)) + (levels & 1) if half_even else edge

        least, most = -_BIAS_MAX, _BIAS_MAX
        if len(self.lower_x):
            least = max(least, int((border(self.lower_y) - multiplier * self.lower_x).max()))
        if len(self.upper_x):
            most = min(most, int((border(self.upper_y) - 1 - multiplier * self.upper_x).min()))
        if least > most:
            return None
        if not len(self.lower_x) or not len(self.upper_x):
            return most if len(self.upper_x) else least
        return (least + most) // 2

    def slope_range(self) -> tuple[float, float]:
        """Slopes of lines that pass on or above every lower point and below every upper point (float64 estimate)."""
        dx = self.upper_x[None, :] - self.lower_x[:, None]
        dy = (self.upper_y[None, :] - self.lower_y[:, None]).astype(np.float64)
        after, before = dx > 0, dx < 0
        most = float((dy[after] / dx[after]).min()) if after.any() else np.inf
        least = float((dy[before] / dx[before]).max()) if before.any() else 0.0
        return max(least, 0.0), most


def _shift_for(slope: float) -> int:
    """Largest shift whose multiplier for ``slope`` fits."""
    shift = _SHIFT_MAX
    while shift > 0 and slope * 2.0**shift > _MULTIPLIER_MAX:
        shift -= 1
    return shift


def _fit(runs: _Table, low: int, high: int, half_even: bool, tolerance: int) -> Record | None:
    """One record that gives every run its code (within ``tolerance``), or ``None``."""
    system = _System(runs, low, high, tolerance)
    start = int(runs.starts[0])

    def attempt(multiplier: int, shift: int, even: bool) -> Record | None:
        if multiplier > _MULTIPLIER_MAX:
            return None
        bias = system.bias(multiplier, shift, even)
        return None if bias is None else Record(start, -multiplier if system.mirrored else multiplier, bias, shift, even)

    record = attempt(0, 0, False)
    if record is not None:
        return record
    modes = (False, True) if half_even else (False,)
    for slope in sorted({abs(slope) for slope in (runs.slopes[0], runs.slopes[-1]) if slope}):
        shift = _shift_for(slope)
        for even in modes:
            if even and shift == 0:
                continue
            record = attempt(round(slope * 2.0**shift), shift, even)
            if record is not None:
                return record
    if not len(system.lower_x) or not len(system.upper_x):
        return None
    least, most = system.slope_range()
    if least >= most:
        return None
    if most == np.inf:
        return attempt(int(least) + 1, 0, False)
    shift = _shift_for(most)
    bottom, top = least * 2.0**shift, most * 2.0**shift
    centre = round((bottom + top) / 2)
    quarters = round(bottom * 0.75 + top * 0.25), round(bottom * 0.25 + top * 0.75)
    candidates = {centre, centre - 1, centre + 1, *quarters, int(bottom) + 1, int(top)}
    for multiplier in sorted(candidates, key=lambda m: (abs(m - centre), m)):
        for even in modes if shift else (False,):
            record = attempt(multiplier, shift, even) if multiplier >= 0 else None
            if record is not None:
                return record
    return None


def realise(runs: Sequence[Run], low: int, high: int, *, half_even: bool = False, tolerance: int = 0) -> list[Record]:
    """Records whose value, clamped to ``low..high``, is the code of every run (within ``tolerance`` codes).

    Each record takes the longest stretch of runs that one multiply-add-shift can serve; a stretch that can be served
    can be cut anywhere, so no choice of records with these ends is shorter. A single run is always served (multiplier 0).
    """
    table, position = _Table.of(runs), 0
    records: list[Record] = []
    # Where the slope of the real function changes a record mostly ends.
    bends = [*(np.flatnonzero(np.diff(table.slopes)) + 1).tolist(), len(runs)]

    def fit(end: int) -> Record | None:
        return _fit(table.part(position, end), low, high, half_even, tolerance)

    while position < len(runs):
        best, record, ceiling = position + 1, fit(position + 1), len(runs)
        bend = next(end for end in bends if end > position)
        # The whole rest, then the stretch of one slope, then double the length, then halve the interval.
        if len(records) < 3:
            for end in dict.fromkeys((len(runs), bend)):
                found = fit(end)
                if found is not None:
                    best, record = end, found
                    ceiling = max(end, len(runs) - 1)
                    break
                ceiling = end - 1
        length = 1
        while best < ceiling:
            end = min(best + length, ceiling)
            found = fit(end)
            if found is None:
                ceiling = end - 1
                break
            best, record, length = end, found, 2 * length
        while best < ceiling:
            end = (best + ceiling + 1) // 2
            found = fit(end)
            if found is None:
                ceiling = end - 1
            else:
                best, record = end, found
        assert record is not None
        records.append(record)
        position = best
    first = records[0]
    records[0] = Record(START_MIN, first.multiplier, first.bias, first.shift, first.half_even)
    return records


def _record_runs(record: Record, first: int, last: int, low: int, high: int) -> list[tuple[int, int]]:
    """``(start, code)`` of a record over the integers ``first..last``."""
    if record.multiplier < 0:
        mirror = Record(START_MIN, -record.multiplier, record.bias, record.shift, record.half_even)
        mirrored = _record_runs(mirror, -last, -first, low, high)
        ends = [start - 1 for start, _ in mirrored[1:]] + [-first]
        return [(-end, code) for end, (_, code) in zip(reversed(ends), reversed(mirrored), strict=True)]
    even = record.half_even and record.shift > 0
    starts, codes = [first], [low]
    for level in range(low + 1, high + 1):
        need = (level << record.shift) - record.bias
        if even:
            need += (level & 1) - (1 << (record.shift - 1))
        if record.multiplier:
            start = max(-(-need // record.multiplier), first)
        else:
            start = first if need <= 0 else last + 1
        if start > last:
            break
        if start == starts[-1]:
            codes[-1] = level
        else:
            starts.append(start)
            codes.append(level)
    return list(zip(starts, codes, strict=True))


def _equal(runs: _Table, records: Sequence[Record], low: int, high: int) -> bool:
    """Whether every run lies inside one record that gives its code at both ends: then, a record being monotone, everywhere between."""
    fields = np.array([(r.start, r.multiplier, r.bias, r.shift, r.half_even) for r in records], np.int64).T
    pieces, last = (np.searchsorted(fields[0, 1:], ends, side="right") for ends in (runs.starts, runs.ends))
    if not np.array_equal(pieces, last):
        return False
    _, multiplier, bias, shift, half_even = fields[:, pieces]
    even = (half_even > 0) & (shift > 0)
    for ends in (runs.starts, runs.ends):
        value = multiplier * ends + bias
        value += np.where(even, (np.int64(1) << np.maximum(shift - 1, 0)) - 1 + ((value >> shift) & 1), 0)
        if not np.array_equal(np.clip(value >> shift, low, high), runs.codes):
            return False
    return True


def differences(runs: Sequence[Run], records: Sequence[Record], low: int, high: int) -> tuple[int, int]:
    """How many accumulators of ``runs`` get another code from ``records``, and by how much at most. Exact integers."""
    if _equal(_Table.of(runs), records, low, high):
        return 0, 0
    realised: list[tuple[int, int]] = []
    first, last = runs[0].start, runs[-1].end
    for index, record in enumerate(records):
        begin = max(first, record.start)
        end = min(last, records[index + 1].start - 1) if index + 1 < len(records) else last
        if begin <= end:
            realised += _record_runs(record, begin, end, low, high)
    differing = largest = position = 0
    for run in runs:
        while position + 1 < len(realised) and realised[position + 1][0] <= run.start:
            position += 1
        index, begin = position, run.start
        while begin <= run.end:
            end = min(run.end, realised[index + 1][0] - 1) if index + 1 < len(realised) else run.end
            error = abs(realised[index][1] - run.code)
            if error:
                differing += end - begin + 1
                largest = max(largest, error)
            begin, index = end + 1, index + 1
    return differing, largest
