"""Operators of plain integers in models with loops: products with trits, sums, comparisons, logic, and the numbers of trips."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tritloom.compiler.frontend.constants import fold
from tritloom.compiler.frontend.loops import INTEGER_HANDLERS, LoopHandler, LoopReader
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence_values import ZERO, Integers, Trip, attribute, integers
from tritloom.compiler.frontend.values import Constant
from tritloom.compiler.ir.block import Lookup
from tritloom.compiler.ir.grid import Magnitude, Reduce
from tritloom.compiler.ir.program import Convolution, Window
from tritloom.hw.arch.trits import plane_count

__all__ = ["INTEGER_HANDLERS"]

_TABLE_BITS = 15
_LARGEST_WEIGHT = 128


def _operator(*names: str) -> Callable[[LoopHandler], LoopHandler]:
    def register(handler: LoopHandler) -> LoopHandler:
        INTEGER_HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _need(reader: LoopReader, node: onnx.NodeProto, value: Any) -> Integers:
    if not isinstance(value, Integers):
        raise RefusalError("it joins integers that are computed with something else", "cast and quantise both sides alike")
    return reader.laid_out(node, value)


def _number(value: Any) -> int | None:
    """A constant integer."""
    return int(value.ravel()[0]) if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iub" else None


def _result(reader: LoopReader, tensor: str, like: Integers) -> Integers:
    return replace(like, tensor=tensor)


def _sum(factors: tuple[int, int], constant: int = 0, low: int | None = None, high: int | None = None) -> LoopHandler:
    """The sum of both operands times ``factors``, plus ``constant``, limited to ``low`` and ``high``; one operand may be a constant number."""

    def handler(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
        left, right = operands
        if isinstance(left, Trip) or isinstance(right, Trip):
            return _later(node, left, right)
        terms, shift, shown = [], constant, None
        for operand, factor in ((left, factors[0]), (right, factors[1])):
            number = _number(operand)
            if number is None:
                placed = _need(reader, node, operand)
                if shown is not None and shown.index.shape != placed.index.shape:
                    raise RefusalError(f"shapes {shown.index.shape} and {placed.index.shape} differ")
                terms.append((placed, factor))
                shown = placed
            else:
                if isinstance(operand, np.ndarray) and operand.ndim > (left if operand is right else right).index.ndim:
                    raise RefusalError("its constant has more axes than its operand")
                shift += factor * number
        assert shown is not None
        return _result(reader, reader.clamped_sum(node, terms, shift, low, high), shown)

    return handler


def _later(node: onnx.NodeProto, left: Any, right: Any) -> Trip:
    """The number of a trip plus a constant."""
    trip, number = (left, _number(right)) if isinstance(left, Trip) else (right, _number(left))
    if node.op_type != "Add" or not isinstance(trip, Trip) or number is None or abs(number) > 1 << 20:
        raise RefusalError("only a constant is added to the number of a trip")
    return replace(trip, offset=trip.offset + number)


INTEGER_HANDLERS.update(
    Add=_sum((1, 1)),
    Sub=_sum((1, -1)),
    Greater=_sum((1, -1), 0, 0, 1),
    Less=_sum((-1, 1), 0, 0, 1),
    GreaterOrEqual=_sum((1, -1), 1, 0, 1),
    LessOrEqual=_sum((-1, 1), 1, 0, 1),
)


def _logic(constant: int) -> LoopHandler:
    """And (``constant`` -1) and Or (0) of truth values."""
    total = _sum((1, 1), constant, 0, 1)

    def handler(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
        for operand in operands:
            _need_truth(reader, operand)
        return total(reader, node, operands)

    return handler


INTEGER_HANDLERS.update(And=_logic(-1), Or=_logic(0))


def _need_truth(reader: LoopReader, operand: Any) -> None:
    tensor = reader.tensors[operand.tensor] if isinstance(operand, Integers) else None
    if tensor is not None and not 0 <= tensor.low <= tensor.high <= 1:
        raise RefusalError("it takes truth values")


@_operator("Not")
def _not(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    _need_truth(reader, operands[0])
    value = _need(reader, node, operands[0])
    return _result(reader, reader.clamped_sum(node, [(value, -1)], 1), value)


@_operator("Equal")
def _equal(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    difference = INTEGER_HANDLERS["Sub"](reader, node, operands)
    distance = _absolute(reader, node, [difference])
    return _result(reader, reader.clamped_sum(node, [(distance, -1)], 1, 0, 1), distance)


@_operator("Sign")
def _sign(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    value = _need(reader, node, operands[0])
    return _result(reader, reader.clamped_sum(node, [(value, 1)], 0, -1, 1), value)


@_operator("Abs")
def _absolute(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    value = _need(reader, node, operands[0])
    source = reader.tensors[value.tensor]
    low = 0 if source.low <= 0 <= source.high else min(abs(source.low), abs(source.high))
    output = reader.integers(node.output[0], source.shape, low, max(abs(source.low), abs(source.high)))
    reader.operations.append(Magnitude(name=node.name or node.output[0], output=output, input=value.tensor))
    return _result(reader, output, value)


@_operator("ReduceMax", "ReduceMin")
def _extreme(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    value = _need(reader, node, operands[0])
    dimensions = value.index.ndim
    axes = operands[1] if len(operands) > 1 and operands[1] is not None else np.array(attribute(node, "axes", []), np.int64)
    reduced = {int(axis) % dimensions for axis in np.ravel(axes)} if np.size(axes) else set(range(dimensions))
    if not np.size(axes) and attribute(node, "noop_with_empty_axes", 0):
        return value
    if any(size > 1 and axis not in reduced for axis, size in enumerate(value.index.shape)):
        raise RefusalError("only the largest or smallest of all integers of a tensor is taken", "reduce over all axes")
    source = reader.tensors[value.tensor]
    output = reader.integers(node.output[0], (1, 1, 1), source.low, source.high)
    operation = Reduce(name=node.name or node.output[0], output=output, input=value.tensor, smallest=node.op_type == "ReduceMin")
    reader.operations.append(operation)
    shape = [1 for axis in range(dimensions) if axis not in reduced or attribute(node, "keepdims", 1)]
    return Integers(output, np.zeros(shape, np.int64))


@_operator("Cast")
def _cast(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    value, kind = operands[0], helper.tensor_dtype_to_np_dtype(attribute(node, "to", onnx.TensorProto.FLOAT))
    if isinstance(value, Trip) and kind == np.int64:
        return value
    if not isinstance(value, Integers) or kind.kind not in "iu":
        raise RefusalError("integers are only cast to integers")
    source, bounds = reader.tensors[value.tensor], np.iinfo(kind)
    if source.low < bounds.min or source.high > bounds.max:
        raise RefusalError(f"integers in {source.low}..{source.high} do not fit {kind.name}")
    return value


@_operator("Identity")
def _same(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    return operands[0]


@_operator("MatMulInteger")
def _product(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Sums of integers times constant ones; no zero points."""
    value, weights = operands[:2]
    if not isinstance(value, Integers) or not isinstance(weights, np.ndarray) or weights.ndim != 2:
        raise RefusalError("the right operand must be constant weights (inputs, outputs)")
    if any(operand is not None and np.any(operand) for operand in operands[2:]):
        raise RefusalError("it has a zero point", "shift codes and weights so that 0 stands for 0")
    value = reader.laid_out(node, value)
    source, (inputs, outputs) = reader.tensors[value.tensor], weights.shape
    if source.bits > 8 or inputs != source.shape[0] or value.index.ndim < 2:
        raise RefusalError(f"{inputs} weights a sum do not fit {source.shape[0]} integers of {source.bits} bits")
    codes = weights.T.astype(np.int16)[:, :, None, None]
    largest = int(np.abs(codes).max(initial=0))
    if largest > _LARGEST_WEIGHT:
        raise RefusalError("its weights have more than 8 bits")
    bound = int(np.abs(codes.astype(np.int64)).sum(axis=(1, 2, 3)).max(initial=0)) * max(abs(source.low), abs(source.high))
    output = reader.integers(node.output[0], (outputs, *source.shape[1:]), -bound, bound)
    reader.tensors[output] = replace(reader.tensors[output], bits=32)
    reader.operations.append(
        Convolution(
            name=node.name or node.output[0], output=output, input=value.tensor, weights=codes, planes=plane_count(largest), window=Window(), step=None,
            acc_low=-bound, acc_high=bound,
        )
    )  # fmt: skip
    pixels = source.shape[2]
    index = np.arange(outputs * pixels).reshape(outputs, -1).T.reshape(*value.index.shape[:-1], outputs)
    return Integers(output, index)


@_operator("Concat")
def _joined(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Parts of one tensor, and zeros."""
    tensors = {operand.tensor for operand in operands if isinstance(operand, Integers)}
    places = [operand.index if isinstance(operand, Integers) else operand for operand in operands]
    zeros = all(isinstance(operand, Integers) or (isinstance(operand, np.ndarray) and not operand.any()) for operand in operands)
    if len(tensors) != 1 or not zeros:
        raise RefusalError("only parts of one tensor and zeros are joined")
    parts = [
        Constant(place if isinstance(operand, Integers) else np.full(place.shape, ZERO))
        for place, operand in zip(places, operands, strict=True)
    ]
    return Integers(tensors.pop(), fold(node, parts, reader.opset)[0].array)


@_operator("Gather")
def _looked_up(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Rows of a table of embeddings."""
    table, place = operands
    if not isinstance(table, np.ndarray) or not isinstance(place, Integers) or table.ndim != 2 or attribute(node, "axis", 0):
        raise RefusalError("only rows of a constant table of embeddings, (symbols, width), are looked up")
    last = len(table) - 1
    if place.tensor in (spec.tensor for spec in reader.inputs.values()):
        # An input that is looked up holds row numbers; golden refuses others.
        source = reader.tensors[place.tensor]
        reader.tensors[place.tensor] = replace(source, low=max(source.low, 0), high=min(source.high, last))
    shape = place.index.shape
    rows = reader.laid_out(node, Integers(place.tensor, place.index.reshape(-1, 1)))
    source = reader.tensors[rows.tensor]
    if not 0 <= source.low <= source.high <= last:
        raise RefusalError(f"row numbers in {source.low}..{source.high} leave a table of {last + 1} rows")
    narrow = table.dtype.kind in "iu" and table.dtype.itemsize <= 2 and int(table.max(initial=0)) < 1 << _TABLE_BITS
    if not narrow and table.dtype.kind != "f":
        raise RefusalError("its table holds integers of more than 16 bits")
    codes, step = (table.astype(np.int16), Fraction(1)) if narrow else integers(table, _TABLE_BITS)
    output = reader.integers(node.output[0], (table.shape[1], 1, source.shape[2]), int(codes.min(initial=0)), int(codes.max(initial=0)))
    reader.operations.append(Lookup(name=node.name or node.output[0], output=output, input=rows.tensor, table=codes))
    return reader.result((output, ""), step, (*shape, table.shape[1]))
