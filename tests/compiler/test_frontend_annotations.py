"""Data types in ``quantization_annotation``: the grid of an input, and claims about initializers."""

from fractions import Fraction

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal
from qonnx.core.datatype import DataType

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.frontend.annotations import data_type
from tritloom.errors import ModelError

NAMES = [
    "BINARY",
    "BIPOLAR",
    "TERNARY",
    "INT2",
    "INT3",
    "INT8",
    "UINT1",
    "UINT4",
    "UINT8",
    "INT16",
    "UINT32",
    "FIXED<8,4>",
    "FIXED<4,1>",
    "FIXED<6,0>",
]


def annotated(data: bytes, types: dict[str, str]) -> bytes:
    model = onnx.load_from_string(data)
    for name, text in types.items():
        entry = model.graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="finn_datatype", value=text)
    return model.SerializeToString()


def layer(weights: np.ndarray, types: dict[str, str], kind: int = onnx.TensorProto.FLOAT) -> bytes:
    g = Graph()
    w = g.constant(weights)
    return annotated(
        g.model({"x": ("N", 6)}, {g.add("MatMul", "x", w): None}, kind=kind),
        {"x" if key == "x" else w: text for key, text in types.items()},
    )


@pytest.mark.parametrize("name", NAMES)
def test_types_mean_what_qonnx_says(name: str) -> None:
    kind, theirs = data_type(name), DataType[name]
    assert kind is not None
    assert (kind.low * kind.scale, kind.high * kind.scale) == (Fraction(theirs.min()), Fraction(theirs.max()))
    values = np.array([-8, -2, -1.5, -1, -0.25, -0.0625, 0, 0.125, 0.5, 1, 2, 3, 15, 128, 255, 1000], np.float32)
    assert kind.holds(values).tolist() == [bool(theirs.allowed(value)) for value in values]


@pytest.mark.parametrize("name", ["FLOAT32", "FLOAT16", "SCALEDINT<8>", "FLOAT<5,2,15>"])
def test_types_without_a_grid_state_nothing(name: str) -> None:
    assert data_type(name) is None
    assert check(layer(np.ones((6, 2)), {"x": name, "w": name})).facts["calibration_needed_for"] == ["x"]


@pytest.mark.parametrize("name", ["BINARY", "BIPOLAR", "TERNARY", "INT2", "INT8", "UINT4", "UINT8", "FIXED<8,4>"])
def test_annotated_inputs_need_no_calibration(name: str) -> None:
    program = assert_equal(layer(np.arange(-6, 6).reshape(6, 2), {"x": name})).program
    tensor, theirs = program.tensors[program.inputs[0].tensor], DataType[name]
    reals = [tensor.scale[0] * (code - tensor.zero_point[0]) for code in (tensor.low, tensor.high)]
    assert reals == [Fraction(theirs.min()), Fraction(theirs.max())]


def test_wide_types_of_an_input_still_need_calibration() -> None:
    with pytest.raises(ModelError, match="calibration"):
        lower(layer(np.ones((6, 2)), {"x": "INT16"}), name="m")


def test_a_quantiser_behind_an_annotated_input_is_not_changed() -> None:
    g = Graph()
    data = annotated(g.model({"x": (1, 6)}, {g.add("MatMul", g.quant("x", 2.0, 0, 3), g.weights(6, 4)): (1, 4)}), {"x": "INT4"})
    assert_equal(data)


def test_annotated_integer_inputs_are_what_they_are() -> None:
    g = Graph()
    y = g.qdq(g.add("MatMul", g.add("Cast", "x", to=1), g.weights(6, 4)), 2.0)
    assert_equal(annotated(g.model({"x": ("N", 6)}, {y: None}, kind=onnx.TensorProto.UINT8), {"x": "UINT8"}))


def test_claims_about_weights_are_checked() -> None:
    weights = np.array([[1, -1, 0, 1, -1, 1], [1, 1, 0, -1, 1, 5]]).T
    assert_equal(layer(weights, {"x": "INT4", "w": "INT4"}))
    for text in ("TERNARY", "BIPOLAR", "INT3"):
        with pytest.raises(ModelError, match=f"annotated with the data type {text}, but its element") as error:
            lower(layer(weights, {"x": "INT4", "w": text}), name="m")
        assert "Traceback" not in str(error.value)


def test_unknown_types_are_refused_in_words() -> None:
    for text in ("INT", "INT0", "UINT65", "FIXED<6,8>", "QUATERNARY", ""):
        with pytest.raises(ModelError, match="which is not known; use INT2"):
            lower(layer(np.ones((6, 2)), {"x": text}), name="m")
