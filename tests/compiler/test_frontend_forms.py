"""Operators that exporters write beside the plain layers: frames, choices of elements, reductions, further activations, Trunc."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tritloom.compiler.frontend import check
from tritloom.compiler.ir.program import Convolution, Copy, MaxPool, SumPool

QONNX = "qonnx.custom_op.general"
IMAGE = {"x": ("N", 3, 7, 7)}
MODELS: dict[str, Callable[[Graph], bytes]] = {}


def case(build: Callable[[Graph], bytes]) -> Callable[[Graph], bytes]:
    MODELS[build.__name__] = build
    return build


def conv(g: Graph, x: str, outputs: int = 4, inputs: int = 3, size: int = 3, **attributes: object) -> str:
    return g.add("Conv", x, g.weights(outputs, inputs, size, size), **attributes)


def pad(g: Graph, x: str, *pads: int, **attributes: object) -> str:
    """Pads of height and width: top, left, bottom, right."""
    return g.add("Pad", x, g.constant([0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]], np.int64), **attributes)


def ints(g: Graph, *values: int) -> str:
    return g.constant(values, np.int64)


@case
def pad_before_a_convolution_with_pads(g: Graph) -> bytes:
    return g.model(IMAGE, {g.qdq(conv(g, pad(g, g.qdq("x", 0.25, 5), 1, 2, 0, 1), pads=[1, 0, 0, 2]), 0.5): None})


@case
def pad_of_opset_10(g: Graph) -> bytes:
    p = g.add("Pad", g.quant("x"), pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0)
    return g.model(IMAGE, {g.quant(g.add("Conv", p, g.constant(g.rng.integers(-1, 2, (4, 3, 3, 3)) * 0.5))): ("N", 4, 7, 7)}, opset=10)


@case
def pad_with_axes_of_one_side(g: Graph) -> bytes:
    p = g.add("Pad", g.qdq("x"), ints(g, 1, 2), "", ints(g, -2))
    return g.model(IMAGE, {g.qdq(conv(g, p), 0.5): None})


@case
def pad_with_a_value(g: Graph) -> bytes:
    p = g.add("Pad", g.qdq("x"), ints(g, 0, 0, 1, 1, 0, 0, 1, 1), g.constant(-1.25))
    return g.model(IMAGE, {g.qdq(conv(g, p), 0.5): None, g.qdq(g.add("AveragePool", p, kernel_shape=[2, 2]), 0.0625): None})


@case
def pad_before_a_pool_of_signed_codes(g: Graph) -> bytes:
    return g.model(IMAGE, {g.add("MaxPool", pad(g, g.qdq("x"), 1, 1, 1, 1), kernel_shape=[2, 2], strides=[2, 2]): None})


@case
def pad_before_an_average_that_leaves_out_its_own_pads(g: Graph) -> bytes:
    p = g.add("AveragePool", pad(g, g.qdq("x", 0.25, 5), 1, 0, 1, 0), kernel_shape=[4, 2], strides=[2, 2], pads=[2, 0, 2, 0])
    return g.model(IMAGE, {g.qdq(p, 2.0**-5): None})


@case
def pad_of_accumulators(g: Graph) -> bytes:
    return g.model(IMAGE, {g.qdq(g.add("Relu", pad(g, conv(g, g.qdq("x")), 1, 0, 0, 2)), 0.5, 0, np.uint8): None})


@case
def pad_as_output_and_operand(g: Graph) -> bytes:
    p = pad(g, pad(g, g.add("Relu", g.qdq("x", 0.25, 3)), 1, 0, 0, 0), 0, 1, 0, 1)
    return g.model({**IMAGE, "y": ("N", 3, 8, 9)}, {p: None, g.qdq(g.add("Add", p, g.qdq("y", 0.5)), 0.5): None})


@case
def pad_of_channels_and_of_features(g: Graph) -> bytes:
    c = conv(g, g.add("Pad", g.qdq("x"), ints(g, 0, 1, 0, 0, 0, 2, 0, 0)), inputs=6)
    f = g.add("Pad", g.add("Flatten", g.qdq("x", 0.5)), ints(g, 0, 0, 0, 3))
    return g.model(IMAGE, {g.qdq(c, 0.5): None, g.add("MatMul", f, g.weights(150, 4)): None})


@case
def pad_that_cuts(g: Graph) -> bytes:
    return g.model(IMAGE, {g.qdq(conv(g, pad(g, g.qdq("x"), -1, 2, -2, 0)), 0.5): None})


@case
def pad_that_mirrors(g: Graph) -> bytes:
    return g.model(IMAGE, {g.qdq(conv(g, pad(g, g.qdq("x"), 1, 2, 2, 1, mode="reflect")), 0.5): None,
                           g.add("Relu", pad(g, g.qdq("x", 0.5), 1, 0, 0, 1, mode="edge")): None})  # fmt: skip


@case
def pad_on_the_host(g: Graph) -> bytes:
    x = g.add("Mul", pad(g, g.add("Sub", "x", g.constant(0.5)), 1, 0, 2, 1), g.constant(np.array([1, 2, 4.0]).reshape(3, 1, 1)))
    return g.model(IMAGE, {g.qdq(conv(g, g.qdq(x, 0.5)), 0.5): None})


@case
def slice_of_codes_accumulators_and_outputs(g: Graph) -> bytes:
    a = conv(g, g.qdq("x"))
    s = g.add("Slice", a, ints(g, 1, -1), ints(g, 3, -99), ints(g, 1, -1), ints(g, 1, -2))
    t = g.add("Slice", g.qdq("x"), ints(g, 0, 1), ints(g, 99, 6), ints(g, 2, 3), ints(g, 2, 1))
    return g.model(IMAGE, {s: None, g.qdq(s, 0.5): None, g.qdq(conv(g, t), 1.0): None, g.add("Relu", t): None})


@case
def slice_of_opset_9(g: Graph) -> bytes:
    s = g.add("Slice", g.quant("x"), starts=[1], ends=[3], axes=[1])
    return g.model(IMAGE, {g.quant(g.add("Conv", s, g.constant(g.rng.integers(-1, 2, (4, 2, 3, 3)) * 0.5))): ("N", 4, 5, 5)}, opset=9)


@case
def slice_before_the_first_quantiser(g: Graph) -> bytes:
    s = g.add("Slice", g.add("Mul", "x", g.constant(2.0)), ints(g, 1), ints(g, 3), ints(g, 1))
    return g.model(IMAGE, {g.qdq(conv(g, g.qdq(g.add("Add", s, g.constant(0.5))), inputs=2), 0.5): None})


@case
def split_with_sizes_and_without(g: Graph) -> bytes:
    c = g.qdq(conv(g, g.qdq("x"), outputs=5), 0.5)
    g.nodes.append(helper.make_node("Split", [c, ints(g, 1, 4)], ["one", "four"], name="sizes", axis=1))
    g.nodes.append(helper.make_node("Split", [c], ["three", "", "last"][::2], name="parts", axis=1, num_outputs=2))
    outputs = [g.qdq(conv(g, part, inputs=size), 1.0) for part, size in (("one", 1), ("four", 4), ("three", 3), ("last", 2))]
    return g.model(IMAGE, dict.fromkeys(outputs))


@case
def gather_of_channels_and_of_the_last_step(g: Graph) -> bytes:
    picked = g.add("Gather", g.qdq("x"), ints(g, 2, 0, 2), axis=1)
    rows = g.add(
        "Gather",
        g.add("Squeeze", g.add("Slice", g.qdq("x"), ints(g, 0), ints(g, 1), ints(g, 1)), ints(g, 1)),
        g.constant(-1, np.int64),
        axis=1,
    )
    return g.model({"x": (1, 3, 5, 6)}, {g.qdq(conv(g, picked), 0.5): None, g.add("MatMul", rows, g.weights(6, 4)): None})


@case
def pixels_for_channels_and_back(g: Graph) -> bytes:
    deep = g.qdq(g.add("Conv", g.add("SpaceToDepth", g.qdq("x"), blocksize=2), g.weights(8, 8, 2, 2)), 0.5)
    outputs = [g.add("Conv", g.add("DepthToSpace", deep, blocksize=2, mode=mode), g.weights(2, 2, 2, 2)) for mode in ("DCR", "CRD")]
    return g.model({"x": (1, 2, 6, 8)}, {g.qdq(output, 1.0): None for output in outputs})


@case
def reductions_over_all_kinds_of_axes(g: Graph) -> bytes:
    x = g.qdq("x", 0.25, 3)
    outputs = [
        g.qdq(g.add("ReduceMean", x, ints(g, *axes), keepdims=keep), 2.0**-6) for axes, keep in (((2, 3), 1), ((-1,), 0), ((1, 2), 0))
    ]
    nhwc = g.add("ReduceMean", g.add("Transpose", x, perm=[0, 2, 3, 1]), ints(g, 1, 2), keepdims=0)
    largest = g.add("ReduceMax", conv(g, x, size=2), ints(g, 2, 3), keepdims=0)
    total = g.add("ReduceSum", x, ints(g, 1, 3), keepdims=0)
    return g.model(
        {"x": (1, 3, 4, 4)},
        {name: None for name in (*outputs, g.qdq(nhwc, 2.0**-6), g.qdq(largest, 0.5), g.add("ReduceMax", x, ints(g, 1)), total)},
    )


@case
def prelu_slopes_everywhere(g: Graph) -> bytes:
    slopes = g.constant(np.array([0.25, 0.5, -0.25, 2]).reshape(4, 1, 1))
    a = g.add("PRelu", conv(g, g.qdq("x")), slopes)
    d = g.add("PRelu", g.add("MatMul", g.add("Flatten", g.qdq("x", 0.5)), g.weights(147, 4)), g.constant([0.25, 0.5, -0.25, 2]))
    j = g.add(
        "PRelu", g.add("Concat", g.qdq("x"), conv(g, g.qdq("x"), pads=[1] * 4), axis=1), g.constant(2.0 ** -np.arange(7).reshape(7, 1, 1))
    )
    kept = g.add("PRelu", g.qdq(a, 0.5), g.constant(np.array([0, 1, 1, 0.0]).reshape(4, 1, 1)))
    return g.model(IMAGE, {g.qdq(a, 0.5): None, d: None, g.qdq(j, 0.5): None, g.qdq(conv(g, kept, inputs=4), 1.0): None})


@case
def prelu_on_the_host(g: Graph) -> bytes:
    p = g.add("PRelu", "x", g.constant([0.25, 0.5, 0, 2, 1, -4]))
    return g.model({"x": ("N", 6)}, {g.add("MatMul", g.qdq(p), g.weights(6, 4)): None})


@case
def bounds_by_max_and_min(g: Graph) -> bytes:
    low = g.add("Max", g.constant(-1.0), conv(g, g.qdq("x")), g.constant([0.25]))
    return g.model(
        IMAGE,
        {
            g.qdq(g.add("Min", low, g.constant([6.0])), 0.25): None,
            g.qdq(g.add("HardSigmoid", conv(g, g.qdq("x")), alpha=0.25), 2.0**-6): None,
        },
    )


@case
def sums_of_one_and_two(g: Graph) -> bytes:
    x = g.add("Sum", g.qdq("x"))
    s = g.add("Sum", x, g.qdq(conv(g, x, outputs=3, pads=[1] * 4), 0.5))
    return g.model(IMAGE, {g.qdq(g.add("Sum", s, g.constant(np.array([1, 2, 3.0]).reshape(3, 1, 1))), 0.5): None})


@case
def sums_and_means_with_constants(g: Graph) -> bytes:
    x, other = g.qdq("x"), g.qdq(conv(g, g.qdq("x"), outputs=3, pads=[1] * 4), 0.5)
    bias = g.constant(np.array([1, -2, 3.0]).reshape(3, 1, 1))
    s = g.add("Sum", bias, x, g.constant(0.25), other)
    m = g.add("Mean", x, other)
    alone = g.add("Mean", g.constant(1.0), conv(g, x), g.constant([0.5]), g.constant([-3.0]))
    return g.model(IMAGE, {g.qdq(s, 0.5): None, g.qdq(m, 0.25): None, g.qdq(alone, 0.25): None, g.add("Mean", conv(g, x)): None})


@case
def expanded_and_tiled(g: Graph) -> bytes:
    mean = g.qdq(g.add("ReduceMax", g.qdq("x"), ints(g, 2, 3)))
    wide = g.qdq(conv(g, g.add("Expand", mean, ints(g, 3, 5, 5))), 0.5)
    tiled = g.qdq(conv(g, g.add("Tile", g.qdq("x"), ints(g, 1, 2, 1, 2)), inputs=6), 0.5)
    kept = g.add("Relu", g.add("Expand", g.add("Slice", g.qdq("x"), ints(g, 0), ints(g, 1), ints(g, 2)), ints(g, 1, 1, 4, 1)))
    return g.model(IMAGE, {wide: None, tiled: None, kept: None})


@case
def smallest_over_all_kinds_of_axes(g: Graph) -> bytes:
    x = g.qdq("x", 0.25, 3)
    outputs = [g.add("ReduceMin", x, ints(g, *axes), keepdims=keep) for axes, keep in (((2, 3), 1), ((-1,), 0), ((1, 2), 0))]
    behind = g.add("ReduceMin", g.qdq(conv(g, x, size=2), 0.5), ints(g, 1))
    curve = g.qdq(g.add("Tanh", g.add("ReduceMin", g.add("Relu", x), ints(g, 2, 3), keepdims=0)), 2.0**-6)
    return g.model({"x": (1, 3, 4, 4)}, {name: None for name in (*outputs, g.qdq(behind, 1.0), curve)})


@case
def split_and_slice_in_odd_forms(g: Graph) -> bytes:
    x = g.qdq("x")
    g.nodes.append(helper.make_node("Split", [x], ["first", "second", "third"], name="parts", axis=-1, num_outputs=3))
    turned = g.add("Slice", x, ints(g, -1, 99), ints(g, -99, -99), ints(g, -1, 2), ints(g, -2, -3))
    turned = g.qdq(conv(g, turned, size=2), 0.5)
    outputs = [g.qdq(conv(g, part, size=1), 0.5) for part in ("first", "third")]
    return g.model(IMAGE, {name: None for name in (*outputs, turned)})


@pytest.mark.parametrize("name", MODELS)
def test_forms_equal_onnx_runtime(name: str) -> None:
    assert_equal(MODELS[name](Graph(1)))


def _truncated(g: Graph, x: str, zero: float, width: int, mode: str, *, newer: bool) -> bytes:
    parts = [g.constant(0.25), g.constant(zero), g.constant(8.0)]
    parts += [g.constant(0.25 * 2 ** (8 - width)), g.constant(float(width))] if newer else [g.constant(float(width))]
    t = g.add("Trunc", x, *parts, domain=QONNX, rounding_mode=mode, **({"signed": 1, "narrow": 1} if newer else {}))
    model = onnx.load_from_string(g.model({"x": ("N", 3, 7, 7)}, {conv(g, t, inputs=4): ("N", 4, 3, 3)}))
    for entry in model.opset_import:
        entry.version = 2 if entry.domain and newer else entry.version
    return model.SerializeToString()


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(("zero", "width", "mode"), [(0, 4, "FLOOR"), (0, 5, "CEIL"), (16, 7, "FLOOR")])
def test_trunc_equals_the_executor(newer: bool, zero: float, width: int, mode: str) -> None:
    g = Graph(2)
    # Sums of products are no integers on the grid of Trunc: its inner rounding is at work too, with ties.
    inner = conv(g, g.quant("x", 0.25, 0, 5))
    assert_equal(_truncated(g, inner, zero, width, mode, newer=newer))


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("mode", ["ROUND", "HALF_UP", "HALF_DOWN", "UP", "DOWN", "CEIL", "FLOOR"])
@pytest.mark.parametrize(("zero", "width"), [(0, 5), (24, 5), (0, 7)])
def test_trunc_of_integers_rounds_in_every_mode(newer: bool, mode: str, zero: float, width: int) -> None:
    g = Graph(3)
    # One element of each kernel, so that the sums keep the 8 bits that version 1 takes for granted.
    w = np.zeros((4, 3, 3, 3))
    w[:, :, 1, 2] = g.rng.integers(-2, 3, (4, 3))
    inner = g.add("Conv", g.quant("x", 0.25, 0, 5), g.constant(w))
    assert_equal(_truncated(g, inner, zero, width, mode, newer=newer))


@pytest.mark.parametrize("signed", [0, 1])
def test_trunc_to_8_bits_of_version_1_takes_the_sign_of_its_input(signed: int) -> None:
    g = Graph(4)
    x = g.add("Add", g.quant("x", 0.125, 0, 8, signed=signed), g.constant(0.0))
    t = g.add("Trunc", x, *[g.constant(part) for part in (0.0625, 0.0, 9.0, 8.0)], domain=QONNX, rounding_mode="FLOOR")
    assert_equal(g.model({"x": (1, 3, 7, 7)}, {conv(g, t): (1, 4, 5, 5)}))


def test_trunc_of_fractions_refuses_other_modes() -> None:
    g = Graph()
    report = check(_truncated(g, g.quant(conv(g, g.quant("x")), 0.1), 0, 5, "ROUND", newer=True))
    assert "values that are no integers times the scale" in report.problems[0].reason


def test_trunc_that_leaves_its_sign_open_is_refused() -> None:
    g = Graph()
    report = check(_truncated(g, conv(g, g.quant("x")), 0, 8, "FLOOR", newer=False))
    assert [problem.reason for problem in report.problems] == ["version 1 of Trunc does not say whether its 8 bits are signed"]


@pytest.mark.parametrize(("build", "words"), [
    (lambda g, x: g.add("Pad", x, ints(g, 1, 0, 0, 0, 0, 0, 0, 0)), "it pads the batch axis"),
    (lambda g, x: g.add("Pad", x, ints(g, 0, 1, 1, 1, 0, 0, 0, 0)), "it pads more than two axes"),
    (lambda g, x: g.add("MaxPool", g.add("Pad", x, ints(g, 0, 0, 1, 1, 0, 0, 1, 1), g.constant(-np.inf)), kernel_shape=[2, 2]), "it pads with infinity"),
    (lambda g, x: g.add("Slice", x, ints(g, 1), ints(g, 2), ints(g, 0)), "it chooses along the batch axis"),
    (lambda g, x: g.add("Slice", x, ints(g, 3), ints(g, 3), ints(g, 1)), "it chooses no element"),
    (lambda g, x: g.add("Gather", x, ints(g, 5), axis=1), "it chooses elements beyond the 3 of axis 1"),
    (lambda g, x: g.add("ReduceMean", x), "it reduces all axes, the batch with them"),
    (lambda g, x: g.add("ReduceMax", x, ints(g, 0, 1)), "it reduces the batch axis"),
    (lambda g, x: g.add("Min", x, g.constant([1.0, 2, 3, 4, 5, 6, 7])), "its bound is not a single number"),
    (lambda g, x: g.add("Expand", x, ints(g, 5, 3, 7, 7)), "it repeats the batch axis"),
    (lambda g, x: g.add("Expand", x, ints(g, 3, 5)), "cannot be expanded to [3, 5]"),
    (lambda g, x: g.add("Tile", x, ints(g, 2, 1, 1, 1)), "it repeats the batch axis"),
    (lambda g, x: g.add("Tile", x, ints(g, 1, 1, 0, 1)), "it makes a tensor of shape [1, 3, 0, 7]"),
    (lambda g, x: g.add("Tile", x, ints(g, 1, 1, 1 << 20, 1 << 20)), "it makes a tensor of shape"),
    (lambda g, x: g.add("Tile", x, ints(g, 2)), "one repeat for each axis"),
])  # fmt: skip
def test_refusals_in_words(build: object, words: str) -> None:
    g = Graph()
    y = build(g, g.qdq("x"))  # type: ignore[operator]
    report = check(g.model({"x": (1, 3, 7, 7)}, {y: None}))
    assert [words in problem.reason for problem in report.problems] == [True], report.problems


def _operations(data: bytes) -> list[type]:
    return [type(operation) for operation in assert_equal(data).program.operations]


def test_frames_are_folded_into_the_layer_behind_them() -> None:
    def build(pool: str, zero: int, low: bool) -> bytes:
        g = Graph()
        p = pad(g, g.qdq("x" if low else g.add("Relu", "x"), 0.25, zero, np.uint8 if not low else np.int8), 1, 1, 1, 1)
        behind = conv(g, p) if pool == "Conv" else g.add(pool, p, kernel_shape=[2, 2])
        return g.model(IMAGE, {g.qdq(behind, 0.0625): None})

    assert _operations(build("Conv", 3, True)) == [Convolution]
    assert _operations(build("AveragePool", 3, True)) == [SumPool]
    assert _operations(build("MaxPool", 0, False))[0] is MaxPool
    assert _operations(build("MaxPool", 0, True))[:2] == [SumPool, MaxPool]


def test_a_frame_that_two_layers_read_goes_when_both_can_pad() -> None:
    g = Graph()
    p = pad(g, g.qdq("x", 0.25, 3), 1, 1, 1, 1)
    data = g.model(IMAGE, {g.qdq(conv(g, p), 0.5): None, g.qdq(conv(g, p, pads=[1] * 4), 0.5): None})
    program = assert_equal(data).program
    assert [operation.window.pads for operation in program.operations if isinstance(operation, Convolution)] == [(1,) * 4, (2,) * 4]
    assert len(program.operations) == 2


def test_choices_of_an_input_need_no_copy() -> None:
    g = Graph()
    s = g.add("Slice", g.qdq("x"), ints(g, 1), ints(g, 3), ints(g, 1))
    program = assert_equal(g.model(IMAGE, {g.qdq(conv(g, s, inputs=2), 0.5): None})).program
    assert not any(isinstance(operation, Copy) for operation in program.operations)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_frames_of_any_width(data: st.DataObject) -> None:
    g = Graph(data.draw(st.integers(0, 9)))
    frame = data.draw(st.lists(st.integers(-1, 3), min_size=4, max_size=4))
    own = data.draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))
    x = g.qdq("x", 0.25, data.draw(st.integers(-5, 5)))
    if data.draw(st.booleans()):
        x = g.add("Relu", x)
    p = pad(g, x, *frame)
    behind = data.draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    strides = data.draw(st.lists(st.integers(1, 2), min_size=2, max_size=2))
    if behind == "Conv":
        y = conv(g, p, size=2, strides=strides, pads=own)
    else:
        y = g.add(
            behind, p, kernel_shape=[2, 2], strides=strides, pads=own, **({"count_include_pad": 1} if behind == "AveragePool" else {})
        )
    assert_equal(g.model({"x": (1, 3, 5, 6)}, {g.qdq(y, 0.0625 if behind == "AveragePool" else 0.5): None}), samples=5)


def test_uint8_images_need_no_calibration() -> None:
    g = Graph()
    x = g.add("Div", g.add("Sub", g.add("Cast", "x", to=1), g.constant(128.0)), g.constant(64.0))
    assert_equal(g.model(IMAGE, {g.qdq(conv(g, x), 0.5): None}, kind=TensorProto.UINT8))
