"""The data types that QONNX and FINN write into ``quantization_annotation`` (key ``finn_datatype``).

Of a graph input a type states the integer grid, so that no calibration is needed; of an initializer it is a claim, which is checked.
Types of values inside the graph follow from the operators and are not read.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir

from tritloom.compiler.quantize.steps import Quantiser
from tritloom.errors import ModelError

__all__ = ["DataType", "annotated_type", "check_claim", "data_type", "input_quantiser"]

_KEY = "finn_datatype"
_FREE = re.compile(r"FLOAT(32|16|<.*>)|SCALEDINT<\d+>")
"""Types that say nothing of an integer grid: floats, and integers of an unknown scale."""


@dataclass(frozen=True)
class DataType:
    """Values ``scale * code``, codes ``low..high``; with ``bipolar`` only the two ends."""

    low: int
    high: int
    scale: Fraction = Fraction(1)
    bipolar: bool = False

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which of ``values`` are of this type."""
        codes = values.astype(np.float64) / float(self.scale)
        inside = (codes == np.rint(codes)) & (codes >= self.low) & (codes <= self.high)
        return inside & (np.abs(codes) == 1) if self.bipolar else inside


def data_type(text: str) -> DataType | None:
    """The type of that name, ``None`` where it states no grid. Raises :class:`ValueError` for a name that is not one of QONNX's."""
    if _FREE.fullmatch(text):
        return None
    named = {"BINARY": DataType(0, 1), "BIPOLAR": DataType(-1, 1, bipolar=True), "TERNARY": DataType(-1, 1)}
    if text in named:
        return named[text]
    whole = re.fullmatch(r"(U?)INT(\d{1,2})", text)
    fixed = re.fullmatch(r"FIXED<(\d{1,2}),(\d{1,2})>", text)
    if whole is not None and 1 <= int(whole[2]) <= 64:
        bits = int(whole[2])
        return DataType(0, (1 << bits) - 1) if whole[1] else DataType(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    if fixed is not None and int(fixed[1]) > int(fixed[2]):
        # FIXED<w,i>: w bits, i of them before the point, the sign included.
        bits, whole_bits = int(fixed[1]), int(fixed[2])
        return DataType(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, Fraction(1, 1 << (bits - whole_bits)))
    raise ValueError(text)


def annotated_type(value: onnx_ir.Value, name: str) -> DataType | None:
    """The data type that the model states for a value. Raises :class:`ModelError` for one that is not known."""
    text = dict(value.meta.get("quant_parameter_tensor_names") or {}).get(_KEY)
    if text is None:
        return None
    try:
        return data_type(str(text))
    except ValueError:
        raise ModelError(
            f"{name}: {value.name!r} is annotated with the data type {text!r}, which is not known; use INT2 to INT8, UINT1 to UINT8, "
            f"BINARY, BIPOLAR, TERNARY, FIXED<w,i> or FLOAT32"
        ) from None


def input_quantiser(kind: DataType) -> Quantiser | None:
    """The grid of a graph input of that type, ``None`` where it has more than 8 bits."""
    if kind.high - kind.low > 255:
        return None
    offset = 0 if -128 <= kind.low and kind.high <= 127 else -128 - kind.low
    return Quantiser(kind.scale, 0, kind.low, kind.high, "half_even", bipolar=kind.bipolar, offset=offset)


def check_claim(value: onnx_ir.Value, array: np.ndarray, name: str) -> None:
    """Refuse an initializer whose values are not of the type that the model states for it. Raises :class:`ModelError`."""
    kind = annotated_type(value, name)
    if kind is None or array.dtype.kind not in "fiu":
        return
    wrong = np.flatnonzero(~kind.holds(array.ravel()))
    if len(wrong):
        text = dict(value.meta["quant_parameter_tensor_names"])[_KEY]
        raise ModelError(
            f"{name}: initializer {value.name!r} is annotated with the data type {text}, but its element {int(wrong[0])} is "
            f"{array.ravel()[wrong[0]]!s}; correct the annotation or the values"
        )
