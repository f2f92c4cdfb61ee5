"""The methods by name: which quantisers a network for the array takes, with grids that are the same for all samples."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tritloom.errors import UserError
from tritloom.models.methods.activations import QuestActivations
from tritloom.models.methods.weights import (
    AbsMeanWeights,
    IntegerWeights,
    PublishedDrnaWeights,
    QuestWeights,
    RepairedDrnaWeights,
    TwnWeights,
    WeightQuantiser,
)

__all__ = ["RECIPES", "Recipe", "recipe"]


def _none(axis: int, features: int) -> None:
    return None


@dataclass(frozen=True)
class Recipe:
    """One method.

    Every stage has a hidden grid with ``step`` and codes ``0 .. high``, or none where ``high`` is None; ``activations(axis, features)`` makes the method's own
    quantiser behind it, or None. ``weights()`` is None where they stay float.
    """

    title: str
    weights: Callable[[], WeightQuantiser | None]
    activations: Callable[[int, int], nn.Module | None] = _none
    step: float = 1 / 16
    high: int | None = 127


def _quest(bits: float) -> Recipe:
    def activations(axis: int, features: int) -> nn.Module:
        return QuestActivations(bits, axis=axis, static=features)

    return Recipe(f"QuEST (arXiv 2502.05003), {bits:g}-bit weights and activations", lambda: QuestWeights(bits), activations)


RECIPES = {
    "twn": Recipe("TWN (arXiv 1605.04711), one scale per output channel", TwnWeights),
    "twn-tensor": Recipe("TWN (arXiv 1605.04711), one scale per layer", lambda: TwnWeights(per_channel=False)),
    "bitnet": Recipe("BitNet b1.58 weights (arXiv 2402.17764), static 8-bit activations", AbsMeanWeights),
    "quest-w1a1": _quest(1),
    "quest-w1.58a1.58": _quest(1.585),
    "quest-w2a2": _quest(2),
    "quest-w3a3": _quest(3),
    "quest-w4a4": _quest(4),
    "drna-reference": Recipe("D-RNA as published: its ternary weights are not trained", PublishedDrnaWeights),
    "drna-repaired": Recipe("annealed staircase without straight-through gradients", RepairedDrnaWeights),
    "int8": Recipe("8-bit integer weights and activations", lambda: IntegerWeights(8)),
    "int4": Recipe("4-bit integer weights and activations", lambda: IntegerWeights(4), step=1 / 4, high=15),
    "float": Recipe("float weights and activations", lambda: None, high=None),
    "twn-float": Recipe("TWN (arXiv 1605.04711), one scale per layer, float activations", lambda: TwnWeights(per_channel=False), high=None),
}
"""Every method that ``tritloom train`` knows, and the baselines of the comparison."""


def recipe(name: str) -> Recipe:
    """Raises :class:`UserError` for an unknown name."""
    if name not in RECIPES:
        raise UserError(f"method must be one of {', '.join(RECIPES)}, not {name!r}")
    return RECIPES[name]
