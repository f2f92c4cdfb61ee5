"""Layers that quantise their weights and inputs, and what acts on all such layers of a network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritloom.models.methods import drna
from tritloom.models.methods.activations import QuestActivations
from tritloom.models.methods.weights import PublishedDrnaWeights, RepairedDrnaWeights, WeightQuantiser

__all__ = [
    "QuantConv2d", "QuantLinear", "SubLayerNorm", "crystallise", "flips", "penalty", "quantised_layers", "recrystallise", "set_progress", "weight_codes",
]  # fmt: skip


class QuantLinear(nn.Linear):
    """Dense layer with quantised weights, and inputs where ``activations`` is given; without either it is ``nn.Linear``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weights: WeightQuantiser | None = None,
        activations: nn.Module | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.weights, self.activations = weights, activations

    def forward(self, input: Tensor) -> Tensor:
        x = input if self.activations is None else self.activations(input)
        return functional.linear(x, self.weight if self.weights is None else self.weights(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """Convolution of odd size that keeps height and width, with quantised weights and inputs like :class:`QuantLinear`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = True,
        weights: WeightQuantiser | None = None,
        activations: nn.Module | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        self.weights, self.activations = weights, activations
        self.border = kernel_size // 2

    def forward(self, input: Tensor) -> Tensor:
        x = input if self.activations is None else self.activations(input)
        value = self.activations.padding if isinstance(self.activations, QuestActivations) else 0.0
        x = functional.pad(x, [self.border] * 4, value=value)
        return self._conv_forward(x, self.weight if self.weights is None else self.weights(self.weight), self.bias)


class SubLayerNorm(nn.Module):
    """BitNet's SubLN: root-mean-square norm over the last axis with a gain, in front of a quantised layer."""

    def __init__(self, features: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.epsilon)


def quantised_layers(net: nn.Module) -> Iterator[tuple[str, "QuantLinear | QuantConv2d", WeightQuantiser]]:
    """Name, layer and weight quantiser of every layer that has one, in the order of the network."""
    for name, layer in net.named_modules():
        if isinstance(layer, QuantLinear | QuantConv2d) and layer.weights is not None:
            yield name, layer, layer.weights


def set_progress(net: nn.Module, progress: float) -> None:
    """Tell the quantisers that follow a schedule which share of training, 0 to 1, is done."""
    for _, _, weights in quantised_layers(net):
        if isinstance(weights, PublishedDrnaWeights | RepairedDrnaWeights):
            weights.progress = progress


def penalty(net: nn.Module) -> Tensor | None:
    """Sum of the published D-RNA regulariser over the layers that have it; None without any."""
    terms = [weights.penalty(layer.weight) for _, layer, weights in quantised_layers(net) if isinstance(weights, PublishedDrnaWeights)]
    return torch.stack(terms).sum() if terms else None


def crystallise(net: nn.Module) -> None:
    """Fix the trits of every layer with :class:`RepairedDrnaWeights` that has none yet."""
    for _, layer, weights in quantised_layers(net):
        if isinstance(weights, RepairedDrnaWeights) and not weights.crystal:
            weights.crystallise(layer.weight)


def recrystallise(net: nn.Module, generator: torch.Generator) -> None:
    """Make every crystallised layer float again, for another cycle of training."""
    for _, layer, weights in quantised_layers(net):
        if isinstance(weights, RepairedDrnaWeights) and weights.crystal:
            weights.recrystallise(layer.weight, generator)


@torch.no_grad()
def weight_codes(net: nn.Module) -> dict[str, Tensor]:
    """The integers of every quantised layer by name, int16."""
    return {name: weights.codes(layer.weight)[0].to(torch.int16) for name, layer, weights in quantised_layers(net)}


def flips(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Share of the codes of all layers that differ between two calls of :func:`weight_codes`."""
    counts = [codes.numel() for codes in after.values()]
    changed = sum(drna.flip_rate(before[name], after[name]) * codes.numel() for name, codes in after.items())
    return changed / max(1, sum(counts))
