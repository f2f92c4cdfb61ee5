"""Resize and Upsample to the nearest element: a choice of elements, found by resizing the element numbers."""

import numpy as np
import onnx
import onnx.helper

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.constants import run_node
from tritloom.compiler.frontend.operators_shape import move, shape_of
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import LARGEST_ACTIVATION, Operand

__all__: list[str] = []

_OUTSIDE = -1.0


def _resized(node: Node, shape: tuple[int, ...], inputs: list[np.ndarray | None]) -> np.ndarray:
    """Number of the element that each element of the result is, as ONNX Runtime rounds coordinates; -1 outside the input."""
    numbers = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.float32).reshape(shape)
    names = ["x", *(f"c{index}" if array is not None else "" for index, array in enumerate(inputs))]
    attributes = {key: value for key, value in node.attributes.items() if value is not None}
    if node.op == "Resize" and node.opset >= 11:
        attributes["extrapolation_value"] = _OUTSIDE
    proto = onnx.helper.make_node(node.op, names, ["y"], **attributes)
    (found,) = run_node(proto, [numbers, *inputs], node.opset)
    return found.astype(np.int64)


@operator("Upsample", "nearest, constant scales")
@operator("Resize", "nearest, every coordinate mode, constant scales or sizes")
def _resize(builder: Builder, node: Node) -> Operand:
    shape = shape_of(node.operand(0))
    mode = node.attribute("mode", str, "nearest")
    if mode != "nearest":
        raise RefusalError(f"its mode {mode} is not supported", "use mode nearest, or a ConvTranspose with constant weights")
    inputs: list[np.ndarray | None] = []
    for index in range(1, len(node.inputs)):
        constant = node.constant(index, "list of scales or sizes")
        inputs.append(None if constant is None else constant.array)
    if node.op == "Resize" and node.opset >= 11 and len(inputs) == 3 and inputs[2] is not None and node.batch not in (None, 1):
        axes = node.attribute("axes", list)
        if axes is None and inputs[2].size and inputs[2][0] == node.batch:
            inputs[2] = np.concatenate([[1], inputs[2][1:]]).astype(np.int64)
    largest = 1.0
    for array in (*inputs, np.array(node.attributes.get("scales", 1.0))):
        if array is not None and array.dtype.kind in "fiu" and array.size <= 8:
            factor = float(np.prod(np.maximum(array.astype(np.float64), 1)))
            largest = max(largest, factor if array.dtype.kind in "iu" else factor * float(np.prod(shape, dtype=np.float64)))
    if not np.isfinite(largest) or largest > LARGEST_ACTIVATION:
        raise RefusalError("the result is too large", f"use activations of at most {LARGEST_ACTIVATION} elements a sample")
    chosen = _resized(node, shape, inputs)
    if chosen.size and chosen.min() < 0:
        raise RefusalError("it reads outside its input", "use a region inside the input")
    if chosen.ndim != len(shape) or (shape and chosen.shape[0] != shape[0]) or not chosen.size:
        raise RefusalError(f"it makes {list(chosen.shape)} of {list(shape)}", "resize axes other than the batch, to sizes of 1 or more")
    return move(builder, node, node.operand(0), lambda array: array.ravel()[chosen], gathers=True)
