"""The batch axis behind others, as PyTorch's attention moves it: outputs, and choices along what stands on axis 0 then."""

import numpy as np
import pytest
from frontend_models import Graph, assert_equal

from tritloom.compiler.frontend import check

INT64 = np.int64


def projected(g, *, bias, scales):
    """(5, batch, 12) from (batch, 5, 4), by a dense layer."""
    weights = g.add("DequantizeLinear", g.constant(g.rng.integers(-3, 4, (4, 12)), np.int8), g.constant(scales), axis=1)
    y = g.add("MatMul", g.add("Transpose", g.qdq("x", 0.5), perm=[1, 0, 2]), weights)
    return g.add("Add", y, g.constant(bias)) if bias is not None else y


BIASES = {"none": None, "one": 0.75, "each": np.linspace(-2.0, 2.0, 12)}
SCALES = {"one": np.full(12, 0.25), "each": 0.25 * (1 + np.arange(12) % 3)}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("scales", SCALES)
def test_sums_behind_a_moved_batch_are_an_output(bias, scales):
    g = Graph()
    y = g.add("Transpose", projected(g, bias=BIASES[bias], scales=SCALES[scales]), perm=[1, 0, 2])
    assert_equal(g.model({"x": ("N", 5, 4)}, {y: None}))


def test_means_behind_a_moved_batch_are_an_output():
    g = Graph()
    y = g.add("Transpose", g.add("Transpose", g.add("GlobalAveragePool", g.qdq("x", 0.5)), perm=[1, 0, 2, 3]), perm=[1, 0, 2, 3])
    assert_equal(g.model({"x": ("N", 3, 4, 4)}, {y: None}))


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_queries_keys_and_values_of_one_projection(chosen):
    """``torch.nn.MultiheadAttention``: three parts on axis 0, one of them as (batch, heads, tokens, features)."""
    g = Graph()
    packed = g.add("Reshape", projected(g, bias=BIASES["each"], scales=SCALES["each"]), g.constant([5, -1, 3, 4], INT64))
    parts = g.add("Transpose", g.add("Unsqueeze", packed, g.constant([0], INT64)), perm=[3, 1, 2, 0, 4])
    part = g.add("Gather", g.add("Squeeze", parts, g.constant([3], INT64)), g.constant(chosen, INT64), axis=0)
    heads = g.add("Transpose", g.add("Reshape", part, g.constant([5, -1, 2], INT64)), perm=[1, 0, 2])
    y = g.add("Reshape", heads, g.constant([-1, 2, 5, 2], INT64))
    assert_equal(g.model({"x": ("N", 5, 4)}, {y: None}))


@pytest.mark.parametrize("op", ["Slice", "Split"])
def test_what_stands_on_axis_0_is_cut(op):
    g = Graph()
    tokens = g.add("Transpose", g.qdq("x", 0.5), perm=[1, 0, 2])
    if op == "Slice":
        part = g.add("Slice", tokens, *(g.constant([bound], INT64) for bound in (1, -1, 0, 2)))
    else:
        part = g.add("Split", tokens, g.constant([2, 3], INT64), output="first", axis=0)
        g.nodes[-1].output.append("second")
        part = "second"
    y = g.add("MatMul", g.add("Transpose", part, perm=[1, 0, 2]), g.weights(4, 6))
    assert_equal(g.model({"x": ("N", 5, 4)}, {y: None}))


def test_the_batch_itself_is_not_cut():
    g = Graph()
    y = g.add("MatMul", g.add("Slice", g.qdq("x", 0.5), *(g.constant([bound], INT64) for bound in (0, 0, 0))), g.weights(4, 6))
    (problem,) = check(g.model({"x": ("N", 4)}, {y: None})).problems
    assert problem.reason == "it chooses along the batch axis"


def test_a_quantiser_behind_the_moved_batch_of_an_input():
    """As ONNX Runtime's tool quantises what ``torch.nn.MultiheadAttention`` reads."""
    g = Graph()
    tokens = g.qdq(g.add("Transpose", "x", perm=[1, 0, 2]), 0.5, 7)
    rows = g.add("Gemm", g.add("Reshape", tokens, g.constant([-1, 4], INT64)), g.weights(4, 6), g.constant(np.arange(6.0)))
    y = g.add("Transpose", g.add("Reshape", g.qdq(rows, 0.25), g.constant([5, -1, 6], INT64)), perm=[1, 0, 2])
    assert_equal(g.model({"x": ("N", 5, 4)}, {y: None}))
