"""Operators that move elements: they change a value's view and cost nothing."""

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import Movement, Node, operator
from tritloom.compiler.frontend.values import Constant, Operand, Source, Value
from tritloom.compiler.ir.program import HostOp

__all__ = ["integers", "move", "positive_axis", "shape_of"]


def move(
    builder: Builder, node: Node, operand: Operand, movement: Movement, *, perm: list[int] | None = None, gathers: bool = False
) -> Operand:
    """Apply a movement to a constant or to the view of a value: a reshape, a transpose by ``perm``, or a choice of elements (``gathers``)."""
    if isinstance(operand, Constant):
        return operand.moved(movement)
    if not isinstance(operand, Value):
        raise RefusalError("its input is missing", "connect its first input")
    value = builder.settle(operand)
    view = movement(value.view)
    trail, start, witness = value.trail, value.start, value.witness
    if trail is not None and len(trail) <= 1 and all(step.kind == "Dequantize" for step in trail) and not isinstance(value.base, Source):
        start, witness = view, node.outputs[0]
    elif trail is not None:
        kept = value.shape[:1] == (1,) and view.shape[:1] == (1,) and (perm is None or perm[0] == 0)
        if not kept:
            trail = None
        elif gathers:
            index = movement(np.arange(value.view.size).reshape(value.shape))[0]
            trail = (*trail, HostOp(kind="Gather", constants={"index": index}))
        elif perm is not None:
            trail = (*trail, HostOp(kind="Transpose", attributes={"perm": tuple(perm)}))
        else:
            trail = (*trail, HostOp(kind="Reshape", attributes={"shape": view.shape[1:]}))
    return Value(
        name=node.outputs[0],
        base=value.base,
        view=view,
        chain=value.chain,
        trail=trail,
        start=start,
        witness=witness,
        label=value.label,
        integer=value.integer,
        head=value.head,
    )


def shape_of(operand: Operand) -> tuple[int, ...]:
    """Shape of a constant or activation."""
    if isinstance(operand, Constant):
        return operand.array.shape
    if isinstance(operand, Value):
        return operand.shape
    raise RefusalError("its input is missing", "connect its first input")


def integers(node: Node, index: int, attribute: str, what: str) -> list[int] | None:
    """A list of integers from an attribute (old form) or an input (new form)."""
    listed = node.attribute(attribute, list)
    if listed is not None:
        return listed
    constant = node.constant(index, what)
    if constant is None:
        return None
    if constant.array.dtype.kind not in "iu" or constant.array.size > 64:
        raise RefusalError(f"its {what} is not a list of integers", "export the model again")
    return [int(item) for item in constant.array.ravel()]


def positive_axis(axis: int, rank: int, *, end: bool = False) -> int:
    """An axis counted from the front; with ``end`` the one behind the last is allowed. Raises :class:`RefusalError`."""
    if not -rank <= axis < rank + end:
        raise RefusalError(f"axis {axis} does not exist in a tensor of {rank} axes", "export the model again")
    return axis % rank if axis < 0 else axis


@operator("Identity", "always")
def _identity(builder: Builder, node: Node) -> Operand:
    return node.operand(0)


@operator("Dropout", "inference")
def _dropout(builder: Builder, node: Node) -> Operand:
    training = node.constant(2, "training mode")
    if training is not None and training.array.any():
        raise RefusalError("Dropout is in training mode", "export the model in evaluation mode")
    if len(node.outputs) > 1 and node.outputs[1]:
        raise RefusalError("the mask of Dropout is used", "export the model in evaluation mode")
    return node.operand(0)


@operator("Reshape", "constant shape")
def _reshape(builder: Builder, node: Node) -> Operand:
    shape = integers(node, 1, "shape", "shape")
    if shape is None:
        raise RefusalError("Reshape has no shape", "give the shape as a constant")
    old = shape_of(node.operand(0))
    if not node.attribute("allowzero", int, 0):
        shape = [old[i] if size == 0 and i < len(old) else size for i, size in enumerate(shape)]
    if node.batch not in (None, 1) and shape and shape[0] == node.batch and isinstance(node.operand(0), Value):
        shape[0] = 1
    known = int(np.prod([size for size in shape if size != -1], dtype=np.int64))
    total = int(np.prod(old, dtype=np.int64))
    if shape.count(-1) > 1 or min(shape, default=0) < -1 or (known != total if -1 not in shape else known == 0 or total % known):
        raise RefusalError(
            f"a tensor of shape {list(old)} cannot be reshaped to {shape}", "keep the batch on axis 0 and the sizes of a sample fixed"
        )
    return move(builder, node, node.operand(0), lambda array: array.reshape(shape))


@operator("Flatten", "any axis")
def _flatten(builder: Builder, node: Node) -> Operand:
    old = shape_of(node.operand(0))
    axis = positive_axis(node.attribute("axis", int, 1), max(len(old), 1), end=True)
    left = int(np.prod(old[:axis], dtype=np.int64))
    return move(builder, node, node.operand(0), lambda array: array.reshape(left, -1))


@operator("Transpose", "any permutation")
def _transpose(builder: Builder, node: Node) -> Operand:
    rank = len(shape_of(node.operand(0)))
    perm = node.attribute("perm", list) or list(range(rank))[::-1]
    if sorted(perm) != list(range(rank)):
        raise RefusalError(f"perm {perm} is not a permutation of {rank} axes", "export the model again")
    return move(builder, node, node.operand(0), lambda array: array.transpose(perm), perm=perm)


@operator("Squeeze", "constant axes")
def _squeeze(builder: Builder, node: Node) -> Operand:
    old = shape_of(node.operand(0))
    listed = integers(node, 1, "axes", "axes")
    axes = [i for i, size in enumerate(old) if size == 1] if listed is None else [positive_axis(axis, len(old)) for axis in listed]
    if any(old[axis] != 1 for axis in axes):
        raise RefusalError(f"axes {axes} of a tensor of shape {list(old)} cannot be squeezed", "squeeze axes of size 1 only")
    shape = [size for i, size in enumerate(old) if i not in axes]
    return move(builder, node, node.operand(0), lambda array: array.reshape(shape))


@operator("Unsqueeze", "constant axes")
def _unsqueeze(builder: Builder, node: Node) -> Operand:
    old = shape_of(node.operand(0))
    listed = integers(node, 1, "axes", "axes") or []
    rank = len(old) + len(listed)
    axes = {positive_axis(axis, rank) for axis in listed}
    rest = iter(old)
    shape = [1 if i in axes else next(rest, 1) for i in range(rank)]
    return move(builder, node, node.operand(0), lambda array: array.reshape(shape))


@operator("Shape", "any tensor; the batch counts as 1")
def _shape(builder: Builder, node: Node) -> Operand:
    shape = shape_of(node.operand(0))
    start, end = node.attribute("start", int, 0), node.attribute("end", int, None)
    return Constant(np.array(shape[start:end], np.int64))


@operator("Size", "any tensor; the batch counts as 1")
def _size(builder: Builder, node: Node) -> Operand:
    return Constant(np.array(np.prod(shape_of(node.operand(0)), dtype=np.int64)))


@operator("Constant", "tensor, number and list attributes")
def _constant(builder: Builder, node: Node) -> Operand:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64), ("value_floats", np.float32), ("value_ints", np.int64)):
        if name in node.attributes:
            return Constant(np.array(node.attributes[name], dtype))
    value = node.attributes.get("value")
    if value is None or not hasattr(value, "numpy"):
        raise RefusalError("a constant that is neither a tensor nor a number is not supported", "use a dense tensor")
    if int(np.prod(value.shape.numpy(), dtype=np.int64)) > LARGEST_TENSOR:
        raise RefusalError("the constant is too large", f"use tensors of at most {LARGEST_TENSOR} elements")
    return Constant(np.asarray(value.numpy()))
