"""Operator sets from 6 to the newest that onnx knows, IR versions from 3 on, and every way to declare a batch."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal, run_both
from onnx import helper

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.frontend.constants import quiet_session
from tritloom.compiler.frontend.versions import NEWEST_RUNTIME_OPSET, upgraded
from tritloom.errors import ModelError

IMAGE = {"x": ("N", 3, 5, 5)}
NEWEST = onnx.defs.onnx_opset_version()


def old_style(data: bytes, ir_version: int) -> bytes:
    """IR version 3 has every initializer among the graph's inputs."""
    model = onnx.load_from_string(data)
    model.ir_version = ir_version
    if ir_version < 4:
        model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    return model.SerializeToString()


def network(opset: int, batch: object = "N") -> bytes:
    """What old exporters wrote: attributes where newer operator sets have inputs, Dropout with a mask, a constant that must be computed."""
    g = Graph(opset)
    x = g.add(
        "Div",
        g.add("Floor", g.add("Clip", g.add("Mul", "x", g.constant(4.0)), *_bounds(g, opset, -8.0, 7.0), **_limits(opset, -8.0, 7.0))),
        g.constant(4.0),
    )
    c = g.add("Conv", x, g.constant(g.rng.integers(-1, 2, (4, 3, 2, 2)) * 0.5), g.constant([0.5, 1, -0.25, 0]))
    parameters = [g.constant(part) for part in ([1.0, 2, -0.5, 0.25], [0.5, 0, 1, -1], [0.25, 1, 0, 2], np.full(4, 0.25 - 2.0**-10))]
    b = g.add("BatchNormalization", c, *parameters, epsilon=2.0**-10, **({"spatial": 1} if opset < 9 else {}))
    g.nodes.append(helper.make_node("Dropout", [b], ["kept", ""] if opset < 12 else ["kept"], name="dropout"))
    r = g.add("Clip", g.add("Floor", "kept"), *_bounds(g, opset, 0.0, 15.0), **_limits(opset, 0.0, 15.0))
    p = g.add("MaxPool", r, kernel_shape=[2, 2], strides=[2, 2])
    scale = g.add("Mul", g.constant(0.5), g.constant(0.5))
    f = g.add("Flatten", g.add("Mul", p, scale))
    y = g.add("Gemm", f, g.constant(g.rng.integers(-1, 2, (16, 5)) * 0.5), g.constant([1.0, 0, 2, 3, -1]))
    return g.model({"x": (batch, 3, 5, 5)}, {y: (batch, 5)}, opset=opset)


def _bounds(g: Graph, opset: int, low: float, high: float) -> list[str]:
    return [g.constant(low), g.constant(high)] if opset >= 11 else []


def _limits(opset: int, low: float, high: float) -> dict[str, float]:
    return {} if opset >= 11 else {"min": low, "max": high}


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_operator_set(opset: int) -> None:
    data = old_style(network(opset), 3 if opset < 9 else 14)
    lowered = assert_equal(data, samples=10)
    assert not lowered.notes and lowered.program.inputs[0].shape[0] == "N"


@pytest.mark.parametrize("ir_version", range(3, 15))
def test_every_ir_version(ir_version: int) -> None:
    assert_equal(old_style(network(8), ir_version), samples=4)


@pytest.mark.parametrize("batch", [1, 4, "N", None])
def test_every_batch(batch: object) -> None:
    """A number, a name, or a size that is not stated."""
    data = network(13, batch)
    lowered, ours, theirs, _ = run_both(data, samples=8)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    assert isinstance(lowered.program.inputs[0].shape[0], str) or lowered.program.inputs[0].shape[0] == batch


def test_constants_of_newer_operator_sets_are_computed_by_the_runtimes_newest() -> None:
    assert NEWEST > NEWEST_RUNTIME_OPSET
    model = onnx.load_from_string(network(NEWEST))
    quiet_session(model)
    assert model.opset_import[0].version == NEWEST_RUNTIME_OPSET


def six(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple, result: tuple) -> onnx.ModelProto:
    g = Graph()
    g.nodes = nodes
    g.initializers = [onnx.numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    return onnx.load_from_string(old_style(g.model({"x": shape}, {"y": result}, opset=6), 3))


@pytest.mark.parametrize(("op", "shape", "attributes"), [
    ("Add", (3,), {"broadcast": 1, "axis": 1}), ("Sub", (3, 4), {"broadcast": 1, "axis": 1}), ("Mul", (5,), {"broadcast": 1}),
    ("Div", (4, 5), {"broadcast": 1, "axis": -2}), ("Add", (1,), {"broadcast": 1}), ("Mul", (2, 3, 4, 5), {}), ("Sub", (4,), {"broadcast": 1, "axis": 2}),
    ("Add", (2,), {"broadcast": 1, "axis": 0}),
])  # fmt: skip
def test_broadcasting_of_operator_set_6(op: str, shape: tuple, attributes: dict) -> None:
    """The oracle is the text of the operator: operand 2 is aligned with the axes of operand 1 from ``axis`` on."""
    rng = np.random.default_rng(0)
    b, x = rng.integers(1, 5, shape).astype(np.float32), rng.integers(-5, 5, (2, 3, 4, 5)).astype(np.float32)
    model = six([helper.make_node(op, ["x", "b"], ["y"], **attributes)], {"b": b}, (2, 3, 4, 5), (2, 3, 4, 5))
    axis = attributes.get("axis", 4 - len(shape)) % 4
    aligned = b.reshape((1,) * axis + shape + (1,) * (4 - axis - len(shape)))
    expected = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op](x, aligned)
    converted = upgraded(model, "m")
    onnx.checker.check_model(converted)
    np.testing.assert_array_equal(quiet_session(converted).run(None, {"x": x})[0], expected)


def test_slopes_and_marks_of_operator_set_6() -> None:
    nodes = [
        helper.make_node("PRelu", ["x", "a"], ["p"]),
        helper.make_node("BatchNormalization", ["p", "s", "b", "m", "v"], ["n"], is_test=1, epsilon=0.0),
        helper.make_node("Dropout", ["n"], ["y"], is_test=1, ratio=0.5),
    ]
    slopes, ones = np.array([0.5, 2, -1]), np.ones(3)
    model = six(nodes, {"a": slopes, "s": ones * 2, "b": ones, "m": ones * 0, "v": ones}, ("N", 3, 4), ("N", 3, 4))
    x = np.random.default_rng(0).integers(-5, 5, (2, 3, 4)).astype(np.float32)
    expected = np.where(x < 0, x * slopes[:, None], x) * 2 + 1
    np.testing.assert_array_equal(quiet_session(upgraded(model, "m")).run(None, {"x": x})[0], expected)


def test_a_network_of_operator_set_6() -> None:
    """Lowered, run and compared with the witness, which converts it too: the conversion itself is tested above."""
    g = Graph(6)
    x = g.add("Clip", g.add("Floor", g.add("Mul", "x", g.constant([4.0]), broadcast=1)), min=-8.0, max=7.0)
    c = g.add("Conv", x, g.constant(g.rng.integers(-1, 2, (4, 3, 2, 2)) * 0.5))
    m = g.add("Mul", c, g.constant([0.5, 1, 2, 0.25]), broadcast=1, axis=1)
    a = g.add("Clip", g.add("Floor", g.add("Add", m, g.constant([1.0, 0, -1, 2]), broadcast=1, axis=1)), min=-16.0, max=15.0)
    data = old_style(g.model({"x": ("N", 3, 5, 5)}, {a: ("N", 4, 4, 4)}, opset=6), 3)
    assert_equal(data, samples=20)
    assert check(data).facts["opsets"] == {"ai.onnx": 6}


@pytest.mark.parametrize(("op", "inputs"), [("Dropout", ["x"]), ("BatchNormalization", ["x", "s", "s", "s", "s"])])
def test_training_mode_of_operator_set_6_is_refused(op: str, inputs: list[str]) -> None:
    model = six([helper.make_node(op, inputs, ["y"], name="layer")], {"s": np.ones(3)}, (1, 3), (1, 3))
    with pytest.raises(ModelError, match=rf"^m: node 'layer' \({op}\) is in training mode; export the model in evaluation mode$"):
        lower(model.SerializeToString(), name="m")


def test_older_operator_sets_are_refused() -> None:
    model = six([helper.make_node("Relu", ["x"], ["y"])], {}, (1, 3), (1, 3))
    model.opset_import[0].version = 5
    with pytest.raises(ModelError, match="m has opset 5; export it with opset 6 or later"):
        check(model.SerializeToString(), name="m")


def test_normalisation_of_single_elements_is_refused_in_words() -> None:
    g = Graph()
    parameters = [g.constant(np.ones((3, 5, 5))) for _ in range(4)]
    b = g.add("BatchNormalization", g.quant("x"), *parameters, spatial=0)
    report = check(old_style(g.model({"x": (1, 3, 5, 5)}, {b: (1, 3, 5, 5)}, opset=8), 3))
    assert [problem.reason for problem in report.problems] == ["its parameters do not have one entry for each of 3 channels"]
