"""Bias correction: the mean error of each output channel of a layer with ternarised weights, over the calibration samples.

The program that exists so far runs in golden on the samples, so that the error counts what the layers before it have done too. After Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, in its empirical form.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tritloom.compiler.frontend.samples import SampleRun
from tritloom.compiler.ir.program import Tensor, Window

if TYPE_CHECKING:
    from tritloom.compiler.frontend.builder import Builder

__all__ = ["BiasCorrection", "mean_sums"]


def mean_sums(codes: np.ndarray, weights: np.ndarray, window: Window, groups: int, pad_code: int) -> np.ndarray:
    """Accumulators (O, H, W) of mean codes (C, H, W), float64: a sum is linear, so these are the mean accumulators."""
    top, left, bottom, right = window.pads
    padded = np.pad(codes, ((0, 0), (top, bottom), (left, right)), constant_values=pad_code)
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    views = sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))[:, ::sh, ::sw, ::dh, ::dw]
    outputs, inputs = len(weights) // groups, len(codes) // groups
    parts = [
        np.tensordot(
            weights[g * outputs : (g + 1) * outputs].astype(np.float64), views[g * inputs : (g + 1) * inputs], ((1, 2, 3), (0, 3, 4))
        )
        for g in range(groups)
    ]
    return np.concatenate(parts)


@dataclass(kw_only=True)
class BiasCorrection:
    """Mean errors of one program under construction.

    Parameters
    ----------
    run
        The program's integers on the samples.
    mean
        Mean of an ONNX value of the float model over the same samples, float64 with the shape of one sample behind a batch of one.
    """

    run: SampleRun
    mean: Callable[[str], np.ndarray]
    corrected: list[str] = field(default_factory=list)
    """Layers whose error was asked for."""

    def errors(
        self, builder: "Builder", value: str, label: str, view: np.ndarray, tensor: Tensor, sums: Callable[[np.ndarray], np.ndarray]
    ) -> list[Fraction]:
        """What must be added to each output channel, so that its mean over samples and pixels is that of the float model.

        ``value`` names the layer's ONNX output; ``view`` holds the flat numbers of its elements in the result (O, H, W) of ``sums``,
        which takes the mean codes (C, H, W) of ``tensor`` to mean real outputs. Entries are float32 exactly; channels that the view
        leaves out get 0.
        """
        ours = sums(self.run.codes(builder, tensor.name).mean(axis=0, dtype=np.float64))
        channels, pixels = len(ours), ours[0].size
        flat = view.ravel()
        error = np.broadcast_to(self.mean(value), view.shape).ravel() - ours.ravel()[flat]
        count = np.bincount(flat // pixels, minlength=channels)
        total = np.bincount(flat // pixels, weights=error, minlength=channels)
        self.corrected.append(label)
        return [Fraction(float(entry)) for entry in (total / np.maximum(count, 1)).astype(np.float32)]
