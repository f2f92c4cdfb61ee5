"""What each operator of a language model becomes: blocks, steps of a quantiser, caches. Read by :mod:`tritloom.compiler.frontend.sequence`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tritloom.compiler.frontend.portrait import weight_facts
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.sequence import (
    HANDLERS,
    POSITION,
    Block,
    Cache,
    Draft,
    Handler,
    Scores,
    SequenceReader,
    Size,
    Tokens,
    Value,
)
from tritloom.compiler.frontend.values import Constant
from tritloom.compiler.ir.block import Attend, BlockProduct, BlockSum, Curve, Lookup, Norm, Quantise, Rectify, Rotate, Store
from tritloom.compiler.ir.program import Convolution, Program, State, Tensor, Window
from tritloom.compiler.quantize.weights import recognise
from tritloom.hw.arch.blockfloat import LEVELS, MANTISSA_BITS

__all__ = ["HANDLERS", "attribute", "integers_near", "lower_sequence", "need_block", "scale_pair", "sequence_weights", "single"]

DEFAULT_CAPACITY = 192
"""Tokens that the caches hold where nothing else is said."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

_GAIN_BITS, _ANGLE_BITS, _CURVE_BITS = 15, 14, 15


def lower_sequence(model: onnx.ModelProto, name: str, capacity: int | None) -> Program | Problem:
    """The program of one token, or the first node that no rule lowers. The caches hold ``capacity`` tokens, by default 192 or as many as the tables of angles have.

    Raises :class:`ModelError` for inputs and outputs of another kind.
    """
    if capacity is None:
        given = {value.name for value in model.graph.input}
        tables = {node.input[1] for node in model.graph.node if node.op_type == "RotaryEmbedding" and len(node.input) > 1}
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


def scale_pair(value: Fraction | float) -> tuple[int, int]:
    """The scale (mantissa, exponent) nearest to a number that is not negative."""
    if not value:
        return 0, 0
    mantissa, exponent = math.frexp(float(value))
    rounded = round(mantissa * (1 << MANTISSA_BITS))
    return (rounded >> 1, exponent + 1 - MANTISSA_BITS) if rounded >> MANTISSA_BITS else (rounded, exponent - MANTISSA_BITS)


def integers_near(values: np.ndarray, bits: int) -> tuple[np.ndarray, Fraction]:
    """``codes * step`` near ``values``: int16 codes of ``bits`` bits without sign, and a step that is a power of two."""
    largest = float(np.abs(values).max(initial=0))
    step = Fraction(2) ** (math.frexp(largest)[1] - bits)
    codes = np.rint(values.astype(np.float64) / float(step))
    return np.clip(codes, -(1 << bits), (1 << bits) - 1).astype(np.int16), step


def _operator(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def single(value: Any) -> Fraction | None:
    """A constant of one element."""
    return Fraction(float(value.ravel()[0])) if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu" else None


def need_block(value: Any, what: str) -> Block:
    if not isinstance(value, Block):
        raise RefusalError(f"{what} is not a value that a core computes", "quantise it by the largest magnitude of a token")
    return value


@_operator("Gather")
def _gather(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    table, place = operands
    if not isinstance(table, np.ndarray) or not isinstance(place, Tokens) or table.ndim != 2 or attribute(node, "axis", 0):
        raise RefusalError("only a table of embeddings, (tokens, width), is looked up by the tokens")
    codes, step = (table.astype(np.int16), Fraction(1)) if table.dtype.kind in "iu" else integers_near(table, 15)
    if "token" not in reader.tensors:
        shape = Tensor(name="token", shape=(1, 1, 1), bits=32, low=0, high=len(table) - 1, scale=(Fraction(1),))
        reader.tensors["token"] = shape
    result = reader.emit(Lookup, node, (table.shape[1], 1, 1), step, bits=16, scaled=False, input="token", table=codes)
    return reader.result(result, step, (1, 1, table.shape[1]))


@_operator("DequantizeLinear")
def _dequantize(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block, scale = need_block(operands[0], "the operand"), single(operands[1])
    if scale is None or (len(operands) > 2 and operands[2] is not None and np.any(operands[2])):
        raise RefusalError("a block has one scale and no zero point")
    return replace(block, constant=block.constant * scale)


@_operator("RMSNormalization", "LayerNormalization")
def _norm(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block, centre = need_block(operands[0], "the operand"), node.op_type == "LayerNormalization"
    if attribute(node, "axis", -1) not in (-1, block.index.ndim - 1):
        raise RefusalError("it must go over the last axis", "axis = -1")
    block, count = reader.laid_out(node, block), block.index.shape[-1]
    gain, step = integers_near(np.broadcast_to(operands[1], (count,)), _GAIN_BITS)
    epsilon = Fraction(float(np.float32(attribute(node, "epsilon", 1e-5)))) * count / block.constant**2
    # The result of the operation is divided by the root of the sum of squares; the model's by that of their mean.
    constant = step * Fraction(math.sqrt(count))
    bias, bias_scale = None, (0, 0)
    if len(operands) > 2 and operands[2] is not None and np.any(operands[2]):
        bias, bias_step = integers_near(np.broadcast_to(operands[2], (count,)), _GAIN_BITS)
        bias_scale = scale_pair(bias_step / constant)
    result = reader.emit(
        Norm, node, reader.tensors[block.tensor].shape, constant, input=block.tensor, input_scale=block.scale, gain=gain, bias=bias,
        bias_scale=bias_scale, centre=centre, epsilon=scale_pair(epsilon),
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@_operator("MatMul")
def _matmul(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands
    if isinstance(left, Scores):
        return _attend(reader, node, left, right)
    block = need_block(left, "the left operand")
    if isinstance(right, Cache):
        if right.axes[-2:] != "cn":
            raise RefusalError("keys must be transposed: tokens in the last axis")
        return Scores(block, right, Fraction(1))
    if not isinstance(right, np.ndarray) or right.ndim != 2:
        raise RefusalError("the right operand must be constant weights (inputs, outputs)")
    if not block.codes:
        raise RefusalError("its activations are not quantised", "quantise them by the largest magnitude of a token")
    weights = recognise(right.T)
    if weights is None:
        raise RefusalError(
            "its weights are not small integers with one scale, or one a column", "train ternary weights with one scale a layer"
        )
    block = reader.laid_out(node, block, pixels=1)
    codes = weights.codes[:, :, None, None]
    bound = int(np.abs(codes.astype(np.int64)).sum(axis=(1, 2, 3)).max(initial=0)) * LEVELS
    shape = (len(codes), *reader.tensors[block.tensor].shape[1:])
    constant = block.constant * (weights.scale[0] if len(weights.scale) == 1 else 1)
    result = reader.emit(
        Convolution, node, shape, constant, scaled=block.scale, input=block.tensor, weights=codes, planes=weights.planes,
        window=Window(), step=None, acc_low=-bound, acc_high=bound,
    )  # fmt: skip
    if len(weights.scale) > 1:
        table, step = integers_near(np.array([float(scale) for scale in weights.scale]), _GAIN_BITS)
        constant *= step
        result = reader.emit(
            BlockProduct, node, shape, constant, name=f"{result[0]}.scaled", left=result[0], left_scale=result[1], right="", table=table
        )
    return reader.result(result, constant, (*block.index.shape[:-1], len(codes)))


def _attend(reader: SequenceReader, node: onnx.NodeProto, scores: Scores, values: Any) -> Value:
    if not scores.weights or not isinstance(values, Cache) or values.axes[-2:] != "nc" or values.shape != scores.keys.shape:
        raise RefusalError("only Softmax of queries times keys is multiplied by the cached values")
    queries = reader.laid_out(node, scores.queries)
    if not queries.codes:
        quantised = reader.emit(
            Quantise, node, reader.tensors[queries.tensor].shape, queries.constant / LEVELS, bits=8, name=f"{queries.tensor}.codes",
            input=queries.tensor, input_scale=queries.scale,
        )  # fmt: skip
        queries = reader.result(quantised, queries.constant / LEVELS, queries.index.shape, codes=True)
    channels, heads, _ = reader.tensors[queries.tensor].shape
    if channels != values.shape[1] or heads % values.shape[0]:
        raise RefusalError(f"{heads} query heads of {channels} channels do not fit {values.shape[0]} key heads of {values.shape[1]}")
    logit = queries.constant * scores.keys.constant * scores.factor * Fraction(256 * math.log2(math.e))
    result = reader.emit(
        Attend, node, (heads * channels, 1, 1), values.constant, queries=queries.tensor, queries_scale=queries.scale, keys=scores.keys.tensor,
        keys_scale=scores.keys.scale, values=values.tensor, values_scale=values.scale, position=POSITION, logit=scale_pair(logit),
    )  # fmt: skip
    index = np.arange(heads * channels).reshape(*queries.index.shape[:-1], channels)
    return Block(*result, values.constant, index)


@_operator("Mul")
def _multiply(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for left, right in (operands, operands[::-1]):
        number = single(right)
        if (
            isinstance(left, Draft)
            and isinstance(right, Draft)
            and left.block is right.block
            and (left.stage, right.stage) == ("codes", "step")
        ):
            return _quantised(reader, node, left.block)
        if isinstance(left, Block) and isinstance(right, Draft) and right.block is left and right.stage == "ratio":
            return Draft("scaled", left)
        if isinstance(left, Block) and number is not None and number > 0:
            return replace(left, constant=left.constant * number, codes=left.codes)
        if isinstance(left, Scores) and number is not None and number > 0:
            return replace(left, factor=left.factor * number)
    left, right = _pair(reader, node, operands)
    constant = left.constant * right.constant
    result = reader.emit(
        BlockProduct, node, reader.tensors[left.tensor].shape, constant, left=left.tensor, left_scale=left.scale, right=right.tensor,
        right_scale=right.scale, table=right.table,
    )  # fmt: skip
    return reader.result(result, constant, left.index.shape)


@dataclass(frozen=True, eq=False)
class _Operand:
    """The right side of a sum or product: a tensor, or a table of one number a channel."""

    constant: Fraction
    tensor: str = ""
    scale: str = ""
    table: np.ndarray | None = None


def _pair(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Block, _Operand]:
    """Both sides of a sum or product, in one layout."""
    left, right = operands[::-1] if isinstance(operands[0], np.ndarray) else operands
    left = reader.laid_out(node, need_block(left, "an operand"))
    if isinstance(right, np.ndarray):
        if right.size not in (1, left.index.shape[-1]) or (right.size > 1 and right.shape[-1] != right.size):
            raise RefusalError(f"a constant of shape {right.shape} has not one number a channel of {left.index.shape}")
        table, step = integers_near(np.broadcast_to(right.ravel(), left.index.shape[-1:]), _GAIN_BITS)
        return left, _Operand(step, table=table)
    right = need_block(right, "an operand")
    if left.index.shape != right.index.shape:
        raise RefusalError(f"shapes {left.index.shape} and {right.index.shape} differ")
    right = reader.laid_out(node, right)
    return left, _Operand(right.constant, right.tensor, right.scale)


def _quantised(reader: SequenceReader, node: onnx.NodeProto, block: Block) -> Block:
    block = reader.laid_out(node, block)
    constant = block.constant / LEVELS
    result = reader.emit(Quantise, node, reader.tensors[block.tensor].shape, constant, bits=8, input=block.tensor, input_scale=block.scale)
    return reader.result(result, constant, block.index.shape, codes=True)


@_operator("Div")
def _divide(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands
    number = single(left)
    if isinstance(right, Draft) and number is not None:
        if right.stage == "largest" and number == LEVELS:
            return Draft("ratio", right.block)
        if right.stage == "ratio" and number == 1:
            return Draft("step", right.block)
    if (
        isinstance(left, Draft)
        and isinstance(right, Draft)
        and left.block is right.block
        and (left.stage, right.stage) == ("codes", "ratio")
    ):
        return _quantised(reader, node, left.block)
    number = single(right)
    if isinstance(left, (Block, Scores)) and number is not None and number > 0:
        field_ = "constant" if isinstance(left, Block) else "factor"
        return replace(left, **{field_: getattr(left, field_) / number})
    raise RefusalError("only a quantiser's largest magnitude, or a constant, divides here")


@_operator("Add")
def _add(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for (left, right), name in ((operands, node.input[1]), (operands[::-1], node.input[0])):
        if isinstance(left, Scores) and isinstance(right, (Size, np.ndarray)):
            if isinstance(right, Size) and reader.is_zero(name):
                return left
            raise RefusalError("the mask of a single token must be zero", "leave the attention to all earlier tokens")
    left, right = _pair(reader, node, operands)
    # Constants are relative to the larger one, so that they are near 1.
    constant = max(left.constant, right.constant)
    result = reader.emit(
        BlockSum, node, reader.tensors[left.tensor].shape, constant, left=left.tensor, left_scale=left.scale, right=right.tensor,
        right_scale=right.scale, table=right.table, left_constant=scale_pair(left.constant / constant),
        right_constant=scale_pair(right.constant / constant),
    )  # fmt: skip
    return reader.result(result, constant, left.index.shape)


@_operator("Relu")
def _relu(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = reader.laid_out(node, need_block(operands[0], "the operand"))
    source = reader.tensors[block.tensor]
    result = reader.emit(Rectify, node, source.shape, block.constant, scaled=block.scale, bits=source.bits, input=block.tensor)
    return reader.result(result, block.constant, block.index.shape)


@_operator("Sigmoid")
def _sigmoid(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = reader.laid_out(node, need_block(operands[0], "the operand"))
    points = (np.arange(1024) - 512) / 64
    table = np.minimum(np.rint((1 << _CURVE_BITS) / (1 + np.exp(-points))), (1 << _CURVE_BITS) - 1).astype(np.int16)
    constant = Fraction(1, 1 << _CURVE_BITS)
    result = reader.emit(
        Curve, node, reader.tensors[block.tensor].shape, constant, bits=16, scaled=False, input=block.tensor, input_scale=block.scale,
        constant=scale_pair(block.constant), table=table,
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


# ---- steps of a written-out quantiser ----


def _advance(before: str | None, after: str) -> Handler:
    def handler(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
        value = operands[0]
        if before is None and isinstance(value, Block):
            return Draft(after, value)
        if isinstance(value, Draft) and value.stage == before:
            return Draft(after, value.block)
        raise RefusalError("it is no step of a quantiser by the largest magnitude", "Abs, ReduceMax, Max, Div, Mul, Round, Clip, Mul")

    return handler


HANDLERS.update(Abs=_advance(None, "magnitude"), Round=_advance("scaled", "rounded"), Reciprocal=_advance("ratio", "step"))


@_operator("ReduceMax")
def _largest(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    axes = operands[1] if len(operands) > 1 else np.array(attribute(node, "axes", []))
    value = operands[0]
    last = (
        isinstance(value, Draft)
        and axes is not None
        and np.array_equal(np.asarray(axes) % value.block.index.ndim, [value.block.index.ndim - 1])
    )
    if not last or value.stage != "magnitude" or not attribute(node, "keepdims", 1):
        raise RefusalError("only the largest magnitude of a token's channels is taken", "Abs before it, the last axis, keepdims = 1")
    return Draft("largest", value.block)


@_operator("Max")
def _floor(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """A floor of the largest magnitude matters where a whole token is smaller: golden then keeps more of it than the float model, at most the floor itself."""
    value, number = operands[0], single(operands[1]) if len(operands) == 2 else None
    if not isinstance(value, Draft) or value.stage != "largest" or number is None or not 0 < number <= Fraction(1, 10_000):
        raise RefusalError("only a small number is a floor of a largest magnitude")
    return value


@_operator("Clip")
def _clip(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value = operands[0]
    low, high = (single(operand) for operand in operands[1:3])
    if not isinstance(value, Draft) or value.stage != "rounded" or low not in (-LEVELS - 1, -LEVELS) or high != LEVELS:
        raise RefusalError("only rounded codes are limited here, to -128 or -127, and 127")
    return Draft("codes", value.block)


# ---- attention ----


@_operator("RotaryEmbedding")
def _rotary(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = need_block(operands[0], "the operand")
    cosine, sine = operands[1], operands[2]
    if (
        not isinstance(cosine, np.ndarray)
        or not isinstance(sine, np.ndarray)
        or len(node.input) < 4
        or not reader.is_position(node.input[3])
    ):
        raise RefusalError("it needs constant tables of cosines and sines, and the number of earlier tokens as position")
    if attribute(node, "rotary_embedding_dim", 0) or block.index.ndim != 4 or cosine.shape[-1] * 2 != block.index.shape[-1]:
        raise RefusalError("it must turn whole heads: (1, heads, 1, channels)")
    if len(cosine) < reader.capacity:
        raise RefusalError(
            f"its tables hold {len(cosine)} positions, the caches {reader.capacity}", f"compile with --context {len(cosine)}"
        )
    block = reader.laid_out(node, block)
    constant = block.constant / (1 << _ANGLE_BITS)
    tables = [np.rint(table[: reader.capacity] * (1 << _ANGLE_BITS)).astype(np.int16) for table in (cosine, sine)]
    result = reader.emit(
        Rotate, node, reader.tensors[block.tensor].shape, constant, input=block.tensor, input_scale=block.scale, position=POSITION, cosine=tables[0],
        sine=tables[1], interleaved=bool(attribute(node, "interleaved", 0)),
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@_operator("Concat")
def _append(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if (
        len(operands) != 2
        or not isinstance(operands[0], Cache)
        or not isinstance(operands[1], Block)
        or attribute(node, "axis", 0) not in (2, -2)
    ):
        raise RefusalError("only the new keys or values of a token are appended to a cache, along the tokens")
    cache, block = operands
    if not block.codes:
        raise RefusalError("what a cache stores is not quantised", "quantise keys and values by the largest magnitude of a token and head")
    block = reader.laid_out(node, block)
    heads, channels = cache.shape
    if reader.tensors[block.tensor].shape != (channels, heads, 1):
        raise RefusalError(f"new columns of {block.index.shape} do not fit a cache of {heads} heads of {channels} channels")
    names = []
    for part, source in ((cache.tensor, block.tensor), (cache.scale, block.scale)):
        old = reader.tensors[part]
        output, _ = reader.emit(
            Store,
            node,
            old.shape,
            block.constant,
            bits=old.bits,
            scaled=False,
            name=f"{part}.after",
            cache=part,
            input=source,
            position=POSITION,
        )
        reader.tensors[part] = replace(old, scale=(block.constant,))
        reader.states.append(State(tensor=part, following=output))
        names.append(output)
    return Cache(names[0], names[1], block.constant, cache.shape, cache.axes)


@_operator("Softmax")
def _softmax(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if not isinstance(operands[0], Scores) or attribute(node, "axis", -1) not in (-1, operands[0].queries.index.ndim - 1):
        raise RefusalError("only the scores of an attention pass through it, along the tokens")
    return replace(operands[0], weights=True)


# ---- shapes ----


@_operator("Reshape")
def _reshape(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = need_block(operands[0], "the operand")
    wanted = [int(size) for size in reader.settled(node.input[1])]
    wanted = [block.index.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return replace(block, index=block.index.reshape(wanted))


@_operator("Transpose")
def _transpose(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value = operands[0]
    if isinstance(value, Block):
        return replace(value, index=value.index.transpose(attribute(node, "perm", None)))
    if isinstance(value, Cache):
        order = attribute(node, "perm", list(range(len(value.axes)))[::-1])
        return replace(value, axes="".join(value.axes[place] for place in order))
    raise RefusalError("only activations and caches are transposed")


@_operator("Unsqueeze", "Squeeze")
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


@_operator("Identity", "Cast")
def _same(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if node.op_type == "Cast" and attribute(node, "to", 0) not in _FLOATS:
        raise RefusalError("activations are only cast from one float type to another")
    return operands[0]
