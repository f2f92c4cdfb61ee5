"""Small ONNX models, and the command line inside the test's process."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritloom.cli.main import main


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Calls the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err or "-vv" in words
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return call


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _quantised_mlp() -> onnx.GraphProto:
    """Input (1, 6) on a grid of 1/16; 6 -> 5 ternary, Relu on a grid of 1/8; 5 -> 3 integer weights of 4 bits; float output."""
    rng = np.random.default_rng(3)
    constants = {
        "input_scale": np.float32(1 / 16),
        "zero": np.int8(0),
        "first_codes": rng.integers(-1, 2, (6, 5)).astype(np.int8),
        "first_scale": np.float32(0.5),
        "bias": rng.integers(-8, 9, 5).astype(np.float32) / 32,
        "hidden_scale": np.float32(1 / 8),
        "second_codes": rng.integers(-7, 8, (5, 3)).astype(np.int8),
        "second_scale": np.float32(0.25),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "input_scale", "zero"], ["x_codes"], "quantise_x"),
        node("DequantizeLinear", ["x_codes", "input_scale", "zero"], ["x_real"], "dequantise_x"),
        node("DequantizeLinear", ["first_codes", "first_scale", "zero"], ["first"], "first_weights"),
        node("MatMul", ["x_real", "first"], ["product"], "hidden"),
        node("Add", ["product", "bias"], ["sum"], "hidden_bias"),
        node("Relu", ["sum"], ["positive"], "relu"),
        node("QuantizeLinear", ["positive", "hidden_scale", "zero"], ["hidden_codes"], "quantise_hidden"),
        node("DequantizeLinear", ["hidden_codes", "hidden_scale", "zero"], ["hidden_real"], "dequantise_hidden"),
        node("DequantizeLinear", ["second_codes", "second_scale", "zero"], ["second"], "second_weights"),
        node("MatMul", ["hidden_real", "second"], ["y"], "classifier"),
    ]
    return helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


@pytest.fixture
def mlp(tmp_path) -> Path:
    """A quantised model, input ``x`` (1, 6), output ``y`` (1, 3)."""
    return _save(_quantised_mlp(), tmp_path / "mlp.onnx")


@pytest.fixture
def float_mlp(tmp_path) -> Path:
    """A float model without quantisers, input ``x`` (1, 4), output ``y`` (1, 2)."""
    rng = np.random.default_rng(5)
    constants = {"first": rng.standard_normal((4, 6)).astype(np.float32), "second": rng.standard_normal((6, 2)).astype(np.float32)}
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "first"], ["a"], "hidden"),
        node("Relu", ["a"], ["b"], "relu"),
        node("MatMul", ["b", "second"], ["y"], "classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "float_mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return _save(graph, tmp_path / "float_mlp.onnx")


@pytest.fixture
def unsupported(tmp_path) -> Path:
    """A model with two nodes that nothing can lower."""
    nodes = [helper.make_node("Sin", ["x"], ["a"], "wave"), helper.make_node("Det", ["a"], ["y"], "volume")]
    graph = helper.make_graph(
        nodes,
        "unsupported",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return _save(graph, tmp_path / "unsupported.onnx")


@pytest.fixture
def loom(mlp, cli, tmp_path) -> Path:
    """The quantised model, compiled."""
    assert cli("compile", mlp, "-o", tmp_path / "mlp.loom").code == 0
    return tmp_path / "mlp.loom"
