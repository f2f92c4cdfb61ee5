"""The host's float32 steps against ONNX Runtime, input checks, and random inputs on the model's grid."""

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritloom.compiler import golden
from tritloom.compiler.golden.host import apply_host
from tritloom.compiler.ir.program import HostOp, InputSpec, OutputSpec, Program, Tensor
from tritloom.errors import ModelError, UserError


def onnx_runtime(kind, x, constants=(), **attributes):
    """One operator on ``x``, the constants behind it."""
    names = [f"c{index}" for index in range(len(constants))]
    node = helper.make_node(kind, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.fixture
def x(rng):
    return rng.normal(0, 3, (4, 5, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_arithmetic_is_that_of_onnx_runtime(kind, side, x, rng):
    constant = rng.uniform(0.5, 2, (5, 1, 1)).astype(np.float32)
    got = apply_host(HostOp(kind=kind, constants={side: constant}), x)
    if side == "B":
        assert np.array_equal(got, onnx_runtime(kind, x, [constant]))
    else:
        operator = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind]
        assert np.array_equal(got, operator(constant, x))
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        (HostOp(kind="Neg"), (), {}),
        (HostOp(kind="Relu"), (), {}),
        (HostOp(kind="LeakyRelu", attributes={"alpha": 0.3}), (), {"alpha": 0.3}),
        (HostOp(kind="Clip", constants={"min": np.float32(-1), "max": np.float32(2)}), (np.float32(-1), np.float32(2)), {}),
        (HostOp(kind="Transpose", attributes={"perm": (0, 3, 1, 2)}), (), {"perm": (0, 3, 1, 2)}),
        (HostOp(kind="Reshape", attributes={"shape": (6, 5)}), (np.array([4, 6, 5]),), {}),
        (HostOp(kind="ArgMax", attributes={"axis": 1}), (), {"axis": 1}),
        (HostOp(kind="ArgMax", attributes={"axis": 2, "keepdims": 0}), (), {"axis": 2, "keepdims": 0}),
    ],
)
def test_exact_operators_are_those_of_onnx_runtime(op, constants, attributes, x):
    assert np.array_equal(apply_host(op, x), onnx_runtime(op.kind, x, constants, **attributes))


def test_argmax_takes_the_last_of_equals_on_request():
    equal = np.array([[1.0, 3.0, 3.0, 0.0]], np.float32)
    for last, expected in ((0, 1), (1, 2)):
        op = HostOp(kind="ArgMax", attributes={"axis": 1, "select_last_index": last})
        assert apply_host(op, equal).tolist() == [[expected]] == onnx_runtime("ArgMax", equal, axis=1, select_last_index=last).tolist()


def test_softmax_logarithms_sigmoid_and_normalisation_are_close_to_onnx_runtime(x, rng):
    big = x * 100
    assert np.allclose(
        apply_host(HostOp(kind="Softmax", attributes={"axis": 1}), x), onnx_runtime("Softmax", x, axis=1), rtol=1e-6, atol=1e-9
    )
    for values in (x, 30 * big):  # probabilities far below the smallest float32 as well
        found = apply_host(HostOp(kind="LogSoftmax", attributes={"axis": 1}), values)
        assert np.allclose(found, onnx_runtime("LogSoftmax", values, axis=1), rtol=1e-6, atol=1e-6)
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(apply_host(HostOp(kind="Softmax", attributes={"axis": 1}), big)).all()
        assert np.allclose(apply_host(HostOp(kind="Sigmoid"), big), onnx_runtime("Sigmoid", big), rtol=1e-5, atol=1e-6)
    names = ("scale", "B", "input_mean", "input_var")
    parts = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in names}
    op = HostOp(kind="BatchNormalization", constants=parts, attributes={"epsilon": 1e-3})
    assert np.allclose(
        apply_host(op, x), onnx_runtime("BatchNormalization", x, [parts[name] for name in names], epsilon=1e-3), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("axis", [None, 1, 3])
def test_quantize_and_dequantize_are_those_of_onnx_runtime(axis, x, rng):
    # A scale of a quarter makes ties; the values are rounded to eighths.
    x = np.rint(x * 8).astype(np.float32) / 8
    size = () if axis is None else (x.shape[axis],)
    scale, zero = rng.choice([0.25, 0.5, 0.05], size).astype(np.float32), rng.integers(-5, 6, size).astype(np.int8)
    attributes = {} if axis is None else {"axis": axis}
    op = HostOp(kind="Quantize", constants={"scale": scale, "zero_point": zero}, attributes={"low": -128, "high": 127, **attributes})
    codes = apply_host(op, x)
    assert codes.dtype == np.int8 and np.array_equal(codes, onnx_runtime("QuantizeLinear", x, [scale, zero], **attributes))
    back = apply_host(HostOp(kind="Dequantize", constants={"scale": scale, "zero_point": zero}, attributes=attributes), codes)
    if axis is not None:
        scale, zero = (part.reshape([-1 if d == axis else 1 for d in range(4)]) for part in (scale, zero))
    assert back.dtype == np.float32 and np.array_equal(back, (codes - zero.astype(np.float32)) * scale)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [-4, -2, -2, -1, 0, 0, 0, 0, 1, 2, 2, 4]),
        ("half_up", [-3, -2, -1, -1, 0, 0, 0, 1, 1, 2, 3, 4]),
        ("half_away", [-4, -2, -2, -1, -1, 0, 0, 1, 1, 2, 3, 4]),
        ("half_toward_zero", [-3, -2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 3]),
        ("floor", [-4, -3, -2, -1, -1, -1, 0, 0, 0, 1, 2, 3]),
        ("ceil", [-3, -2, -1, 0, 0, 0, 1, 1, 1, 2, 3, 4]),
        ("toward_zero", [-3, -2, -1, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
        ("away_from_zero", [-4, -3, -2, -1, -1, -1, 1, 1, 1, 2, 3, 4]),
    ],
)
def test_roundings_of_the_host(rounding, expected):
    values = np.array([[-3.5, -2.25, -1.5, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.5, 2.5, 3.5]], np.float32)
    op = HostOp(kind="Quantize", constants={"scale": np.float32(1)}, attributes={"low": -8, "high": 7, "rounding": rounding})
    assert apply_host(op, values).tolist() == [expected]


def test_quantize_orders_and_bipolar():
    values = np.array([[-0.01, 0.0, 0.5, 9.0]], np.float32)
    constants = {"scale": np.float32(1), "zero_point": np.float32(1)}
    bounds = {"low": -4, "high": 3}
    assert apply_host(HostOp(kind="Quantize", constants=constants, attributes=bounds), values).tolist() == [[1, 1, 1, 3]]
    assert apply_host(HostOp(kind="Quantize", constants=constants, attributes={**bounds, "clip_first": True}), values).tolist() == [
        [1, 1, 2, 3]
    ]
    assert apply_host(HostOp(kind="Quantize", constants=constants, attributes={**bounds, "offset": -2}), values).tolist() == [
        [-1, -1, -1, 1]
    ]
    bipolar = HostOp(kind="Quantize", constants={"scale": np.float32(1)}, attributes={"low": -1, "high": 1, "bipolar": True})
    assert apply_host(bipolar, values).tolist() == [[-1, 1, 1, 1]]


def test_unknown_operations_are_refused():
    with pytest.raises(ModelError, match=r"^host operation 'Erf' is not known$"):
        apply_host(HostOp(kind="Erf"), np.zeros((1, 1), np.float32))
    with pytest.raises(ModelError, match=r"^rounding 'up' is not known$"):
        quantise = HostOp(kind="Quantize", constants={"scale": np.float32(1)}, attributes={"low": -1, "high": 1, "rounding": "up"})
        apply_host(quantise, np.zeros((1, 1), np.float32))


def quantise(scale=0.125, zero=3, low=-100, high=90):
    constants = {"scale": np.float32(scale), "zero_point": np.float32(zero)}
    return HostOp(kind="Quantize", constants=constants, attributes={"low": low, "high": high})


def one_input(shape, prologue, *, low=-100, high=90, index=None, dtype="float32", declared=1, tensor_shape=None):
    tensor = Tensor(name="codes", shape=tensor_shape or (*shape, 1, 1)[:3], bits=8, low=low, high=high, scale=(Fraction(1, 8),))
    spec = InputSpec(name="image", shape=(declared, *shape), dtype=dtype, tensor="codes", prologue=tuple(prologue), index=index)
    return Program(name="test", tensors={"codes": tensor}, operations=(), inputs=(spec,), outputs=())


PROLOGUES = {
    "none": [],
    "affine": [HostOp(kind="Sub", constants={"B": np.float32(0.5)}), HostOp(kind="Mul", constants={"B": np.float32([[[2.0]], [[0.3]]])})],
    "reversed": [HostOp(kind="Sub", constants={"A": np.float32(1)}), HostOp(kind="Neg"), HostOp(kind="Add", constants={"A": np.float32(0.1)})],
    "quotient": [HostOp(kind="Div", constants={"B": np.float32(0.7)})],
    "relu": [HostOp(kind="Relu")],
    "clip": [HostOp(kind="Clip", constants={"min": np.float32(-2), "max": np.float32(3.03)})],
    "leaky": [HostOp(kind="LeakyRelu", attributes={"alpha": 0.1})],
    "normalised": [
        HostOp(kind="BatchNormalization", constants={
            "scale": np.float32([1.5, -0.5]), "B": np.float32([0.1, 0.2]), "input_mean": np.float32([0.3, -1]), "input_var": np.float32([2, 0.5]),
        }),
    ],
    "transposed": [HostOp(kind="Transpose", attributes={"perm": (0, 2, 3, 1)}), HostOp(kind="Reshape", attributes={"shape": (24,)})],
}  # fmt: skip


@pytest.mark.parametrize("name", PROLOGUES)
def test_random_inputs_lie_on_the_models_own_grid(name):
    tested = one_input((2, 3, 4), [*PROLOGUES[name], quantise()], tensor_shape=(2, 3, 4))
    feeds = golden.random_feeds(tested, 60, 1)
    codes = golden.quantise_inputs(tested, feeds)["codes"]
    assert feeds["image"].shape == (60, 2, 3, 4) and feeds["image"].dtype == np.float32 and codes.shape == (60, 2, 3, 4)
    expected = {"relu": (3, 90), "clip": (-13, 27)}.get(name, (-100, 90))
    assert (codes.min(), codes.max()) == expected
    assert len(np.unique(codes)) == expected[1] - expected[0] + 1
    # On the grid: in the middle of the step of each code.
    x = feeds["image"]
    for op in PROLOGUES[name]:
        x = apply_host(op, x)
    if name != "clip":
        assert np.abs(x.reshape(60, -1) / 0.125 + 3 - codes.reshape(60, -1)).max() < 1e-3
    again = golden.random_feeds(tested, 60, 1)["image"]
    assert np.array_equal(again, feeds["image"]) and not np.array_equal(again, golden.random_feeds(tested, 60, 2)["image"])


def test_index_moves_elements_between_input_and_tensor(rng):
    index = rng.permutation(12)[:6].reshape(3, 2)
    tested = one_input((12,), [quantise()], index=index, tensor_shape=(3, 2, 1))
    feeds = golden.random_feeds(tested, 5, 0)
    codes = golden.quantise_inputs(tested, feeds)["codes"]
    whole = np.clip(np.rint(feeds["image"] / 0.125) + 3, -100, 90)
    assert np.array_equal(codes.reshape(5, 6), whole[:, index.ravel()])


def test_integer_inputs_are_drawn_as_integers():
    tested = one_input((4,), [quantise(1, 0, 0, 100)], low=0, high=100, dtype="uint8")
    feeds = golden.random_feeds(tested, 50, 0)
    assert feeds["image"].dtype == np.uint8
    with pytest.raises(UserError, match=r"^input 'image' must be uint8, not float64$"):
        golden.quantise_inputs(tested, {"image": np.zeros((1, 4))})


@pytest.mark.parametrize("samples", [0, 1, 7])
def test_any_batch_is_accepted(samples):
    tested = one_input((2, 3, 4), [quantise()], declared=789444)
    assert golden.quantise_inputs(tested, {"image": np.zeros((samples, 2, 3, 4))})["codes"].shape == (samples, 2, 3, 4)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"^inputs must be image; given are none$"),
        ({"x": np.zeros((1, 2, 3, 4)), "image": np.zeros((1, 2, 3, 4))}, r"^inputs must be image; given are image, x$"),
        ({"image": np.zeros((2, 3, 4))}, r"^input 'image' must have 4 axes \(the first is the batch\), not shape \(2, 3, 4\)$"),
        ({"image": np.zeros((1, 2, 5, 4))}, r"^input 'image' has size 5 at axis 2, expected 3; its shape is \(N, 2, 3, 4\)$"),
        ({"image": np.full((1, 2, 3, 4), np.nan)}, r"^input 'image' must be finite in float32, but its value at \(0, 0, 0, 0\) is nan$"),
        ({"image": np.full((1, 2, 3, 4), "a")}, r"^input 'image' must be float32, not <U1$"),
        ({"image": np.full((1, 2, 3, 4), 1j)}, r"^input 'image' must be float32, not complex128$"),
        ({"image": np.full((1, 2, 3, 4), None)}, r"^input 'image' must be float32, not object$"),
    ],
)
def test_wrong_inputs_are_refused(feeds, message):
    with pytest.raises(UserError, match=message):
        golden.quantise_inputs(one_input((2, 3, 4), [quantise()]), feeds)


def test_infinity_is_found_where_it_is():
    image = np.zeros((2, 2, 3, 4))
    image[1, 0, 2, 3] = -np.inf
    with pytest.raises(UserError, match=r"^input 'image' must be finite in float32, but its value at \(1, 0, 2, 3\) is -inf$"):
        golden.quantise_inputs(one_input((2, 3, 4), [quantise()]), {"image": image})


def test_values_beyond_float32_are_refused():
    with pytest.raises(UserError, match=r"^input 'image' must be finite in float32, but its value at \(0, 0, 0, 0\) is inf$"):
        golden.quantise_inputs(one_input((2, 3, 4), [quantise()]), {"image": np.full((1, 2, 3, 4), 1e300)})


def test_batches_of_two_inputs_must_agree():
    single = one_input((4,), [quantise()])
    spec = single.inputs[0]
    second = InputSpec(name="mask", shape=spec.shape, dtype="float32", tensor="codes", prologue=spec.prologue)
    both = Program(name="two", tensors=single.tensors, operations=(), inputs=(spec, second), outputs=())
    with pytest.raises(UserError, match=r"^inputs must have one batch size, not image 2, mask 3$"):
        golden.quantise_inputs(both, {"image": np.zeros((2, 4)), "mask": np.zeros((3, 4))})


def output(epilogue, shape, index=None, dtype="float32"):
    tensor = Tensor(name="codes", shape=(2, 3, 1), bits=8, low=-128, high=127, scale=(Fraction(1, 4),))
    spec = OutputSpec(name="y", shape=(1, *shape), dtype=dtype, tensor="codes", epilogue=tuple(epilogue), index=index)
    return Program(name="test", tensors={"codes": tensor}, operations=(), inputs=(), outputs=(spec,))


def test_outputs_take_the_models_shape_order_and_type(rng):
    codes = rng.integers(-128, 128, (5, 2, 3, 1)).astype(np.int8)
    dequantise = HostOp(kind="Dequantize", constants={"scale": np.float32(0.25), "zero_point": np.float32(-2)})
    plain = golden.dequantise_outputs(output([dequantise], (6,)), {"codes": codes})["y"]
    assert plain.shape == (5, 6) and plain.dtype == np.float32 and np.array_equal(plain, (codes.reshape(5, 6) + 2.0) * 0.25)
    index = np.array([[5, 4], [1, 0], [2, 3]])
    moved = golden.dequantise_outputs(output([dequantise], (3, 2), index), {"codes": codes})["y"]
    assert moved.shape == (5, 3, 2) and np.array_equal(moved.reshape(5, 6), plain[:, index.ravel()])
    steps = [dequantise, HostOp(kind="ArgMax", attributes={"axis": 1, "keepdims": 0})]
    best = golden.dequantise_outputs(output(steps, (2,), index, "int64"), {"codes": codes})["y"]
    assert best.dtype == np.int64 and np.array_equal(best, moved.argmax(axis=1))
    free = golden.dequantise_outputs(output([dequantise], ("classes", 3, 1)), {"codes": codes})["y"]
    assert free.shape == (5, 2, 3, 1)
    assert golden.dequantise_outputs(output([dequantise], (3, 2), index), {"codes": codes[:0]})["y"].shape == (0, 3, 2)


def test_dequantised_accumulators_are_rounded_once():
    acc = np.array([(1 << 24) + 1, -(1 << 30) - 1], np.int32).reshape(1, 2, 1, 1)
    scale = np.float64(1) / 3
    got = apply_host(HostOp(kind="Dequantize", constants={"scale": scale}), acc)
    assert got.ravel().tolist() == [float(np.float32(float(v) * scale)) for v in acc.ravel()]
