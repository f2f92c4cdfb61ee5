"""MultiThreshold of FINN and the channels-last nodes of QONNX, against the qonnx executor."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal, run_both
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.frontend.calibrate import standard_model
from tritloom.compiler.frontend.constants import quiet_session
from tritloom.compiler.ir.program import Convolution, Rescale
from tritloom.sim.witness import run_witness

QONNX, FINN, LAST = "qonnx.custom_op.general", "finn.custom_op.general", "qonnx.custom_op.channels_last"


def thresholds(g: Graph, x: str, table: object, *, domain: str = QONNX, layout: str = "NCHW", **attributes: object) -> str:
    return g.add("MultiThreshold", x, g.constant(table), domain=domain, data_layout=layout, out_dtype="INT8", **attributes)


def rising(g: Graph, channels: int, steps: int, spread: float = 20.0) -> np.ndarray:
    """Integer thresholds, some of them equal."""
    return np.sort(np.rint(g.rng.normal(size=(channels, steps)) * spread), axis=1)


@pytest.mark.parametrize("domain", [QONNX, FINN])
@pytest.mark.parametrize(("steps", "attributes"), [
    (1, {}), (1, {"out_scale": 2.0, "out_bias": -1.0}), (3, {"out_scale": 0.5, "out_bias": -1.0}), (15, {"out_bias": -8.0}),
    (127, {"out_scale": 1.0}), (255, {"out_scale": 0.25, "out_bias": -32.0}), (7, {"out_scale": -0.5, "out_bias": 0.25}),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 5])
def test_thresholds_behind_a_layer(domain: str, steps: int, attributes: dict, channels: int) -> None:
    g = Graph(steps)
    m = g.add("MatMul", g.quant("x", 1.0, 0, 6), g.weights(6, 5, scale=1.0))
    t = thresholds(g, m, rising(g, channels, steps), domain=domain, **attributes)
    # A tie decides many codes: all values are integers, and so are the thresholds.
    lowered = assert_equal(g.model({"x": (1, 6)}, {g.add("MatMul", t, g.weights(5, 4)): (1, 4), t: (1, 5)}), samples=60)
    assert [type(operation) for operation in lowered.program.operations] == [Convolution, Convolution]


def test_the_order_of_thresholds_does_not_matter_and_equal_ones_count() -> None:
    g = Graph()
    table = np.array([[3, -2, 3, 0, 3], [1, 1, 1, 1, 1], [9, 8, 7, -6, -5]])
    m = g.add("MatMul", g.quant("x", 1.0, 0, 3), g.weights(4, 3, scale=1.0))
    _, ours, theirs, _ = run_both(g.model({"x": (1, 4)}, {thresholds(g, m, table): (1, 3)}), samples=200)
    codes = next(iter(ours.values()))
    np.testing.assert_array_equal(codes, next(iter(theirs.values())))
    assert set(codes[:, 0]) == {0, 1, 2, 5} and set(codes[:, 1]) == {0, 5}


@pytest.mark.parametrize(("layout", "shape", "axis"), [
    ("NCHW", (1, 3, 4, 5), 1), ("NHWC", (1, 4, 5, 3), 3), ("NC", (1, 3), 1), ("", (1, 3, 4, 5), 1), ("", (1, 4, 3), 2), ("NCW", (1, 3, 4), 1),
])  # fmt: skip
def test_layouts(layout: str, shape: tuple, axis: int) -> None:
    g = Graph()
    rank = len(shape)
    x = g.quant("x", 0.5, 0, 6)
    if layout == "NHWC":
        first = g.add("Transpose", x, perm=[0, axis, *(i for i in range(1, rank) if i != axis)])
        x = g.add("Transpose", g.add("Conv", first, g.weights(3, 3, 1, 1)), perm=[0, 2, 3, 1])
    x = g.add("Relu", g.add("Add", x, g.constant(0.25)))
    t = thresholds(g, x, rising(g, 3, 4, 5.0), layout=layout, out_scale=0.5)
    assert_equal(g.model({"x": shape}, {t: shape}), samples=10)


def test_thresholds_of_a_graph_input_are_the_hosts() -> None:
    g = Graph()
    t = thresholds(g, g.add("Mul", "x", g.constant(4.0)), g.rng.normal(size=(3, 7)), out_bias=-4.0)
    s = thresholds(g, "x", g.rng.normal(size=(1, 3)), out_bias=-1.0)
    outputs = {g.add("Conv", t, g.weights(4, 3, 3, 3)): (1, 4, 2, 2), g.add("Conv", s, g.weights(4, 3, 3, 3)): (1, 4, 2, 2)}
    data = g.model({"x": (1, 3, 4, 4)}, outputs)
    assert_equal(data)
    assert_equal(data, feeds={"x": np.random.default_rng(1).normal(size=(30, 3, 4, 4)).astype(np.float32)})


@pytest.mark.parametrize("attributes", [{"out_bias": -1.0}, {"out_scale": 0.5, "out_bias": -0.5}, {"out_scale": 2.0}])
@pytest.mark.parametrize("rows", [1, 4])
def test_thresholds_of_constants_make_weights(rows: int, attributes: dict) -> None:
    """Values on thresholds count as reached; two thresholds a row make ternary weights, which stay exact."""
    g = Graph(5)
    table = g.rng.integers(-2, 2, (rows, 1)) + np.array([[0.0, 1.0]])
    w = thresholds(g, g.constant(g.rng.integers(-3, 4, (6, 4))), table, layout="NC", **attributes)
    y = g.add("MatMul", g.quant("x", 1.0, 0, 6), w)
    lowered = assert_equal(g.model({"x": (1, 6)}, {y: (1, 4)}))
    (layer,) = lowered.program.operations
    assert isinstance(layer, Convolution) and layer.weight_method == "exact" and layer.planes <= 2


def test_padding_behind_thresholds_without_a_code_for_zero() -> None:
    """Bipolar thresholds: the codes -1 and 1, and the zero of the padding."""
    g = Graph()
    c = g.add("Conv", g.quant("x", 1.0, 0, 4), g.weights(3, 3, 1, 1, scale=1.0))
    t = thresholds(g, c, rising(g, 3, 1), out_scale=2.0, out_bias=-1.0)
    assert_equal(g.model({"x": (1, 3, 4, 4)}, {g.add("Conv", t, g.weights(4, 3, 3, 3), pads=[1] * 4): (1, 4, 4, 4)}))


@pytest.mark.parametrize("behind", ["MaxPool", "Concat", "Flatten", "Add"])
def test_thresholds_behind_other_operators(behind: str) -> None:
    g = Graph()
    x = g.quant("x", 1.0, 0, 4)
    c = g.add("Conv", x, g.weights(3, 3, 1, 1, scale=1.0))
    channels = 3
    if behind == "MaxPool":
        c = g.add("MaxPool", c, kernel_shape=[2, 2])
    elif behind == "Concat":
        c, channels = g.add("Concat", c, x, axis=1), 6
    elif behind == "Flatten":
        c, channels = g.add("Flatten", g.quant(c, 1.0, 0, 7)), 48
    else:
        c = g.add("Add", thresholds(g, c, rising(g, 3, 20), out_bias=-10.0, out_scale=2.0), x)
    t = thresholds(g, c, rising(g, channels, 9), layout="NC" if behind == "Flatten" else "NCHW")
    lowered = assert_equal(g.model({"x": (1, 3, 4, 4)}, {t: _shape(behind)}))
    assert not lowered.notes


def _shape(behind: str) -> tuple:
    return {"MaxPool": (1, 3, 3, 3), "Concat": (1, 6, 4, 4), "Flatten": (1, 48), "Add": (1, 3, 4, 4)}[behind]


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_thresholds_of_any_sums(data: st.DataObject) -> None:
    g = Graph(data.draw(st.integers(0, 1000)))
    steps = data.draw(st.integers(1, 40))
    numbers = st.integers(-60, 60).map(lambda number: number / 4)
    table = np.array(data.draw(st.lists(numbers, min_size=3 * steps, max_size=3 * steps))).reshape(3, steps)
    gains = g.constant(np.array(data.draw(st.lists(st.sampled_from([-2.0, -0.25, 0.0, 0.5, 4.0]), min_size=3, max_size=3))))
    m = g.add("Mul", g.add("MatMul", g.quant("x", 0.5, 0, 4), g.weights(4, 3, scale=0.5)), gains)
    assert_equal(g.model({"x": (1, 4)}, {thresholds(g, m, table): (1, 3)}), samples=40)


@pytest.mark.parametrize(
    ("layout", "shape", "rows"), [("NCHW", (1, 3, 4, 5), 3), ("NHWC", (1, 4, 5, 3), 3), ("", (1, 4, 3), 3), ("NC", (1, 3), 1)]
)
@pytest.mark.parametrize("opset", [9, 13])
def test_calibration_runs_thresholds_like_their_executor(layout: str, shape: tuple, rows: int, opset: int) -> None:
    g = Graph()
    t = thresholds(g, g.add("Relu", "x"), g.rng.normal(size=(rows, 9)), layout=layout, out_scale=0.5, out_bias=-2.0)
    data = g.model({"x": shape}, {t: shape}, opset=opset)
    x = g.rng.normal(size=shape).astype(np.float32)
    ours = quiet_session(standard_model(onnx.load_from_string(data), [t])).run(None, {"x": x})
    np.testing.assert_array_equal(ours[0], run_witness(data, {"x": x})[t])


@pytest.mark.parametrize(("table", "words"), [
    (np.zeros((1, 256)), "256 thresholds make 257 codes"), (np.zeros((2, 4)), "do not fit an input"), (np.zeros(4), "do not fit an input"),
    (np.array([[0, np.inf]]), "infinite or not a number"), (np.zeros((1, 0)), "thresholds is missing"),
])  # fmt: skip
def test_impossible_thresholds_are_refused_in_words(table: np.ndarray, words: str) -> None:
    g = Graph()
    t = thresholds(g, g.add("MatMul", g.quant("x"), g.weights(6, 5)), table)
    report = check(g.model({"x": (1, 6)}, {t: (1, 5)}))
    assert [words in problem.reason for problem in report.problems] == [True], report.problems


def declared(data: bytes, shapes: dict[str, tuple]) -> bytes:
    """The model with the shapes of inner values, which qonnx does not infer through a chain of its own operators."""
    model = onnx.load_from_string(data)
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    return model.SerializeToString()


def _last(g: Graph, op: str, *inputs: str, **attributes: object) -> str:
    return g.add(op, *inputs, domain=LAST, **attributes)


CHANNELS_LAST: dict[str, Callable[[Graph], bytes]] = {}


def case(build: Callable[[Graph], bytes]) -> Callable[[Graph], bytes]:
    CHANNELS_LAST[build.__name__] = build
    return build


@case
def convolutions_and_a_pool(g: Graph) -> bytes:
    kernel = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    x, w = g.quant("x"), g.quant(g.constant(g.rng.integers(-3, 4, (4, 3, 3, 3)) / 4), 0.25, 0, 3)
    c = _last(g, "Conv", x, w, group=1, **kernel)
    q = g.quant(c, 0.5)
    d = _last(g, "Conv", q, g.constant(g.rng.integers(-1, 2, (4, 3, 3, 1)) / 2), group=4, **{**kernel, "strides": [2, 1]})
    e = g.quant(d, 0.5)
    p = _last(g, "MaxPool", e, kernel_shape=[2, 2], strides=[1, 2], pads=[0, 0, 0, 0])
    sizes = {x: (1, 6, 5, 3), w: (4, 3, 3, 3), c: (1, 6, 5, 4), q: (1, 6, 5, 4), d: (1, 3, 5, 4), e: (1, 3, 5, 4)}
    return declared(g.model({"x": (1, 6, 5, 3)}, {p: (1, 2, 2, 4)}), sizes)


@case
def normalisation_and_flatten(g: Graph) -> bytes:
    w = g.constant(g.rng.integers(-1, 2, (4, 2, 2, 3)) / 2)
    x = g.quant("x")
    c = _last(g, "Conv", x, w, group=1, strides=[1, 1], dilations=[1, 1], pads=[0, 0, 0, 0], kernel_shape=[2, 2])
    parameters = [g.constant(part) for part in ([1.0, 2, -0.5, 0.25], [0.5, 0, 1, -1], [0.25, 1, 0, 2], np.full(4, 0.25 - 2.0**-10))]
    b = g.quant(_last(g, "BatchNormalization", c, *parameters, epsilon=2.0**-10, momentum=0.9), 0.5)
    f = g.add("Reshape", b, g.constant([1, 48], np.int64))
    data = g.model({"x": (1, 4, 5, 3)}, {g.add("MatMul", f, g.weights(48, 3)): (1, 3)})
    model = onnx.load_from_string(declared(data, {x: (1, 4, 5, 3), c: (1, 3, 4, 4)}))
    for entry in model.opset_import:
        # The executor runs the node with the operator set of this number.
        entry.version = 14 if entry.domain == LAST else entry.version
    return model.SerializeToString()


@case
def convolution_with_bias(g: Graph) -> bytes:
    x = g.quant("x")
    c = _last(g, "Conv", x, g.constant(g.rng.integers(-1, 2, (4, 1, 2, 3)) / 2), g.constant([1.0, -2, 0.5, 0.125]), group=1,
              strides=[1, 1], dilations=[1, 1], pads=[0, 0, 0, 0], kernel_shape=[1, 2])  # fmt: skip
    return declared(g.model({"x": (1, 4, 5, 3)}, {g.quant(c, 0.25, 0, 5): (1, 4, 4, 4)}), {x: (1, 4, 5, 3), c: (1, 4, 4, 4)})


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_last_nodes_equal_the_executor(name: str) -> None:
    assert_equal(CHANNELS_LAST[name](Graph(2)), samples=8)


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_calibration_runs_channels_last_nodes_like_their_executor(name: str) -> None:
    data = CHANNELS_LAST[name](Graph(2))
    model = onnx.load_from_string(data)
    y = model.graph.output[0].name
    x = (
        np.random.default_rng(0)
        .normal(size=(1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])))
        .astype(np.float32)
    )
    ours = quiet_session(standard_model(model, [y])).run(None, {"x": x})
    np.testing.assert_array_equal(ours[0], run_witness(data, {"x": x})[y])


def test_channels_last_nodes_of_other_shapes_are_refused() -> None:
    g = Graph()
    c = _last(g, "Conv", g.quant("x"), g.constant(np.ones((4, 2, 3))), kernel_shape=[2], strides=[1], dilations=[1], pads=[0, 0], group=1)
    report = check(g.model({"x": (1, 4, 5, 3)}, {c: (1, 3, 4, 4)}))
    assert [problem.reason for problem in report.problems] == ["its weights do not have as many axes as its input"]


def test_layers_between_channels_last_nodes_need_no_copy() -> None:
    program = lower(CHANNELS_LAST["convolutions_and_a_pool"](Graph(2)), name="m").program
    assert not any(isinstance(operation, Rescale) for operation in program.operations) and len(program.operations) == 3
