"""Models made by others, where the folder that holds them is beside the checkout."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tritloom.compiler import golden
from tritloom.compiler.frontend import lower
from tritloom.compiler.ir.program import Convolution
from tritloom.sim.witness import run_witness

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "models"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the folder with models by others is not beside the checkout")


def _load(name: str) -> bytes:
    return (FOLDER / f"{name}.onnx").read_bytes()


def _samples(data: bytes, count: int) -> dict[str, np.ndarray]:
    model = onnx.load_from_string(data)
    fixed = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(7)
    return {
        value.name: rng.normal(size=(count, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:]))).astype(np.float32)
        for value in model.graph.input
        if value.name not in fixed
    }


def _run(data: bytes, feeds: dict[str, np.ndarray], **options: object) -> tuple[np.ndarray, np.ndarray]:
    program = lower(data, name="model", calibration=feeds, **options).program  # type: ignore[arg-type]
    (ours,) = golden.dequantise_outputs(program, golden.run(program, golden.quantise_inputs(program, feeds))).values()
    (theirs,) = run_witness(data, feeds).values()
    return ours, theirs


@pytest.mark.parametrize(("name", "planes"), [("TFC_1W2A", {1}), ("bnn_model_fc_1layer", {1}), ("qkeras_jettagging", {4})])
def test_quantised_models_equal_the_executor(name: str, planes: set[int]) -> None:
    data = _load(name)
    samples = _samples(data, 30) if name == "qkeras_jettagging" else None
    program = lower(data, name=name, calibration=samples).program
    layers = [operation for operation in program.operations if isinstance(operation, Convolution)]
    assert {layer.planes for layer in layers} <= planes and all(layer.weight_method == "exact" for layer in layers)
    assert all(layer.step is None or layer.step.proof.exact for layer in layers)
    feeds = golden.random_feeds(program, 50, seed=2)
    (ours,) = golden.dequantise_outputs(program, golden.run(program, golden.quantise_inputs(program, feeds))).values()
    (theirs,) = run_witness(data, feeds).values()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["three_layer_pytorch", "two_layer_keras", "conv1d_small_keras", "conv2d_small_mp_keras"])
def test_float_models_with_many_planes_come_close(name: str) -> None:
    data = _load(name)
    ours, theirs = _run(data, _samples(data, 100), method="planes", planes=6)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 0.02


def test_residual_block() -> None:
    data = _load("residual_block_clean")
    ours, theirs = _run(data, _samples(data, 2))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 0.02 * np.abs(theirs).max()
