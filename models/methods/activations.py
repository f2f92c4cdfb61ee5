"""Activation quantisers: PyTorch modules from a float tensor to the values that the next layer sees.

:class:`StaticGrid`, :class:`StaticAbsMax` and :class:`QuestActivations` use one grid for all samples in evaluation, which ONNX files and the
array need; :class:`AbsMaxTokens` has one grid a token, as BitNet is published.
"""

import torch
from torch import Tensor, nn

from tritloom.models.methods import bitnet, quest
from tritloom.models.methods.gradients import straight_through, through_mask, to_grid

__all__ = ["MOMENTUM", "AbsMaxTokens", "QuestActivations", "StaticAbsMax", "StaticGrid"]

MOMENTUM = 0.05
"""Weight of a new batch in the running figures."""


class StaticGrid(nn.Module):
    """Multiples of a fixed ``step``, codes ``low .. high``, ties to even; the gradient passes where nothing was clamped."""

    def __init__(self, step: float, low: int = 0, high: int = 127) -> None:
        super().__init__()
        self.step, self.low, self.high = step, low, high

    def forward(self, x: Tensor) -> Tensor:
        return to_grid(x, self.step, self.low, self.high)


class _Running(nn.Module):
    """A running mean of one number, or of one a feature, over the batches of training mode; the first batch starts it."""

    value: Tensor
    started: Tensor

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros([] if features is None else [features]))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def update(self, found: Tensor) -> None:
        self.value.copy_(torch.lerp(self.value, found.to(self.value), MOMENTUM) if self.started else found)
        self.started.fill_(True)


class StaticAbsMax(nn.Module):
    """One signed grid for all tokens, ``step = running max|x| / (2 ** (bits - 1) - 1)``, straight through inside the grid."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.limit = 2 ** (bits - 1) - 1
        self.running = _Running()

    @property
    def step(self) -> Tensor:
        """Step of the grid, a scalar tensor; 0 before the first batch."""
        return self.running.value / self.limit

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running.update(x.detach().abs().amax())
        return to_grid(x, self.step.clamp(min=1e-8), -self.limit, self.limit)


class AbsMaxTokens(nn.Module):
    """BitNet: a grid for each token (last axis), straight through."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            codes, step = bitnet.absmax(x, self.bits)
            quantised = codes * step
        return straight_through(x, quantised)


class QuestActivations(nn.Module):
    """QuEST grid of ``bits`` bits on activations rotated along ``axis``; gradients by the trust mask.

    By itself as published: the standard deviation is that of each row along ``axis``. With ``static`` it is one for all rows, of the batch in training and its running
    mean in evaluation, and of every rotated feature the mean is taken away, likewise. (Pixels and what comes out of a Relu are never negative, so without this
    the first feature of every block is always clipped, and widens the grid of all.) What the next layer's sums lack then is a constant for each output, which a
    bias or a batch normalisation behind it makes up for.

    Parameters
    ----------
    bits
        1, 1.585, 2, 3, 4 or 8.
    axis
        The feature axis: -1 for tokens, 1 for images (N, C, H, W).
    static
        Number of features, for one grid for all; None as published.
    """

    def __init__(self, bits: float, *, axis: int = -1, static: int | None = None) -> None:
        super().__init__()
        quest.levels(bits)  # refuses a wrong width
        self.bits, self.axis, self.static = bits, axis, static
        self.sigma, self.mean = _Running(), _Running(static)

    @property
    def unit(self) -> Tensor:
        """Real value of code 1 on the static grid, a scalar tensor."""
        return quest.unit_of(self.sigma.value + 1e-8, self.bits)  # type: ignore[return-value]

    @property
    def centre(self) -> Tensor:
        """What is taken away from every rotated feature on the static grid, (features,)."""
        return self.mean.value

    @property
    def padding(self) -> float:
        """The value that a convolution's border takes in place of 0, which no grid of an even number of levels has: the level just below 0."""
        return 0.0 if quest.levels(self.bits) == 3 else -float(self.unit)

    def forward(self, x: Tensor) -> Tensor:
        rotated = quest.rotate(x, self.axis)
        if self.static is not None:
            rotated = rotated - self._centre_of(rotated)
        with torch.no_grad():
            unit = self._unit_of(rotated)
            codes = quest.quantise(rotated, self.bits, unit)
            mask = quest.trusted(rotated, codes, self.bits, unit)
        return through_mask(rotated, codes * unit, mask)

    @torch.no_grad()
    def _centre_of(self, rotated: Tensor) -> Tensor:
        """Mean of each feature, shaped so that it can be taken away."""
        features = rotated.movedim(self.axis, -1)
        if self.training:
            mean = features.flatten(0, -2).mean(0)
            self.mean.update(mean)
        else:
            mean = self.centre
        return mean.expand(features.shape).movedim(-1, self.axis)

    def _unit_of(self, rotated: Tensor) -> Tensor:
        if self.static is None:
            sigma = (rotated**2).mean(self.axis, keepdim=True).sqrt()
        elif self.training:
            sigma = (rotated**2).mean().sqrt()
            self.sigma.update(sigma)
        else:
            return self.unit
        return quest.unit_of(sigma + 1e-8, self.bits)  # type: ignore[return-value]
