"""What the weights of a layer have to do with on calibration samples: its integer inputs, and the outputs of the float model.

The sums over samples are sums of integers below ``2**53``, so that they are the same in any order of summation.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.samples import SampleRun
from tritloom.compiler.ir.program import Window
from tritloom.compiler.quantize.compensation import LARGEST_WORK, Moments, compensated
from tritloom.compiler.quantize.weights import IntegerWeights

if TYPE_CHECKING:
    from tritloom.compiler.frontend.builder import Builder

__all__ = ["Compensation", "LayerInputs", "dense_inputs", "window_inputs"]

_MOST_INPUTS = 1 << 21
"""Inputs that are summed over: of more, every so many pixels are looked at."""

_OUTPUT_STEPS = 1 << 20
"""Steps from 0 to the largest output of a channel: with 8-bit inputs, sums of :data:`_MOST_INPUTS` products stay below ``2**49``."""

Pick = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """How a layer reads ``tensor`` and where its outputs stand.

    ``pick`` takes codes (N, C, H, W), numbers of samples and of pixels (M,) to the inputs (M, G, K) of the layer's sums there, in the
    order of its weights (O, K), G groups. ``gains`` are the real values of a code's step, one a group. ``view`` has the shape of the ONNX output behind a batch of one and
    holds ``output * pixels + pixel``.
    """

    tensor: str
    pick: Pick
    gains: tuple[Fraction, ...]
    pixels: int
    view: np.ndarray


def window_inputs(tensor: str, window: Window, pad_code: int, gains: tuple[Fraction, ...], pixels: int, view: np.ndarray) -> LayerInputs:
    """Inputs of a convolution of as many groups as ``gains``, in the order of weights (O, I / groups, kh, kw)."""

    def pick(codes: np.ndarray, sample: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        top, left, bottom, right = window.pads
        padded = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad_code)
        (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
        views = sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
        found = views[sample, :, pixel // views.shape[3], pixel % views.shape[3]]
        return found.reshape(len(sample), len(gains), -1)

    return LayerInputs(tensor=tensor, pick=pick, gains=gains, pixels=pixels, view=view)


def dense_inputs(tensor: str, rows: np.ndarray, gain: Fraction, view: np.ndarray) -> LayerInputs:
    """Inputs of a dense layer that takes the elements ``rows`` (T, K) of the tensor, with T the pixels."""

    def pick(codes: np.ndarray, sample: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        return codes.reshape(len(codes), -1)[sample[:, None], rows[pixel]][:, None]

    return LayerInputs(tensor=tensor, pick=pick, gains=(gain,), pixels=len(rows), view=view)


@dataclass(kw_only=True)
class Compensation:
    """Weights whose errors cancel, for one program under construction.

    ``run`` has the integers of the layers before, ``outputs`` gives an ONNX value of the float model over the same samples,
    (N, elements) float32. ``known`` are results by what they depend on, kept from one lowering of a model to the next.
    """

    run: SampleRun
    known: dict[tuple[Any, ...], IntegerWeights]
    outputs: Callable[[str], np.ndarray]
    layers: list[str] = field(default_factory=list)
    """Layers whose codes were chosen."""

    def weights(
        self, builder: "Builder", values: np.ndarray, lowered: IntegerWeights, name: str, label: str, inputs: LayerInputs
    ) -> IntegerWeights:
        """``lowered`` of the float ``values`` (O, ...) with the codes that suit the ONNX output ``name``."""
        length = values[0].size
        if len(values) * length**2 > LARGEST_WORK:
            return lowered
        self.layers.append(label)
        codes = self.run.codes(builder, inputs.tensor)
        key = (
            name,
            lowered.planes,
            hashlib.sha256(lowered.codes.tobytes()).digest(),
            hashlib.sha256(codes.tobytes()).digest(),
            inputs.gains,
        )
        if key not in self.known:
            self.known[key] = compensated(values, lowered, self._moments(codes, name, inputs, len(values), length))
        return self.known[key]

    def _moments(self, codes: np.ndarray, name: str, inputs: LayerInputs, outputs: int, length: int) -> Moments:
        groups = len(inputs.gains)
        targets = np.empty((len(codes), outputs * inputs.pixels), np.float32)
        targets[:, inputs.view.ravel()] = self.outputs(name)
        if not np.isfinite(targets).all():
            raise RefusalError(
                "its outputs over the calibration samples are beyond float32", "give samples in the range that the model was trained on"
            )
        chosen = _spread(len(codes) * inputs.pixels, max(1, _MOST_INPUTS // (groups * length)))
        sample, pixel = chosen // inputs.pixels, chosen % inputs.pixels
        x = inputs.pick(codes, sample, pixel).astype(np.float64)
        y = targets.reshape(len(codes), outputs, inputs.pixels)[sample, :, pixel].astype(np.float64)
        unit = np.abs(y).max(axis=0) / _OUTPUT_STEPS
        unit = np.where(unit > 0, unit, 1.0)
        y = np.rint(y / unit)
        count, share = len(chosen), outputs // groups
        squares, products = [], []
        for group, gain in enumerate(float(gain) for gain in inputs.gains):
            own, aims = x[:, group], y[:, group * share : (group + 1) * share]
            total = own.sum(axis=0)
            squares.append(gain**2 * (own.T @ own - total[:, None] * total / count))
            products.append(gain * (aims.T @ own - aims.sum(axis=0)[:, None] * total / count))
        return Moments(np.stack(squares), np.concatenate(products) * unit[:, None])


def _spread(total: int, most: int) -> np.ndarray:
    """All of ``0..total - 1``, or ``most`` of them, far apart."""
    if total <= most:
        return np.arange(total)
    step = int(total * 0.6180339887)
    while gcd(step, total) > 1:
        step += 1
    return np.sort(np.arange(most) * step % total)
