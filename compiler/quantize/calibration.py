"""Activation grids from samples."""

from fractions import Fraction

import numpy as np

from tritloom.errors import UserError

__all__ = ["CALIBRATION_METHODS", "DEFAULT_CALIBRATION", "DEFAULT_PERCENTILE", "choose_grid", "code_range"]

CALIBRATION_METHODS = ("minmax", "percentile", "mse")
"""How a grid follows from samples: cover all of them, cover the central share of them, or make the smallest mean squared error."""

DEFAULT_CALIBRATION = "mse"

DEFAULT_PERCENTILE = 99.99
_LOOKED_AT = 1 << 16
_SMALLEST = float(np.finfo(np.float32).tiny)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed code of 2 to 8 bits. Raises :class:`UserError` for other widths."""
    if not 2 <= bits <= 8:
        raise UserError(f"activation bits must be from 2 to 8, not {bits}")
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def choose_grid(
    values: np.ndarray,
    bits: int = 8,
    *,
    method: str = DEFAULT_CALIBRATION,
    percentile: float = DEFAULT_PERCENTILE,
    name: str = "calibration samples",
) -> tuple[Fraction, int]:
    """Scale and zero point of signed ``bits``-bit codes for a tensor whose samples are ``values``; ``real = scale * (code - zero_point)``.

    Zero is always a code: values that are never negative have their zero point at the lowest code, values never positive at the
    highest, others at 0. The scale is a float32 exactly. Samples that are all zero get scale 1.

    ``minmax``
        The grid covers the smallest and the largest sample.
    ``percentile``
        It covers the central ``percentile`` of the samples: where they have both signs, half of the rest is left out on either side.
    ``mse``
        Of the scales ``minmax * k / 100``, ``k`` from 20 to 100, the one whose codes (nearest, ties to even, clamped) have the smallest
        mean squared error over the samples, the largest of them where several have it. Of more than 65 536 samples so many are looked at:
        the middle ones of stretches of equal length in sorted order.

    Raises :class:`UserError` for no samples, samples that are not finite, bits outside 2..8, an unknown method, a percentile outside
    (50, 100].
    """
    low_code, high_code = code_range(bits)
    if method not in CALIBRATION_METHODS:
        raise UserError(f"calibration method must be one of {', '.join(CALIBRATION_METHODS)}, not {method!r}")
    if not 50 < percentile <= 100:
        raise UserError(f"percentile must be above 50 and at most 100, not {percentile!r}")
    samples = np.asarray(values, np.float64).ravel()
    if not samples.size:
        raise UserError(f"{name} must not be empty")
    finite = np.isfinite(samples)
    if not finite.all():
        raise UserError(f"{name} must be finite, but value {int(np.argmin(finite))} is {float(samples[~finite][0])}")
    least, most = float(samples.min()), float(samples.max())
    if method == "percentile" and percentile < 100:
        tail = (100 - percentile) / 2 if least < 0 < most else 100 - percentile
        least = float(np.percentile(samples, tail)) if least < 0 else least
        most = float(np.percentile(samples, 100 - tail)) if most > 0 else most
    if least >= 0:
        zero_point, span = low_code, most / (high_code - low_code)
    elif most <= 0:
        zero_point, span = high_code, -least / (high_code - low_code)
    else:
        zero_point, span = 0, max(most / high_code, least / low_code)
    if span == 0:
        return Fraction(1), zero_point
    if method == "mse":
        span = _least_squares(samples, span, zero_point, low_code, high_code)
    return Fraction(float(np.float32(max(span, _SMALLEST)))), zero_point


def _least_squares(samples: np.ndarray, span: float, zero_point: int, low_code: int, high_code: int) -> float:
    """The scale of method ``mse``; ``span`` is that of ``minmax``."""
    if samples.size > _LOOKED_AT:
        # Order statistics keep the tails, which decide here, in their true proportion.
        edges = np.arange(_LOOKED_AT + 1) * samples.size // _LOOKED_AT
        samples = np.sort(samples)[(edges[:-1] + edges[1:]) // 2]
    best, best_error = span, np.inf
    for hundredths in range(100, 19, -1):
        scale = span * hundredths / 100
        codes = np.clip(np.rint(samples / scale), low_code - zero_point, high_code - zero_point)
        error = float(((codes * scale - samples) ** 2).mean())
        if error < best_error:
            best, best_error = scale, error
    return best
