"""Norms of language models, as one operator or written out. Read by :mod:`tritloom.compiler.frontend.sequence`.

Written out are ``x / sqrt(mean(x ** 2) + epsilon)``, with Pow or Mul, Sqrt, Div or Reciprocal, and the same of ``x - mean(x)``; a gain and a bias of constants
that follow belong to the norm.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.operators_blocks import total
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import SequenceReader
from tritloom.compiler.frontend.sequence_values import (
    GAIN_BITS,
    PLAIN,
    SMALL,
    Block,
    Square,
    Step,
    Value,
    attribute,
    integers,
    last_axis,
    need_block,
    operator,
    same,
    scale_pair,
    single,
)
from tritloom.compiler.ir.block import Norm

__all__ = ["Moment", "Normed"]


@dataclass(frozen=True, eq=False)
class Centred(Step):
    """A block less its mean."""

    block: Block


@dataclass(frozen=True, eq=False)
class Moment(Step):
    """Of a token: its ``mean``, its ``power`` (the mean of the squares, plus ``epsilon``), ``factor`` times the ``root`` of the power or of its ``inverse``."""

    stage: str
    block: Block
    centre: bool = False
    epsilon: Fraction = Fraction(0)
    factor: Fraction = Fraction(1)


@dataclass(frozen=True, eq=False)
class Normed(Step):
    """``factor`` times a block over the root of its mean square, or with ``centre`` of its variance, times ``gain`` plus ``bias``; ``node`` made it."""

    node: onnx.NodeProto
    block: Block
    centre: bool
    epsilon: Fraction
    factor: Fraction
    gain: np.ndarray | None = None
    bias: np.ndarray | None = None


def _emitted(reader: SequenceReader, value: Normed) -> Block:
    """The norm as an operation."""
    node = value.node
    block, count = reader.laid_out(node, value.block), value.block.index.shape[-1]
    gain, step = integers(np.broadcast_to(np.float32(1) if value.gain is None else value.gain, (count,)), GAIN_BITS)
    # The result of the operation is divided by the root of the sum of squares; the model's by that of their mean.
    constant = step * value.factor * Fraction(math.sqrt(count))
    bias, bias_scale = None, (0, 0)
    if value.bias is not None and np.any(value.bias):
        bias, bias_step = integers(np.broadcast_to(value.bias, (count,)), GAIN_BITS)
        bias_scale = scale_pair(bias_step / constant)
    result = reader.emit(
        Norm, node, reader.tensors[block.tensor].shape, constant, input=block.tensor, input_scale=block.scale, gain=gain, bias=bias,
        bias_scale=bias_scale, centre=value.centre, epsilon=scale_pair(value.epsilon * count / block.constant**2),
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


PLAIN[Normed] = _emitted


# ---- operators ----


def _epsilon(node: onnx.NodeProto, default: float) -> Fraction:
    epsilon = np.float32(attribute(node, "epsilon", default))
    if not np.isfinite(epsilon) or epsilon < 0:
        raise RefusalError("its epsilon is negative or not finite", "use a small positive epsilon")
    return Fraction(float(epsilon))


@operator("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
def _norm(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = need_block(operands[0], "the operand")
    if attribute(node, "axis", -1) not in (-1, block.index.ndim - 1):
        raise RefusalError("it must go over the last axis", "axis = -1")
    bias = operands[2] if len(operands) > 2 else None
    return Normed(node, block, node.op_type == "LayerNormalization", _epsilon(node, 1e-5), Fraction(1), operands[1], bias)


@operator("com.microsoft.SkipSimplifiedLayerNormalization", "com.microsoft.SkipLayerNormalization")
def _skip_norm(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Value | None, ...]:
    """The norm of a sum, and the sum. Behind the gain stand a bias of the norm, if it has one, and a bias of the sum."""
    centre = node.op_type == "SkipLayerNormalization"
    block = total(reader, node, *operands[:2])
    bias, after = [*operands[3:], None, None][:2] if centre else (None, [*operands[3:], None][0])
    if after is not None:
        block = total(reader, node, block, after)
    return Normed(node, block, centre, _epsilon(node, 1e-12), Fraction(1), operands[2], bias), None, None, block


# ---- written out ----


@operator("ReduceMean")
def _mean(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    return _moment(node, operands, need_block(operands[0], "the operand"), Moment("mean", operands[0]))


@operator("ReduceMean", of=(Square,))
def _power(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    square = operands[0]
    return _moment(node, operands, square.block, Moment("power", square.block, square.centre))


def _moment(node: onnx.NodeProto, operands: list[Any], block: Block, moment: Moment) -> Moment:
    if not last_axis(node, operands, block.index.ndim):
        raise RefusalError("only the mean over a token's channels is taken", "the last axis, keepdims = 1")
    return moment


@operator("Sub", of=(Moment,))
def _centre(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block, mean = operands
    if not isinstance(mean, Moment) or mean.stage != "mean" or not same(block, mean.block):
        raise RefusalError("only its own mean is taken from a block")
    return Centred(mean.block)


@operator("Pow", of=(Centred,))
def _centred_square(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if single(operands[1]) != 2:
        raise RefusalError("only squares are taken", "an exponent of 2")
    return Square(operands[0].block, node, centre=True)


@operator("Add", of=(Moment,))
def _guard(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """A small number beside the root matters where a whole token is as small: golden then keeps more of it than the float model."""
    for moment, other in (operands, operands[::-1]):
        number = single(other)
        if isinstance(moment, Moment) and number is not None and number >= 0:
            if moment.stage == "power":
                return replace(moment, epsilon=moment.epsilon + number)
            if moment.stage == "root" and number <= SMALL:
                return moment
    raise RefusalError("only a small constant is added to a mean square or its root")


@operator("Sqrt", "Reciprocal", of=(Moment,))
def _root(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    moment = operands[0]
    if (moment.stage, node.op_type) == ("power", "Sqrt"):
        return replace(moment, stage="root")
    if (moment.stage, node.op_type) == ("root", "Reciprocal"):
        return replace(moment, stage="inverse", factor=1 / moment.factor)
    raise RefusalError("only a mean square has a root, and only the root is inverted")


@operator("Pow", of=(Moment,))
def _root_power(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    moment, exponent = operands[0], single(operands[1])
    if moment.stage != "power" or exponent is None or abs(exponent) != Fraction(1, 2):
        raise RefusalError("of a mean square only the root and its inverse are taken", "an exponent of 0.5 or -0.5")
    return replace(moment, stage="root" if exponent > 0 else "inverse")


def _divided(node: onnx.NodeProto, value: Any, moment: Moment, factor: Fraction) -> Value:
    """``factor`` times a block over its own root mean square."""
    block = value.block if isinstance(value, Centred) else value
    if isinstance(value, Centred) != moment.centre or not same(block, moment.block):
        raise RefusalError("a norm divides what its mean square was taken of")
    return Normed(node, moment.block, moment.centre, moment.epsilon, factor)


@operator("Div", of=(Moment, Centred))
def _divide(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value, moment = operands
    number = single(value)
    if isinstance(moment, Moment) and moment.stage == "root":
        if not isinstance(value, np.ndarray):
            return _divided(node, value, moment, 1 / moment.factor)
        if number is not None and number > 0:
            return replace(moment, stage="inverse", factor=number / moment.factor)
    raise RefusalError("only a block, or a positive constant, is divided by a root mean square")


@operator("Mul", of=(Moment, Centred))
def _multiply(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands
    if isinstance(left, Centred) and isinstance(right, Centred) and same(left.block, right.block):
        return Square(left.block, node, centre=True)
    for moment, other in ((left, right), (right, left)):
        number = single(other)
        if isinstance(moment, Moment) and moment.stage in ("root", "inverse") and number is not None and number > 0:
            return replace(moment, factor=moment.factor * number)
        if isinstance(moment, Moment) and moment.stage == "inverse":
            return _divided(node, other, moment, moment.factor)
    raise RefusalError("only a block is multiplied by the inverse of its root mean square")


def _again(reader: SequenceReader, node: onnx.NodeProto) -> tuple[Value | None, ...]:
    """A node that does not belong to the norm before it: read with the norm as an operation."""
    for name in node.input:
        reader.plain(name)
    return tuple(reader.node(node))


@operator("Mul", of=(Normed,))
def _gain(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value | tuple[Value | None, ...]:
    for value, other in (operands, operands[::-1]):
        if isinstance(value, Normed) and value.gain is None and value.bias is None and isinstance(other, np.ndarray):
            number, count = single(other), value.block.index.shape[-1]
            if number is not None and number > 0:
                return replace(value, node=node, factor=value.factor * number)
            if other.size == count and other.shape[-1] == count:
                return replace(value, node=node, gain=other.ravel())
    return _again(reader, node)


@operator("Add", of=(Normed,))
def _bias(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value | tuple[Value | None, ...]:
    for value, other in (operands, operands[::-1]):
        count = value.block.index.shape[-1] if isinstance(value, Normed) and value.bias is None else 0
        if isinstance(other, np.ndarray) and other.size == count and other.shape[-1] == count:
            return replace(value, node=node, bias=other.ravel())
    return _again(reader, node)
