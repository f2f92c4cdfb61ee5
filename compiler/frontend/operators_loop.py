"""Operators of blocks that are different in models with loops: values of a fixed grid are added exactly, brought to such a grid, and compared."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend import operators_integer
from tritloom.compiler.frontend.loops import BLOCK_HANDLERS, LoopHandler, LoopReader
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.sequence_values import HANDLERS, Block, Integers, attribute, need_block, scale_pair, single
from tritloom.compiler.ir.grid import FACTOR_BITS, Align, Prepend
from tritloom.compiler.ir.program import Program

__all__ = ["LOOP_FAMILIES", "lower_loops"]

LOOP_FAMILIES = (operators_integer,)
"""The modules that put their handlers of integers into the table when they are imported."""


def lower_loops(model: onnx.ModelProto, name: str) -> Program | Problem:
    """The program of a model with ``Loop`` nodes, or the first node that no rule lowers. Raises :class:`ModelError` for inputs and outputs of another kind."""
    return LoopReader(model, name).read()


def _operator(*names: str) -> Callable[[LoopHandler], LoopHandler]:
    def register(handler: LoopHandler) -> LoopHandler:
        BLOCK_HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


@_operator("QuantizeLinear")
def _aligned(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Codes of 16 bits on one grid for all tokens."""
    block, step = need_block(operands[0], "the operand"), single(operands[1])
    zero = operands[2] if len(operands) > 2 else None
    if step is None or step <= 0 or not isinstance(zero, np.ndarray) or zero.dtype != np.int16 or zero.any():
        raise RefusalError("only int16 with one scale and the zero point 0 is a grid for all tokens")
    block = reader.laid_out(node, block)
    result = reader.emit(
        Align, node, reader.tensors[block.tensor].shape, step, bits=16, scaled=False, input=block.tensor, input_scale=block.scale,
        constant=scale_pair(block.constant / step),
    )  # fmt: skip
    return reader.result(result, Fraction(1), block.index.shape)


@_operator("Add")
def _sum(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Exact where both operands lie on grids of which one's steps are whole steps of the other's, else a sum of blocks."""
    left, right = operands
    if not isinstance(left, Block) or not isinstance(right, Block) or left.scale or right.scale or left.index.shape != right.index.shape:
        return HANDLERS["Add"](reader, node, operands)
    step = min(left.constant, right.constant)
    factors = [operand.constant / step for operand in (left, right)]
    terms = [(reader.laid_out(node, operand), factor.numerator) for operand, factor in zip((left, right), factors, strict=True)]
    sizes = [max(-reader.tensors[term.tensor].low, reader.tensors[term.tensor].high) for term, _ in terms]
    # Both operands of a product have 16 bits and sign.
    simple = all(
        factor.denominator == 1 and (factor == 1 or (factor < 1 << FACTOR_BITS and size <= 1 << FACTOR_BITS))
        for factor, size in zip(factors, sizes, strict=True)
    )
    reach = sum(size * factor for size, factor in zip(sizes, factors, strict=True))
    if not simple or reach >= 1 << 31:
        return HANDLERS["Add"](reader, node, operands)
    output = reader.clamped_sum(node, terms)
    reader.tensors[output] = replace(reader.tensors[output], scale=(step,))
    return Block(output, "", step, terms[0][0].index)


@_operator("Concat")
def _behind_constants(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
    """Tokens behind constant ones."""
    front, block = operands if len(operands) == 2 else (None, None)
    if not isinstance(front, np.ndarray) or not isinstance(block, Block) or block.scale or front.ndim != block.index.ndim:
        raise RefusalError("only constant tokens are put in front of others, on the same fixed grid")
    axis = attribute(node, "axis", 0) % front.ndim
    same = all(size == other for place, (size, other) in enumerate(zip(front.shape, block.index.shape, strict=True)) if place != axis)
    if axis == front.ndim - 1 or any(size != 1 for size in front.shape[:axis]) or not same:
        raise RefusalError("only constant tokens are put in front of others, along the tokens")
    codes = np.rint(front / float(block.constant))
    if not np.array_equal((codes * float(block.constant)).astype(front.dtype), front) or np.abs(codes).max(initial=0) >= 1 << 15:
        raise RefusalError("the constant tokens are no 16-bit integers on the grid of the others")
    block = reader.laid_out(node, block)
    source, columns = reader.tensors[block.tensor], codes.reshape(-1, front.shape[-1]).T.astype(np.int16)
    shape = (source.shape[0], 1, columns.shape[1] + source.shape[2])
    output = reader.integers(node.output[0], shape, min(source.low, int(columns.min())), max(source.high, int(columns.max())))
    reader.tensors[output] = replace(reader.tensors[output], scale=source.scale)
    reader.operations.append(Prepend(name=node.name or node.output[0], output=output, input=block.tensor, columns=columns))
    sizes = [size + (front.shape[axis] if place == axis else 0) for place, size in enumerate(block.index.shape)]
    return reader.result((output, ""), block.constant, tuple(sizes))


def _compared(factor: int) -> LoopHandler:
    """Whether a block is above (``factor`` 1) or below (-1) the constant 0: the sign of its codes, whatever its scale."""

    def handler(reader: LoopReader, node: onnx.NodeProto, operands: list[Any]) -> Any:
        block, number, sign = (
            (operands[0], single(operands[1]), factor) if isinstance(operands[0], Block) else (operands[1], single(operands[0]), -factor)
        )
        if not isinstance(block, Block) or number != 0:
            raise RefusalError("values are only compared with 0", "take the threshold off before")
        if block.scale and block.index.size > reader.tensors[block.tensor].shape[2]:
            raise RefusalError("only single values of a token are compared")
        block = reader.laid_out(node, block)
        return Integers(reader.clamped_sum(node, [(block, sign)], 0, 0, 1), block.index)

    return handler


BLOCK_HANDLERS.update(Greater=_compared(1), Less=_compared(-1))
