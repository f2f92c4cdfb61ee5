"""ConvTranspose, Resize and Upsample against ONNX Runtime, in all their forms."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from frontend_models import Graph, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.frontend import check, lower
from tritloom.compiler.image import Artefact, decode_artefact, encode_artefact
from tritloom.compiler.ir.program import Convolution, Copy
from tritloom.sim.witness import run_witness


def _runs(data: bytes, shape: tuple[int, ...]) -> bool:
    """Whether ONNX Runtime takes these attributes."""
    try:
        run_witness(data, {"x": np.zeros((1, *shape), np.float32)})
    except Exception as error:
        assert "cannot run this model" in str(error)
        return False
    return True


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_conv_transpose_of_any_form(data: st.DataObject) -> None:
    def draw(low: int, high: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    g = Graph(data.draw(st.integers(0, 99)))
    rank, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    inputs, share = groups * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    kernel, size, strides, dilations = draw(1, 4, rank), draw(1, 5, rank), draw(1, 3, rank), draw(1, 3, rank)
    form: dict[str, object] = {"strides": strides, "dilations": dilations}
    if data.draw(st.booleans()):
        form["output_padding"] = [data.draw(st.integers(0, stride - 1)) for stride in strides]
    match data.draw(st.sampled_from(["none", "pads", "auto", "shape"])):
        case "pads":
            form["pads"] = draw(0, 2, 2 * rank)
        case "auto":
            form["auto_pad"] = data.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        case "shape":
            full = [s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, size, dilations, kernel, strict=True)]
            form["output_shape"] = [data.draw(st.integers(max(1, length - 3), length)) for length in full]
            form["auto_pad"] = data.draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    parts = [g.qdq("x", 0.25, data.draw(st.integers(-9, 9))), g.weights(inputs, share, *kernel)]
    if data.draw(st.booleans()):
        parts.append(g.constant(g.rng.integers(-8, 8, groups * share) * 0.25))
    y = g.add("ConvTranspose", *parts, group=groups, **form)
    model = g.model({"x": ("N", inputs, *size)}, {y: None, g.qdq(g.add("Relu", y), 0.5): None})
    if _runs(model, (inputs, *size)):
        assert_equal(model, samples=4)


def test_conv_transpose_is_one_layer_that_pads_with_zero() -> None:
    g = Graph(1)
    y = g.add("ConvTranspose", g.qdq("x", 0.25, 7), g.weights(5, 3, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    scales, zeros = g.constant([0.5, 1.0, 2.0]), g.constant([0, 3, -5], np.int8)
    y = g.add("DequantizeLinear", g.add("QuantizeLinear", y, scales, zeros, axis=1), scales, zeros, axis=1)
    program = assert_equal(g.model({"x": ("N", 5, 6, 4)}, {y: None})).program
    (layer,) = program.operations
    # Two of four taps a phase, three places that they reach together: 4 x 3 channels.
    assert isinstance(layer, Convolution) and layer.weights.shape == (12, 5, 3, 3) and layer.window.pads == (1, 1, 1, 1)


def test_layers_behind_conv_transpose() -> None:
    g = Graph(2)
    w = g.add("DequantizeLinear", g.constant(g.rng.integers(-3, 4, (4, 6, 2, 2)), np.int8), g.constant(2.0 ** -np.arange(1, 7)), axis=1)
    up = g.qdq(g.add("Relu", g.add("ConvTranspose", g.qdq("x"), w, strides=[2, 2])), 0.5)
    y = g.add("Conv", up, g.weights(3, 6, 3, 3), pads=[1] * 4)
    pool = g.add("MaxPool", g.qdq(g.add("ConvTranspose", up, g.weights(6, 2, 3, 3), strides=[2, 2]), 0.5), kernel_shape=[2, 2])
    mean = g.add("GlobalAveragePool", up)
    program = assert_equal(g.model({"x": ("N", 4, 3, 3)}, {g.qdq(y, 0.5): None, g.qdq(pool, 0.5): None, g.qdq(mean, 0.0625): None})).program
    assert sum(isinstance(operation, Copy) for operation in program.operations) <= 3


@pytest.mark.parametrize(("form", "words"), [
    ({"auto_pad": "SOME"}, "auto_pad SOME is not known"),
    ({"strides": [2, 0]}, "its attribute strides is [2, 0]"),
    ({"output_shape": [40, 40]}, "its output_shape [40, 40] is larger"),
    ({"pads": [9, 9, 9, 9]}, "elements along an axis"),
    ({"group": 2}, "do not fit 3 input channels"),
    ({"kernel_shape": [3, 3]}, "do not fit 3 input channels"),
])  # fmt: skip
def test_conv_transpose_refusals(form: dict[str, object], words: str) -> None:
    g = Graph()
    y = g.add("ConvTranspose", g.qdq("x"), g.weights(3, 4, 2, 2), **form)
    problems = check(g.model({"x": (1, 3, 5, 5)}, {y: None})).problems
    assert [words in problem.reason for problem in problems] == [True], problems


COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize(("coordinates", "rounding"), list(product(COORDINATES, ROUNDINGS)))
def test_resize_in_every_mode(coordinates: str, rounding: str) -> None:
    g = Graph(3)
    x = g.qdq("x", 0.25, 2)
    outputs = []
    for kind, values in (("scales", [1, 1, 2, 2]), ("scales", [1, 1, 1.5, 0.6]), ("scales", [1, 2, 0.5, 3]), ("sizes", [1, 3, 7, 2])):
        parts = [x, "", g.constant(values)] if kind == "scales" else [x, "", "", g.constant(values, np.int64)]
        outputs.append(g.add("Resize", *parts, mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=rounding))
    used = g.qdq(g.add("Conv", outputs[0], g.weights(4, 3, 2, 2)), 0.5)
    assert_equal(g.model({"x": (1, 3, 5, 4)}, dict.fromkeys([*outputs, used])), samples=3)


def _upsample_7(g: Graph, x: str) -> str:
    return g.add("Upsample", x, scales=[1.0, 1.0, 2.0, 3.0])


def _upsample_9(g: Graph, x: str) -> str:
    return g.add("Upsample", x, g.constant([1.0, 1.0, 2.0, 1.5]), mode="nearest")


def _resize_10(g: Graph, x: str) -> str:
    return g.add("Resize", x, g.constant([1.0, 1.0, 2.0, 0.5]))


def _resize_11(g: Graph, x: str) -> str:
    return g.add(
        "Resize", x, g.constant(np.zeros(0)), g.constant([1.0, 1.0, 2.0, 2.0]), coordinate_transformation_mode="tf_half_pixel_for_nn"
    )


def _resize_crop(g: Graph, x: str) -> str:
    region = g.constant([0, 0, 0.25, 0, 1, 1, 0.75, 1.0])
    return g.add("Resize", x, region, g.constant([1.0, 1.0, 1.5, 1.0]), coordinate_transformation_mode="tf_crop_and_resize")


def _resize_axes(g: Graph, x: str) -> str:
    return g.add("Resize", x, "", "", g.constant([9, 9], np.int64), axes=[3, 2], keep_aspect_ratio_policy="not_larger")


@pytest.mark.parametrize(("build", "opset", "size"), [
    (_upsample_7, 7, (11, 14)), (_upsample_9, 9, (11, 6)), (_resize_10, 10, (11, 1)), (_resize_11, 11, (11, 9)), (_resize_crop, 13, (3, 4)),
    (_resize_axes, 18, (8, 7)),
])  # fmt: skip
def test_older_and_newer_forms_of_resize(build: Callable[[Graph, str], str], opset: int, size: tuple[int, int]) -> None:
    g = Graph(5)
    y = g.add("Conv", build(g, g.quant("x")), g.constant(g.rng.integers(-1, 2, (2, 3, 2, 2)) * 0.5))
    assert_equal(g.model({"x": (1, 3, 6, 5)}, {g.quant(y, 0.5): (1, 2, *size)}, opset=opset), samples=5)


@pytest.mark.parametrize(("build", "words"), [
    (lambda g, x: g.add("Resize", x, "", g.constant([1.0, 1, 2, 2]), mode="linear"), "its mode linear is not supported"),
    (lambda g, x: g.add("Resize", x, "", g.constant([1.0, 1, 900, 900000])), "the result is too large"),
    (lambda g, x: g.add("Resize", x, "", g.constant([2.0, 1, 2, 2])), "it makes"),
    (lambda g, x: g.add("Resize", x, g.constant([0, 0, -1, 0, 1, 1, 2, 1.0]), g.constant([1.0, 1, 2, 2]),
                        coordinate_transformation_mode="tf_crop_and_resize"), "it reads outside its input"),
    (lambda g, x: g.add("Resize", x, "", x), "list of scales or sizes is computed"),
    (lambda g, x: g.add("Resize", x), "its constants cannot be computed"),
])  # fmt: skip
def test_resize_refusals(build: Callable[[Graph, str], str], words: str) -> None:
    g = Graph()
    y = build(g, g.qdq("x"))
    problems = check(g.model({"x": (1, 3, 5, 5)}, {g.qdq(y, 0.5): None})).problems
    assert [words in problem.reason for problem in problems] == [True], problems


def test_a_scale_for_each_element_of_an_output_survives_the_file() -> None:
    """DepthToSpace spreads the channels, each with its own scale, over the pixels of a raw output."""
    g = Graph()
    x = g.qdq("x")
    codes = np.random.default_rng(0).integers(-1, 2, (8, 3, 1, 1)).astype(np.int8)
    scales = g.constant(np.array([0.5, 0.25, 1, 0.125, 0.5, 2, 0.3, 0.7], np.float32))
    y = g.add("DepthToSpace", g.add("Conv", x, g.add("DequantizeLinear", g.constant(codes, np.int8), scales, axis=0)), blocksize=2)
    program = lower(g.model({"x": (1, 3, 5, 5)}, {y: None}), name="model").program
    assert program.outputs[0].epilogue[0].constants["scale"].shape == (2, 10, 10)
    data = encode_artefact(Artefact(source=b"", program=program, schedules={}, settings={"unscheduled": "a test"}))
    found = decode_artefact(data, "x.loom").program.outputs[0].epilogue[0]
    np.testing.assert_array_equal(found.constants["scale"], program.outputs[0].epilogue[0].constants["scale"])
