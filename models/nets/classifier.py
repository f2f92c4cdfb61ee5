"""ONNX files of multilayer perceptrons and convolutional networks, whatever method quantised them; needs no PyTorch.

Every quantiser stands in the graph: a QuantizeLinear and DequantizeLinear pair with int8 codes and zero point 0, behind a Clip where the codes do
not fill the type. Weights are int8 integers with a DequantizeLinear, one scale per output channel. A grid without a zero level (QuEST, an even number of levels) is
written as ``step * (code - 1/2)``: half a step is added in front of the quantiser, and what is missing behind it is in the next layer's bias.

A rotation is a layer of weights -1 and 1 on its own. Its factor ``1 / sqrt(block)`` is taken out of the next layer's scales instead, so that ONNX Runtime sums exactly,
and a sum of 0, which lies on the border of two levels of such a grid, is 0 there too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from tritloom.errors import UserError
from tritloom.models.methods.quest import block_size, hadamard
from tritloom.models.nets.export import IR_VERSION, OPSET, FoldedLayer, Graph

__all__ = ["INPUT", "OUTPUT", "Grid", "Stage", "classifier", "rotation"]

INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True)
class Grid:
    """Values ``step * (code + offset)`` for codes ``low .. high``; the offset is 0 or -1/2."""

    step: float
    low: int
    high: int
    offset: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A grid, maybe a rotation, a ``centre`` (I,) to be taken away and a second grid, and a layer with what follows it.

    ``layer.trits`` holds the weights' integers, (O, I) for a dense layer or (O, I, k, k) for a convolution that keeps height and width; it sees the values of
    the last grid, with the code 0 of that grid around an image.
    """

    grid: Grid
    layer: FoldedLayer
    rotated: Grid | None = None
    centre: np.ndarray | None = None
    relu: bool = True
    pooled: bool = False
    """2x2 maximum pooling behind this stage's *next* grid, an odd last row or column left out."""


def rotation(features: int) -> np.ndarray:
    """Block-diagonal matrix, int8 (features, features) with entries -1, 0 and 1: orthonormal when divided by the square root of the block."""
    size = block_size(features)
    return np.kron(np.eye(features // size, dtype=np.int8), hadamard(size))


class _Writer(Graph):
    """What a stage needs."""

    def on_grid(self, source: str, name: str, grid: Grid, centre: np.ndarray | float = 0.0) -> str:
        shift = np.asarray(-grid.offset * grid.step - centre, np.float32)
        if shift.any():
            source = self.node("Add", [source, self.constant(f"{name}.shift", shift)], f"{name}.shifted")
        if (grid.low, grid.high) != (-128, 127):
            limits = [
                self.constant(f"{name}.{end}", np.float32(code * grid.step)) for end, code in (("low", grid.low), ("high", grid.high))
            ]
            source = self.node("Clip", [source, *limits], f"{name}.clipped")
        return self.quantised(source, name, grid.step)

    def weighted(self, source: str, name: str, codes: np.ndarray, scale: np.ndarray) -> str:
        """Product with integer weights, a convolution if they have four axes."""
        weight = self.node(
            "DequantizeLinear",
            [self.constant(f"{name}.weights", codes.astype(np.int8)), self.constant(f"{name}.weight_scale", scale.astype(np.float32))],
            f"{name}.weight",
            axis=0,
        )
        if codes.ndim == 4:
            size = codes.shape[-1]
            return self.node("Conv", [source, weight], f"{name}.product", kernel_shape=[size, size], pads=[size // 2] * 4)
        return self.node("Gemm", [source, weight], f"{name}.product", transB=1)

    def rotate(self, source: str, name: str, features: int, image: bool) -> str:
        matrix = rotation(features)
        return self.weighted(source, f"{name}.rotation", matrix[:, :, None, None] if image else matrix, np.ones(features))


def classifier(name: str, stages: Sequence[Stage], *, shape: tuple[int, ...], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """A network of dense layers, or of convolutions and then dense layers, without Relu behind the last.

    Parameters
    ----------
    name
        Name of the graph.
    stages
        In order; the first dense one sees all channels of all pixels, channels outermost.
    shape
        Of one input: (features,) or (channels, height, width).
    metadata
        Written to the file in the given order.

    Returns
    -------
    onnx.ModelProto
        Input ``image`` float (N, *shape), output ``logits`` float (N, classes). The same arguments give the same bytes.
    """
    graph = _Writer()
    value, flat = INPUT, len(shape) == 1
    for index, stage in enumerate(stages):
        label = f"layer{index + 1}"
        value = graph.on_grid(value, f"{label}.input", stage.grid)
        if index and stages[index - 1].pooled:
            value = graph.node("MaxPool", [value], f"{label}.pooled", kernel_shape=[2, 2], strides=[2, 2])
        codes, scale, grid = stage.layer.trits, stage.layer.scale.astype(np.float64), stage.grid
        if np.abs(codes).max(initial=0) > 127:
            raise UserError(f"the weights of {label} do not fit in 8 bits: choose a method of fewer bits")
        dense = codes.ndim == 2
        if dense and not flat:
            value, flat = graph.node("Flatten", [value], f"{label}.flat"), True
        if stage.rotated is not None:
            factor = math.sqrt(block_size(codes.shape[1]))
            grid, scale = replace(stage.rotated, step=stage.rotated.step * factor), scale / factor
            if factor > 1:
                value = graph.rotate(value, label, codes.shape[1], image=not dense)
            centre = np.zeros(codes.shape[1]) if stage.centre is None else stage.centre * factor
            value = graph.on_grid(value, f"{label}.rotated", grid, centre if dense else centre[:, None, None])
        value = graph.weighted(value, label, codes, scale)
        # What the grid's offset lacks: offset * step for every weight, also for those above the border of an image.
        missing = grid.offset * grid.step * codes.reshape(len(codes), -1).sum(1, dtype=np.int64) * scale
        bias = (stage.layer.bias + missing).astype(np.float32)
        bias = bias if dense else bias[:, None, None]
        value = graph.node("Add", [value, graph.constant(f"{label}.bias", bias)], label if index + 1 < len(stages) else OUTPUT)
        if stage.relu and index + 1 < len(stages):
            value = graph.node("Relu", [value], f"{label}.relu")

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(stages[-1].layer.trits)])],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tritloom",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
