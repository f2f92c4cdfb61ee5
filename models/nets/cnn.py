"""A small ternary convolutional network with integer activations, for training.

Everything the exported model rounds is rounded in training too, so both judge an image alike.
"""

from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tritloom.models.methods.twn import ternarise
from tritloom.models.nets.export import FoldedLayer

__all__ = ["ACTIVATION_SCALE", "INPUT_SCALE", "POOLED", "DigitsCnn", "TernaryConv2d", "TernaryLinear", "quantise"]

INPUT_SCALE = 0.25
"""Step of the input grid: pixels 0..16 become the codes 0..64, whole pixel values exactly."""

ACTIVATION_SCALE = 1 / 16
"""Step of every hidden activation, codes 0..127; batch normalisation keeps values well below the upper end, 7.94."""

HIGHEST_CODE = 127

POOLED = (0, 2)
"""Indices of the convolutions that a pooling follows."""


def quantise(x: Tensor, scale: float) -> Tensor:
    """Nearest multiple of ``scale``, ties to even, clamped to the codes 0..127. The gradient passes where nothing was clamped."""
    clamped = x.clamp(0, HIGHEST_CODE * scale)
    return clamped + (torch.round(clamped / scale) * scale - clamped).detach()


def _straight_through(weight: Tensor) -> Tensor:
    """Ternarised weights whose gradient reaches the float weights unchanged."""
    trits, scale = ternarise(weight.detach())
    ternary = trits * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return weight + (ternary - weight).detach()


class TernaryConv2d(nn.Conv2d):
    """Convolution whose weights are ternary in the forward pass, one scale per output channel."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, _straight_through(self.weight), self.bias)


class TernaryLinear(nn.Linear):
    """Dense layer whose weights are ternary in the forward pass, one scale per output."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, _straight_through(self.weight), self.bias)


class DigitsCnn(nn.Module):
    """8x8 grey image to 10 logits: three 3x3 convolutions with two 2x2 maximum poolings between, and a dense head.

    Parameters
    ----------
    channels
        Output channels of the three convolutions.
    """

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        widths = (1, *channels)
        self.convolutions = nn.ModuleList(TernaryConv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels)
        self.head = TernaryLinear(channels[-1] * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = quantise(x, INPUT_SCALE)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = quantise(functional.relu(norm(convolution(x))), ACTIVATION_SCALE)
            if index in POOLED:
                x = functional.max_pool2d(x, 2)
        return self.head(x.flatten(1))

    @torch.no_grad()
    def folded(self) -> list[FoldedLayer]:
        """The layers with batch normalisation folded in; a negative gain turns the trits of its channel round."""
        layers = []
        for convolution, norm in cast("list[tuple[nn.Conv2d, nn.BatchNorm2d]]", list(zip(self.convolutions, self.norms, strict=True))):
            trits, scale = ternarise(convolution.weight.double())
            state = {name: tensor.double() for name, tensor in norm.state_dict().items()}
            gain = state["weight"] / torch.sqrt(state["running_var"] + norm.eps)
            sign = torch.where(gain < 0, -1.0, 1.0)
            layers.append((trits * sign[:, None, None, None], scale * gain.abs(), state["bias"] - state["running_mean"] * gain))
        layers.append((*ternarise(self.head.weight.double()), self.head.bias.double()))
        return [
            FoldedLayer(*(array.numpy().astype(kind) for array, kind in zip(layer, (np.int8, np.float32, np.float32), strict=True)))
            for layer in layers
        ]
