"""The ONNX writer of trained networks against the network's own arithmetic in NumPy."""

import numpy as np
import onnxruntime
import pytest

from tritloom.models.nets.export import FoldedLayer, image_classifier


def layers(seed: int) -> list[FoldedLayer]:
    rng = np.random.default_rng(seed)

    def layer(*shape: int) -> FoldedLayer:
        gain = 2.0 / np.sqrt(np.prod(shape[1:]))
        return FoldedLayer(
            rng.integers(-1, 2, shape).astype(np.int8),
            (gain * rng.uniform(0.5, 1.5, shape[0])).astype(np.float32),
            rng.normal(0, 0.5, shape[0]).astype(np.float32),
        )

    return [layer(5, 1, 3, 3), layer(7, 5, 3, 3), layer(3, 7 * 9)]


def convolve(x: np.ndarray, layer: FoldedLayer) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, layer.trits.astype(np.float64))
    return sums * layer.scale[:, None, None].astype(np.float64)


def rounded_bias(layer: FoldedLayer, scale: float) -> np.ndarray:
    """To whole steps of the channel's sum."""
    step = scale * layer.scale.astype(np.float64)
    return np.rint(layer.bias / step) * step


def quantise(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(x / scale), -128, 127) * scale


@pytest.mark.parametrize("optimise", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("seed", range(3))
def test_graph_computes_the_network(seed, optimise):
    """Convolution, Relu, quantiser, pooling behind the second layer only, channels outermost in the head."""
    network = layers(seed)
    model = image_classifier("net", network, size=6, pooled=(1,), input_scale=0.5, activation_scale=0.125, metadata={"seed": str(seed)})
    image = np.random.default_rng(seed).integers(0, 33, (4, 1, 6, 6)).astype(np.float32) / 2
    x = quantise(image.astype(np.float64), 0.5)
    for layer, scale in zip(network[:2], (0.5, 0.125), strict=True):
        bias = rounded_bias(layer, scale)[:, None, None]
        x = quantise(np.maximum(convolve(x, layer) + bias, 0), 0.125)
    x = x.reshape(4, 7, 3, 2, 3, 2).max(axis=(3, 5)).reshape(4, -1)
    head = network[2]
    expected = x @ head.trits.T.astype(np.float64) * head.scale + rounded_bias(head, 0.125)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimise)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["logits"], {"image": image})[0], expected, rtol=1e-4, atol=1e-4)
    assert (np.abs(x) > 0).mean() > 0.2, "the test would prove nothing on a silent network"


def test_same_arguments_give_the_same_bytes():
    def make() -> bytes:
        model = image_classifier(
            "net", layers(0), size=6, pooled=(1,), input_scale=0.5, activation_scale=0.125, metadata={"b": "1", "a": "2"}
        )
        return model.SerializeToString(deterministic=True)

    first = make()
    assert first == make()
    assert b"b\x12\x011" in first and first.index(b"\x0a\x01b") < first.rindex(b"\x0a\x01a")
