"""A model with layers that no core can run yet: it compiles and runs in golden, and everything that needs a core says why not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tritloom
from tritloom.errors import ModelError, UserError


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(60, 4, 6)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Tokens (N, 4, 6), normalised, attention of one head, a dense layer."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "scale"], ["n"], "norm"),
        node("Transpose", ["n"], ["t"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["n", "t"], ["scores"], "scores"),
        node("Mul", ["scores", "half"], ["scaled"], "scaled"),
        node("Softmax", ["scaled"], ["p"], "weights", axis=-1),
        node("MatMul", ["p", "n"], ["mixed"], "mix"),
        node("MatMul", ["mixed", "w"], ["y"], "dense"),
    ]
    constants = {"scale": np.ones(6, np.float32), "half": np.float32(0.5), "w": rng.normal(size=(6, 3)).astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def loom(cli, model: Path, samples: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "samples.npz", x=samples)
    done = cli("compile", model, "-o", "attention.loom", "--board", "ulx3s-25f", "--calibration", "samples.npz", "--planes", "4", "--json")
    assert done.code == 0
    assert done.json["cycles"] is None and done.json["macs"] is None
    assert [sentence.split(":")[0] for sentence in done.json["golden_only"]] == [
        "layer 'norm' (Normalise) cannot run on a core yet",
        "layer 'scores' (MatrixProduct) cannot run on a core yet",
        "layer 'weights' (Softmax) cannot run on a core yet",
        "layer 'mix' (MatrixProduct) cannot run on a core yet",
    ]
    assert "layer 'weights' (Softmax) cannot run on a core yet: it has no exponential and no division" in done.err
    assert "runs in golden, on no core yet" in done.err
    return tmp_path / "attention.loom"


SENTENCE = "layer 'norm' (Normalise) cannot run on a core yet: it has no square root and no division; run the model in golden (--on golden)"


@pytest.mark.parametrize("words", [
    ("estimate", "LOOM"),
    ("estimate", "LOOM", "--board", "icebreaker"),
    ("build", "LOOM", "--board", "icebreaker", "-o", "out"),
    ("build", "LOOM", "--board", "icebreaker", "-o", "out", "--array", "8x4"),
    ("verify", "LOOM"),
    ("verify", "LOOM", "--on", "verilator"),
    ("run", "LOOM", "--on", "verilator", "--input", "samples.npz", "-o", "out.npz"),
    ("sim", "LOOM"),
    ("compile", "MODEL", "-o", "second.loom", "--emit", "verilog", "--calibration", "samples.npz"),
])  # fmt: skip
def test_what_needs_a_core_says_why_not(cli, model: Path, loom: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    done = cli(*[{"LOOM": loom, "MODEL": model}.get(word, word) for word in words])
    assert done.code == 1
    assert SENTENCE in " ".join(done.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_golden_runs_it_and_tracks_onnx_runtime(cli, model: Path, loom: Path, samples: np.ndarray) -> None:
    done = cli("run", loom, "--input", "samples.npz", "-o", "out.npz", "--json")
    assert done.code == 0 and done.json["cycles"] is None and done.json["samples"] == 60
    import onnxruntime

    (theirs,) = onnxruntime.InferenceSession(model.read_bytes()).run(None, {"x": samples})
    with np.load("out.npz") as results:
        ours = results["y"]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    verified = cli("verify", loom, "--on", "golden", "--json")
    assert verified.code == 0 and verified.json["exact"] is True
    assert [comparison["reference"] for comparison in verified.json["comparisons"]] == ["onnx"]
    assert cli("run", loom, "--board", "nowhere", "--input", "samples.npz", "-o", "out.npz").code == 1


def test_python_interface(loom: Path, samples: np.ndarray) -> None:
    session = tritloom.InferenceSession(loom)
    session.run(None, {"x": samples[:3]})
    assert session.last_cycles is None
    assert len(session.model.golden_only) == 4 and session.model.boards == ()
    with pytest.raises(ModelError, match="cannot run on a core yet"):
        session.model.schedule()
    with pytest.raises(ModelError, match="cannot run on a core yet"):
        tritloom.InferenceSession(loom, providers=["amaranth"])
    with pytest.raises(UserError, match="board"):
        tritloom.InferenceSession(loom, providers=[("golden", {"board": "nowhere"})])


def test_check_says_where_each_layer_runs(cli, model: Path) -> None:
    done = cli("check", model, "--json")
    assert done.code == 0
    assert {layer["name"]: layer["runs"] for layer in done.json["layers"] if layer["op"] != "Copy"} == {
        "norm": "golden only", "scores": "golden only", "weights": "golden only", "mix": "golden only", "dense": "core",
    }  # fmt: skip
    assert {"domain": "", "operator": "LayerNormalization", "nodes": 1, "runs": ["golden only"]} in done.json["facts"]["operators"]
    assert "4 layers that only golden can do, norm, scores, weights, mix" in " ".join(cli("check", model).err.split())


def test_the_same_bytes_every_time(cli, model: Path, loom: Path) -> None:
    cli("compile", model, "-o", "again.loom", "--board", "icebreaker", "--calibration", "samples.npz", "--planes", "4")
    assert Path("again.loom").read_bytes() == loom.read_bytes()
