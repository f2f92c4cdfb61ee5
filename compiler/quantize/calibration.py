"""Activation grids from samples."""

from fractions import Fraction

import numpy as np

from tritloom.errors import UserError

__all__ = ["choose_grid", "code_range"]

_SMALLEST = float(np.finfo(np.float32).tiny)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed code of 2 to 8 bits. Raises :class:`UserError` for other widths."""
    if not 2 <= bits <= 8:
        raise UserError(f"activation bits must be from 2 to 8, not {bits}")
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def choose_grid(values: np.ndarray, bits: int = 8, *, percentile: float = 100.0, name: str = "calibration samples") -> tuple[Fraction, int]:
    """Scale and zero point of signed ``bits``-bit codes for a tensor whose samples are ``values``; ``real = scale * (code - zero_point)``.

    The grid covers the smallest and largest sample, or with ``percentile`` below 100 the central range that holds this share of
    them. Zero is always a code: values that are never negative have their zero point at the lowest code, values never
    positive at the highest, others at 0. The scale is a float32 exactly. Samples that are all zero get scale 1.
    Raises :class:`UserError` for no samples, samples that are not finite, bits outside 2..8, a percentile outside (50, 100].
    """
    low_code, high_code = code_range(bits)
    if not 50 < percentile <= 100:
        raise UserError(f"percentile must be above 50 and at most 100, not {percentile!r}")
    samples = np.asarray(values, np.float64).ravel()
    if not samples.size:
        raise UserError(f"{name} must not be empty")
    finite = np.isfinite(samples)
    if not finite.all():
        raise UserError(f"{name} must be finite, but value {int(np.argmin(finite))} is {float(samples[~finite][0])}")
    least, most = float(samples.min()), float(samples.max())
    if percentile < 100:
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
    return Fraction(float(np.float32(max(span, _SMALLEST)))), zero_point
