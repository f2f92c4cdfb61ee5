"""Classifiers for training, a perceptron or a convolutional network with any method, and their integer form.

A stage is: a fixed int8 grid, the method's own quantiser of activations if it has one, quantised weights, batch normalisation, Relu, and maybe a 2x2
maximum pooling of the next grid's codes. Batch normalisation keeps the input of every hidden grid near a standard normal distribution, so one step suits all; folded into
scales and biases it costs nothing. The last stage has neither normalisation nor Relu.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tritloom.errors import UserError
from tritloom.models.methods.activations import QuestActivations, StaticGrid
from tritloom.models.methods.layers import QuantConv2d, QuantLinear
from tritloom.models.methods.quest import levels
from tritloom.models.methods.recipes import Recipe
from tritloom.models.nets.classifier import Grid, Stage
from tritloom.models.nets.export import FoldedLayer

__all__ = ["INPUT_CODES", "Layer", "Network"]

INPUT_CODES = 127
"""Highest code of the input's grid."""


@dataclass(frozen=True)
class Layer:
    """One hidden layer: ``width`` outputs, dense or a convolution of 3x3, and whether a pooling follows."""

    width: int
    convolution: bool = False
    pooled: bool = False


class Block(nn.Module):
    """One stage in training: ``grid`` passes everything in float baselines; ``norm`` is None in the last; ``pooled`` says that the next grid's codes are pooled."""

    def __init__(
        self, grid: StaticGrid | nn.Identity, layer: QuantLinear | QuantConv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d | None, pooled: bool
    ) -> None:
        super().__init__()
        self.grid, self.layer, self.norm, self.pooled = grid, layer, norm, pooled

    def forward(self, x: Tensor, pool: bool) -> Tensor:
        x = self.grid(x)
        if pool:
            x = functional.max_pool2d(x, 2)
        x = self.layer(x.flatten(1) if isinstance(self.layer, QuantLinear) else x)
        return x if self.norm is None else functional.relu(self.norm(x))

    def stage(self) -> Stage:
        """The integer form, with batch normalisation folded in; a negative gain turns the signs of its channel's weights round."""
        weights = self.layer.weights
        if weights is None or not isinstance(self.grid, StaticGrid):
            raise UserError("a network with float weights or activations has no integer form; take another method")
        codes, scale = weights.codes(self.layer.weight.double())
        scale = scale.expand(len(codes))
        if self.norm is None:
            bias = cast(Tensor, self.layer.bias).double()
        else:
            state = {name: tensor.double() for name, tensor in self.norm.state_dict().items()}
            gain = state["weight"] / torch.sqrt(state["running_var"] + self.norm.eps)
            codes = codes * torch.where(gain < 0, -1.0, 1.0).reshape(-1, *[1] * (codes.dim() - 1))
            scale, bias = scale * gain.abs(), state["bias"] - state["running_mean"] * gain
        quest = self.layer.activations if isinstance(self.layer.activations, QuestActivations) else None
        return Stage(
            Grid(self.grid.step, self.grid.low, self.grid.high),
            FoldedLayer(codes.numpy().astype(np.int16), scale.numpy().astype(np.float32), bias.numpy().astype(np.float32)),
            None if quest is None else _quest_grid(quest),
            None if quest is None else quest.centre.double().numpy(),
            relu=self.norm is not None,
            pooled=self.pooled,
        )


def _quest_grid(activations: QuestActivations) -> Grid:
    unit, count = float(activations.unit), levels(activations.bits)
    return Grid(unit, -1, 1) if count == 3 else Grid(2 * unit, 1 - count // 2, count // 2, -0.5)


class Network(nn.Module):
    """A classifier.

    Parameters
    ----------
    shape
        Of one input: (features,) or (channels, height, width).
    hidden
        Hidden layers; convolutions come first.
    classes
        Outputs.
    recipe
        The method.
    input_step
        Step of the input's grid, codes 0..127.

    Raises :class:`UserError` where the layers do not fit.
    """

    def __init__(self, shape: tuple[int, ...], hidden: Sequence[Layer], classes: int, recipe: Recipe, *, input_step: float) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList()
        for index, layer in enumerate([*hidden, Layer(classes)]):
            last = index == len(hidden)
            if index:
                grid = nn.Identity() if recipe.high is None else StaticGrid(recipe.step, 0, recipe.high)
            else:
                grid = StaticGrid(input_step, 0, INPUT_CODES)
            if layer.convolution:
                if len(shape) != 3:
                    raise UserError(
                        f"layer {index + 1} is a convolution, but what it gets is no image: put convolutions before dense layers"
                    )
                activations = recipe.activations(1, shape[0]) if shape[0] > 1 else None  # one channel has nothing to be rotated with
                built = QuantConv2d(shape[0], layer.width, bias=False, weights=recipe.weights(), activations=activations)
                norm = nn.BatchNorm2d(layer.width)
                shape = (layer.width, *(size // 2 if layer.pooled else size for size in shape[1:]))
                if min(shape) < 1:
                    raise UserError(f"layer {index + 1} pools an image of less than 2 x 2 pixels; take a pooling away")
            else:
                built = QuantLinear(
                    math.prod(shape), layer.width, bias=last, weights=recipe.weights(), activations=recipe.activations(-1, math.prod(shape))
                )
                norm = None if last else nn.BatchNorm1d(layer.width)
                shape = (layer.width,)
            self.blocks.append(Block(grid, built, norm, layer.pooled))

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        pool = False
        for block in self._blocks():
            x = block(x, pool)
            pool = block.pooled
        return x

    @torch.no_grad()
    def stages(self) -> list[Stage]:
        """The integer form of the network in evaluation mode, for :func:`tritloom.models.nets.classifier.classifier`; on the CPU."""
        return [block.stage() for block in self._blocks()]
