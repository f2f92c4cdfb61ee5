"""Language models to programs: the entry, embeddings, dense layers and changes of shape. Read by :mod:`tritloom.compiler.frontend.sequence`."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.operators_attention import expanded, mixed, reshaped
from tritloom.compiler.frontend.portrait import weight_facts
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.sequence import SequenceReader
from tritloom.compiler.frontend.sequence_values import (
    GAIN_BITS,
    Block,
    Cache,
    Scores,
    Tokens,
    Value,
    attribute,
    integers,
    need_block,
    operator,
    single,
)
from tritloom.compiler.frontend.values import Constant
from tritloom.compiler.golden.quest import hadamard
from tritloom.compiler.ir.block import BlockProduct, Lookup
from tritloom.compiler.ir.program import Convolution, Program, Tensor, Window
from tritloom.compiler.ir.quest import Hadamard
from tritloom.compiler.quantize.weights import recognise

__all__ = ["lower_sequence", "rotation_of", "sequence_weights"]

DEFAULT_CAPACITY = 192
"""Tokens that the caches hold where nothing else is said."""

_LARGEST_ROTATION = 1 << 11
"""Channels of the blocks of a Hadamard transform."""


def lower_sequence(model: onnx.ModelProto, name: str, capacity: int | None) -> Program | Problem:
    """The program of one token, or the first node that no rule lowers. The caches hold ``capacity`` tokens, by default 192 or as many as the tables of angles have.

    Raises :class:`ModelError` for inputs and outputs of another kind.
    """
    if capacity is None:
        given = {value.name for value in model.graph.input}
        places = {("", "RotaryEmbedding"): 1, ("com.microsoft", "RotaryEmbedding"): 2, ("com.microsoft", "GroupQueryAttention"): 7}
        found = [(node, places.get((node.domain, node.op_type), len(node.input))) for node in model.graph.node]
        tables = {node.input[place] for node, place in found if place < len(node.input)}
        tables |= {node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[1] not in given}
        rows = [tensor.dims[0] for tensor in model.graph.initializer if tensor.name in tables and tensor.dims]
        capacity = max(1, min([DEFAULT_CAPACITY, *rows]))
    return SequenceReader(model, name, capacity).read()


def sequence_weights(program: Program) -> dict[str, dict[str, Any]]:
    """Facts of the weights of each layer, by its name: :func:`tritloom.compiler.frontend.portrait.weight_facts`."""
    return {
        operation.name: weight_facts(Constant(operation.weights.astype(np.float32)))
        for operation in program.walk()
        if isinstance(operation, Convolution)
    }


@operator("Gather")
def _gather(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    table, place = operands
    if not isinstance(table, np.ndarray) or not isinstance(place, Tokens) or table.ndim != 2 or attribute(node, "axis", 0):
        raise RefusalError("only a table of embeddings, (tokens, width), is looked up by the tokens")
    codes, step = (table.astype(np.int16), Fraction(1)) if table.dtype.kind in "iu" else integers(table, 15)
    if "token" not in reader.tensors:
        shape = Tensor(name="token", shape=(1, 1, 1), bits=32, low=0, high=len(table) - 1, scale=(Fraction(1),))
        reader.tensors["token"] = shape
    result = reader.emit(Lookup, node, (table.shape[1], 1, 1), step, bits=16, scaled=False, input="token", table=codes)
    return reader.result(result, step, (1, 1, table.shape[1]))


@operator("DequantizeLinear")
def _dequantize(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block, scale = need_block(operands[0], "the operand"), single(operands[1])
    if scale is None or (len(operands) > 2 and operands[2] is not None and np.any(operands[2])):
        raise RefusalError("a block has one scale and no zero point")
    return replace(block, constant=block.constant * scale)


# ---- dense layers ----


@operator("MatMul")
def _matmul(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands
    if isinstance(left, Scores):
        return mixed(reader, node, left, right)
    block = need_block(left, "the left operand")
    if isinstance(right, Cache):
        if right.axes[-2:] != "cn":
            raise RefusalError("keys must be transposed: tokens in the last axis")
        return Scores(block, right, Fraction(1))
    if not isinstance(right, np.ndarray) or right.ndim != 2:
        raise RefusalError("the right operand must be constant weights (inputs, outputs)")
    if not block.codes:
        found = rotation_of(right)
        if found is None:
            raise RefusalError(
                "its activations are not quantised", "quantise them by the largest magnitude, or by the root mean square, of a token"
            )
        return _rotated(reader, node, block, *found)
    weights = recognise(right.T)
    if weights is None:
        raise RefusalError(
            "its weights are not small integers with one scale, or one a column", "train ternary weights with one scale a layer"
        )
    block = reader.laid_out(node, block, pixels=1)
    codes = weights.codes[:, :, None, None]
    bound = int(np.abs(codes.astype(np.int64)).sum(axis=(1, 2, 3)).max(initial=0)) * reader.tensors[block.tensor].high
    shape = (len(codes), *reader.tensors[block.tensor].shape[1:])
    constant = block.constant * (weights.scale[0] if len(weights.scale) == 1 else 1)
    result = reader.emit(
        Convolution, node, shape, constant, scaled=block.scale, input=block.tensor, weights=codes, planes=weights.planes,
        window=Window(), step=None, acc_low=-bound, acc_high=bound,
    )  # fmt: skip
    if len(weights.scale) > 1:
        table, step = integers(np.array([float(scale) for scale in weights.scale]), GAIN_BITS)
        constant *= step
        result = reader.emit(
            BlockProduct, node, shape, constant, name=f"{result[0]}.scaled", left=result[0], left_scale=result[1], right="", table=table
        )
    return reader.result(result, constant, (*block.index.shape[:-1], len(codes)))


def rotation_of(matrix: np.ndarray) -> tuple[int, Fraction] | None:
    """Block and factor of weights that are a block-diagonal Hadamard matrix, Sylvester's, times a positive factor."""
    count = len(matrix)
    if matrix.shape != (count, count) or count < 2 or matrix.dtype.kind not in "iuf" or not matrix[0, 0] > 0:
        return None
    size = int(np.count_nonzero(matrix[0]))
    if size < 2 or size & (size - 1) or count % size or size > _LARGEST_ROTATION or np.count_nonzero(matrix) != count * size:
        return None
    signs = hadamard(np.eye(size, dtype=np.int64)[:, :, None, None], size)[..., 0, 0] * matrix[0, 0]
    if any(not np.array_equal(matrix[first : first + size, first : first + size], signs) for first in range(0, count, size)):
        return None
    return size, Fraction(float(matrix[0, 0]))


def _rotated(reader: SequenceReader, node: onnx.NodeProto, block: Block, size: int, factor: Fraction) -> Value:
    block = reader.laid_out(node, block)
    constant = block.constant * factor
    result = reader.emit(
        Hadamard, node, reader.tensors[block.tensor].shape, constant, input=block.tensor, input_scale=block.scale, size=size
    )
    return reader.result(result, constant, block.index.shape)


# ---- shapes ----


@operator("Reshape")
def _reshape(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if isinstance(operands[0], Cache):
        return reshaped(reader, operands[0], node.input[1])
    block = need_block(operands[0], "the operand")
    wanted = [int(size) for size in reader.settled(node.input[1])]
    wanted = [block.index.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return replace(block, index=block.index.reshape(wanted))


@operator("Expand")
def _expand(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if not isinstance(operands[0], Cache):
        raise RefusalError("only the heads of a cache are repeated")
    return expanded(reader, operands[0], node.input[1])


@operator("Transpose")
def _transpose(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value = operands[0]
    if isinstance(value, Block):
        return replace(value, index=value.index.transpose(attribute(node, "perm", None)))
    if isinstance(value, Cache):
        order = attribute(node, "perm", list(range(len(value.axes)))[::-1])
        return replace(value, axes="".join(value.axes[place] for place in order))
    raise RefusalError("only activations and caches are transposed")


@operator("Unsqueeze", "Squeeze")
def _resized(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value, axes = operands[0], [int(axis) for axis in np.ravel(reader.settled(node.input[1]))] if len(node.input) > 1 else None
    if isinstance(value, Block):
        index = value.index
        return replace(
            value,
            index=np.expand_dims(index, tuple(axes or ()))
            if node.op_type == "Unsqueeze"
            else np.squeeze(index, tuple(axes) if axes else None),
        )
    if isinstance(value, Cache) and node.op_type == "Unsqueeze" and axes is not None and len(axes) == 1 and axes[0] >= 0:
        return replace(value, axes=value.axes[: axes[0]] + "1" + value.axes[axes[0] :])
    raise RefusalError("only activations get and lose axes of size 1, and caches one")


@operator("Split")
def _split(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Value, ...]:
    block = need_block(operands[0], "the operand")
    axis, count = attribute(node, "axis", 0), len(node.output)
    length = block.index.shape[axis]
    sizes = attribute(node, "split", None)
    if len(node.input) > 1 and node.input[1]:
        sizes = reader.settled(node.input[1]).tolist()
    # The last of equal parts is the smaller one where they do not divide the axis.
    sizes = sizes or [min(-(-length // count), length - part * -(-length // count)) for part in range(count)]
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != length:
        raise RefusalError(f"parts of {sizes} elements do not make up an axis of {length}")
    return tuple(replace(block, index=part) for part in np.split(block.index, np.cumsum(sizes)[:-1], axis))


@operator("Slice")
def _slice(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = need_block(operands[0], "the operand")
    starts, ends = (np.ravel(reader.settled(name)).tolist() for name in node.input[1:3])
    given = [np.ravel(reader.settled(name)).tolist() if name else None for name in node.input[3:5]]
    axes, steps = [*given, None, None][:2]
    index = block.index
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True):
        index = index[(slice(None),) * (axis % index.ndim) + (slice(start, end, step),)]
    if not index.size or any(step < 1 for step in steps or ()):
        raise RefusalError("it must take elements in their order, and leave some")
    return replace(block, index=index)
