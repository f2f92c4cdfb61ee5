"""Methods of training ternary networks: formulas for NumPy and PyTorch alike, and PyTorch modules built from them.

The formulas stand one method a file (:mod:`~tritloom.models.methods.twn`, :mod:`~tritloom.models.methods.bitnet`, :mod:`~tritloom.models.methods.quest`,
:mod:`~tritloom.models.methods.drna`, :mod:`~tritloom.models.methods.integers`) and need no PyTorch. The modules are for any PyTorch code::

    from tritloom.models.methods import AbsMeanWeights, AbsMaxTokens, QuantLinear

    layer = QuantLinear(256, 256, bias=False, weights=AbsMeanWeights(), activations=AbsMaxTokens())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tritloom.errors import MissingToolError

if TYPE_CHECKING:
    from tritloom.models.methods.activations import AbsMaxTokens, QuestActivations, StaticAbsMax, StaticGrid
    from tritloom.models.methods.layers import (
        QuantConv2d,
        QuantLinear,
        SubLayerNorm,
        crystallise,
        flips,
        recrystallise,
        set_progress,
        weight_codes,
    )
    from tritloom.models.methods.weights import (
        AbsMeanWeights,
        IntegerWeights,
        PublishedDrnaWeights,
        QuestWeights,
        RepairedDrnaWeights,
        TwnWeights,
        WeightQuantiser,
    )

_MODULES = {
    "AbsMaxTokens": "activations", "QuestActivations": "activations", "StaticAbsMax": "activations", "StaticGrid": "activations",
    "AbsMeanWeights": "weights", "IntegerWeights": "weights", "PublishedDrnaWeights": "weights", "QuestWeights": "weights",
    "RepairedDrnaWeights": "weights", "TwnWeights": "weights", "WeightQuantiser": "weights",
    "QuantConv2d": "layers", "QuantLinear": "layers", "SubLayerNorm": "layers",
    "crystallise": "layers", "flips": "layers", "recrystallise": "layers", "set_progress": "layers", "weight_codes": "layers",
}  # fmt: skip

__all__ = [
    "AbsMaxTokens", "AbsMeanWeights", "IntegerWeights", "PublishedDrnaWeights", "QuantConv2d",
    "QuantLinear", "QuestActivations", "QuestWeights", "RepairedDrnaWeights", "StaticAbsMax", "StaticGrid", "SubLayerNorm", "TwnWeights",
    "WeightQuantiser", "crystallise", "flips", "recrystallise", "set_progress", "weight_codes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The modules are loaded on first use, because they need PyTorch. Raises :class:`MissingToolError` where that is absent."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingToolError("the training methods need PyTorch; install it with: pip install 'tritloom[train]'") from error
