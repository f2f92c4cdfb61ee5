"""What the user chose about a model that is lowered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tritloom.compiler.quantize.calibration import CALIBRATION_METHODS, DEFAULT_CALIBRATION, DEFAULT_PERCENTILE
from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.errors import ModelError, UserError

__all__ = ["Settings"]

MOST_CONTEXT = 4096
"""The caches of a language model are read as a whole for every token."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user chose.

    Parameters
    ----------
    method, planes
        Of :func:`tritloom.compiler.quantize.weights.lower_weights`.
    layers
        Other choices than these for single layers, by the name of the node.
    activation_bits
        Width of the codes of calibrated tensors, 2 to 8.
    calibration_method, percentile
        Of :func:`tritloom.compiler.quantize.calibration.choose_grid`.
    bias_correction
        Whether the mean errors of ternarised layers are folded into their biases where there are calibration samples.
    context
        Tokens that the caches of a language model hold, from 1 to 4096; ``None`` is 192, or as many as its tables of angles have.
    compensation
        Whether float weights are then rounded so that their errors cancel in the outputs of their layer (methods ``auto`` and ``planes``).
        It leaves mean errors to the biases, so that it needs ``bias_correction``.
    """

    method: str = "auto"
    planes: int | None = None
    layers: Mapping[str, WeightChoice] = field(default_factory=dict)
    activation_bits: int = 8
    calibration_method: str = DEFAULT_CALIBRATION
    percentile: float = DEFAULT_PERCENTILE
    bias_correction: bool = True
    context: int | None = None
    compensation: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.activation_bits <= 8:
            raise ModelError(f"activation bits must be from 2 to 8, not {self.activation_bits}")
        if self.calibration_method not in CALIBRATION_METHODS:
            raise UserError(f"calibration method must be one of {', '.join(CALIBRATION_METHODS)}, not {self.calibration_method!r}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")
        if self.context is not None and not 1 <= self.context <= MOST_CONTEXT:
            raise UserError(f"context must be from 1 to {MOST_CONTEXT} tokens, not {self.context!r}")

    def choice(self, layer: str) -> WeightChoice:
        """How the float weights of a layer become digit planes."""
        return self.layers.get(layer) or WeightChoice(method=self.method, planes=self.planes)
