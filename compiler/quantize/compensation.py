"""Integer weights whose errors cancel in the outputs of their layer, instead of being smallest one by one.

With inputs ``x`` of the integer network and outputs ``y`` of the float one over calibration samples, a row of codes ``c`` with its scale
``s`` should make ``sum (s * c @ x - y)**2`` small. That is a quadratic form, ``s**2 * c @ H @ c - 2 * s * c @ g`` with ``H = sum x x^T`` and
``g = sum y x``, and is lowered one code after the other while the others stay (cyclic coordinate descent). The
objective is that of Frantar et al., "Optimal Brain Compression", 2022, and Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization", 2020; the outputs aimed at are those of the float network, so that errors of earlier layers are made up for as well.
"""

from dataclasses import dataclass, replace

import numpy as np

from tritloom.compiler.quantize.weights import IntegerWeights, integers_at

__all__ = ["LARGEST_WORK", "Moments", "compensated"]

LARGEST_WORK = 1 << 27
"""Rows times the square of their length up to which codes are looked at again; a sweep costs so many multiplications."""

_DAMPING = 0.01
_SWEEPS = 20
_STARTS = (1.0, 0.85, 1.15)


@dataclass(frozen=True)
class Moments:
    """Sums over samples and pixels for weights (O, K) in ``G`` groups of rows, float64.

    ``inputs`` (G, K, K) is ``sum x x^T`` of the inputs of a group's rows, ``outputs`` (O, K) is ``sum y x^T``; x and y real values, both
    less their means where a bias takes out the mean error.
    """

    inputs: np.ndarray
    outputs: np.ndarray


def compensated(values: np.ndarray, weights: IntegerWeights, moments: Moments) -> IntegerWeights:
    """``weights`` of the float ``values`` (O, ...) with other codes of as many planes, a scale for each row, and a smaller output error.

    ``_DAMPING`` times the mean of the diagonal of ``moments.inputs`` holds on to the float weights where samples say little. Rows that
    do not improve keep their codes. Layers beyond :data:`LARGEST_WORK` stay as they are.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    groups, length = moments.inputs.shape[:2]
    if len(rows) * length * length > LARGEST_WORK:
        return weights
    size = len(rows) // groups
    first = weights.codes.reshape(rows.shape).astype(np.float64)
    scale = np.array([float(part) for part in weights.scale]) * np.ones(len(rows))
    codes, scales = first.copy(), scale.copy()
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        curvature = moments.inputs[group]
        damping = _DAMPING * float(np.trace(curvature)) / length
        if damping <= 0:
            continue
        curvature = curvature + damping * np.eye(length)
        pull = moments.outputs[part] + damping * rows[part]
        codes[part], scales[part] = _descended(first[part], scale[part], curvature, pull, (3**weights.planes - 1) // 2)
    return replace(integers_at(np.asarray(values), codes, scales, weights.planes), method="planes")


def _descended(
    codes: np.ndarray, scale: np.ndarray, curvature: np.ndarray, pull: np.ndarray, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of descents from several scales."""
    best, best_scale, best_loss = codes, scale, _loss(codes, scale, curvature, pull)
    starts = _STARTS if codes.size * len(curvature) * len(_STARTS) <= LARGEST_WORK else _STARTS[:1]
    for factor in starts:
        found, fitted = _descent(
            codes if factor == 1 else np.clip(np.rint(codes / factor), -largest, largest), scale * factor, curvature, pull, largest
        )
        loss = _loss(found, fitted, curvature, pull)
        better = loss < best_loss
        best, best_scale = np.where(better[:, None], found, best), np.where(better, fitted, best_scale)
        best_loss = np.where(better, loss, best_loss)
    return best, best_scale


def _loss(codes: np.ndarray, scale: np.ndarray, curvature: np.ndarray, pull: np.ndarray) -> np.ndarray:
    scale = scale.astype(np.float32).astype(np.float64)
    return scale**2 * ((codes @ curvature) * codes).sum(axis=1) - 2 * scale * (codes * pull).sum(axis=1)


def _descent(codes: np.ndarray, scale: np.ndarray, curvature: np.ndarray, pull: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Sweeps over the codes, the scale of least squares behind each, until nothing changes."""
    codes, scale = codes.copy(), scale.copy()
    product = codes @ curvature
    for _ in range(_SWEEPS):
        before = codes.copy()
        for k in np.argsort(-np.diag(curvature), kind="stable"):
            rest = pull[:, k] / scale - product[:, k] + curvature[k, k] * codes[:, k]
            new = np.clip(np.rint(rest / curvature[k, k]), -largest, largest)
            change = new - codes[:, k]
            changed = np.flatnonzero(change)
            if len(changed):
                product[changed] += change[changed, None] * curvature[k]
                codes[:, k] = new
        power, along = (codes * product).sum(axis=1), (codes * pull).sum(axis=1)
        fits = (power > 0) & (along > 0)
        scale = np.where(fits, along / np.where(fits, power, 1.0), scale)
        if np.array_equal(codes, before):
            break
    return codes, scale
