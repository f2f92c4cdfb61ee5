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
    """A running mean of one number a batch, in training mode only; the first batch starts it."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, found: Tensor) -> None:
        if self.training:
            self.value.copy_(found if self.value == 0 else torch.lerp(self.value, found.to(self.value), MOMENTUM))


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

    Parameters
    ----------
    bits
        1, 1.585, 2, 3, 4 or 8.
    axis
        The feature axis: -1 for tokens, 1 for images (N, C, H, W).
    static
        False: the standard deviation of each row along ``axis``, as published. True: one for all, of the batch in training and its running mean in
        evaluation.
    """

    def __init__(self, bits: float, *, axis: int = -1, static: bool = False) -> None:
        super().__init__()
        quest.levels(bits)  # refuses a wrong width
        self.bits, self.axis, self.static = bits, axis, static
        self.running = _Running()

    @property
    def unit(self) -> Tensor:
        """Real value of code 1 on the static grid, a scalar tensor."""
        return quest.unit_of(self.running.value + 1e-8, self.bits)  # type: ignore[return-value]

    @property
    def padding(self) -> float:
        """The value that a convolution's border takes in place of 0, which no grid of an even number of levels has: the level just below 0."""
        return 0.0 if quest.levels(self.bits) == 3 else -float(self.unit)

    def forward(self, x: Tensor) -> Tensor:
        rotated = quest.rotate(x, self.axis)
        with torch.no_grad():
            if self.static:
                sigma = (rotated**2).mean().sqrt()
                self.running.update(sigma)
                unit = quest.unit_of(sigma + 1e-8, self.bits) if self.training else self.unit
            else:
                unit = quest.unit_of((rotated**2).mean(self.axis, keepdim=True).sqrt() + 1e-8, self.bits)
            codes = quest.quantise(rotated, self.bits, unit)
            mask = quest.trusted(rotated, codes, self.bits, unit)
        return through_mask(rotated, codes * unit, mask)
