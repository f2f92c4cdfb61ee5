"""Operators that choose elements (Slice, Split, Gather, Expand, Tile, and the two that trade pixels for channels): they change a value's view."""

from dataclasses import replace

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_shape import integers, move, positive_axis, shape_of
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Movement, Node, operator
from tritloom.compiler.frontend.values import LARGEST_ACTIVATION, Operand, Value

__all__ = ["choose"]


def choose(builder: Builder, node: Node, operand: Operand, axis: int, index: np.ndarray) -> Operand:
    """The elements ``index`` (any shape) along one axis. Raises :class:`RefusalError` for the batch axis of an activation.

    The batch counts as 1: an axis 0 of another size is what a Transpose or a Reshape has put there.
    """
    size = shape_of(operand)[axis]
    if isinstance(operand, Value) and axis == 0 and size == 1:
        if np.array_equal(index, [0]):
            return operand
        raise RefusalError("it chooses along the batch axis", "choose along an axis other than 0")
    if index.size and (index.min() < -size or index.max() >= size):
        raise RefusalError(f"it chooses elements beyond the {size} of axis {axis}", "export the model again")
    if not index.size:
        raise RefusalError("it chooses no element", "remove this node")
    return move(builder, node, operand, lambda array: np.take(array, np.where(index < 0, index + size, index), axis), gathers=True)


@operator("Slice", "constant starts, ends, axes and steps, on axes other than the batch")
def _slice(builder: Builder, node: Node) -> Operand:
    result = node.operand(0)
    rank = len(shape_of(result))
    starts, ends = integers(node, 1, "starts", "starts"), integers(node, 2, "ends", "ends")
    if starts is None or ends is None:
        raise RefusalError("it has no starts or ends", "export the model again")
    listed = integers(node, 3, "axes", "axes")
    axes = list(range(len(starts))) if listed is None else listed
    steps = integers(node, 4, "steps", "steps") or [1] * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1 or 0 in steps:
        raise RefusalError("its starts, ends, axes and steps do not fit each other", "export the model again")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = positive_axis(axis, rank)
        result = choose(builder, node, result, axis, np.arange(shape_of(result)[axis])[slice(start, end, step)])
    return result


@operator("Gather", "constant indices, on an axis other than the batch")
def _gather(builder: Builder, node: Node) -> Operand:
    operand, constant = node.operand(0), node.constant(1, "indices")
    axis = positive_axis(node.attribute("axis", int, 0), len(shape_of(operand)))
    if constant is None or constant.array.dtype.kind not in "iu":
        raise RefusalError("its indices are no integers", "export the model again")
    return choose(builder, node, operand, axis, constant.array.astype(np.int64))


@operator("Split", "constant sizes, on an axis other than the batch")
def _split(builder: Builder, node: Node) -> list[Operand]:
    operand = node.operand(0)
    axis = positive_axis(node.attribute("axis", int, 0), len(shape_of(operand)))
    size, count = shape_of(operand)[axis], len(node.outputs)
    sizes = integers(node, 1, "split", "sizes")
    if sizes is None:
        share = -(-size // count)
        sizes = [share] * (count - 1) + [size - share * (count - 1)]
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise RefusalError(f"{size} elements cannot be split into parts of {sizes}", "export the model again")
    edges = np.cumsum([0, *sizes])
    parts = zip(node.outputs, edges[:-1], edges[1:], strict=True)
    return [choose(builder, replace(node, outputs=(name,)), operand, axis, np.arange(first, last)) for name, first, last in parts]


def _repeated(builder: Builder, node: Node, shape: list[int], movement: Movement) -> Operand:
    """Elements of the first operand repeated to ``shape``; the batch axis may not grow. Raises :class:`RefusalError`."""
    operand = node.operand(0)
    if min(shape, default=1) < 1 or float(np.prod(shape, dtype=np.float64)) > LARGEST_ACTIVATION:
        raise RefusalError(
            f"it makes a tensor of shape {shape}", f"repeat to at most {LARGEST_ACTIVATION} elements a sample, one or more along each axis"
        )
    if isinstance(operand, Value) and shape[:1] != [1]:
        raise RefusalError("it repeats the batch axis, or puts an axis in front of it", "keep the batch on axis 0")
    return move(builder, node, operand, movement, gathers=True)


@operator("Expand", "constant shape, on axes other than the batch")
def _expand(builder: Builder, node: Node) -> Operand:
    old, wanted = shape_of(node.operand(0)), integers(node, 1, "shape", "shape")
    if wanted is None:
        raise RefusalError("it has no shape", "give the shape as a constant")
    if node.batch not in (None, 1) and len(wanted) == len(old) and wanted[:1] == [node.batch] and isinstance(node.operand(0), Value):
        wanted[0] = 1
    try:
        shape = list(np.broadcast_shapes(old, tuple(wanted)))
    except ValueError:
        raise RefusalError(f"a tensor of shape {list(old)} cannot be expanded to {wanted}", "export the model again") from None
    return _repeated(builder, node, shape, lambda array: np.broadcast_to(array, shape))


@operator("Tile", "constant repeats, on axes other than the batch")
def _tile(builder: Builder, node: Node) -> Operand:
    old, repeats = shape_of(node.operand(0)), integers(node, 1, "repeats", "repeats")
    if repeats is None or len(repeats) != len(old):
        raise RefusalError("it does not have one repeat for each axis", "give the repeats as a constant")
    shape = [size * count for size, count in zip(old, repeats, strict=True)]
    return _repeated(builder, node, shape, lambda array: np.tile(array, repeats))


def _blocks(node: Node) -> tuple[int, int, int, int, int]:
    """Batch, channels, height, width and block size of an operator that trades pixels for channels."""
    shape = shape_of(node.operand(0))
    block = node.attribute("blocksize", int, 0)
    if len(shape) != 4 or block < 1:
        raise RefusalError("its input is not (N, C, H, W), or its block size is not positive", "export the model again")
    return (*shape, block)


@operator("DepthToSpace", "both modes")
def _depth_to_space(builder: Builder, node: Node) -> Operand:
    batch, channels, height, width, block = _blocks(node)
    if channels % (block * block):
        raise RefusalError(f"{channels} channels do not make blocks of {block} x {block}", "export the model again")
    fewer = channels // (block * block)
    if node.attribute("mode", str, "DCR") == "DCR":
        split, order = (batch, block, block, fewer, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (batch, fewer, block, block, height, width), (0, 1, 4, 2, 5, 3)
    shape = (batch, fewer, height * block, width * block)
    return move(builder, node, node.operand(0), lambda array: array.reshape(split).transpose(order).reshape(shape), gathers=True)


@operator("SpaceToDepth", "always")
def _space_to_depth(builder: Builder, node: Node) -> Operand:
    batch, channels, height, width, block = _blocks(node)
    if height % block or width % block:
        raise RefusalError(f"{height} x {width} pixels do not make blocks of {block} x {block}", "export the model again")
    split = (batch, channels, height // block, block, width // block, block)
    shape = (batch, channels * block * block, height // block, width // block)
    return move(builder, node, node.operand(0), lambda array: array.reshape(split).transpose(0, 3, 5, 1, 2, 4).reshape(shape), gathers=True)
