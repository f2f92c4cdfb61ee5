"""Operators of any number of operands, written as operators of two or as a reduction, before anything else reads the model.

``Sum`` and ``Mean`` of three or more activations become ``Add`` after ``Add``, in the order in which ONNX Runtime adds; ``Max`` and ``Min`` of two
or more become ``ReduceMax`` or ``ReduceMin`` over a new axis along which they are joined. The intermediate values are ONNX values, so that
calibration has samples of them.
"""

from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

__all__ = ["with_pairs"]

_SUMS, _EXTREMES = ("Sum", "Mean"), {"Max": "ReduceMax", "Min": "ReduceMin"}
_UNSQUEEZE_BY_INPUT, _REDUCE_BY_INPUT = 13, 18
"""Operator sets from which the axes are an input."""


def with_pairs(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """``model`` itself where it has no such operator, else a changed copy; constants among the operands stay as they are."""
    if not any(_is_standard(node) and (node.op_type in _SUMS or node.op_type in _EXTREMES) for node in model.graph.node):
        return model
    constants = {tensor.name for tensor in model.graph.initializer}
    computed = {value.name for value in model.graph.input} - constants
    taken = constants | computed | {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        operands = [name for name in node.input if name in computed]
        if operands or any(attribute.HasField("g") for attribute in node.attribute):
            computed.update(node.output)
        if _is_standard(node) and node.op_type in _SUMS and len(operands) > 2:
            copy.graph.node.extend(_Rewritten(node, taken, opset).sum())
        elif _is_standard(node) and node.op_type in _EXTREMES and len(operands) > 1:
            copy.graph.node.extend(_Rewritten(node, taken, opset).extreme(operands))
        else:
            copy.graph.node.append(node)
    return copy


def _is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


class _Rewritten:
    """Nodes in place of one; ``taken`` are the names of values that exist."""

    def __init__(self, node: onnx.NodeProto, taken: set[str], opset: int) -> None:
        self._node, self._taken, self._opset = node, taken, opset
        self._label = node.name or node.output[0]
        self._made: list[onnx.NodeProto] = []

    def sum(self) -> list[onnx.NodeProto]:
        mean = self._node.op_type == "Mean"
        total = self._node.input[0]
        last = len(self._node.input) - 1
        for index, operand in enumerate(self._node.input[1:], 1):
            total = self._add("Add", total, operand, last=index == last and not mean)
        if mean:
            self._add("Div", total, self._constant(np.array(last + 1, np.float32)), last=True)
        return self._made

    def extreme(self, operands: list[str]) -> list[onnx.NodeProto]:
        others = [name for name in self._node.input if name not in operands]
        axes = self._constant(np.array([1], np.int64)) if self._opset >= _UNSQUEEZE_BY_INPUT else None
        if axes is None:
            parts = [self._add("Unsqueeze", name, axes=[1]) for name in operands]
        else:
            parts = [self._add("Unsqueeze", name, axes) for name in operands]
        joined = self._add("Concat", *parts, axis=1)
        reduce = _EXTREMES[self._node.op_type]
        if axes is None or self._opset < _REDUCE_BY_INPUT:
            found = self._add(reduce, joined, axes=[1], keepdims=0, last=not others)
        else:
            found = self._add(reduce, joined, axes, keepdims=0, last=not others)
        for index, name in enumerate(others, 1):
            found = self._add(self._node.op_type, found, name, last=index == len(others))
        return self._made

    def _add(self, op: str, *inputs: str, last: bool = False, **attributes: Any) -> str:
        """One node; the ``last`` has the name and the output of the node that it stands for."""
        output = self._node.output[0] if last else self._unique()
        name = self._label if last else f"{self._label}_{len(self._made)}"
        self._made.append(onnx.helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def _constant(self, array: np.ndarray) -> str:
        output = self._unique()
        node = onnx.helper.make_node(
            "Constant", [], [output], f"{self._label}_{len(self._made)}", value=onnx.numpy_helper.from_array(array)
        )
        self._made.append(node)
        return output

    def _unique(self) -> str:
        number = len(self._made)
        while f"{self._node.output[0]}_{number}" in self._taken:
            number += 1
        self._taken.add(f"{self._node.output[0]}_{number}")
        return f"{self._node.output[0]}_{number}"
