"""What the user chose about a model that is lowered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tritloom.compiler.quantize.calibration import CALIBRATION_METHODS, DEFAULT_CALIBRATION, DEFAULT_PERCENTILE
from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.errors import ModelError, UserError

__all__ = ["Settings"]


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
    """

    method: str = "auto"
    planes: int | None = None
    layers: Mapping[str, WeightChoice] = field(default_factory=dict)
    activation_bits: int = 8
    calibration_method: str = DEFAULT_CALIBRATION
    percentile: float = DEFAULT_PERCENTILE
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.activation_bits <= 8:
            raise ModelError(f"activation bits must be from 2 to 8, not {self.activation_bits}")
        if self.calibration_method not in CALIBRATION_METHODS:
            raise UserError(f"calibration method must be one of {', '.join(CALIBRATION_METHODS)}, not {self.calibration_method!r}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")

    def choice(self, layer: str) -> WeightChoice:
        """How the float weights of a layer become digit planes."""
        return self.layers.get(layer) or WeightChoice(method=self.method, planes=self.planes)
