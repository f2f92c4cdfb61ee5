"""Activations larger than a board's memory: refused in one sentence on every route, nothing written."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SIZE = 48
"""Pixels along a side: 8 channels are 18 KiB, more than all block RAM of an UP5K."""


def save(path, nodes, weights, *, outputs):
    scale = {"scale": np.float32(0.25), "zero": np.int8(0)}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in {**scale, **weights}.items()]
    value = helper.make_tensor_value_info
    shapes = (1, 8, SIZE, SIZE), (1, outputs, SIZE, SIZE)
    graph = helper.make_graph(
        nodes, "large", [value("x", TensorProto.FLOAT, shapes[0])], [value("y", TensorProto.FLOAT, shapes[1])], tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


def quantised(x, name):
    return [
        helper.make_node("QuantizeLinear", [x, "scale", "zero"], [f"{name}_codes"]),
        helper.make_node("DequantizeLinear", [f"{name}_codes", "scale", "zero"], [name]),
    ]


def convolution(x, name, kernel):
    return helper.make_node("Conv", [x, f"{name}_w"], [name], name, pads=[kernel // 2] * 4)


@pytest.fixture(params=["one layer", "a kept residual"])
def large(request, tmp_path):
    """A model whose single layer reads and writes more than there is, and one whose input must be kept for a sum."""
    rng = np.random.default_rng(0)
    if request.param == "one layer":
        nodes = [*quantised("x", "q"), convolution("q", "look", 3), *quantised("look", "y")]
        return save(tmp_path / "large.onnx", nodes, {"look_w": rng.integers(-1, 2, (16, 8, 3, 3)).astype(np.float32)}, outputs=16)
    nodes = [*quantised("x", "q"), convolution("q", "first", 1), *quantised("first", "a"), convolution("a", "second", 3), *quantised("second", "b"),
             helper.make_node("Add", ["b", "q"], ["sum"], "keep"), *quantised("sum", "y")]  # fmt: skip
    weights = {f"{name}_w": rng.integers(-1, 2, (8, 8, k, k)).astype(np.float32) for name, k in (("first", 1), ("second", 3))}
    return save(tmp_path / "large.onnx", nodes, weights, outputs=8)


@pytest.mark.parametrize("verb", ["compile", "estimate", "build"])
def test_every_route_says_how_many_bytes_are_lacking(cli, large, tmp_path, verb):
    extra = {"compile": ("-o", "a.loom"), "estimate": (), "build": ("-o", "out")}[verb]
    before = set(tmp_path.rglob("*"))
    done = cli(verb, large, "--board", "icebreaker", *extra)
    assert done.code == 1
    assert done.err.startswith("tritloom: model 'large' needs ") and len(done.err.strip().splitlines()) == 1
    assert "bytes of activation memory" in done.err and " more than the " in done.err
    assert set(tmp_path.rglob("*")) == before, "nothing is left behind"
