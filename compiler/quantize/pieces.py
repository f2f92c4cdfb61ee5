"""Runs of equal codes realised as few requantisation records, by exact integer inequalities."""

from collections.abc import Sequence

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


class _Runs:
    """Runs of an increasing (or mirrored decreasing) stretch as int64 arrays; codes at the clamps leave their side free."""

    def __init__(self, runs: Sequence[Run], low: int, high: int, tolerance: int) -> None:
        self.mirrored = runs[-1].code < runs[0].code
        starts = np.array([run.start for run in runs], np.int64)
        ends = np.array([run.end for run in runs], np.int64)
        codes = np.array([run.code for run in runs], np.int64)
        if self.mirrored:
            starts, ends, codes = -ends[::-1], -starts[::-1], codes[::-1]
        floor, ceiling = codes - tolerance, codes + tolerance + 1
        self.lower_x, self.lower_y = starts[floor > low], floor[floor > low]
        self.upper_x, self.upper_y = ends[ceiling <= high], ceiling[ceiling <= high]
        self.slopes = {abs(run.slope) for run in runs if run.slope}

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


def _fit(runs: Sequence[Run], low: int, high: int, half_even: bool, tolerance: int) -> Record | None:
    """One record that gives every run its code (within ``tolerance``), or ``None``."""
    system = _Runs(runs, low, high, tolerance)
    start = runs[0].start

    def attempt(multiplier: int, shift: int, even: bool) -> Record | None:
        if multiplier > _MULTIPLIER_MAX:
            return None
        bias = system.bias(multiplier, shift, even)
        return None if bias is None else Record(start, -multiplier if system.mirrored else multiplier, bias, shift, even)

    record = attempt(0, 0, False)
    if record is not None:
        return record
    modes = (False, True) if half_even else (False,)
    for slope in sorted(system.slopes):
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
    records: list[Record] = []
    position = 0
    while position < len(runs):
        best, record = position + 1, _fit(runs[position : position + 1], low, high, half_even, tolerance)
        assert record is not None
        ceiling = len(runs)
        # Whole rest first: nearly all channels need one or two records. Then double, then halve.
        if len(records) < 3:
            whole = _fit(runs[position:], low, high, half_even, tolerance)
            if whole is not None:
                best, record = ceiling, whole
            else:
                ceiling -= 1
        length = 1
        while best < ceiling:
            length *= 2
            end = min(position + length, ceiling)
            found = _fit(runs[position:end], low, high, half_even, tolerance)
            if found is None:
                ceiling = end - 1
                break
            best, record = end, found
        while best < ceiling:
            end = (best + ceiling + 1) // 2
            found = _fit(runs[position:end], low, high, half_even, tolerance)
            if found is None:
                ceiling = end - 1
            else:
                best, record = end, found
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


def differences(runs: Sequence[Run], records: Sequence[Record], low: int, high: int) -> tuple[int, int]:
    """How many accumulators of ``runs`` get another code from ``records``, and by how much at most. Exact integers."""
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
