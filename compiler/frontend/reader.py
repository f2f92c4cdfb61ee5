"""Bytes of an ONNX file to an :mod:`onnx_ir` model that is known to be well formed.

Anything may be in the bytes: every failure is a :class:`tritloom.errors.ModelError`.
"""

import onnx
import onnx.checker
import onnx.inliner
import onnx_ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, RemoveUnusedNodesPass

from tritloom.compiler.frontend.versions import OLDEST_OPSET, standard_opset, upgraded
from tritloom.errors import ModelError

__all__ = ["CUSTOM_DOMAINS", "LARGEST_TENSOR", "read_model", "read_proto"]

CUSTOM_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.channels_last")
"""Operator sets of QONNX; files often use them without importing them."""

LARGEST_TENSOR = 1 << 26
"""Elements of the largest tensor that is looked at; a damaged dimension must not ask for terabytes."""

_MOST_NODES = 100_000


def read_proto(data: bytes, name: str) -> onnx.ModelProto:
    """Parse and validate. Raises :class:`ModelError`; ``name`` is how the model is called in messages."""
    if not data:
        raise ModelError(f"{name} is empty; an ONNX model was expected")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"{name} is not an ONNX model, or it is damaged or truncated") from None
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"{name} is not an ONNX model: it has no graph with outputs")
    if len(model.graph.node) > _MOST_NODES:
        raise ModelError(f"{name} has {len(model.graph.node)} nodes, more than {_MOST_NODES}")
    _check_text(model, name)
    if standard_opset(model) < OLDEST_OPSET:
        raise ModelError(f"{name} has opset {standard_opset(model)}; export it with opset {OLDEST_OPSET} or later")
    imported = {entry.domain for entry in model.opset_import}
    used = {node.domain for node in model.graph.node}
    for domain in CUSTOM_DOMAINS:
        if domain in used and domain not in imported:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    external = next((t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL), None)
    if external is not None:
        raise ModelError(f"{name} keeps tensor {external!r} in another file; save the model with its weights inside one file")
    for value in model.graph.output:
        # Executors infer shapes that the file leaves out; the checker wants the field to be there.
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"{name} is not a valid ONNX model: {lines[0] if lines else 'the checker refused it'}") from None
    except (TypeError, ValueError):
        raise ModelError(f"{name} is not a valid ONNX model: a node, tensor or type in it is damaged") from None
    if model.functions:
        model = _inline(model, name)
    return upgraded(model, name)


def _check_text(model: onnx.ModelProto, name: str) -> None:
    """Refuse names and text attributes that are not UTF-8: each library would fail on them in its own way."""
    try:
        texts: list[str | bytes] = [entry.domain for entry in model.opset_import]
        for node in model.graph.node:
            texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
            for attribute in node.attribute:
                texts.append(attribute.name)
                if attribute.type == onnx.AttributeProto.STRING:
                    texts.append(attribute.s.decode("utf-8"))
        for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
            texts.append(value.name)
        damaged = any(not isinstance(text, str) for text in texts)
    except UnicodeDecodeError:
        damaged = True
    if damaged:
        raise ModelError(f"{name} is damaged: a name in it is not UTF-8 text")


def read_model(data: bytes, name: str) -> tuple[onnx.ModelProto, onnx_ir.Model]:
    """The validated model as protobuf (what a witness runs) and as the IR that is lowered: no unused nodes, no functions."""
    proto = read_proto(data, name)
    try:
        model = onnx_ir.from_proto(proto)
        RemoveInitializersFromInputsPass()(model)
        RemoveUnusedNodesPass()(model)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError):
        raise ModelError(f"{name} is not a valid ONNX model: a node, tensor or type in it is damaged") from None
    return proto, model


def _inline(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Replace calls of the model's own functions by their bodies."""
    sizes: dict[tuple[str, str], int] = {}
    bodies = {(function.domain, function.name): function for function in model.functions}

    def size(key: tuple[str, str], depth: int) -> int:
        if depth > len(bodies):
            raise ModelError(f"{name} has a function that calls itself")
        if key not in sizes:
            calls = [(node.domain, node.op_type) for node in bodies[key].node]
            sizes[key] = min(sum(size(call, depth + 1) if call in bodies else 1 for call in calls), _MOST_NODES)
        return sizes[key]

    total = sum(size((node.domain, node.op_type), 0) if (node.domain, node.op_type) in bodies else 1 for node in model.graph.node)
    if total >= _MOST_NODES:
        raise ModelError(f"{name} has more than {_MOST_NODES} nodes once its functions are expanded")
    try:
        return onnx.inliner.inline_local_functions(model)
    except RuntimeError as error:
        raise ModelError(f"{name}: its functions cannot be expanded: {str(error).splitlines()[0]}") from None
