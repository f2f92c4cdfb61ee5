"""Dialects of quantised models: QONNX against the qonnx executor, QuantizeLinear and DequantizeLinear against ONNX Runtime."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal, run_both
from onnx import TensorProto
from onnxruntime import quantization

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.frontend.calibrate import standard_model
from tritloom.compiler.frontend.constants import quiet_session
from tritloom.compiler.ir.program import Convolution
from tritloom.sim.witness import run_witness

ROUNDINGS = ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN", "half_even"]


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_qonnx_rounding_of_weights_and_activations(mode: str) -> None:
    g = Graph()
    # Weights on multiples of a half: every rounding mode meets its ties.
    w = g.quant(g.constant(g.rng.integers(-7, 8, (6, 5)) / 8), 0.25, 0, 3, mode=mode)
    y = g.quant(
        g.add("MatMul", g.quant("x", 0.5, 0, 4), w), 1.0, 1.0, 4, mode=mode, signed=0, op="IntQuant", domain="finn.custom_op.general"
    )
    assert_equal(g.model({"x": (1, 6)}, {y: (1, 5)}))


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("opset", [10, 13])
def test_calibration_runs_qonnx_quantisers_like_their_executor(mode: str, opset: int) -> None:
    g = Graph()
    y = g.quant("x", 0.5, 1.0, 3, mode=mode, signed=int(mode != "CEIL"), narrow=int(mode == "UP"))
    z = g.add("BipolarQuant", g.add("Add", y, "x"), g.constant(0.5), domain="onnx.brevitas", output="z")
    data = g.model({"x": ("N", 40)}, {y: (1, 40), z: (1, 40)}, opset=opset)
    x = (np.arange(-20, 20, dtype=np.float32) / 4)[None]
    ours = quiet_session(standard_model(onnx.load_from_string(data), [y, z])).run(None, {"x": x})
    theirs = run_witness(data, {"x": x})
    np.testing.assert_array_equal(ours[0], theirs[y])
    np.testing.assert_array_equal(ours[1], theirs[z])


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"])
@pytest.mark.parametrize("op", ["Quant", "IntQuant"])
def test_all_domains(domain: str, op: str) -> None:
    g = Graph()
    x = g.quant("x", 0.5, 0, 3, domain=domain, op=op)
    w = g.add("BipolarQuant", g.constant(g.rng.normal(size=(6, 5))), g.constant(0.5), domain=domain)
    y = g.add("BipolarQuant", g.add("MatMul", x, w), g.constant(2.0), domain=domain, output="y")
    model = assert_equal(g.model({"x": (1, 6)}, {y: (1, 5)}))
    assert isinstance(model.program.operations[0], Convolution) and model.program.operations[0].planes == 1


@pytest.mark.parametrize(("signed", "narrow", "bits"), [(1, 0, 8), (1, 1, 2), (0, 0, 8), (0, 1, 4), (1, 0, 1), (0, 0, 1), (1, 1, 5)])
@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_widths_and_zero_points(signed: int, narrow: int, bits: int, zero: float) -> None:
    g = Graph()
    m = g.add("MatMul", g.quant("x", 0.5, 0, 4), g.weights(6, 5))
    y = g.quant(m, 0.25, zero, bits, signed=signed, narrow=narrow)
    assert_equal(g.model({"x": (1, 6)}, {g.quant(g.add("MatMul", y, g.weights(5, 4)), 4.0, 0, 8): (1, 4)}))


def test_scale_for_each_channel_of_an_activation() -> None:
    g = Graph()
    y = g.quant(g.add("Conv", g.qdq("x"), g.weights(4, 3, 1, 1)), np.array([0.25, 0.5, 1, 2]).reshape(1, 4, 1, 1), 0, 4)
    d = g.add("Conv", y, g.weights(4, 1, 2, 2), group=4)
    program = assert_equal(g.model({"x": (1, 3, 5, 5)}, {g.quant(d, 1.0, 0, 5): (1, 4, 4, 4)})).program
    assert program.tensors[program.operations[0].output].scale == (Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2))


def test_clip_between_quantize_and_dequantize_narrows_the_codes() -> None:
    g = Graph()
    s, z = g.constant(0.25), g.constant(0, np.int8)
    q = g.add("Clip", g.add("QuantizeLinear", "x", s, z), g.constant(-1, np.int8), g.constant(1, np.int8))
    m = g.add("MatMul", g.add("DequantizeLinear", q, s, z), g.weights(6, 4))
    program = assert_equal(g.model({"x": ("N", 6)}, {g.qdq(g.add("Clip", m, g.constant(-0.5), g.constant(0.75)), 0.125): None})).program
    tensor = program.tensors[program.inputs[0].tensor]
    assert (tensor.low, tensor.high, tensor.bits) == (-1, 1, 2)


def test_qcdq_weights_are_ternary() -> None:
    g = Graph()
    s, z = g.constant(0.125), g.constant(0, np.int8)
    q = g.add("QuantizeLinear", g.constant(g.rng.normal(size=(6, 4)) * 0.2), s, z)
    w = g.add("DequantizeLinear", g.add("Clip", q, g.constant(-1, np.int8), g.constant(1, np.int8)), s, z)
    lowered = assert_equal(g.model({"x": ("N", 6)}, {g.add("MatMul", g.qdq("x"), w): None}))
    layer = lowered.program.operations[0]
    assert isinstance(layer, Convolution)
    assert (layer.planes, layer.weight_method) == (1, "exact")
    assert not lowered.notes


@pytest.mark.parametrize(("kind", "low", "high", "opset"), [
    (TensorProto.INT8, -128, 127, 13), (TensorProto.UINT8, 0, 255, 13), (TensorProto.INT4, -8, 7, 21), (TensorProto.UINT4, 0, 15, 21),
    (TensorProto.INT2, -2, 1, 25), (TensorProto.UINT2, 0, 3, 25),
])  # fmt: skip
def test_integer_weight_types_with_zero_points(kind: int, low: int, high: int, opset: int) -> None:
    g = Graph()
    codes = g.constant(g.rng.integers(low, high + 1, (6, 4)), kind)
    w = g.add("DequantizeLinear", codes, g.constant(0.125), g.constant((low + high + 1) // 2, kind))
    lowered = assert_equal(g.model({"x": ("N", 6)}, {g.qdq(g.add("MatMul", g.qdq("x"), w), 2.0): None}, opset=opset))
    assert lowered.program.operations[0].weight_method == "exact"  # type: ignore[attr-defined]


@pytest.mark.parametrize("axis", [0, -4])
def test_scales_zero_points_and_bias_for_each_output_channel(axis: int) -> None:
    g = Graph()
    codes = g.constant(g.rng.integers(-128, 128, (4, 3, 3, 3)), np.int8)
    w = g.add("DequantizeLinear", codes, g.constant([0.125, 0.25, 0.5, 1]), g.constant([1, -2, 0, 3], np.int8), axis=axis)
    b = g.add("DequantizeLinear", g.constant([100, -5, 3, 7], np.int32), g.constant([0.03125, 0.0625, 0.125, 0.25]), axis=0)
    assert_equal(g.model({"x": ("N", 3, 5, 5)}, {g.qdq(g.add("Conv", g.qdq("x"), w, b), 4.0): None}))


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_four_bit_activations(kind: int) -> None:
    g = Graph()
    s, z = g.constant(0.25), g.constant(3, kind)
    x = g.add("DequantizeLinear", g.add("QuantizeLinear", "x", s, z), s, z)
    assert_equal(g.model({"x": ("N", 6)}, {g.qdq(g.add("MatMul", x, g.weights(6, 4)), 0.5): None}))


def test_codes_as_graph_input_and_output() -> None:
    g = Graph()
    x = g.add("DequantizeLinear", "x", g.constant(0.25), g.constant(3, np.uint8))
    y = g.add("QuantizeLinear", g.add("MatMul", x, g.weights(6, 4)), g.constant(0.5), g.constant(100, np.uint8))
    _, ours, theirs, _ = run_both(g.model({"x": ("N", 6)}, {y: None}, kind=TensorProto.UINT8, kinds={y: TensorProto.UINT8}))
    assert ours[y].dtype == np.uint8
    np.testing.assert_array_equal(ours[y], theirs[y])


def test_integer_image_without_quantiser_needs_no_calibration() -> None:
    g = Graph()
    x = g.add("Sub", g.add("Div", g.add("Cast", "x", to=1), g.constant(256.0)), g.constant(0.5))
    data = g.model({"x": ("N", 3, 5, 5)}, {g.qdq(g.add("Conv", x, g.weights(4, 3, 2, 2)), 0.125): None}, kind=TensorProto.UINT8)
    program = assert_equal(data).program
    assert program.tensors[program.inputs[0].tensor].source == "declared"


def test_dequantised_on_another_scale_than_quantised() -> None:
    g = Graph()
    q = g.add("QuantizeLinear", "x", g.constant(0.25), g.constant(2, np.int8))
    x = g.add("DequantizeLinear", q, g.constant(0.5), g.constant(-1, np.int8))
    assert_equal(g.model({"x": ("N", 6)}, {g.qdq(g.add("MatMul", x, g.weights(6, 4)), 0.5): None, x: None}))


def test_quantising_codes_again_on_their_grid_costs_nothing() -> None:
    g = Graph()
    program = assert_equal(g.model({"x": ("N", 6)}, {g.add("MatMul", g.qdq(g.qdq(g.qdq("x"))), g.weights(6, 4)): None})).program
    assert len(program.operations) == 1


def test_transposed_weights_keep_their_grid() -> None:
    g = Graph()
    scale = np.float32(0.1)
    codes = g.constant(g.rng.integers(-7, 8, (4, 6)), np.int8)
    w = g.add("Transpose", g.add("DequantizeLinear", codes, g.constant(scale)), perm=[1, 0])
    program = lower(g.model({"x": ("N", 6)}, {g.add("MatMul", g.qdq("x"), w): None}), name="m").program
    layer = program.operations[0]
    assert isinstance(layer, Convolution)
    assert program.tensors[layer.output].scale == (Fraction(float(scale)) / 4,)


@pytest.mark.parametrize(("build", "words"), [
    (lambda g: g.quant("x", 0.5, 0, 16), "more than 8 bits"),
    (lambda g: g.quant("x", 0.5, 0.5, 4), "zero point is not an integer"),
    (lambda g: g.quant("x", -0.5, 0, 4), "not a positive finite number"),
    (lambda g: g.quant("x", 0.5, 0, 3.5), "bit width is not one integer"),
    (lambda g: g.quant("x", 0.5, 0, 4, mode="SIDEWAYS"), "rounding mode SIDEWAYS is not known"),
    (lambda g: g.qdq("x", 0.5, 0, np.int16), "more than 8 bits"),
    (lambda g: g.quant("x", g.rng.uniform(1, 2, (1, 3, 5, 5)), 0, 4), "scale differs within a channel"),
])  # fmt: skip
def test_unsupported_quantisers_are_refused_in_words(build: Callable[[Graph], str], words: str) -> None:
    g = Graph()
    y = g.add("Add", build(g), g.constant(1.0))
    report = check(g.model({"x": ("N", 3, 5, 5)}, {y: None}))
    assert [words in problem.reason for problem in report.problems] == [True]
    assert report.problems[0].hint


def test_onnxruntime_static_quantiser(tmp_path: Path) -> None:
    """A network as ONNX Runtime's own tool quantises it: zero points, scales that are no powers of two, a quantiser behind Softmax."""
    g = Graph(1)

    def floats(*shape: int) -> str:
        return g.constant(g.rng.normal(size=shape) * 0.3)

    r = g.add("Relu", g.add("Conv", "x", floats(8, 3, 3, 3), floats(8), pads=[1, 1, 1, 1]))
    a = g.add("Relu", g.add("Add", r, g.add("Conv", r, floats(8, 8, 3, 3), pads=[1, 1, 1, 1])))
    c = g.add("Conv", g.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2]), floats(7, 8, 3, 3))
    f = g.add("Flatten", g.add("GlobalAveragePool", g.add("Concat", c, c, axis=1)))
    s = g.add("Softmax", g.add("Gemm", f, floats(14, 5), floats(5)))
    (tmp_path / "float.onnx").write_bytes(g.model({"x": ("N", 3, 11, 11)}, {s: ("N", 5)}, opset=17))
    samples = np.random.default_rng(0).normal(size=(30, 1, 3, 11, 11)).astype(np.float32)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": sample} for sample in samples])

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    quantization.quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader(), per_channel=True)
    feeds = {"x": np.random.default_rng(1).normal(size=(100, 3, 11, 11)).astype(np.float32)}
    lowered, ours, theirs, _ = run_both((tmp_path / "int8.onnx").read_bytes(), feeds=feeds)
    assert not lowered.notes
    assert np.mean(ours[s].argmax(axis=1) == theirs[s].argmax(axis=1)) >= 0.98
    assert np.abs(ours[s] - theirs[s]).max() < 0.05
