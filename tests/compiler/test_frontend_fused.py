"""Integer operators that fuse a layer with its quantisers, against ONNX Runtime.

With scales that are powers of two the runtime's float32 multiplier is exact, and so are all codes. With others each code that differs
must lie within float32 rounding of a step: the test computes the exact value from the runtime's own integer sums.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from frontend_models import Graph, assert_equal, run_both
from onnx import TensorProto
from onnxruntime import quantization

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.ir.program import Convolution
from tritloom.errors import ModelError
from tritloom.verification import verify

MICROSOFT = "com.microsoft"
IMAGE = {"x": ("N", 3, 6, 5)}
MODELS: dict[str, Callable[[Graph], bytes]] = {}


def case(build: Callable[[Graph], bytes]) -> Callable[[Graph], bytes]:
    MODELS[build.__name__] = build
    return build


def grid(g: Graph, scale: object, zero: object = 0, dtype: object = np.int8) -> list[str]:
    return [g.constant(scale), g.constant(zero, dtype)]


def codes(g: Graph, *shape: int, low: int = -3, high: int = 3, dtype: object = np.int8) -> str:
    return g.constant(g.rng.integers(low, high + 1, shape), dtype)


def quantised(g: Graph, x: str, scale: float, zero: int, dtype: object = np.int8) -> list[str]:
    parts = grid(g, scale, zero, dtype)
    return [g.add("QuantizeLinear", x, *parts), *parts]


def floats(g: Graph, parts: list[str]) -> str:
    return g.add("DequantizeLinear", *parts)


@case
def qlinear_conv_with_all_inputs(g: Graph) -> bytes:
    x, w = quantised(g, "x", 0.25, 5), [codes(g, 4, 3, 3, 2), *grid(g, [0.125, 0.25, 0.5, 0.0625], [0] * 4)]
    y = grid(g, 0.5, -7)
    bias = g.constant([5, -300, 77, 0], np.int32)
    c = g.add("QLinearConv", *x, *w, *y, bias, pads=[1, 0, 0, 1], strides=[1, 2], kernel_shape=[3, 2])
    return g.model(IMAGE, {floats(g, [c, *y]): None})


@case
def qlinear_conv_of_unsigned_codes_and_weights(g: Graph) -> bytes:
    x, w, y = (
        quantised(g, "x", 0.25, 131, np.uint8),
        [codes(g, 4, 1, 2, 2, low=0, high=9, dtype=np.uint8), *grid(g, 0.125, 4, np.uint8)],
        grid(g, 0.5, 100, np.uint8),
    )
    x1 = [
        g.add(
            "QLinearConv",
            *x,
            codes(g, 2, 3, 1, 1, low=0, high=9, dtype=np.uint8),
            *grid(g, 0.125, 4, np.uint8),
            *grid(g, 0.25, 3, np.uint8),
        ),
        *grid(g, 0.25, 3, np.uint8),
    ]
    c = g.add("QLinearConv", *x1, *w, *y, group=2, auto_pad="SAME_UPPER", dilations=[1, 1])
    return g.model(IMAGE, {floats(g, [g.add("MaxPool", c, kernel_shape=[2, 2]), *y]): None})


@case
def qlinear_conv_of_one_dimension(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 0), grid(g, 1.0, 0)
    return g.model({"x": (1, 3, 9)}, {floats(g, [g.add("QLinearConv", *x, codes(g, 4, 3, 3), *grid(g, 0.5), *y), *y]): None})


@case
def qlinear_matmul_with_scales_of_columns(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, -3), grid(g, 0.25, 10)
    m = g.add("QLinearMatMul", *x, codes(g, 6, 4), *grid(g, [0.125, 0.25, 0.5, 1], [0] * 4), *y)
    return g.model({"x": ("N", 6)}, {floats(g, [m, *y]): None})


@case
def qlinear_matmul_with_the_constant_first(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 3), grid(g, 1.0, 4)
    m = g.add("QLinearMatMul", codes(g, 5, 3), *grid(g, 0.125, 1), *x, *y)
    return g.model({"x": (1, 3, 4)}, {floats(g, [m, *y]): None})


@case
def conv_integer_with_zero_points(g: Graph) -> bytes:
    q = g.add("QuantizeLinear", "x", *grid(g, 0.25, 140, np.uint8))
    w = codes(g, 4, 3, 2, 2, low=0, high=8, dtype=np.uint8)
    c = g.add("ConvInteger", q, w, g.constant(139, np.uint8), g.constant(3, np.uint8), pads=[1, 1, 0, 0])
    r = g.add("Mul", g.add("Cast", c, to=1), g.constant(np.array([0.5, 1, 2, 4.0]).reshape(4, 1, 1)))
    return g.model(IMAGE, {g.qdq(g.add("Relu", g.add("Add", r, g.constant(0.5))), 4.0): None})


@case
def matmul_integer_of_an_integer_input(g: Graph) -> bytes:
    m = g.add("MatMulInteger", "x", codes(g, 6, 4), g.constant(7, np.uint8), g.constant([1, 0, -2, 3], np.int8))
    return g.model({"x": ("N", 6)}, {g.qdq(g.add("Mul", g.add("Cast", m, to=1), g.constant(0.25)), 4.0): None}, kind=TensorProto.UINT8)


@case
def matmul_integer_without_zero_points(g: Graph) -> bytes:
    m = g.add("MatMulInteger", g.add("QuantizeLinear", "x", *grid(g, 0.25)), codes(g, 6, 4), output="m")
    return g.model({"x": ("N", 6)}, {m: None}, kinds={m: TensorProto.INT32})


@case
def qlinear_add_and_mul(g: Graph) -> bytes:
    a, b = quantised(g, "x", 0.25, 3), quantised(g, "y", 0.5, -6)
    s = grid(g, 0.5, 9)
    total = g.add("QLinearAdd", *a, *b, *s, domain=MICROSOFT)
    shifted, t = [codes(g, 3, 1, 1), *grid(g, 0.25, 1)], grid(g, 1.0, -4)
    plus = g.add("QLinearAdd", total, *s, *shifted, *t, domain=MICROSOFT)
    times = g.add("QLinearMul", codes(g, 3, 1, 1), *grid(g, 0.5, 0), plus, *t, *s, domain=MICROSOFT)
    return g.model({"x": ("N", 3, 4, 4), "y": ("N", 3, 4, 4)}, {floats(g, [times, *s]): None})


@case
def qgemm_with_bias(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 3, np.uint8), grid(g, 0.5, 90, np.uint8)
    w, bias = [codes(g, 4, 6), *grid(g, [0.125, 0.25, 0.5, 1], [0] * 4)], g.constant([10, -50, 7, 0], np.int32)
    q = g.add("QGemm", *x, *w, bias, *y, domain=MICROSOFT, transB=1, alpha=1.0)
    real = g.add("QGemm", q, *y, codes(g, 4, 5), *grid(g, 0.5), domain=MICROSOFT)
    return g.model({"x": ("N", 6)}, {floats(g, [q, *y]): None, real: None})


@case
def qlinear_pools(g: Graph) -> bytes:
    x = quantised(g, "x", 0.25, 3)
    y = grid(g, 0.125, -1)
    whole = g.add("QLinearGlobalAveragePool", *x, *y, domain=MICROSOFT, channels_last=0)
    part = g.add("QLinearAveragePool", *x, *y, domain=MICROSOFT, kernel_shape=[2, 2], strides=[2, 1])
    return g.model({"x": (1, 3, 4, 4)}, {floats(g, [whole, *y]): None, floats(g, [part, *y]): None})


@case
def qlinear_pool_with_channels_last(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 3), grid(g, 2.0**-5, -1)
    whole = g.add("QLinearGlobalAveragePool", *x, *y, domain=MICROSOFT, channels_last=1)
    return g.model({"x": (1, 4, 4, 3)}, {floats(g, [whole, *y]): None})


@case
def qlinear_concat_of_unlike_grids(g: Graph) -> bytes:
    x, y, z = quantised(g, "x", 0.25, 3), quantised(g, "x", 0.5, -3), grid(g, 0.5, 1)
    joined = g.add("QLinearConcat", *z, *x, *y, domain=MICROSOFT, axis=1)
    return g.model(IMAGE, {floats(g, [joined, *z]): None})


@case
def qlinear_leaky_relu(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 3), grid(g, 0.125, -20)
    return g.model({"x": ("N", 6)}, {floats(g, [g.add("QLinearLeakyRelu", *x, *y, domain=MICROSOFT, alpha=0.25), *y]): None})


@case
def qlinear_mul_of_two_activations(g: Graph) -> bytes:
    y = grid(g, 0.5, 3)
    product = g.add("QLinearMul", *quantised(g, "x", 0.25, 3), *quantised(g, "y", 0.5, -1), *y, domain=MICROSOFT)
    return g.model({"x": ("N", 4, 3), "y": ("N", 4, 3)}, {floats(g, [product, *y]): None})


@case
def qlinear_sigmoid_at_the_end(g: Graph) -> bytes:
    x, y = quantised(g, "x", 0.25, 3), grid(g, 0.125, 0)
    m, end = g.add("QLinearMatMul", *x, codes(g, 6, 4), *grid(g, 0.0625), *y), grid(g, 2.0**-8, -128)
    return g.model({"x": ("N", 6)}, {floats(g, [g.add("QLinearSigmoid", m, *y, *end, domain=MICROSOFT), *end]): None})


@pytest.mark.parametrize("name", MODELS)
def test_fused_operators_equal_onnx_runtime(name: str) -> None:
    lowered = assert_equal(MODELS[name](Graph(3)))
    assert not lowered.notes


def _off_step(ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> int:
    """How many codes differ, each by one and where the exact value before rounding lies within float32 rounding of a half."""
    ours, theirs = ours.astype(np.int64).ravel(), theirs.astype(np.int64).ravel()
    exact = exact.ravel()
    wrong = ours != theirs
    assert (np.abs(ours - theirs)[wrong] == 1).all()
    distance = np.abs(exact[wrong] - np.floor(exact[wrong]) - 0.5)
    assert (distance <= np.abs(exact[wrong]) * 2.0**-22).all(), distance.max()
    return int(wrong.sum())


def test_verify_compares_integer_outputs_with_the_witness() -> None:
    """Codes that a fused operator gives, and integer sums."""
    g = Graph(5)
    x, y = quantised(g, "x", 0.25, 3, np.uint8), grid(g, 0.5, 200, np.uint8)
    q = g.add("QLinearMatMul", *x, codes(g, 6, 4, dtype=np.uint8, low=0), *grid(g, 0.125, 2, np.uint8), *y, output="q")
    m = g.add("MatMulInteger", x[0], codes(g, 6, 4), x[2], output="m")
    data = g.model({"x": ("N", 6)}, {q: None, m: None}, kinds={q: TensorProto.UINT8, m: TensorProto.INT32})
    found = verify(data, on=("golden",), samples=50)
    assert [(comparison.values, comparison.mismatches) for comparison in found.against("onnx")] == [(200, 0), (200, 0)]


def test_attention_in_fused_operators() -> None:
    """Softmax between two products: what the host could do at the end is computed inside the network."""
    g = Graph(6)
    x, scores, shares, y = quantised(g, "x", 1 / 32, 0), grid(g, 1 / 16, 5), grid(g, 1 / 256, -128), grid(g, 1 / 64, 2)
    keys = [g.add("Transpose", x[0], perm=[0, 2, 1]), *x[1:]]
    s = g.add("QLinearMatMul", *x, *keys, *scores)
    p = g.add("QLinearSoftmax", s, *scores, *shares, domain=MICROSOFT, axis=-1, opset=13)
    mixed = g.add("QLinearMatMul", p, *shares, *x, *y)
    end = g.add("QLinearMatMul", mixed, *y, codes(g, 8, 4), *grid(g, 0.125), *grid(g, 0.25))
    data = g.model({"x": ("N", 6, 8)}, {floats(g, [end, *grid(g, 0.25)]): None})
    found = verify(data, on=("golden",), samples=50)
    # A share whose exact value lies beside a half may be rounded to the other side by a float32 exp.
    assert sum(comparison.mismatches for comparison in found.against("onnx")) <= 8
    assert sum(comparison.values for comparison in found.against("onnx")) == 50 * 6 * 4


@pytest.mark.parametrize("per_channel", [False, True])
def test_scales_of_any_value_differ_only_within_rounding_of_a_step(per_channel: bool) -> None:
    """Sums of both signs, all reachable: the runtime's ConvInteger gives the exact ones."""
    g = Graph(4)
    scales = np.array([0.1, 0.03, 0.007, 0.3] if per_channel else [0.1], np.float32)
    x, w, y = (np.float32(0.017), scales if per_channel else scales[0], np.float32(0.0123))
    sx, zx, sy, zy = *grid(g, x, 120, np.uint8), *grid(g, y, 128, np.uint8)
    weights = codes(g, 4, 3, 3, 3, low=-4, high=4)
    q = g.add("QLinearConv", "x", sx, zx, weights, *grid(g, w, [0] * 4 if per_channel else 0), sy, zy, output="q")
    data = g.model({"x": ("N", 3, 9, 9)}, {q: None}, kind=TensorProto.UINT8, kinds={q: TensorProto.UINT8})
    h = Graph(4)
    h.initializers = g.initializers
    s = h.add("ConvInteger", "x", weights, zx, output="s")
    sums = h.model({"x": ("N", 3, 9, 9)}, {s: None}, kind=TensorProto.UINT8, kinds={s: TensorProto.INT32})
    _, ours, theirs, feeds = run_both(data, samples=200)
    exact = run_both(sums, feeds=feeds)[2]["s"].astype(np.float64) * (
        np.float64(x) * scales.astype(np.float64).reshape(1, -1, 1, 1) / np.float64(y)
    )
    assert _off_step(ours["q"], theirs["q"], exact) <= ours["q"].size // 1000
    inside = np.abs(exact + 128 - 127.5) < 127
    assert inside.mean() > 0.3


def _network() -> tuple[bytes, str]:
    g = Graph(1)

    def weights(*shape: int) -> str:
        return g.constant(g.rng.normal(size=shape) * 0.3)

    r = g.add("Relu", g.add("Conv", "x", weights(8, 3, 3, 3), weights(8), pads=[1, 1, 1, 1]))
    a = g.add("LeakyRelu", g.add("Add", r, g.add("Conv", r, weights(8, 8, 3, 3), pads=[1, 1, 1, 1])), alpha=0.1)
    c = g.add("Conv", g.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), weights(7, 8, 3, 3))
    f = g.add("Flatten", g.add("GlobalAveragePool", g.add("Concat", c, c, axis=1)))
    y = g.add("Gemm", f, weights(14, 5), weights(5))
    return g.model({"x": ("N", 3, 11, 11)}, {y: ("N", 5)}, opset=17), y


@pytest.mark.parametrize("per_channel", [False, True])
def test_onnx_runtimes_static_quantiser_in_its_operator_format(tmp_path: Path, per_channel: bool) -> None:
    data, y = _network()
    (tmp_path / "float.onnx").write_bytes(data)
    samples = np.random.default_rng(0).normal(size=(30, 1, 3, 11, 11)).astype(np.float32)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": sample} for sample in samples])

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    quantization.quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader(), quant_format=quantization.QuantFormat.QOperator, per_channel=per_channel
    )
    feeds = {"x": np.random.default_rng(1).normal(size=(100, 3, 11, 11)).astype(np.float32)}
    lowered, ours, theirs, _ = run_both((tmp_path / "int8.onnx").read_bytes(), feeds=feeds)
    assert not lowered.notes
    assert sum(isinstance(operation, Convolution) for operation in lowered.program.operations) == 4
    # A code that differs at a step moves a few codes of the layers behind it by one.
    step = float(lowered.program.tensors[lowered.program.outputs[0].tensor].scale[0])
    assert np.abs(ours[y] - theirs[y]).max() <= 1.001 * step
    assert np.mean(np.abs(ours[y] - theirs[y]) > 0.5 * step) < 0.03


def test_dynamic_quantisation_is_refused_with_advice(tmp_path: Path) -> None:
    data, _ = _network()
    (tmp_path / "float.onnx").write_bytes(data)
    quantization.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    report = check((tmp_path / "int8.onnx").read_bytes())
    assert {problem.op for problem in report.problems} == {"DynamicQuantizeLinear"}
    assert "quantize_static" in report.problems[0].hint


def _refused(g: Graph, y: str, inputs: dict[str, tuple] = IMAGE) -> tuple[str, str]:
    report = check(g.model(inputs, {y: None}, kinds={y: TensorProto.INT8}))
    assert len(report.problems) == 1
    return report.problems[0].op, report.problems[0].reason


def test_what_is_not_exact_is_refused_in_words() -> None:
    g = Graph()
    x, y = quantised(g, "x", 0.25, 3), grid(g, 0.125)
    bias = g.constant([1, 2, 3], np.int32)
    op, reason = _refused(g, g.add("QLinearConv", *x, codes(g, 4, 3, 1, 1), *grid(g, 0.5), *y, bias))
    assert (op, reason) == ("QLinearConv", "its bias has 3 entries for 4 outputs")
    g = Graph()
    x, y = quantised(g, "x", 0.25, 3), grid(g, 0.125)
    rows = [x[0], *grid(g, [0.5] * 4, [0] * 4)]
    op, reason = _refused(g, g.add("QLinearMatMul", *rows, codes(g, 6, 4), *grid(g, 0.5), *y), {"x": ("N", 4, 6)})
    assert (op, reason) == ("QLinearMatMul", "an activation has a scale for each row or column")


def test_integer_sums_beyond_float32_are_refused_as_output() -> None:
    g = Graph()
    m = g.add("MatMulInteger", "x", g.constant(np.full((700, 1), 100), np.int8), output="m")
    with pytest.raises(ModelError, match=r"may reach \d+, more than the host's float32 holds exactly"):
        lower(g.model({"x": (1, 700)}, {m: None}, kind=TensorProto.UINT8, kinds={m: TensorProto.INT32}), name="m")


def test_ternary_weights_of_a_fused_layer_take_one_plane() -> None:
    g = Graph()
    x, y = quantised(g, "x", 0.25, 3), grid(g, 0.125)
    q = g.add("QLinearConv", *x, codes(g, 4, 3, 3, 3, low=-1, high=1), *grid(g, [0.1, 0.2, 0.3, 0.4], [0] * 4), *y)
    layer = lower(g.model(IMAGE, {floats(g, [q, *y]): None}), name="m").program.operations[0]
    assert isinstance(layer, Convolution) and (layer.planes, layer.weight_method, layer.name) == (1, "exact", f"node_{q}")
