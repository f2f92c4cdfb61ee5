"""Sum, Mean, Max and Min of several activations, against ONNX Runtime on the model as it was written."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal, run_both

from tritloom.compiler.frontend import check
from tritloom.compiler.frontend.reader import read_proto

SHAPES = {"image": (4, 3, 5), "vector": (7,), "rows": (3, 6), "single": (1,)}


def branches(g, count, *, scales=(0.25,), bits=8):
    """Quantised values of one shape, each from an input of its own. Five of 5 bits have sums of 8 bits."""
    return [g.quant(f"x{index}", scales[index % len(scales)], bits=bits) for index in range(count)]


def model(g, y, count, shape, **options):
    return g.model({f"x{index}": ("N", *shape) for index in range(count)}, {y: None}, **options)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("op", ["Max", "Min", "Sum"])
def test_every_value_equals_onnx_runtime(op, count, shape):
    g = Graph(1)
    y = g.qdq(g.add(op, *branches(g, count, bits=5)), 0.5)
    assert_equal(model(g, y, count, shape))


@pytest.mark.parametrize("count", [3, 4])
def test_sums_of_more_than_8_bits_take_a_grid_from_calibration(count):
    """Each addition but the last rounds to a step of 1/127 of the largest sum in front of it."""
    g = Graph(10)
    y = g.qdq(g.add("Sum", *branches(g, count)), 1.0)
    given = samples(count, (6,))
    _, ours, theirs, _ = run_both(model(g, y, count, (6,)), calibration=given, feeds=given)
    assert np.abs(ours[y] - theirs[y]).max() <= 1


def samples(count, shape):
    rng = np.random.default_rng(9)
    return {f"x{index}": rng.uniform(-16, 16, (50, *shape)).astype(np.float32) for index in range(count)}


@pytest.mark.parametrize("opset", [12, 13, 17, 18, 21])
@pytest.mark.parametrize("op", ["Max", "Min"])
def test_axes_are_an_attribute_or_an_input(op, opset):
    g = Graph(2)
    y = g.qdq(g.add(op, *branches(g, 2)), 0.25)
    assert_equal(model(g, y, 2, (4, 3), opset=opset))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_constants_among_the_operands(op):
    g = Graph(3)
    x = branches(g, 3, bits=5)
    total = g.add(op, x[0], g.constant(1.0), x[1], x[2], g.constant(-2.0)) if op != "Mean" else g.add(op, x[0], g.constant(1.0), x[1], x[2])
    y = g.qdq(total, 0.5)
    if op == "Mean":
        # A third or a quarter of a code may lie on a tie that float32 misses.
        _, ours, theirs, _ = run_both(model(g, y, 3, (4, 3)))
        assert np.abs(ours[y] - theirs[y]).max() <= 0.5
    else:
        assert_equal(model(g, y, 3, (4, 3)))


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_unlike_grids_are_brought_onto_one(op):
    """Scales 1/4 and 1/8 onto 1/8: every code of both is a code there."""
    g = Graph(4)
    y = g.qdq(g.add(op, *branches(g, 2, scales=(0.0625, 0.125))), 0.125)
    given = samples(2, (4, 3))
    _, ours, theirs, _ = run_both(model(g, y, 2, (4, 3)), calibration=given, feeds=given, calibration_method="minmax")
    assert np.abs(ours[y] - theirs[y]).max() <= 0.125, "a value is rounded to the common grid, and to that of the result"


def test_one_activation_several_times():
    for op, count in (("Max", 3), ("Min", 2)):
        g = Graph(5)
        x = g.qdq("x0", 0.25)
        y = g.qdq(g.add(op, *[x] * count), 0.25)
        assert_equal(model(g, y, 1, (2, 3, 3)))


def test_float_branches_are_calibrated_and_stay_close():
    g, rng = Graph(6), np.random.default_rng(6)
    hidden = [g.add("Relu", g.add("Gemm", "x0", g.constant(rng.normal(size=(6, 5))))) for _ in range(3)]
    joined = g.add("Mean", g.add("Sum", *hidden), g.add("Max", *hidden), g.add("Min", *hidden))
    y = g.add("Gemm", joined, g.constant(rng.normal(size=(5, 4))), output="y")
    given = {"x0": rng.normal(size=(100, 6)).astype(np.float32)}
    _, ours, theirs, _ = run_both(model(g, y, 1, (6,)), calibration=given, feeds=given, planes=5)
    assert np.abs(ours["y"] - theirs["y"]).max() < 0.05 * np.abs(theirs["y"]).max()


def test_what_is_refused_says_where():
    g = Graph(7)
    a, b = g.qdq("x0"), g.qdq("x1")
    g.add("Max", a, b, output="y")
    report = check(g.model({"x0": ("N", 4, 3), "x1": ("N", 1, 3)}, {"y": None}))
    assert not report.supported
    assert report.problems[0].node.startswith("node_y")


def test_names_that_exist_are_not_used_twice():
    g = Graph(8)
    total = g.add("Sum", *branches(g, 3, bits=5), output="total")
    other = g.add("Relu", total, output="total_0")
    third = g.add("Relu", other, output="total_1")
    y = g.qdq(third, 1.0)
    data = model(g, y, 3, (4,))
    proto = read_proto(data, "net")
    names = [name for node in proto.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert_equal(data)
    assert "Sum" in [node.op_type for node in onnx.ModelProto.FromString(data).graph.node]
    assert "Sum" not in [node.op_type for node in proto.graph.node]
