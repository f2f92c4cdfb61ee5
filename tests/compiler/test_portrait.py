"""What ``check`` says a model is."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph
from onnx import helper, numpy_helper

from tritloom.compiler.frontend import check
from tritloom.compiler.frontend.portrait import dialect_of, parameters_of, weight_facts
from tritloom.compiler.frontend.values import Constant, Grid


def _facts(values: object, scale: float | None = None) -> tuple[object, ...]:
    codes = np.asarray(values, np.float64)
    constant = Constant(
        (codes * (scale or 1)).astype(np.float32), None if scale is None else Grid(codes.astype(int), np.full(codes.shape, scale))
    )
    found = weight_facts(constant)
    return found["weights"], found["weight_bits"], found["ternary"], found["zeros"]


@pytest.mark.parametrize(("values", "scale", "expected"), [
    ([[1, -1, 0, 1]], 0.3, (4, 2, True, 0.25)),
    ([[1, -1, 1, 1]], 0.3, (4, 1, True, 0.0)),
    ([[1]], 0.3, (1, 1, True, 0.0)),
    ([[0]], 0.3, (1, 2, True, 1.0)),
    ([[7, 0, -7, 0]], 0.3, (4, 2, True, 0.5)),  # ternary times another scale
    ([[7, -8, 1, 0]], 0.3, (4, 4, False, 0.25)),
    ([[127, -128, 1, 3]], 0.3, (4, 8, False, 0.0)),
    ([[0.5, -0.5, 0.0]], None, (3, 2, True, 0.3333)),
    ([[0.1, 0.2345, -3.7, 1e-3, 0.77777]], None, (5, None, False, 0.0)),
    ([[np.nan, 1.0]], None, (2, None, False, 0.0)),
])  # fmt: skip
def test_weights_of_a_layer(values: list, scale: float | None, expected: tuple) -> None:
    assert _facts(values, scale) == expected


def _dialect(*nodes: onnx.NodeProto) -> list[str]:
    graph = helper.make_graph(list(nodes), "g", [], [helper.make_empty_tensor_value_info("y")])
    return dialect_of(helper.make_model(graph))


def test_dialects() -> None:
    node = helper.make_node
    quantise, back = node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["c", "s", "z"], ["y"])
    clip, apart = node("Clip", ["q", "l", "h"], ["c"]), node("Clip", ["x", "l", "h"], ["c"])
    qonnx = node("Quant", ["x", "s", "z", "b"], ["q"], domain="onnx.brevitas")
    assert _dialect(quantise, back) == _dialect(apart, quantise, back) == ["QDQ"]
    assert _dialect(quantise, clip, back) == ["QCDQ"]
    assert _dialect(qonnx, back) == ["QONNX", "QDQ"]
    assert _dialect(node("MultiThreshold", ["x", "t"], ["y"], domain="qonnx.custom_op.general")) == ["FINN MultiThreshold"]
    assert _dialect(node("QLinearConv", ["x"] * 8, ["y"])) == ["QOperator"]
    assert _dialect(node("Conv", ["x", "w"], ["y"]), node("Quant", ["x"], ["q"], domain="someone.else")) == ["float"]


def test_parameters_are_neither_shapes_nor_single_numbers() -> None:
    g = Graph()
    g.constant(np.zeros((3, 4)))
    g.constant(2.0)
    g.constant([2, 3], np.int64)
    g.add("Constant", value=numpy_helper.from_array(np.zeros(5, np.int8)))
    assert parameters_of(onnx.load_from_string(g.model({"x": (1, 2)}, {"x": None}))) == 17


def test_layers_before_a_refused_node_are_described_too() -> None:
    g = Graph()
    y = g.add("Sin", g.qdq(g.add("Conv", g.qdq("x"), g.weights(4, 3, 1, 1, low=-1, high=1))))
    report = check(g.model({"x": ("N", 3, 5, 5)}, {y: None}))
    assert not report.supported and report.facts["macs"] is report.facts["runs"] is None
    assert [(row["layer"], row["weights"], row["ternary"]) for row in report.facts["precision"]] == [("node_conv_3", 12, True)]
