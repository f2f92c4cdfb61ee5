"""Graphs that are valid but odd: inputs that nothing reads, nodes of one name, nothing to compute."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tritloom
from tritloom.compiler import golden
from tritloom.errors import ModelError, UserError
from tritloom.session import InferenceSession


def _with_more_inputs(mlp) -> bytes:
    """``unread`` is read by no node, ``shaped`` only for its shape."""
    model = onnx.load(mlp)
    for name in ("unread", "shaped"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]))
    model.graph.node.extend([
        helper.make_node("Shape", ["shaped"], ["shape"], "shape"),
        helper.make_node("Reshape", ["y", "shape"], ["z"], "reshape"),
    ])  # fmt: skip
    model.graph.output[0].name = "z"
    return model.SerializeToString()


@pytest.mark.parametrize("given", [(), ("unread",), ("unread", "shaped")])
def test_inputs_that_nothing_reads_may_be_given_or_left_out(mlp, rng, given):
    data = _with_more_inputs(mlp)
    x = rng.integers(-128, 128, (5, 6)).astype(np.float32) / 16
    feeds = {"x": x, **{name: np.ones((5, 3), np.float32) for name in given}}
    (ours,), (plain,) = InferenceSession(data).run(None, feeds), InferenceSession(mlp).run(None, {"x": x})
    np.testing.assert_array_equal(ours, plain)
    found = tritloom.verify(data, on=["golden"], feeds=feeds)
    assert [comparison.mismatches for comparison in found.comparisons] == [0]
    assert tritloom.verify(data, on=["golden"], samples=3).samples == 3


def test_unknown_inputs_are_still_refused(mlp):
    with pytest.raises(UserError, match=r"^inputs must be x; given are other, x$"):
        InferenceSession(_with_more_inputs(mlp)).run(None, {"x": np.zeros((1, 6)), "other": np.zeros((1, 3))})


@pytest.mark.parametrize("given", [(), ("unread",)])
def test_calibration_samples_may_leave_out_what_no_node_reads(float_mlp, rng, given):
    model = onnx.load(float_mlp)
    model.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [1, 3]))
    data = model.SerializeToString()
    with pytest.raises(ModelError, match=r"numpy\.savez\(\"calibration\.npz\", x=array of shape \(samples, 4\)\)"):
        tritloom.compile(data)
    samples = {"x": rng.normal(size=(9, 4)), **{name: np.zeros((9, 3)) for name in given}}
    ours, plain = (
        tritloom.compile(source, calibration={**samples} if source is data else {"x": samples["x"]}) for source in (data, float_mlp)
    )
    feeds = {"x": samples["x"].astype(np.float32)}
    codes = [golden.quantise_inputs(compiled.program, feeds) for compiled in (ours, plain)]
    np.testing.assert_array_equal(*(next(iter(golden.run(c.program, k).values())) for c, k in zip((ours, plain), codes, strict=True)))


def test_nodes_of_one_name_get_names_of_their_own(mlp, float_mlp, rng):
    sources = []
    for path in (mlp, float_mlp):
        model = onnx.load(path)
        for node in model.graph.node:
            node.name = "same"
        sources.append(model.SerializeToString())
    compiled = tritloom.compile(sources[0])
    assert [operation.name for operation in compiled.program.operations] == ["same", "same_2"]
    assert [comparison.mismatches for comparison in tritloom.verify(compiled, on=["golden"]).comparisons] == [0]
    samples = {"x": rng.normal(size=(9, 4)).astype(np.float32)}
    assert tritloom.compile(sources[1], calibration=samples).program.operations


@pytest.mark.parametrize("op", ["Relu", "Identity", "Softmax"])
def test_a_model_without_a_layer_says_what_is_missing(op):
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name="only")],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    with pytest.raises(ModelError, match=r"^model: node 'only': there is nothing for the core to compute: .*; add a layer \(Conv, "):
        tritloom.compile(data, calibration={"x": np.ones((3, 4), np.float32)})


def test_a_bias_between_two_codes_of_the_output_is_no_difference(mlp):
    model = onnx.load(mlp)
    codes = {entry.name: entry for entry in model.graph.initializer}
    # One code of the last layer is 1/32: the bias is half a code beyond integers.
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, -5], np.float32) / 64, "half"))
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node("Gemm", ["hidden_real", "second", "half"], ["biased"], "biased"))
    model.graph.node.append(helper.make_node("Neg", ["biased"], ["y"], "negated"))
    assert float(numpy_helper.to_array(codes["second_scale"])) * float(numpy_helper.to_array(codes["hidden_scale"])) == 1 / 32
    found = tritloom.verify(model.SerializeToString(), on=["golden"], samples=100)
    assert [comparison.mismatches for comparison in found.comparisons] == [0]
