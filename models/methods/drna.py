"""Ternary training by blending, twice: as published under the name D-RNA ("Trio Induction"), and repaired.

**As published** the weights of a layer are replaced by a copy outside the graph of differentiation, ``raw + b * (tanh(3 raw) - raw)``, and exported as
``sign(raw)`` where ``|tanh(3 raw)| > 0.08``, without a scale. No gradient of the task ever reaches ``raw``, so what is exported is the random start, thresholded; the network
that is exported is never the one that was trained. It is here to reproduce that.

**Repaired**, without straight-through gradients: with ``s = mean|W|`` (a constant for the gradient), ``u = W / s`` and the threshold 0.7 of Ternary Weight Networks
a smooth staircase ``T(u) = (tanh(beta (u - 0.7)) + tanh(beta (u + 0.7))) / 2`` is blended in, ``(1 - b) W + b alpha T(u)`` with ``alpha = <W, T> / <T, T>``, while
``beta`` rises from 2 to 20. At 85 % of training the weights are crystallised once, which is exactly the TWN rule, and only the rest of the network
goes on learning.
"""

import math
from typing import TypeVar

import numpy as np

from tritloom.models.methods.twn import THRESHOLD

__all__ = [
    "REFERENCE_THRESHOLD", "REPAIRED_SPAN", "STEEPNESS", "blend", "fitted_scale", "flip_rate", "published_blend", "published_penalty", "published_trits", "staircase",
    "staircase_penalty", "steepness",
]  # fmt: skip

REFERENCE_THRESHOLD = math.atanh(0.08) / 3
"""Published: weights beyond it are exported as -1 or 1."""

REPAIRED_SPAN = (0.10, 0.85)
"""Shares of training at which the repaired blend starts, and ends in crystallisation."""

STEEPNESS = (2.0, 20.0)
"""``beta`` at both ends of the span."""

Array = TypeVar("Array")


def _tanh(x: Array) -> Array:
    return x.tanh() if hasattr(x, "tanh") else np.tanh(x)  # type: ignore[attr-defined, call-overload, return-value]


def blend(progress: float, start: float, end: float = 1.0) -> float:
    """``(1 - cos(pi * share of the span)) / 2``: 0 up to ``start``, 1 from ``end`` on."""
    share = min(max((progress - start) / (end - start), 0.0), 1.0)
    return 0.5 * (1 - math.cos(math.pi * share))


def steepness(progress: float) -> float:
    """``beta`` of the repaired staircase, linear over its span."""
    (start, end), (low, high) = REPAIRED_SPAN, STEEPNESS
    return low + (high - low) * min(max((progress - start) / (end - start), 0.0), 1.0)


def published_blend(raw: Array, b: float) -> Array:
    """``raw + b * (tanh(3 raw) - raw)``; the published code does this outside the graph of differentiation."""
    return raw + b * (_tanh(3 * raw) - raw)  # type: ignore[operator]


def published_trits(raw: Array) -> Array:
    """Export as published: -1, 0 and 1 of the kind and dtype of ``raw``, strictly beyond :data:`REFERENCE_THRESHOLD`; no scale."""
    return (raw > REFERENCE_THRESHOLD) * 1 - (raw < -REFERENCE_THRESHOLD) * 1 + raw * 0  # type: ignore[operator]


def published_penalty(raw: Array) -> Array:
    """``mean(raw ** 3 - raw) ** 2``: the square of the mean, which is nearly 0 for symmetric weights whatever their size."""
    return (raw**3 - raw).mean() ** 2  # type: ignore[operator]


def staircase(u: Array, beta: float) -> Array:
    """Smooth steps from -1 over 0 to 1 at -0.7 and 0.7; differentiable everywhere."""
    return 0.5 * (_tanh(beta * (u - THRESHOLD)) + _tanh(beta * (u + THRESHOLD)))  # type: ignore[operator]


def staircase_penalty(steps: Array) -> Array:
    """``mean((T (T ** 2 - 1)) ** 2)``: 0 exactly where every value is -1, 0 or 1."""
    return ((steps * (steps**2 - 1)) ** 2).mean()  # type: ignore[operator]


def fitted_scale(weights: Array, steps: Array) -> Array:
    """Least-squares ``alpha = <W, T> / <T, T>``; 0 where ``T`` is 0 everywhere."""
    energy = (steps * steps).sum()  # type: ignore[operator]
    return (weights * steps).sum() / (energy + (energy == 0) * 1)  # type: ignore[operator]


def flip_rate(before: Array, after: Array) -> float:
    """Share of codes that differ; 0 says that nothing was learned."""
    return float((before != after).reshape(-1).sum()) / max(1, math.prod(before.shape))  # type: ignore[attr-defined]
