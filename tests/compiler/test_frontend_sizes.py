"""Input sizes declared anew: against ONNX Runtime and the qonnx executor on the model with the new sizes."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph, assert_equal
from onnx import TensorProto, helper

from tritloom.compiler.frontend import check, lower, with_sizes
from tritloom.errors import ModelError, UserError


def _convolutional() -> Graph:
    """Convolution, pool, convolution."""
    g = Graph()
    x = g.qdq(g.add("Relu", g.add("Conv", g.qdq("x"), g.weights(4, 3, 3, 3), pads=[1, 1, 1, 1])), 0.5)
    g.qdq(g.add("Conv", g.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), g.weights(2, 4, 3, 3)), 0.5)
    return g


def _shapes(data: bytes) -> dict[str, list[int | str]]:
    graph = onnx.load_from_string(data).graph
    return {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


@pytest.mark.parametrize("declared", [(1, 3, 9, 9), ("N", 3, "H", "W"), (4, 3, 9, 9), ("N", 3, None, None)])
@pytest.mark.parametrize("size", [(1, 3, 16, 12), (2, 3, 6, 6), ("batch", 3, 7, 30)])
def test_a_fully_convolutional_model_at_another_size(declared: tuple, size: tuple) -> None:
    g = _convolutional()
    y = g.nodes[-1].output[0]
    stale = helper.make_tensor_value_info(g.nodes[3].output[0], TensorProto.FLOAT, [1, 4, 99, 99])
    model = onnx.load_from_string(g.model({"x": declared}, {y: (1, 2, 2, 2)}))
    model.graph.value_info.append(stale)
    data = with_sizes(model.SerializeToString(), {"x": size}, "net")
    assert data == with_sizes(model.SerializeToString(), {"": size}, "net")
    lowered = assert_equal(data)
    assert lowered.program.inputs[0].shape == size
    height, width = (axis // 2 - 2 for axis in size[2:])
    assert lowered.program.tensors[lowered.program.outputs[0].tensor].shape == (2, height, width)
    assert lowered.program.outputs[0].shape == (size[0], 2, height, width)
    shapes = _shapes(data)
    assert shapes[g.nodes[3].output[0]] == [size[0], 4, *size[2:]]
    assert shapes[y] == [size[0], 2, height, width]


def test_sizes_of_qonnx_models_are_inferred_through_their_operators() -> None:
    g = Graph()
    x = g.quant(g.add("Conv", g.quant("x"), g.quant(g.constant(g.rng.normal(size=(4, 3, 3, 3))), 0.25)), 0.5)
    y = g.quant(g.add("GlobalAveragePool", x), 0.5)
    data = with_sizes(g.model({"x": (1, 3, 32, 32)}, {y: (1, 4, 1, 1)}), {"x": (1, 3, 8, 11)}, "net")
    assert _shapes(data)[x] == [1, 4, 6, 9]
    assert _shapes(data)[y] == [1, 4, 1, 1]
    lower(data, name="net")
    g.add(
        "Conv",
        "x",
        g.constant(np.zeros((5, 3, 3, 2), np.float32)),
        domain="qonnx.custom_op.channels_last",
        kernel_shape=[3, 3],
        strides=[2, 1],
    )
    g.add("MaxPool", g.nodes[-1].output[0], domain="qonnx.custom_op.channels_last", kernel_shape=[2, 2], strides=[2, 2])
    last, first = g.nodes[-1].output[0], g.nodes[-2].output[0]
    found = _shapes(with_sizes(g.model({"x": (1, 512, 512, 2)}, {last: None}), {"": (1, 33, 12, 2)}, "net"))
    assert (found[first], found[last]) == ([1, 16, 10, 5], [1, 8, 5, 5])


def test_a_sequence_of_another_length() -> None:
    g = Graph()
    x = g.qdq(g.add("MatMul", g.qdq("x"), g.weights(6, 4)), 0.5)
    shape = g.add("Shape", x)
    count = g.add("Gather", shape, g.constant(1, np.int64), axis=0)
    flat = g.add("Mul", g.add("Unsqueeze", count, g.constant([0], np.int64)), g.constant([4], np.int64))
    y = g.add("Reshape", x, g.add("Concat", g.constant([-1], np.int64), flat, axis=0))
    data = with_sizes(g.model({"x": ("N", "T", 6)}, {y: None}), {"x": (1, 5, 6)}, "net")
    assert assert_equal(data).program.outputs[0].shape == (1, 20)


def test_a_symbolic_size_that_two_inputs_share_is_given_once() -> None:
    g = Graph()
    y = g.qdq(g.add("Add", g.qdq("a"), g.qdq("b")), 0.5)
    data = g.model({"a": ("N", 3, "T"), "b": ("N", 3, "T")}, {y: None})
    found = with_sizes(data, {"b": (1, 3, 7)}, "net")
    assert _shapes(found)["a"] == [1, 3, 7]
    assert_equal(found)
    with pytest.raises(UserError, match=r"^--shape gives the symbolic size 'T' as 7 and as 8; it can have one value$"):
        with_sizes(data, {"a": (1, 3, 7), "b": (1, 3, 8)}, "net")
    with pytest.raises(UserError, match=r"^net has 2 inputs \(a, b\); say which with --shape NAME=SIZES$"):
        with_sizes(data, {"": (1, 3, 7)}, "net")
    with pytest.raises(UserError, match=r"^--shape names 'c', which is no input of net; its inputs are a, b$"):
        with_sizes(data, {"c": (1, 3, 7)}, "net")


def _with_reshape(sizes: list[int]) -> bytes:
    g = _convolutional()
    flat = g.add("Reshape", g.nodes[-1].output[0], g.constant(sizes, np.int64))
    y = g.qdq(g.add("MatMul", flat, g.weights(8, 5)), 0.5)
    return g.model({"x": (1, 3, 9, 9)}, {y: (1, 5)})


@pytest.mark.parametrize("sizes", [[1, 8], [-1, 8], [0, 8]])
def test_a_constant_shape_that_does_not_fit_is_refused_in_one_sentence(sizes: list[int]) -> None:
    data = _with_reshape(sizes)
    lower(data, name="net")
    with pytest.raises(ModelError) as caught:
        with_sizes(data, {"x": (1, 3, 11, 9)}, "net")
    assert str(caught.value) == (
        f"net: node 'node_reshape_12' (Reshape) has the sizes {sizes} written into it, which do not hold the tensor of shape [1, 2, 3, 2] that --shape "
        "gives it; keep the sizes that the model was exported with, or export it with Flatten or a Reshape to (0, -1)"
    )


def test_a_batch_that_a_constant_shape_repeats_is_changed_with_it() -> None:
    data = with_sizes(_with_reshape([1, 8]), {"x": (5, 3, 9, 9)}, "net")
    assert _shapes(data)["reshape_12"] == [5, 8]
    assert_equal(data, samples=5)
    assert_equal(with_sizes(data, {"x": ("N", 3, 9, 9)}, "net"), samples=7)


def test_weights_that_do_not_fit_are_refused_by_their_node() -> None:
    data = with_sizes(_with_reshape([0, -1]), {"x": (1, 3, 13, 13)}, "net")
    report = check(data, name="net")
    assert [problem.node for problem in report.problems] == ["node_matmul_14"]


@pytest.mark.parametrize(("size", "words"), [
    ((1, 3, 9), r"^--shape gives input 'x' 3 axes, but it has 4: \(1, 3, 9, 9\); give one number an axis$"),
    ((1, 3, 0, 9), "axis of size 0; sizes must be 1 or more"),
    ((1, 3, -1, 9), "axis of size -1; sizes must be 1 or more"),
    ((1, 3, "H", 9), "a name only for the first axis"),
    ((), "gives input 'x' no axes"),
    ((1, 3, 1 << 14, 1 << 14), r"more than 16777216 elements a sample; use smaller sizes$"),
    ((1 << 20, 3, 9, 9), "a batch of 1048576; at most 65536"),
])  # fmt: skip
def test_sizes_that_no_input_can_have(size: tuple, words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_sizes(_with_reshape([0, -1]), {"x": size}, "net")


def test_a_free_axis_names_the_option_that_fixes_it() -> None:
    g = _convolutional()
    data = g.model({"x": ("N", 3, "H", 9)}, {g.nodes[-1].output[0]: None})
    with pytest.raises(ModelError, match=r"must be a fixed number: give --shape x=1,3,SIZE,9$"):
        check(data, name="net")


def test_random_sizes_of_random_stacks() -> None:
    seed = 11
    rng = np.random.default_rng(seed)
    for case in range(8):
        g = Graph(seed=case)
        x, channels = g.qdq("x"), 2
        for _ in range(int(rng.integers(1, 4))):
            kernel, stride, outputs = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(1, 5))
            pads = [int(pad) for pad in rng.integers(0, kernel, 4)]
            x = g.qdq(g.add("Conv", x, g.weights(outputs, channels, kernel, kernel), strides=[stride, stride], pads=pads), 0.5)
            channels = outputs
        y = g.add("Flatten", g.add("GlobalAveragePool", x))
        size = (1, 2, *(int(axis) for axis in rng.integers(8, 30, 2)))
        print(f"seed {seed}, case {case}, size {size}")
        assert_equal(with_sizes(g.model({"x": ("N", 2, 64, 64)}, {g.qdq(y, 0.5): None}), {"x": size}, "net"), samples=3)
