"""What a model is, for someone who has just been given it: dialect, sizes, bits of weights and activations, and what runs where."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.reader import CUSTOM_DOMAINS
from tritloom.compiler.frontend.registry import CORE, GOLDEN
from tritloom.compiler.frontend.values import Constant
from tritloom.compiler.ir.program import Convolution, Program
from tritloom.compiler.quantize.weights import recognise
from tritloom.hw.arch.trits import plane_count

__all__ = ["dialect_of", "parameters_of", "precision_of", "weight_facts", "where_it_runs"]

_Q_OPERATORS = (
    "ConvInteger", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMatMul", "QLinearMul", "QLinearSigmoid",
)  # fmt: skip


def dialect_of(model: onnx.ModelProto) -> list[str]:
    """How the file says what is quantised: QONNX, FINN MultiThreshold, QOperator, QCDQ (with Clip between), QDQ; or float."""
    operators = {(node.domain in CUSTOM_DOMAINS, node.op_type) for node in _nodes(model.graph)}
    custom = {name for own, name in operators if own}
    names = {name for _, name in operators}
    found = ["QONNX"] if custom & {"BipolarQuant", "FloatQuant", "IntQuant", "Quant", "Trunc"} else []
    if "MultiThreshold" in custom:
        found.append("FINN MultiThreshold")
    if names & set(_Q_OPERATORS):
        found.append("QOperator")
    if names & {"QuantizeLinear", "DequantizeLinear"}:
        quantised = {output for node in model.graph.node if node.op_type == "QuantizeLinear" for output in node.output}
        clipped = any(node.op_type == "Clip" and node.input and node.input[0] in quantised for node in model.graph.node)
        found.append("QCDQ" if clipped else "QDQ")
    return found or ["float"]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def parameters_of(model: onnx.ModelProto) -> int:
    """Numbers in the model's constants, without single ones (scales, bit widths) and without int64 (shapes, axes)."""
    counts = (math.prod(tensor.dims) for tensor in _constants(model) if tensor.data_type != onnx.TensorProto.INT64)
    return sum(count for count in counts if count > 1)


def weight_facts(constant: Constant) -> dict[str, Any]:
    """Of the weights of one layer: how many, bits of the integers they are (``None`` for float ones), ternary or not, share of zeros.

    Weights of two values, one the other's negative, have 1 bit.
    """
    values = constant.array
    found: dict[str, Any] = {"weights": int(values.size), "weight_bits": None, "ternary": False, "zeros": 0.0}
    if not values.size or values.dtype.kind not in "fiu" or not np.isfinite(values.astype(np.float64)).all():
        return found
    found["zeros"] = round(float(np.mean(values == 0)), 4)
    recognised = recognise(values)
    codes = None if recognised is None else recognised.codes
    if constant.grid is not None and (codes is None or np.abs(constant.grid.codes).max() < np.abs(codes).max()):
        codes = constant.grid.codes
    if codes is not None:
        low, high = int(codes.min()), int(codes.max())
        found["ternary"] = plane_count(max(-low, high)) == 1
        bits = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0, 1) + 1
        found["weight_bits"] = 1 if found["ternary"] and not (codes == 0).any() else bits
    return found


def precision_of(weighted: Mapping[str, Mapping[str, Any]], program: Program | None) -> list[dict[str, Any]]:
    """Each layer with weights: ``layer`` and its entry of ``weighted`` (:func:`weight_facts`); ``input_bits`` and ``output_bits`` of the layers that can be lowered."""
    placed = {} if program is None else {operation.name: operation for operation in program.walk() if isinstance(operation, Convolution)}
    rows = []
    for label, facts in weighted.items():
        row: dict[str, Any] = {"layer": label, **facts}
        if program is not None and label in placed:
            operation = placed[label]
            row["input_bits"] = program.tensors[operation.input].bits
            row["output_bits"] = program.tensors[operation.output].bits
        rows.append(row)
    return rows


def where_it_runs(program: Program, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Layers by kind, on the core and in golden only, and the host's steps before each input and behind each output."""
    core, golden = (dict(Counter(layer["op"] for layer in layers if layer["runs"] == place)) for place in (CORE, GOLDEN))
    before: dict[str, list[str]] = {}
    for spec in program.inputs:
        before.setdefault(spec.name, []).extend(op.kind for op in spec.prologue)
    behind = {spec.name: [op.kind for op in spec.epilogue] for spec in program.outputs}
    return {"core": core, "golden only": golden, "host": {"inputs": before, "outputs": behind}}
