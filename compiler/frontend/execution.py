"""Symbolic execution of a graph in topological order, with every problem collected."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tritloom.compiler.frontend import (
    operators_activation,
    operators_channels_last,
    operators_dense,
    operators_elementwise,
    operators_function,
    operators_fused,
    operators_join,
    operators_packed,
    operators_pad,
    operators_pool,
    operators_quantise,
    operators_reduce,
    operators_resize,
    operators_round,
    operators_select,
    operators_shape,
    operators_threshold,
    operators_transposed,
    operators_truncate,
    operators_vector,
)
from tritloom.compiler.frontend.annotations import annotated_type, check_claim, input_quantiser
from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.constants import fold
from tritloom.compiler.frontend.outputs import output_spec
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import OPERATORS, Node, handled
from tritloom.compiler.frontend.values import (
    LARGEST_ACTIVATION,
    LARGEST_BATCH,
    Constant,
    Operand,
    Source,
    Unknown,
    Value,
    canonical_shape,
    identity_view,
)
from tritloom.compiler.ir.program import OutputSpec
from tritloom.errors import ModelError, UserError

__all__ = ["FAMILIES", "Execution", "execute", "operator_key"]

FAMILIES = (operators_activation, operators_channels_last, operators_dense, operators_elementwise, operators_function, operators_fused, operators_join,
            operators_packed, operators_pad, operators_pool, operators_quantise, operators_reduce, operators_resize, operators_round,
            operators_select, operators_shape, operators_threshold, operators_transposed, operators_truncate, operators_vector)  # fmt: skip
"""The modules that put their handlers into the table when they are imported."""

_INPUT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 11: "float64"}
_ALIASES = {"ai.onnx": ""}
_MALFORMED = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, AttributeError)
"""What NumPy raises when a damaged model gives an operator operands of impossible shapes or types."""


@dataclass
class Execution:
    """What :func:`execute` found: one problem a refused node, and the outputs that could be described."""

    problems: list[Problem] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)


def _attributes(node: onnx_ir.Node) -> dict[str, Any]:
    found = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        found[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return found


def operator_key(node: onnx_ir.Node) -> tuple[str, str]:
    """Domain and name under which :data:`OPERATORS` has a node's operator."""
    return _ALIASES.get(node.domain, node.domain), node.op_type


def _label(node: onnx_ir.Node) -> str:
    return node.name or next((output.name for output in node.outputs if output.name), node.op_type) or node.op_type


def _source(value: onnx_ir.Value, name: str) -> tuple[Value | None, int | None]:
    """Symbolic value of a graph input, and its declared batch; ``None`` when nothing uses it."""
    label = str(value.name)
    if not value.uses() and not value.is_graph_output():
        return None, None
    if value.shape is None or value.dtype is None:
        raise ModelError(f"{name}: input {label!r} has no shape; export the model with input shapes, or give --shape {label}=1,SIZE,...")
    kind = _INPUT_TYPES.get(int(value.dtype))
    if kind is None:
        raise ModelError(f"{name}: input {label!r} is of type {value.dtype}; use float32, int8 or uint8 inputs")
    declared = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    if not declared:
        raise ModelError(f"{name}: input {label!r} is a single number; the first axis of an input must be the batch")
    if any(not isinstance(size, int) or size < 1 for size in declared[1:]):
        example = ",".join(["1", *(str(size) if isinstance(size, int) and size > 0 else "SIZE" for size in declared[1:])])
        raise ModelError(
            f"{name}: input {label!r} has shape {list(declared)}; every axis but the first (the batch) must be a fixed number: give --shape {label}={example}"
        )
    if isinstance(declared[0], int) and not 0 <= declared[0] <= LARGEST_BATCH:
        raise ModelError(f"{name}: input {label!r} declares a batch of {declared[0]}; export the model with a batch of 1 or a free one")
    sample = tuple(int(size) for size in declared[1:])
    if float(np.prod(sample, dtype=np.float64)) > LARGEST_ACTIVATION:
        raise ModelError(
            f"{name}: input {label!r} has shape {list(declared)}, more than {LARGEST_ACTIVATION} elements a sample; give smaller sizes with --shape where the model allows it"
        )
    shape = (1, *sample)
    base = Source(shape=canonical_shape(shape), name=label, declared=declared, dtype=np.dtype(kind))
    view = identity_view(shape)
    integer = kind in ("int8", "uint8")
    batch = declared[0] if isinstance(declared[0], int) else None
    stated = None if integer else annotated_type(value, name)
    quantiser = None if stated is None else input_quantiser(stated)
    return Value(name=label, base=base, view=view, chain=(), trail=(), start=view, witness=label, integer=integer, quantiser=quantiser,
                 source="quantiser" if quantiser is None else "declared", head=0), batch  # fmt: skip


def _run(builder: Builder, node: onnx_ir.Node, operands: tuple[Operand, ...], opset: int, batch: int | None) -> list[Operand]:
    """Values of a node's outputs. Raises :class:`RefusalError`."""
    domain, _ = operator_key(node)
    entry = OPERATORS.get((domain, node.op_type))
    constant = all(isinstance(operand, Constant) or operand is None for operand in operands)
    names = tuple(str(output.name or "") for output in node.outputs)
    own = entry is not None and (not constant or node.op_type in _EXACT)
    if own:
        assert entry is not None
        described = Node(label=_label(node), op=node.op_type, domain=domain, opset=opset, inputs=operands, outputs=names,
                         attributes=_attributes(node), batch=batch)  # fmt: skip
        result = handled(entry.handler, builder, described)
        if isinstance(result, list):
            return result
        if isinstance(result, Constant) and result.array.size > LARGEST_TENSOR:
            raise RefusalError("the result is too large", f"use tensors of at most {LARGEST_TENSOR} elements")
        return [result, *[Unknown()] * (len(names) - 1)]
    if not constant:
        raise RefusalError(_unsupported(node), _nearest(node))
    try:
        proto = onnx_ir.to_proto(node)
    except onnx_ir.serde.SerdeError:
        raise RefusalError("what it holds is damaged", "export the model again") from None
    assert isinstance(proto, onnx.NodeProto)
    return list(fold(proto, [operand if isinstance(operand, Constant) else None for operand in operands], opset))


_EXACT = (
    "BipolarQuant", "Constant", "DequantizeLinear", "Dropout", "Flatten", "Identity", "IntQuant", "MultiThreshold", "Quant", "QuantizeLinear", "Reshape", "Shape", "Size",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose handlers also take constants, because they keep or make the constant's grid."""

_FORMS = (
    (("GatherElements", "GatherND"), "use Slice, Split, Gather, Reshape or Transpose"),
    (("DeformConv",), "use Conv"),
    (("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
     "its scales are computed from each input; quantise statically, with constant scales from calibration data (quantize_static)"),
    (("FloatQuant",), "its codes are floating-point numbers of few bits; use Quant or QuantizeLinear, whose codes are integers"),
    (("ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "LpPool", "GlobalLpPool"), "use ReduceMean, AveragePool or MaxPool"),
    (("LpNormalization", "LRN"), "use BatchNormalization or LayerNormalization"),
    (("TopK",), "use Softmax, LogSoftmax or ArgMax at the end of the network"),
    (("LSTM", "GRU", "RNN", "If", "Scan"), "unroll it into Gemm, Conv and elementwise operators"),
    (("Einsum",), "use Add, Sub, Mul, Div, Relu, Clip or MatMul"),
)  # fmt: skip


def _unsupported(node: onnx_ir.Node) -> str:
    where = f" of domain {node.domain}" if node.domain else ""
    return f"operator {node.op_type}{where} is not supported"


def _nearest(node: onnx_ir.Node) -> str:
    """The nearest supported form of an operator that is not."""
    if ("", node.op_type) in OPERATORS:
        return f"use {node.op_type} of the standard ONNX operator set"
    found = next((form for names, form in _FORMS if node.op_type in names), None)
    return found or "express it by Conv, Gemm, MatMul, pools, Relu, Clip and elementwise operators with constants"


def execute(model: onnx_ir.Model, builder: Builder, name: str) -> Execution:
    """Run the graph symbolically; integer operations go to ``builder`` as they are needed."""
    graph = model.graph
    opset = max(model.opset_imports.get("", 0), model.opset_imports.get("ai.onnx", 0)) or 13
    result = Execution()
    values: dict[onnx_ir.Value, Operand] = {}
    batch: int | None = None
    for value in graph.inputs:
        if value.const_value is not None:
            continue
        symbolic, declared = _source(value, name)
        if symbolic is not None:
            values[value] = symbolic
            batch = declared if batch is None else batch
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses():
            continue
        try:
            array = np.asarray(tensor.numpy())
        except _MALFORMED:
            raise ModelError(f"{name}: initializer {value.name!r} is damaged") from None
        check_claim(value, array, name)
        values[value] = Constant(array)
    shapes: set[onnx_ir.Value | None] = set()
    for node in graph:
        operands = tuple(None if value is None else values.get(value, Unknown()) for value in node.inputs)
        unknown = [value for value, operand in zip(node.inputs, operands, strict=True) if isinstance(operand, Unknown)]
        if unknown:
            # What a refused node feeds cannot be judged in full, but an operator that is never supported can, unless it computes with shapes.
            if node.op_type in ("Shape", "Size") or shapes.issuperset(unknown):
                shapes.update(node.outputs)
            elif operator_key(node) not in OPERATORS:
                result.problems.append(Problem(_label(node), node.op_type, _unsupported(node), _nearest(node)))
            found: list[Operand] = [Unknown()] * len(node.outputs)
        else:
            found = _attempt(builder, node, operands, opset, batch, result.problems)
        values.update(zip(node.outputs, found, strict=False))
    for value in graph.outputs:
        operand = values.get(value, Unknown())
        if isinstance(operand, Unknown):
            continue
        producer = value.producer()
        try:
            result.outputs.append(output_spec(builder, value, operand, batch))
        except (RefusalError, *_MALFORMED) as error:
            where, op = (_label(producer), producer.op_type) if producer is not None else (str(value.name), "")
            result.problems.append(_problem(where, op, error))
    return result


def _problem(node: str, op: str, error: Exception) -> Problem:
    if isinstance(error, RefusalError):
        return Problem(node, op, error.reason, error.hint)
    if isinstance(error, UserError):
        # It is a ValueError too, but speaks of an option or of the calibration samples, not of the model.
        raise error
    text = str(error).splitlines()
    return Problem(node, op, f"it is malformed ({text[0] if text else type(error).__name__})", "export the model again")


def _attempt(
    builder: Builder, node: onnx_ir.Node, operands: tuple[Operand, ...], opset: int, batch: int | None, problems: list[Problem]
) -> list[Operand]:
    try:
        return _run(builder, node, operands, opset, batch)
    except (RefusalError, *_MALFORMED) as error:
        problems.append(_problem(_label(node), node.op_type, error))
    return [Unknown()] * len(node.outputs)
