"""ONNX files of trained ternary networks, written node by node; needs no PyTorch.

Every quantiser of the trained network stands in the graph as a QuantizeLinear and DequantizeLinear pair with zero point 0 and int8 codes, and
every weight as int8 trits with a DequantizeLinear, so that a compiler has nothing to guess or to calibrate. Biases are int32 in steps of
their channel's sum: ONNX Runtime's optimiser would round them so anyway, and then optimised and plain results differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "FoldedLayer", "Graph", "image_classifier"]

OPSET, IR_VERSION = 19, 10
"""From operator set 21 on, the optimiser of ONNX Runtime 1.31 gives pairs that it moves behind a pooling a wrong type (its issue 25526).
That excludes INT2 weights, which need 25: docs/decisions/two-bit-weights.md."""


@dataclass(frozen=True)
class FoldedLayer:
    """Inference form of a layer: ``sum(scale * trits * x) + bias``.

    ``trits`` int8 of the layer's weight shape; ``scale`` and ``bias`` float32 (O,), scales above 0.
    """

    trits: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class Graph:
    """Nodes and initializers in the order they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def quantised(self, source: str, name: str, scale: float) -> str:
        """The values of ``source`` on the grid of ``scale``, int8 codes with zero point 0."""
        grid = [self.constant(f"{name}.scale", np.float32(scale)), self.constant(f"{name}.zero_point", np.int8(0))]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [source, *grid], f"{name}.codes"), *grid], name)

    def weights(self, layer: FoldedLayer, name: str, input_scale: float) -> list[str]:
        """Dequantised weights, one scale per output channel, and bias, rounded to the steps of the channel's sums."""
        trits = self.constant(f"{name}.trits", layer.trits.astype(np.int8))
        scale = self.constant(f"{name}.weight_scale", layer.scale.astype(np.float32))
        weight = self.node("DequantizeLinear", [trits, scale], f"{name}.weight", axis=0)
        step = np.float32(input_scale) * layer.scale.astype(np.float32)
        codes = self.constant(f"{name}.bias_codes", np.rint(layer.bias / step).astype(np.int32))
        return [weight, self.node("DequantizeLinear", [codes, self.constant(f"{name}.bias_scale", step)], f"{name}.bias", axis=0)]


def image_classifier(
    name: str,
    layers: Sequence[FoldedLayer],
    *,
    size: int,
    pooled: Sequence[int],
    input_scale: float,
    activation_scale: float,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """A network of 3x3 convolutions with Relu, 2x2 maximum pooling behind some, and a dense head.

    Parameters
    ----------
    name
        Name of the graph.
    layers
        The convolutions, then the head, which sees all channels of all pixels, channels outermost.
    size
        Height and width of the one-channel input image.
    pooled
        Indices of the convolutions that a pooling follows.
    input_scale, activation_scale
        Steps of the input grid and of the grid of every convolution's output.
    metadata
        Written to the file in the given order.

    Returns
    -------
    onnx.ModelProto
        Input ``image`` float (N, 1, size, size), output ``logits`` float (N, classes). The same arguments give the same bytes.
    """
    graph = Graph()
    value, scale = graph.quantised("image", "input", input_scale), input_scale
    for index, layer in enumerate(layers[:-1]):
        label = f"conv{index + 1}"
        value = graph.node("Conv", [value, *graph.weights(layer, label, scale)], label, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value = graph.quantised(graph.node("Relu", [value], f"{label}.relu"), f"{label}.output", activation_scale)
        scale = activation_scale
        if index in pooled:
            value = graph.node("MaxPool", [value], f"pool{index + 1}", kernel_shape=[2, 2], strides=[2, 2])
    value = graph.node("Flatten", [value], "flatten")
    graph.node("Gemm", [value, *graph.weights(layers[-1], "head", scale)], "logits", transB=1)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, size, size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(layers[-1].trits)])],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tritloom",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
