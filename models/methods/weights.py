"""Weight quantisers: PyTorch modules from float weights (O, I, ...) to the weights that the forward pass uses.

Each has ``forward``, differentiable as its method says, and ``codes``, the integers and scales that a file stores; ``forward`` gives ``scale * codes``.
"""

import torch
from torch import Tensor, nn

from tritloom.models.methods import bitnet, drna, integers, quest, twn
from tritloom.models.methods.gradients import straight_through, through_mask

__all__ = [
    "AbsMeanWeights",
    "IntegerWeights",
    "PublishedDrnaWeights",
    "QuestWeights",
    "RepairedDrnaWeights",
    "TwnWeights",
    "WeightQuantiser",
]


def _columns(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales (O,) or (1,) shaped so that they multiply weights (O, ...)."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


class WeightQuantiser(nn.Module):
    """Base of all weight quantisers; by itself it passes the gradient straight through.

    ``rotated`` says that the codes belong to the rotated inputs of :func:`tritloom.models.methods.quest.rotate`, along axis 1.
    """

    rotated = False

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers (O, ...) in the dtype of ``weight`` and scales, (O,) or (1,)."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            codes, scale = self.codes(weight)
            quantised = codes * _columns(scale, weight)
        return straight_through(weight, quantised)


class TwnWeights(WeightQuantiser):
    """Ternary Weight Networks, one scale per output channel or one for all."""

    def __init__(self, *, per_channel: bool = True) -> None:
        super().__init__()
        self.per_channel = per_channel

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return twn.ternarise(weight, per_channel=self.per_channel)


class AbsMeanWeights(WeightQuantiser):
    """BitNet b1.58: trits and one scale for all."""

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return bitnet.absmean(weight)


class IntegerWeights(WeightQuantiser):
    """Symmetric integers of ``bits`` bits, 2 to 8, one scale per output channel or one for all."""

    def __init__(self, bits: int, *, per_channel: bool = True) -> None:
        super().__init__()
        integers.symmetric(torch.zeros(1, 1, device="cpu"), bits)  # refuses a wrong width
        self.bits, self.per_channel = bits, per_channel

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return integers.symmetric(weight, self.bits, per_channel=self.per_channel)


class QuestWeights(WeightQuantiser):
    """QuEST grid of ``bits`` bits on weights rotated along axis 1, one scale per output channel; gradients by the trust mask."""

    rotated = True

    def __init__(self, bits: float) -> None:
        super().__init__()
        quest.levels(bits)  # refuses a wrong width
        self.bits = bits

    def _unit(self, rotated: Tensor) -> Tensor:
        sigma = (rotated.reshape(len(rotated), -1) ** 2).mean(1).sqrt() + 1e-8
        return quest.unit_of(sigma, self.bits)  # type: ignore[return-value]

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rotated = quest.rotate(weight, 1)
        unit = self._unit(rotated)
        return quest.quantise(rotated, self.bits, _columns(unit, rotated)), unit

    def forward(self, weight: Tensor) -> Tensor:
        rotated = quest.rotate(weight, 1)
        with torch.no_grad():
            unit = _columns(self._unit(rotated), rotated)
            codes = quest.quantise(rotated, self.bits, unit)
            mask = quest.trusted(rotated, codes, self.bits, unit)
        return through_mask(rotated, codes * unit, mask)


class PublishedDrnaWeights(WeightQuantiser):
    """D-RNA as published: the weights never get a gradient of the task, and what :meth:`codes` exports was never trained.

    ``progress``, the share of training that is done, is set by :func:`tritloom.models.methods.set_progress`; the blend starts at ``warmup``.
    """

    def __init__(self, *, warmup: float = 0.1) -> None:
        super().__init__()
        self.warmup, self.progress = warmup, 0.0

    def forward(self, weight: Tensor) -> Tensor:
        return drna.published_blend(weight.detach(), drna.blend(self.progress, self.warmup))

    def penalty(self, weight: Tensor) -> Tensor:
        """The published regulariser, the only thing that sends ``weight`` a gradient."""
        return drna.blend(self.progress, self.warmup) * drna.published_penalty(weight)

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return drna.published_trits(weight), weight.new_ones(1)


class RepairedDrnaWeights(WeightQuantiser):
    """The annealed staircase, one scale for all: a true gradient until :meth:`crystallise`, then fixed trits and scale."""

    trits: Tensor
    scale: Tensor
    crystal: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0
        self.register_buffer("trits", torch.zeros(0))
        self.register_buffer("scale", torch.zeros(1))
        self.register_buffer("crystal", torch.tensor(False))

    def forward(self, weight: Tensor) -> Tensor:
        if self.crystal:
            return self.scale * self.trits
        mean = weight.detach().abs().mean().clamp(min=1e-8)
        steps = drna.staircase(weight / mean, drna.steepness(self.progress))
        alpha = drna.fitted_scale(weight, steps).detach()
        share = drna.blend(self.progress, *drna.REPAIRED_SPAN)
        return (1 - share) * weight + share * alpha * steps

    def penalty(self, weight: Tensor) -> Tensor:
        """``b * mean((T (T ** 2 - 1)) ** 2)``, optional."""
        if self.crystal:
            return weight.new_zeros(())
        mean = weight.detach().abs().mean().clamp(min=1e-8)
        steps = drna.staircase(weight / mean, drna.steepness(self.progress))
        return drna.blend(self.progress, *drna.REPAIRED_SPAN) * drna.staircase_penalty(steps)

    @torch.no_grad()
    def crystallise(self, weight: Tensor) -> None:
        """Fix trits and scale by the TWN rule; ``weight`` gets no gradient from now on."""
        self.trits, self.scale = twn.ternarise(weight, per_channel=False)
        self.crystal.fill_(True)

    @torch.no_grad()
    def recrystallise(self, weight: Tensor, generator: torch.Generator, *, spread: float = 0.2) -> None:
        """Make ``weight`` float again, ``alpha * t * c + alpha * noise`` with ``c`` uniform in 1 .. 1.2 and normal noise of ``spread``, to train once more."""
        stretch = 1 + 0.2 * torch.rand(weight.shape, generator=generator).to(weight)
        noise = spread * torch.randn(weight.shape, generator=generator).to(weight)
        weight.copy_(self.scale * (self.trits * stretch + noise))
        self.crystal.fill_(False)

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return (self.trits, self.scale) if self.crystal else twn.ternarise(weight, per_channel=False)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """The trits have no shape before the first crystallisation: take that of the file."""
        self.trits = torch.empty_like(state_dict.get(f"{prefix}trits", self.trits))
        super()._load_from_state_dict(state_dict, prefix, *args)
