"""The ONNX writer of all methods against the network's own arithmetic in NumPy, ONNX Runtime and golden."""

import numpy as np
import onnxruntime
import pytest

import tritloom
from tritloom.errors import UserError
from tritloom.models.methods import quest
from tritloom.models.nets.classifier import Grid, Stage, classifier, rotation
from tritloom.models.nets.export import FoldedLayer

BITS = (1, 1.585, 2, 3, 4)


def quest_grid(bits: float, unit: float) -> Grid:
    count = quest.levels(bits)
    return Grid(unit, -1, 1) if count == 3 else Grid(2 * unit, 1 - count // 2, count // 2, -0.5)


def layer(rng: np.random.Generator, bits: float | None, *shape: int) -> FoldedLayer:
    """Trits, or odd integers of so many bits."""
    if bits is None or bits == 1.585:
        codes = rng.integers(-1, 2, shape)
    else:
        codes = 2 * rng.integers(0, 2**bits, shape) - 2**bits + 1
    gain = 1.0 / np.sqrt(np.prod(shape[1:])) / max(1, np.abs(codes).max())
    scale = (gain * rng.uniform(0.5, 1.5, shape[0])).astype(np.float32)
    return FoldedLayer(codes.astype(np.int16), scale, rng.normal(0, 0.3, shape[0]).astype(np.float32))


def on_grid(x: np.ndarray, grid: Grid) -> np.ndarray:
    codes = np.clip(np.rint(x / grid.step - grid.offset), grid.low, grid.high)
    return grid.step * (codes + grid.offset)


def pool(x: np.ndarray) -> np.ndarray:
    x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))


def reference(stages: list[Stage], image: np.ndarray) -> np.ndarray:
    """Values of the network in float64, from the meaning of a stage."""
    x, pooled = image.astype(np.float64), False
    for index, stage in enumerate(stages):
        x = on_grid(x, stage.grid)
        x = pool(x) if pooled else x
        codes = stage.layer.trits.astype(np.float64)
        if codes.ndim == 2:
            x = x.reshape(len(x), -1)
        around = 0.0
        if stage.rotated is not None:
            x = quest.rotate(x, 1)
            if stage.centre is not None:
                x = x - stage.centre.reshape(-1, *[1] * (x.ndim - 2))
            x = on_grid(x, stage.rotated)
            around = stage.rotated.step * stage.rotated.offset
        scale, bias = stage.layer.scale.astype(np.float64), stage.layer.bias.astype(np.float64)
        if codes.ndim == 4:
            border = codes.shape[-1] // 2
            padded = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)), constant_values=around)
            windows = np.lib.stride_tricks.sliding_window_view(padded, codes.shape[2:], axis=(2, 3))
            x = np.einsum("nchwij,ocij->nohw", windows, codes) * scale[:, None, None] + bias[:, None, None]
        else:
            x = x @ codes.T * scale + bias
        if stage.relu and index + 1 < len(stages):
            x = np.maximum(x, 0)
        pooled = stage.pooled
    return x


def network(bits: float | None, kind: str, seed: int) -> tuple[list[Stage], tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    first, hidden = Grid(0.25, 0, 127), Grid(1 / 16, 0, 127)
    rotated = None if bits is None else quest_grid(bits, 0.31373)  # no multiple of it but 0 is a sum
    centre = None if bits is None else rng.normal(0, 0.3, 16)
    if kind == "dense":
        return [
            Stage(first, layer(rng, bits, 32, 48), rotated),
            Stage(hidden, layer(rng, bits, 16, 32), rotated),
            Stage(hidden, layer(rng, bits, 3, 16), rotated, centre),
        ], (48,)
    return [
        Stage(first, layer(rng, bits, 16, 1, 3, 3), pooled=True),
        Stage(hidden, layer(rng, bits, 32, 16, 3, 3), rotated, centre),
        Stage(hidden, layer(rng, bits, 5, 32 * 3 * 2), rotated),
    ], (1, 7, 5)


def run(model: bytes, image: np.ndarray, optimise: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimise)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": image})[0])


@pytest.mark.parametrize("kind", ["dense", "convolutions"])
@pytest.mark.parametrize("bits", [None, *BITS])
def test_onnx_runtime_and_golden_compute_the_network(bits, kind):
    """Row by row in ONNX Runtime, with and without its optimiser; golden, compiled without any other file, gives the codes of ONNX Runtime."""
    stages, shape = network(bits, kind, seed=int(10 * (bits or 0)))
    model = classifier("net", stages, shape=shape, metadata={}).SerializeToString(deterministic=True)
    image = np.random.default_rng(1).integers(0, 65, (40, *shape)).astype(np.float32) / 4
    expected = reference(stages, image)
    assert expected.std(axis=0).min() > 0.01, "the test would prove nothing on a silent network"
    for optimise in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        np.testing.assert_allclose(run(model, image, optimise), expected, rtol=1e-4, atol=1e-4)
    found = tritloom.verify(model, on=["golden"], feeds={"image": image})
    assert [comparison.mismatches for comparison in found.against("onnx")] == [0]


def test_rotation_is_the_one_of_training():
    for features in (8, 16, 48, 128, 256):
        matrix = rotation(features).astype(np.float64) / np.sqrt(quest.block_size(features))
        np.testing.assert_allclose(matrix, quest.rotate(np.eye(features)), atol=1e-12)


def test_same_arguments_give_the_same_bytes():
    def make() -> bytes:
        stages, shape = network(2, "convolutions", seed=5)
        return classifier("net", stages, shape=shape, metadata={"b": "1", "a": "2"}).SerializeToString(deterministic=True)

    assert make() == make()


def test_weights_of_more_than_8_bits_are_refused():
    stages, shape = network(8, "dense", seed=0)
    with pytest.raises(UserError, match=r"^the weights of layer1 do not fit in 8 bits"):
        classifier("net", stages, shape=shape, metadata={})
