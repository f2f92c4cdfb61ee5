"""Quantisers of language models with a scale for each token, written out. Read by :mod:`tritloom.compiler.frontend.sequence`.

BitNet's: ``scale = 127 / max(max|x|, floor)``, ``clip(round(x * scale), -128, 127) / scale``, in Abs, ReduceMax, Max, Div, Mul, Round, Clip and Mul or Div. QuEST's:
``unit = factor * sqrt(mean(x ** 2))``, ``x / unit`` clipped, and rounded to odd integers by ``2 * round(x / 2 + 1/2) - 1`` or to all, times ``unit``.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import onnx

from tritloom.compiler.frontend.operators_norms import Moment, Normed
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import SequenceReader
from tritloom.compiler.frontend.sequence_values import SMALL, Block, Step, Value, last_axis, operator, same, scale_pair, single
from tritloom.compiler.ir.block import Quantise
from tritloom.compiler.ir.quest import QuantiseByDeviation
from tritloom.hw.arch.blockfloat import LEVELS

__all__ = ["quantised"]


@dataclass(frozen=True, eq=False)
class Draft(Step):
    """A step of a quantiser of ``block`` by its magnitude: magnitude, largest, ratio (``127 / largest``), scaled, rounded, codes, step (``largest / 127``)."""

    stage: str
    block: Block


@dataclass(frozen=True, eq=False)
class Grid(Step):
    """Of ``block`` over ``unit`` times its root mean square, limited to ``limit``: before rounding ``slope * x + offset``, behind it ``gain * round + start``."""

    rank: ClassVar[int] = 1

    block: Block
    unit: Fraction
    limit: int
    slope: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    rounded: bool = False
    gain: Fraction = Fraction(1)
    start: Fraction = Fraction(0)


# ---- by the largest magnitude ----


def quantised(reader: SequenceReader, node: onnx.NodeProto, block: Block, name: str = "") -> Block:
    """Codes of 8 bits by the largest magnitude, the channels of each row having a scale."""
    block = reader.laid_out(node, block)
    constant = block.constant / LEVELS
    result = reader.emit(
        Quantise, node, reader.tensors[block.tensor].shape, constant, bits=8, name=name, input=block.tensor, input_scale=block.scale
    )
    return reader.result(result, constant, block.index.shape, codes=True)


@operator("Abs")
def _magnitude(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if not isinstance(operands[0], Block):
        raise RefusalError("only magnitudes of a token's channels are taken")
    return Draft("magnitude", operands[0])


@operator("ReduceMax", of=(Draft,))
def _largest(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    draft = operands[0]
    if draft.stage != "magnitude" or not last_axis(node, operands, draft.block.index.ndim):
        raise RefusalError("only the largest magnitude of a token's channels is taken", "Abs before it, the last axis, keepdims = 1")
    return Draft("largest", draft.block)


@operator("Max", of=(Draft,))
def _floor(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """A floor of the largest magnitude matters where a whole token is smaller: golden then keeps more of it than the float model, at most the floor itself."""
    return _bounded(operands[0], operands[1] if len(operands) == 2 else None)


def _bounded(draft: Draft, floor: Any) -> Draft:
    number = single(floor)
    if draft.stage != "largest" or number is None or not 0 < number <= SMALL:
        raise RefusalError("only a small number is a floor of a largest magnitude")
    return draft


@operator("Round", of=(Draft,))
def _rounded(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if operands[0].stage != "scaled":
        raise RefusalError("it is no step of a quantiser by the largest magnitude", "Abs, ReduceMax, Max, Div, Mul, Round, Clip, Mul")
    return replace(operands[0], stage="rounded")


@operator("Clip", of=(Draft,))
def _clip(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    draft = operands[0]
    if draft.stage == "largest" and len(operands) > 1 and (len(operands) == 2 or operands[2] is None):
        return _bounded(draft, operands[1])
    low, high = (single(operand) for operand in operands[1:3])
    if draft.stage != "rounded" or low not in (-LEVELS - 1, -LEVELS) or high != LEVELS:
        raise RefusalError("only rounded codes are limited here, to -128 or -127, and 127")
    return replace(draft, stage="codes")


@operator("Mul", of=(Draft,))
def _scaled(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for left, right in (operands, operands[::-1]):
        if isinstance(left, Draft) and isinstance(right, Draft):
            if same(left.block, right.block) and (left.stage, right.stage) == ("codes", "step"):
                return quantised(reader, node, left.block)
        elif isinstance(right, Draft) and right.stage == "ratio" and same(left, right.block):
            return replace(right, stage="scaled")
        elif isinstance(right, Draft) and right.stage == "inverse" and single(left) == LEVELS:
            return replace(right, stage="ratio")
    raise RefusalError("it is no step of a quantiser by the largest magnitude", "Abs, ReduceMax, Max, Div, Mul, Round, Clip, Mul")


@operator("Div", "Reciprocal", of=(Draft,))
def _ratio(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """The ratio, its inverse, and codes divided by the ratio."""
    left, right = [np.array(1.0), *operands] if node.op_type == "Reciprocal" else operands
    after = {("largest", Fraction(LEVELS)): "ratio", ("largest", Fraction(1)): "inverse", ("ratio", Fraction(1)): "step"}
    if isinstance(right, Draft):
        number = single(left)
        if number is not None and (right.stage, number) in after:
            return replace(right, stage=after[right.stage, number])
        if isinstance(left, Draft) and same(left.block, right.block) and (left.stage, right.stage) == ("codes", "ratio"):
            return quantised(reader, node, left.block)
        if right.stage == "step" and same(left, right.block):
            return replace(right, stage="scaled")
    elif left.stage == "largest" and single(right) == LEVELS:
        return replace(left, stage="step")
    raise RefusalError("only a quantiser's largest magnitude, or a constant, divides here")


# ---- by the root mean square ----


def _refusal() -> RefusalError:
    return RefusalError(
        "it is no step of a quantiser by the root mean square", "x / unit, Clip, then 2 * Round(x / 2 + 0.5) - 1 or Round, times unit"
    )


@operator("Clip", of=(Normed,))
def _limited(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    value, (low, high) = operands[0], (single(operand) for operand in operands[1:3])
    plain = value.gain is None and value.bias is None and not value.centre and value.epsilon <= SMALL**2
    if not plain or high is None or low != -high or high.denominator != 1 or not 0 < high <= LEVELS:
        raise RefusalError(f"a value over its root mean square is limited to integers from -{LEVELS} to {LEVELS}, as far down as up")
    return Grid(value.block, 1 / value.factor, int(high))


@operator("Mul", of=(Grid,))
def _grid_product(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for left, right in (operands, operands[::-1]):
        if isinstance(left, Grid) and isinstance(right, Moment):
            return _on_grid(reader, node, left, right)
        factor = single(right)
        if isinstance(left, Grid) and factor is not None:
            return _affine(left, factor, Fraction(0))
    raise _refusal()


@operator("Div", of=(Grid,))
def _grid_quotient(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    factor = single(operands[1])
    if not isinstance(operands[0], Grid) or not factor:
        raise _refusal()
    return _affine(operands[0], 1 / factor, Fraction(0))


@operator("Add", "Sub", of=(Grid,))
def _grid_sum(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    grid, other = operands[::-1] if node.op_type == "Add" and isinstance(operands[1], Grid) else operands
    number = single(other)
    if not isinstance(grid, Grid) or number is None:
        raise _refusal()
    return _affine(grid, Fraction(1), number if node.op_type == "Add" else -number)


def _affine(grid: Grid, factor: Fraction, number: Fraction) -> Grid:
    if grid.rounded:
        return replace(grid, gain=grid.gain * factor, start=grid.start * factor + number)
    return replace(grid, slope=grid.slope * factor, offset=grid.offset * factor + number)


@operator("Round", of=(Grid,))
def _grid_rounded(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if operands[0].rounded:
        raise _refusal()
    return replace(operands[0], rounded=True)


def _on_grid(reader: SequenceReader, node: onnx.NodeProto, grid: Grid, unit: Moment) -> Block:
    half = Fraction(1, 2)
    steps = grid.slope, grid.offset, grid.gain, grid.start
    odd = steps == (half, half, 2, -1) and grid.limit % 2 == 1
    if not grid.rounded or not (odd or steps == (1, 0, 1, 0)):
        raise _refusal()
    alike = unit.stage == "root" and not unit.centre and same(unit.block, grid.block)
    if not alike or abs(unit.factor / grid.unit - 1) > Fraction(1, 1 << 20):
        raise RefusalError("codes are not multiplied by the unit that they were divided by")
    block = reader.laid_out(node, grid.block)
    root = Fraction(math.sqrt(block.index.shape[-1]))
    constant = block.constant * grid.unit / root
    result = reader.emit(
        QuantiseByDeviation, node, reader.tensors[block.tensor].shape, constant, bits=grid.limit.bit_length() + 1, input=block.tensor,
        input_scale=block.scale, levels=grid.limit + 1 if odd else 2 * grid.limit + 1,
        ratio=scale_pair(root / grid.unit / (2 if odd else 1)),
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape, codes=True)
