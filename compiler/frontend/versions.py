"""Operator set versions: what the front end and ONNX Runtime cannot read as it is.

Read directly are operator sets from 7 on and IR versions from 3 on. Operator set 6 is converted to 7: there arithmetic broadcasts by attributes
(``broadcast``, ``axis``: operand 2 is aligned with the axes of operand 1 from ``axis`` on), the slopes of PRelu are those of axis 1, and BatchNormalization and Dropout say by
``is_test`` that they are not in training mode. (:mod:`onnx.version_converter` 1.23 aligns the operands wrongly and knows no batch without a number.)

For ONNX Runtime alone, which computes constants, calibration samples and the outside witness, operator sets later than it knows
are declared as the newest that it does: an operator whose form it does not know is refused by it.
"""

import onnx
import onnx.helper
import onnx.shape_inference

from tritloom.errors import ModelError

__all__ = ["NEWEST_RUNTIME_OPSET", "OLDEST_OPSET", "standard_opset", "upgraded", "without_newer_opsets"]

OLDEST_OPSET = 6
"""Before this the operators have other attributes, which no exporter in use writes."""

_OLDEST_READ = 7
NEWEST_RUNTIME_OPSET = 26
"""Of ONNX Runtime 1.31."""

_ARITHMETIC = ("Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


def standard_opset(model: onnx.ModelProto) -> int:
    """Version of the standard operator set; :data:`OLDEST_OPSET` + 1 where the model states none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=_OLDEST_READ)


def without_newer_opsets(model: onnx.ModelProto) -> None:
    """Declare at most :data:`NEWEST_RUNTIME_OPSET`, in place."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, NEWEST_RUNTIME_OPSET)


def upgraded(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """``model``, converted to operator set 7 where it is older. Raises :class:`ModelError` for what cannot be converted."""
    if standard_opset(model) >= _OLDEST_READ:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    ranks = _ranks(copy)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for number, node in enumerate(nodes):
        copy.graph.node.extend(_converted(node, ranks, f"opset_7_{number}", name) if node.domain in ("", "ai.onnx") else [node])
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = _OLDEST_READ
    return copy


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Axes of the values whose shape is known or can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (RuntimeError, ValueError, TypeError):
        graph = model.graph
    found = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = len(value.type.tensor_type.shape.dim)
    return found


def _converted(node: onnx.NodeProto, ranks: dict[str, int], prefix: str, name: str) -> list[onnx.NodeProto]:
    """A node of operator set 6 in operator set 7."""
    where = f"{name}: node {node.name or node.output[0]!r} ({node.op_type})"
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type in ("BatchNormalization", "Dropout") and not attributes.get("is_test", 0):
        raise ModelError(f"{where} is in training mode; export the model in evaluation mode")
    if node.op_type not in (*_ARITHMETIC, "BatchNormalization", "Dropout", "PRelu"):
        return [node]
    kept = [attribute for attribute in node.attribute if attribute.name not in ("axis", "broadcast", "is_test")]
    del node.attribute[:]
    node.attribute.extend(kept)
    axis = attributes.get("axis") if node.op_type in _ARITHMETIC and attributes.get("broadcast", 0) else None
    if node.op_type == "PRelu" and ranks.get(node.input[1]) == 1:
        axis = 1
    if axis is None:
        return [node]
    first, second = ranks.get(node.input[0]), ranks.get(node.input[1])
    if first is None or second is None:
        raise ModelError(f"{where} broadcasts along axis {axis} of an unknown shape; export the model with opset 7 or later")
    missing = first - axis % max(first, 1) - second
    if missing <= 0:
        return [node]
    wider = f"{prefix}_operand"
    axes = list(range(second, second + missing))
    unsqueezed = onnx.helper.make_node("Unsqueeze", [node.input[1]], [wider], name=f"{prefix}_unsqueeze", axes=axes)
    node.input[1] = wider
    return [unsqueezed, node]
