"""Normalisation and Softmax that an exporter wrote in single steps, put together again before the graph is executed.

The node that computes the last value of a pattern is replaced by one of the standard operator; what nothing reads any more goes. The names of
values stay, so that calibration finds them in the model as it was given.

=========================== ======================================================================================
operator                    written as
=========================== ======================================================================================
``LayerNormalization``      ``d / sqrt(mean(d**2) + epsilon)`` with ``d = x - mean(x)``, over the last axes
``RMSNormalization``        ``x / sqrt(mean(x**2) + epsilon)``, over the last axes
``Softmax``                 ``e / sum(e)`` with ``e = exp(x - max(x))`` or ``e = exp(x)``
=========================== ======================================================================================

Squares are ``Pow`` or ``Mul``; a quotient is ``Div``, or ``Mul`` by ``Reciprocal`` or by one ``Div``. Scale and bias behind a normalisation stay what they are.
"""

import onnx
import onnx.shape_inference
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["recognise"]

Value = onnx_ir.Value | None


def recognise(model: onnx_ir.Model) -> None:
    """Replace every pattern in the main graph, in place."""
    graph, found = model.graph, False
    if not any(node.op_type in ("Sqrt", "Exp") for node in graph):
        return
    ranks = _ranks(model)
    for node in list(graph):
        quotient = _quotient(node)
        made = quotient and (_normalisation(*quotient, ranks) or _softmax(*quotient))
        if not made:
            continue
        old = node.outputs[0]
        new = made.outputs[0]
        made.name, new.shape, new.type, name = node.name, old.shape, old.type, old.name
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [made], [old], [new])
        new.name, found = name, True
    if found:
        RemoveUnusedNodesPass()(model)


def _ranks(model: onnx_ir.Model) -> dict[str, int]:
    """Number of axes of every value by name, as far as ONNX infers it."""
    try:
        graph = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model)).graph
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError):
        return {}
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField("shape")}


def _made(value: Value, *operators: str) -> onnx_ir.Node | None:
    """The node of the standard domain that makes a value, if it is one of ``operators``."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in operators and node.domain in ("", "ai.onnx") else None


def _number(value: Value) -> float | None:
    """A constant of one element."""
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().ravel()[0]) if tensor is not None and tensor.size == 1 else None


def _quotient(node: onnx_ir.Node) -> tuple[Value, Value] | None:
    """Dividend and divisor."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
        return None
    if node.op_type == "Div":
        return node.inputs[0], node.inputs[1]
    if node.op_type == "Mul":
        for factor, other in (node.inputs, node.inputs[::-1]):
            inverse = _made(other, "Reciprocal", "Div")
            if inverse is not None and (inverse.op_type == "Reciprocal" or _number(inverse.inputs[0]) == 1):
                return factor, inverse.inputs[-1]
    return None


def _reduced(value: Value, operator: str) -> tuple[onnx_ir.Node, Value, list[int]] | None:
    """A reduction that keeps its axes: node, operand, axes."""
    node = _made(value, operator)
    if node is None or not node.attributes.get_int("keepdims", 1):
        return None
    listed = node.attributes.get_ints("axes", None)
    if listed is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = onnx_ir.convenience.get_const_tensor(node.inputs[1])
        listed = None if tensor is None else tensor.numpy().ravel().tolist()
    return (node, node.inputs[0], sorted(listed)) if listed else None


def _last_axes(axes: list[int], value: Value, ranks: dict[str, int]) -> int | None:
    """The first of ``axes``, counted from the end, where they are the last ones of a value; else ``None``."""
    rank = 0 if value is None else ranks.get(value.name or "", 0)
    if max(axes) >= 0 and not rank:
        return None
    counted = sorted(axis if axis < 0 else axis - rank for axis in axes)
    return counted[0] if counted == list(range(-len(counted), 0)) else None


def _same(left: Value, right: Value) -> bool:
    """Whether two values are one, or the same difference computed twice."""
    if left is right:
        return left is not None
    first, second = _made(left, "Sub", "ReduceMean"), _made(right, "Sub", "ReduceMean")
    if first is None or second is None or first.op_type != second.op_type or len(first.inputs) != len(second.inputs):
        return False
    return first.attributes == second.attributes and all(_same(*pair) for pair in zip(first.inputs, second.inputs, strict=True))


def _squared(value: Value) -> Value:
    """What a square is made of, ``None`` for another value."""
    node = _made(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if _number(node.inputs[1]) == 2 else None
    return node.inputs[0] if _same(node.inputs[0], node.inputs[1]) else None


def _normalisation(dividend: Value, divisor: Value, ranks: dict[str, int]) -> onnx_ir.Node | None:
    root = _made(divisor, "Sqrt")
    total = None if root is None else _made(root.inputs[0], "Add")
    if total is None:
        return None
    for mean, added in (total.inputs, total.inputs[::-1]):
        epsilon, variance = _number(added), _reduced(mean, "ReduceMean")
        if epsilon is None or variance is None or not _same(_squared(variance[1]), dividend):
            continue
        axis = _last_axes(variance[2], variance[1], ranks)
        if axis is None:
            continue
        centred = _made(dividend, "Sub")
        average = None if centred is None else _reduced(centred.inputs[1], "ReduceMean")
        centre = centred is not None and average is not None and average[1] is centred.inputs[0] and average[2] == variance[2]
        operator, source = ("LayerNormalization", centred.inputs[0]) if centre and centred is not None else ("RMSNormalization", dividend)
        attributes = [onnx_ir.AttrInt64("axis", axis), onnx_ir.AttrFloat32("epsilon", epsilon)]
        return onnx_ir.Node("", operator, [source], attributes, num_outputs=1)
    return None


def _softmax(dividend: Value, divisor: Value) -> onnx_ir.Node | None:
    total, power = _reduced(divisor, "ReduceSum"), _made(dividend, "Exp")
    if total is None or power is None or total[1] is not dividend or len(total[2]) != 1:
        return None
    source = power.inputs[0]
    shifted = _made(source, "Sub")
    largest = None if shifted is None else _reduced(shifted.inputs[1], "ReduceMax")
    if shifted is not None and largest is not None and largest[1] is shifted.inputs[0] and largest[2] == total[2]:
        source = shifted.inputs[0]
    return onnx_ir.Node("", "Softmax", [source], [onnx_ir.AttrInt64("axis", total[2][0])], num_outputs=1)
