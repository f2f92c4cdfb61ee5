"""Weights as integers times a scale: recognition of grids that are there already, and ternarisation of float weights.

Everything ends as ``scale * code`` with ``code = sum_p 3**p * t_p``, ``t_p`` in -1, 0, 1: the digit planes that the array runs.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.trits import plane_count

__all__ = [
    "MAX_PLANES",
    "METHODS",
    "IntegerWeights",
    "WeightChoice",
    "absmean",
    "integers_at",
    "lower_weights",
    "recognise",
    "residual_planes",
    "twn",
]

METHODS = ("auto", "twn", "absmean", "planes")
MAX_PLANES = 6
Number = int | float | Fraction | np.floating
Scale = Number | tuple[Number, ...] | list[Number]
_LARGEST_CODE = 128
"""Grids up to 8 bits are recognised in float weights."""


@dataclass(frozen=True, kw_only=True)
class IntegerWeights:
    """``weights ~ scale * codes``: int16 ``codes`` (O, ...), one scale or one an output channel, digit planes that hold the codes.

    ``method`` is ``exact``, ``twn``, ``absmean`` or ``planes``; ``error`` is ``sum((w - scale*code)**2) / sum(w**2)``.
    """

    codes: np.ndarray
    scale: tuple[Fraction, ...]
    planes: int
    method: str
    error: float


@dataclass(frozen=True, kw_only=True)
class WeightChoice:
    """Method and number of planes of :func:`lower_weights` for one layer. Raises :class:`UserError` for what it cannot make."""

    method: str = "auto"
    planes: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.planes is not None and not (type(self.planes) is int and 1 <= self.planes <= MAX_PLANES):
            raise UserError(f"planes must be from 1 to {MAX_PLANES}, not {self.planes!r}")
        if self.method in ("twn", "absmean") and self.planes not in (None, 1):
            raise UserError(f"method {self.method} makes one plane, not {self.planes}; use method planes")


def _rows(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _relative_error(values: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float:
    rows = _rows(values)
    power = float((rows**2).sum())
    return float(((rows - scale[:, None] * codes.reshape(rows.shape)) ** 2).sum()) / power if power else 0.0


def _result(values: np.ndarray, codes: np.ndarray, scale: np.ndarray, method: str, planes: int | None = None) -> IntegerWeights:
    """Round the scales (one, or one a row) to float32, put the codes into the shape of ``values`` and measure the error."""
    exact = np.asarray(scale, np.float32).astype(np.float64)
    exact = np.where(exact > 0, exact, 1.0)
    codes = codes.reshape(values.shape).astype(np.int16)
    largest = int(np.abs(codes).max(initial=0))
    return IntegerWeights(
        codes=codes,
        scale=tuple(Fraction(float(s)) for s in exact),
        planes=planes or plane_count(largest),
        method=method,
        error=_relative_error(values, codes, np.broadcast_to(exact, (len(values),))),
    )


def integers_at(values: np.ndarray, codes: np.ndarray, scale: np.ndarray, planes: int) -> IntegerWeights:
    """Given ``codes`` (O, ...) of ``planes`` digit planes for ``values`` (O, ...), with one ``scale`` or one a row, rounded to float32."""
    return _result(values, codes, scale, "planes", planes)


def _grid(magnitudes: np.ndarray, dtype: np.dtype) -> tuple[float, int] | None:
    """Step and largest code of the coarsest grid on which every magnitude lies exactly in ``dtype`` arithmetic, or ``None``."""
    magnitudes = np.unique(magnitudes)
    magnitudes = magnitudes[magnitudes > 0]
    if not len(magnitudes):
        return 1.0, 0
    if len(magnitudes) > _LARGEST_CODE:
        return None
    for largest in range(1, _LARGEST_CODE + 1):
        quotient = float(magnitudes[-1]) / largest
        middle = dtype.type(quotient)
        neighbours = (middle, np.nextafter(middle, dtype.type(0)), np.nextafter(middle, dtype.type(np.inf)))
        for step in [float(s) for s in neighbours] + [quotient]:
            if step > 0 and np.array_equal((np.rint(magnitudes / step) * step).astype(dtype), magnitudes.astype(dtype)):
                return step, largest
    return None


def recognise(values: np.ndarray) -> IntegerWeights | None:
    """Float weights (O, ...) that are small integers times one scale, or one scale an output channel, kept exactly; else ``None``.

    A weight belongs to the grid when ``scale * code``, rounded to the weights' own float type, is the weight itself.
    Of the two forms the one with fewer digit planes is taken, the single scale when they tie.
    """
    values = np.asarray(values)
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    magnitudes = np.abs(_rows(values))
    whole = _grid(magnitudes, dtype)
    if whole is not None and plane_count(whole[1]) == 1:
        grids = [whole]
    else:
        by_row = []
        for row in magnitudes:
            found = _grid(row, dtype)
            if found is None:
                break
            by_row.append(found)
        complete = len(by_row) == len(values)
        if whole is None and not complete:
            return None
        fewer = complete and (whole is None or plane_count(max(grid[1] for grid in by_row)) < plane_count(whole[1]))
        grids = by_row if fewer else [whole] if whole is not None else by_row
    steps = np.array([grid[0] for grid in grids])
    codes = np.rint(_rows(values) / steps[:, None]).reshape(values.shape).astype(np.int16)
    return IntegerWeights(
        codes=codes,
        scale=tuple(Fraction(float(step)) for step in steps),
        planes=plane_count(max(grid[1] for grid in grids)),
        method="exact",
        error=_relative_error(values, codes, np.broadcast_to(steps, (len(values),))),
    )


def twn(values: np.ndarray, *, per_row: bool = False) -> IntegerWeights:
    """Ternary weight networks: ``t = sign(w)`` where ``|w| > 0.7 * mean|w|`` (strictly), ``scale`` the mean of those ``|w|``.

    The mean is over the tensor, or over each output channel with ``per_row``. Source: Li et al., "Ternary Weight Networks", 2016.
    """
    rows = _rows(values)
    groups = rows if per_row else rows.reshape(1, -1)
    magnitude = np.abs(groups)
    kept = magnitude > 0.7 * magnitude.mean(axis=1, keepdims=True)
    count = kept.sum(axis=1)
    scale = np.where(kept, magnitude, 0.0).sum(axis=1) / np.maximum(count, 1)
    return _result(np.asarray(values), np.sign(groups) * kept, scale, "twn", 1)


def absmean(values: np.ndarray) -> IntegerWeights:
    """BitNet b1.58: ``scale = max(mean|w|, 1e-5)``, ``t = clamp(round(w / scale), -1, 1)``, ties to even. Source: Ma et al., 2024."""
    rows = _rows(values)
    scale = max(float(np.abs(rows).mean()), 1e-5)
    return _result(np.asarray(values), np.clip(np.rint(rows / scale), -1, 1), np.array([scale]), "absmean", 1)


def residual_planes(values: np.ndarray, planes: int) -> IntegerWeights:
    """Nearest code of ``planes`` digit planes, ``|code| <= (3**planes - 1) / 2``, with the scale of smallest squared error for each row.

    ``scale`` starts at many fractions of the row's largest weight; rounding to codes and the least-squares scale of those codes
    (``<w, c> / <c, c>``) then alternate, each of which lowers the error; the best start is kept. With one plane this is the
    optimal ternary quantiser, its threshold half its value.
    """
    if not 1 <= planes <= MAX_PLANES:
        raise UserError(f"planes must be from 1 to {MAX_PLANES}, not {planes}")
    rows = _rows(values)
    largest = (3**planes - 1) // 2
    peak = np.abs(rows).max(axis=1)
    safe = np.where(peak > 0, peak, 1.0) / largest
    best_error, best_scale = np.full(len(rows), np.inf), safe

    def quantised(scale: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(rows / scale[:, None]), -largest, largest)

    # Short rows have many local optima and cost little.
    starts = min(200, max(12, (1 << 21) // max(1, rows.size)))
    for fraction in np.geomspace(0.1 * planes, 1.0, starts):
        scale = safe * fraction
        codes = quantised(scale)
        for _ in range(3):
            power = (codes**2).sum(axis=1)
            fitted = (rows * codes).sum(axis=1) / np.where(power > 0, power, 1.0)
            scale = np.where((power > 0) & (fitted > 0), fitted, scale)
            codes = quantised(scale)
        error = ((rows - scale[:, None] * codes) ** 2).sum(axis=1)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale, best_scale)
    best_scale = best_scale.astype(np.float32).astype(np.float64)
    best_scale = np.where(best_scale > 0, best_scale, 1.0)
    return _result(np.asarray(values), quantised(best_scale), best_scale, "planes", planes)


def _explicit(codes: np.ndarray, scale: Scale) -> IntegerWeights:
    codes = np.asarray(codes)
    scales = scale if isinstance(scale, (tuple, list)) else [scale]
    exact = tuple(Fraction(s) if isinstance(s, (int, Fraction)) else Fraction(float(s)) for s in scales)
    largest = int(np.abs(codes.astype(np.int64)).max(initial=0))
    return IntegerWeights(codes=codes.astype(np.int16), scale=exact, planes=plane_count(largest), method="exact", error=0.0)


def lower_weights(
    values: np.ndarray,
    *,
    codes: np.ndarray | None = None,
    scale: Scale = 1,
    method: str = "auto",
    planes: int | None = None,
) -> IntegerWeights:
    """Integer weights for ``values`` (O, ...), or for explicit integer ``codes`` with their ``scale`` (one value or one a channel).

    ``auto`` keeps every weight that is an integer times a scale, and turns float weights into ``planes`` (default 1) digit planes by the
    method of smallest relative squared error. A named method is applied unless the weights are ternary already. ``twn`` takes
    the better of one scale and one a row; ``planes`` has two planes by default. Raises :class:`UserError` for
    an unknown method or a number of planes it cannot make, :class:`ModelError` for weights that are not finite.
    """
    WeightChoice(method=method, planes=planes)
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise ModelError("weights must be finite, not NaN or infinite")
    exact = _explicit(codes, scale) if codes is not None else recognise(values)
    if exact is not None and (method == "auto" or exact.planes == 1):
        return exact
    wanted = planes or (2 if method == "planes" else 1)
    candidates = []
    if method in ("auto", "twn") and wanted == 1:
        candidates += [twn(values), twn(values, per_row=True)]
    if method in ("auto", "absmean") and wanted == 1:
        candidates.append(absmean(values))
    if method in ("auto", "planes"):
        candidates.append(residual_planes(values, wanted))
    return min(candidates, key=lambda candidate: candidate.error)
