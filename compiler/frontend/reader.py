"""Bytes of an ONNX file to an :mod:`onnx_ir` model that is known to be well formed.

Anything may be in the bytes: every failure is a :class:`tritloom.errors.ModelError`.
"""

import re

import onnx
import onnx.checker
import onnx.inliner
import onnx_ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, RemoveUnusedNodesPass

from tritloom.compiler.frontend.several import with_pairs
from tritloom.compiler.frontend.versions import OLDEST_OPSET, standard_opset, upgraded
from tritloom.errors import ModelError

__all__ = ["CUSTOM_DOMAINS", "LARGEST_TENSOR", "parse_proto", "read_model", "read_proto"]

CUSTOM_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.channels_last")
"""Operator sets of QONNX; files often use them without importing them."""

LARGEST_TENSOR = 1 << 26
"""Elements of the largest tensor that is looked at; a damaged dimension must not ask for terabytes."""

_MOST_NODES = 100_000

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Line breaks and what a terminal takes for commands: messages print names."""
_RUNTIME_OPERATORS, _RUNTIME_DOMAIN = ("SimplifiedLayerNormalization",), "com.microsoft"


_LONGEST_NAME = 2000
"""Characters of a name: messages repeat names, and exporters join scopes to some hundred."""


def parse_proto(data: bytes, name: str) -> onnx.ModelProto:
    """Parse and make sure that nothing in the file leads out of it: no damaged or endless names, no tensor that lies in another file.

    Raises :class:`ModelError`; ``name`` is how the model is called in messages. Whether the graph makes sense is not looked at.
    """
    if not data:
        raise ModelError(f"{name} is empty; an ONNX model was expected")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelError(f"{name} is not an ONNX model, or it is damaged or truncated") from None
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"{name} is not an ONNX model: it has no graph with outputs")
    try:
        _check_contents(model, name)
    except UnicodeDecodeError:
        raise ModelError(f"{name} is damaged: a name in it is not UTF-8 text") from None
    return model


def _check_contents(model: onnx.ModelProto, name: str) -> None:
    """Walk everything that nodes, subgraphs and functions hold. Raises :class:`ModelError`, and UnicodeDecodeError for text that is none."""
    texts: list[str | bytes] = [entry.domain for entry in model.opset_import]
    graphs, tensors = [model.graph], list[onnx.TensorProto]()
    nodes = [node for function in model.functions for node in function.node]
    for function in model.functions:
        texts += [function.name, function.domain, *function.input, *function.output]
    count = 0
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            tensors.extend(graph.initializer)
            for sparse in graph.sparse_initializer:
                tensors += [sparse.values, sparse.indices]
            for value in (*graph.input, *graph.output, *graph.value_info):
                texts += [value.name, *(axis.dim_param for axis in value.type.tensor_type.shape.dim)]
            continue
        node = nodes.pop()
        count += 1
        if count > _MOST_NODES:
            raise ModelError(f"{name} has more than {_MOST_NODES} nodes")
        texts += [node.op_type, node.domain, node.name, *node.input, *node.output]
        for attribute in node.attribute:
            texts.append(attribute.name)
            if attribute.type == onnx.AttributeProto.STRING:
                attribute.s.decode("utf-8")
            graphs += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)
            tensors += [attribute.t] * attribute.HasField("t") + list(attribute.tensors)
            for sparse in (*[attribute.sparse_tensor] * attribute.HasField("sparse_tensor"), *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
    texts.extend(tensor.name for tensor in tensors)
    if any(not isinstance(text, str) for text in texts):
        raise ModelError(f"{name} is damaged: a name in it is not UTF-8 text")
    longest = max(texts, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ModelError(f"{name} has a name of {len(longest)} characters, more than {_LONGEST_NAME}: {longest[:40]!r}...")
    broken = next((text for text in texts if _CONTROL.search(str(text))), None)
    if broken is not None:
        raise ModelError(f"{name} has a name with control characters: {broken[:80]!r}; rename it")
    # Executors would read the file that the tensor names, wherever it lies.
    external = next((tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data), None)
    if external is not None:
        raise ModelError(f"{name} keeps tensor {external.name!r} in another file; save the model with its weights inside one file")


def read_proto(data: bytes, name: str) -> onnx.ModelProto:
    """Parse and validate. Raises :class:`ModelError`; ``name`` is how the model is called in messages."""
    model = parse_proto(data, name)
    if standard_opset(model) < OLDEST_OPSET:
        raise ModelError(f"{name} has opset {standard_opset(model)}; export it with opset {OLDEST_OPSET} or later")
    imported = {entry.domain for entry in model.opset_import}
    used = {node.domain for node in model.graph.node}
    for domain in CUSTOM_DOMAINS:
        if domain in used and domain not in imported:
            model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    outputs = [value.name for value in model.graph.output]
    if len(set(outputs)) < len(outputs):
        twice = next(output for output in outputs if outputs.count(output) > 1)
        raise ModelError(f"{name} lists graph output {twice!r} twice; list it once")
    for value in model.graph.output:
        # Executors infer shapes that the file leaves out; the checker wants the field to be there.
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(_known_to_checker(model))
    except onnx.checker.ValidationError as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"{name} is not a valid ONNX model: {lines[0][:300] if lines else 'the checker refused it'}") from None
    except (TypeError, ValueError):
        raise ModelError(f"{name} is not a valid ONNX model: a node, tensor or type in it is damaged") from None
    if model.functions:
        model = _inline(model, name)
    model = upgraded(model, name)
    return with_pairs(model, standard_opset(model))


def _known_to_checker(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the checker takes it: operators that ONNX Runtime adds to the standard domain stand in a domain of their own."""
    if not any(node.op_type in _RUNTIME_OPERATORS for node in model.graph.node):
        return model
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for node in copied.graph.node:
        if node.op_type in _RUNTIME_OPERATORS:
            node.domain = _RUNTIME_DOMAIN
    if _RUNTIME_DOMAIN not in {entry.domain for entry in model.opset_import}:
        copied.opset_import.append(onnx.helper.make_opsetid(_RUNTIME_DOMAIN, 1))
    return copied


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
