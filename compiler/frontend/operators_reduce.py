"""ReduceMean, ReduceSum, ReduceMax and ReduceMin: pools whose window is all of the reduced axes."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_pool import max_pool, mean_pool
from tritloom.compiler.frontend.operators_shape import integers, positive_axis
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, append, operator
from tritloom.compiler.frontend.values import Operand, Pending, Tail, Value
from tritloom.compiler.ir.program import Window
from tritloom.compiler.quantize.steps import Affine

__all__: list[str] = []


def _reduced(builder: Builder, node: Node, value: Value, *, largest: bool) -> tuple[Value, int]:
    """Largest or mean of the reduced axes of ``value``, and how many elements they have."""
    value = builder.settle(value)
    rank = len(value.shape)
    listed = integers(node, 1, "axes", "axes")
    if not listed:
        if node.attribute("noop_with_empty_axes", int, 0):
            return value, 1
        raise RefusalError("it reduces all axes, the batch with them", "list axes other than 0")
    axes = sorted({positive_axis(axis, rank) for axis in listed})
    if axes[0] == 0:
        raise RefusalError("it reduces the batch axis", "list axes other than 0")
    kept = [axis for axis in range(rank) if axis not in axes]
    if isinstance(value.base, Tail):
        raise RefusalError(f"a reduction behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    if not (largest and isinstance(value.base, Pending)):
        value = builder.codes(value)
    rows = value.view.transpose(kept + axes).reshape(-1, int(np.prod([value.shape[axis] for axis in axes])))
    shape = value.base.shape
    if rows.shape == (shape[0], shape[1] * shape[2]) and np.array_equal(rows.ravel(), np.arange(rows.size)):
        image, window, pixels = rows.reshape(1, *shape), Window(kernel=shape[1:]), 2
    else:
        image, window, pixels = rows[None], Window(kernel=(1, rows.shape[1])), 1
    value = replace(value, view=image)
    if largest:
        result = max_pool(builder, node, value, window, pixels)
    else:
        result = mean_pool(builder, node, value, window, window, pixels, include=False)
    keep = bool(node.attribute("keepdims", int, 1))
    final = [1 if axis in axes else size for axis, size in enumerate(node.activation().shape) if keep or axis not in axes]
    view = result.view.reshape(final)
    return replace(result, view=view, start=view), rows.shape[1]


@operator("ReduceMean", "over any axes but the batch")
def _reduce_mean(builder: Builder, node: Node) -> Operand:
    return _reduced(builder, node, node.activation(), largest=False)[0]


@operator("ReduceSum", "over any axes but the batch")
def _reduce_sum(builder: Builder, node: Node) -> Operand:
    mean, count = _reduced(builder, node, node.activation(), largest=False)
    return append(builder, node, mean, Affine((Fraction(count),), (Fraction(0),)), None)


@operator("ReduceMax", "over any axes but the batch")
def _reduce_max(builder: Builder, node: Node) -> Operand:
    return _reduced(builder, node, node.activation(), largest=True)[0]


@operator("ReduceMin", "over any axes but the batch")
def _reduce_min(builder: Builder, node: Node) -> Operand:
    """``-max(-x)``, on codes: what is largest there has no ONNX name, so no grid from calibration."""
    value = builder.settle(node.activation())
    if isinstance(value.base, Tail):
        raise RefusalError(f"a reduction behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    turned = Affine((Fraction(-1),), (Fraction(0),))
    negative = append(builder, node, builder.codes(value), turned, None)
    return append(builder, node, _reduced(builder, node, negative, largest=True)[0], turned, None)
