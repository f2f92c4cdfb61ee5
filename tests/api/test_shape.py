"""``--shape``: the same sizes through every verb that reads an ONNX model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tritloom
from tritloom.compiled import compile, open_model
from tritloom.errors import UserError


@pytest.fixture
def convolutional(tmp_path):
    """Input ``x`` (N, 2, H, W) on a grid of 1/4; a ternary 3x3 convolution; output ``y`` on a grid of 1/2."""
    rng = np.random.default_rng(1)
    constants = {
        "quarter": np.float32(0.25),
        "half": np.float32(0.5),
        "zero": np.int8(0),
        "codes": rng.integers(-1, 2, (3, 2, 3, 3)).astype(np.int8),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "quarter", "zero"], ["a"], "quantise_x"),
        node("DequantizeLinear", ["a", "quarter", "zero"], ["b"], "dequantise_x"),
        node("DequantizeLinear", ["codes", "half", "zero"], ["w"], "weights"),
        node("Conv", ["b", "w"], ["c"], "conv"),
        node("QuantizeLinear", ["c", "half", "zero"], ["d"], "quantise_y"),
        node("DequantizeLinear", ["d", "half", "zero"], ["y"], "dequantise_y"),
    ]
    graph = helper.make_graph(
        nodes,
        "convolutional",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H2", "W2"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "convolutional.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_every_verb_takes_the_sizes(cli, convolutional, tmp_path, rng):
    without = cli("check", convolutional, "--json")
    assert without.code == 1 and "give --shape x=1,2,SIZE,SIZE" in without.json["problems"][0]["reason"]
    checked = cli("check", convolutional, "--shape", "x=1,2,6,7", "--json")
    assert checked.code == 0 and checked.json["layers"][0]["output"] == [3, 4, 5]
    assert cli("compile", convolutional, "--shape", "1,2,6,7", "-o", "small.loom").code == 0
    macs = 2 * 9 * 3 * 4 * 5
    assert cli("estimate", convolutional, "--shape", "x=1,2,6,7", "--json").json["macs"] == macs
    assert cli("estimate", "small.loom", "--json").json["macs"] == macs
    verified = cli("verify", convolutional, "--shape", "N,2,6,7", "--on", "golden", "--json")
    assert verified.code == 0 and [(c["values"], c["mismatches"]) for c in verified.json["comparisons"]] == [(20 * 60, 0)]
    feeds = {"x": rng.normal(size=(2, 2, 6, 7)).astype(np.float32)}
    np.savez(tmp_path / "in.npz", **feeds)
    assert cli("run", convolutional, "--shape", "1,2,6,7", "--input", "in.npz", "-o", "out.npz").code == 0
    assert np.load(tmp_path / "out.npz")["y"].shape == (2, 3, 4, 5)


def test_the_compiled_model_is_the_same_at_any_hash_seed_and_holds_the_sizes(convolutional):
    one, two = (compile(str(convolutional), shapes={key: (1, 2, 6, 7)}) for key in ("x", ""))
    assert one.digest == two.digest
    graph = onnx.load_from_string(one.source).graph
    assert [axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim] == [1, 3, 4, 5]
    assert [comparison.mismatches for comparison in tritloom.verify(one, on=["golden"]).comparisons] == [0]


def test_a_compiled_model_has_its_sizes_already(cli, loom, convolutional, tmp_path):
    words = "--shape is for ONNX models: the sizes of a compiled model are fixed; compile its ONNX model again with --shape"
    for verb in (["estimate"], ["verify", "--on", "golden"], ["run", "--input", "in.npz", "-o", "out.npz"]):
        np.savez(tmp_path / "in.npz", x=np.zeros((1, 6)))
        done = cli(verb[0], loom, *verb[1:], "--shape", "1,6")
        assert (done.code, done.err.strip()) == (1, f"tritloom: {words}")
    with pytest.raises(UserError, match=words):
        open_model(compile(str(convolutional), shapes={"": (1, 2, 6, 7)}), shapes={"": (1, 2, 6, 7)})


@pytest.mark.parametrize(("given", "words"), [
    (["=1,2"], "--shape must be NAME=SIZES such as x=1,3,32,32, or SIZES alone, not '=1,2'"),
    (["x=1,,2"], "--shape must be NAME=SIZES"),
    (["x=1,2.5"], "--shape must be NAME=SIZES"),
    ([""], "--shape must be NAME=SIZES"),
    (["x=1,-3"], "axis of size -3; sizes must be 1 or more"),
    (["x=1,2,6,7", "x=1,2,6,7"], "--shape names input 'x' twice; give each input once"),
    (["x=1,2,6,7", "1,2,6,7"], "--shape names one input twice; give each input once"),
    (["x=1," + "9" * 30], "has a size beyond all models"),
])  # fmt: skip
def test_sizes_that_cannot_be_read(cli, convolutional, given, words, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = cli("compile", convolutional, *(word for text in given for word in ("--shape", text)))
    assert done.code == 1 and words in done.err and len(done.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
