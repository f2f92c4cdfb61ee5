"""Sums, products and curves of blocks, element by element. Read by :mod:`tritloom.compiler.frontend.sequence`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import SequenceReader
from tritloom.compiler.frontend.sequence_values import (
    GAIN_BITS,
    PLAIN,
    Block,
    Cache,
    Scores,
    Size,
    Square,
    Turning,
    Value,
    attribute,
    integers,
    need_block,
    operator,
    same,
    scale_pair,
    single,
)
from tritloom.compiler.ir.block import BlockProduct, BlockSum, Curve, Rectify

__all__ = ["added", "masked", "multiplied", "product", "scaled", "total"]

_CURVE_BITS = 15


@dataclass(frozen=True, eq=False)
class _Operand:
    """The right side of a sum or product: a tensor, or a table of one number a channel."""

    constant: Fraction
    tensor: str = ""
    scale: str = ""
    table: np.ndarray | None = None


def _pair(reader: SequenceReader, node: onnx.NodeProto, left: Any, right: Any) -> tuple[Block, _Operand]:
    """Both sides of a sum or product, in one layout."""
    left, right = (right, left) if isinstance(left, np.ndarray) else (left, right)
    left = reader.laid_out(node, need_block(left, "an operand"))
    if isinstance(right, np.ndarray):
        if right.size not in (1, left.index.shape[-1]) or (right.size > 1 and right.shape[-1] != right.size):
            raise RefusalError(f"a constant of shape {right.shape} has not one number a channel of {left.index.shape}")
        table, step = integers(np.broadcast_to(right.ravel(), left.index.shape[-1:]), GAIN_BITS)
        return left, _Operand(step, table=table)
    right = need_block(right, "an operand")
    if left.index.shape != right.index.shape:
        raise RefusalError(f"shapes {left.index.shape} and {right.index.shape} differ")
    right = reader.laid_out(node, right)
    return left, _Operand(right.constant, right.tensor, right.scale)


def product(reader: SequenceReader, node: onnx.NodeProto, left: Any, right: Any) -> Block:
    """Element by element; one of them may be a constant of one number a channel. Raises :class:`RefusalError`."""
    block, other = _pair(reader, node, left, right)
    constant = block.constant * other.constant
    result = reader.emit(
        BlockProduct, node, reader.tensors[block.tensor].shape, constant, left=block.tensor, left_scale=block.scale, right=other.tensor,
        right_scale=other.scale, table=other.table,
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


def scaled(value: Any, factor: Fraction | None) -> Value | None:
    """A block, keys, values or scores times a positive number; None where it is no such product."""
    if factor is None or factor <= 0:
        return None
    if isinstance(value, Block | Cache):
        return replace(value, constant=value.constant * factor)
    return replace(value, factor=value.factor * factor) if isinstance(value, Scores) else None


def total(reader: SequenceReader, node: onnx.NodeProto, left: Any, right: Any) -> Block:
    """The sum of two blocks, or of a block and a constant of one number a channel. Raises :class:`RefusalError`."""
    block, other = _pair(reader, node, left, right)
    # Constants are relative to the larger one, so that they are near 1.
    constant = max(block.constant, other.constant)
    result = reader.emit(
        BlockSum, node, reader.tensors[block.tensor].shape, constant, left=block.tensor, left_scale=block.scale, right=other.tensor,
        right_scale=other.scale, table=other.table, left_constant=scale_pair(block.constant / constant),
        right_constant=scale_pair(other.constant / constant),
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@operator("Mul")
def multiplied(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """Any product: of blocks, of scores and constants, of a block and cosines of positions. Raises :class:`RefusalError`."""
    left, right = operands
    if isinstance(left, Block) and same(left, right):
        return Square(left, node)
    for value, other, name in ((left, right, node.input[1]), (right, left, node.input[0])):
        found = scaled(value, single(other))
        if found is not None:
            return found
        if isinstance(value, Block) and isinstance(other, Size):
            return Turning("along", block=value, angles=name)
    return product(reader, node, left, right)


PLAIN[Square] = lambda reader, value: product(reader, value.node, value.block, value.block)


@operator("Pow")
def _power(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block, exponent = need_block(operands[0], "the operand"), single(operands[1])
    if exponent not in (2, 3):
        raise RefusalError("only squares and cubes are taken", "an exponent of 2 or 3")
    square = Square(block, node)
    return square if exponent == 2 else product(reader, node, PLAIN[Square](reader, square), block)


@operator("Div")
def _divide(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    number = single(operands[1])
    found = scaled(operands[0], 1 / number if number else None)
    if found is None:
        raise RefusalError("only a positive constant, a quantiser's largest magnitude or a root mean square divides here")
    return found


@operator("Add")
def added(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """The sum of two blocks, or of a block and a constant of one number a channel; a mask that hides nothing leaves scores as they are. Raises :class:`RefusalError`."""
    for (left, right), name in ((operands, node.input[1]), (operands[::-1], node.input[0])):
        if isinstance(left, Scores) and isinstance(right, (Size, np.ndarray)):
            return masked(reader, left, name)
    return total(reader, node, *operands)


def masked(reader: SequenceReader, scores: Scores, name: str) -> Scores:
    """Scores behind the mask ``name``, which must leave them alone. Raises :class:`RefusalError`."""
    if not isinstance(reader.values.get(name), Size) or not reader.hides_nothing(name):
        raise RefusalError("the mask of a single token must be zero", "leave the attention to all earlier tokens")
    return scores


@operator("Relu")
def _relu(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = reader.laid_out(node, need_block(operands[0], "the operand"))
    source = reader.tensors[block.tensor]
    result = reader.emit(Rectify, node, source.shape, block.constant, scaled=block.scale, bits=source.bits, input=block.tensor)
    return reader.result(result, block.constant, block.index.shape)


# ---- curves ----


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _normal(x: np.ndarray) -> np.ndarray:
    """Distribution function of the normal distribution."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])


def _nearly_normal(x: np.ndarray) -> np.ndarray:
    """Its usual approximation by tanh."""
    return 0.5 + 0.5 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Erf": lambda x: np.array([math.erf(value) for value in x]),
}
"""From -1 to 1, by operator."""


def _curve(reader: SequenceReader, node: onnx.NodeProto, value: Any, function: Callable[[np.ndarray], np.ndarray], name: str = "") -> Block:
    """A table of 16 bits over -8 to 8. Raises :class:`RefusalError`."""
    block = reader.laid_out(node, need_block(value, "the operand"))
    points = (np.arange(1024) - 512) / 64
    table = np.minimum(np.rint((1 << _CURVE_BITS) * function(points)), (1 << _CURVE_BITS) - 1).astype(np.int16)
    constant = Fraction(1, 1 << _CURVE_BITS)
    result = reader.emit(
        Curve, node, reader.tensors[block.tensor].shape, constant, bits=16, scaled=False, name=name, input=block.tensor,
        input_scale=block.scale, constant=scale_pair(block.constant), table=table,
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@operator(*CURVES)
def _curved(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    return _curve(reader, node, operands[0], CURVES[node.op_type])


@operator("Gelu", "Swish", "com.microsoft.Gelu", "com.microsoft.FastGelu", "com.microsoft.QuickGelu")
def _gated(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """``x`` times a curve of ``x``."""
    block = need_block(operands[0], "the operand")
    if len(operands) > 1 and operands[1] is not None:
        block = total(reader, node, block, operands[1])
    gate, function = block, _sigmoid
    if node.op_type in ("Swish", "QuickGelu"):
        steepness = Fraction(float(attribute(node, "alpha", 1.702 if node.op_type == "QuickGelu" else 1.0)))
        if steepness <= 0:
            raise RefusalError(f"its alpha must be above 0, not {float(steepness):g}")
        gate = replace(block, constant=block.constant * steepness)
    elif node.op_type == "FastGelu" or attribute(node, "approximate", b"none") == b"tanh":
        function = _nearly_normal
    else:
        function = _normal
    return product(reader, node, block, _curve(reader, node, gate, function, f"{node.output[0]}.gate"))
