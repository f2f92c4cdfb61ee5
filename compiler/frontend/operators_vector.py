"""Softmax and the normalisations: operators that golden can do inside a network, and no core yet."""

from fractions import Fraction
from functools import cache

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_elementwise import add_constant, affine_step, finite, host_axis, tail
from tritloom.compiler.frontend.operators_shape import positive_axis
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import GOLDEN, HOST, Node, operator
from tritloom.compiler.frontend.values import Constant, Operand, Value, identity_view
from tritloom.compiler.frontend.vector import MASKED, normalised, softmax
from tritloom.compiler.ir.program import HostOp

__all__: list[str] = []


@operator("Softmax", "at the end of the network on the host, inside it golden only; masks added before it", runs=(GOLDEN, HOST))
def _softmax(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    axis = _axis(node, value)
    result = tail(builder, node, value, HostOp(kind="Softmax", attributes={"axis": axis}), value.shape)
    result.inside = cache(lambda: softmax(builder, node, value, axis))
    return result


@operator("LogSoftmax", "at the end of the network, on the host", runs=(HOST,))
def _log_softmax(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    return tail(builder, node, value, HostOp(kind="LogSoftmax", attributes={"axis": _axis(node, value)}), value.shape)


def _axis(node: Node, value: Value) -> int:
    """The one axis along which probabilities add up to 1."""
    axis = host_axis(node, value, -1 if node.opset >= 13 else 1)
    if node.opset < 13 and int(np.prod(value.shape[axis + 1 :], dtype=np.int64)) != 1:
        raise RefusalError(f"before opset 13 {node.op} joins all axes from its axis on", "export with opset 13 or later")
    return axis


@operator("Where", "constant condition, one branch a constant of -9999 or below: a mask before a Softmax")
def _where(builder: Builder, node: Node) -> Operand:
    condition = node.constant(0, "condition")
    branches = node.operand(1), node.operand(2)
    value = next((branch for branch in branches if isinstance(branch, Value)), None)
    constant = next((branch for branch in branches if isinstance(branch, Constant)), None)
    fits = condition is not None and condition.array.dtype == bool and constant is not None and constant.array.size > 0
    if condition is None or value is None or constant is None or not fits or constant.array.max() > MASKED:
        raise RefusalError(
            "it chooses between two activations, or by a condition that is no mask",
            "use a constant condition, and a constant of minus infinity",
        )
    kept = condition.array if branches[0] is value else ~condition.array
    mask = Constant(np.where(kept, np.float32(0), np.finfo(np.float32).min).astype(np.float32))
    return add_constant(builder, node, value, mask, HostOp(kind="Add", constants={"B": mask.array}))


def _epsilon(node: Node) -> Fraction:
    epsilon = np.float32(node.attribute("epsilon", float, 1e-5))
    if not np.isfinite(epsilon) or epsilon < 0:
        raise RefusalError("its epsilon is negative or not finite", "use a small positive epsilon")
    return Fraction(float(epsilon))


def _scaled(builder: Builder, node: Node, value: Value, scale: Constant | None, bias: Constant | None) -> Value:
    """``value`` times ``scale`` plus ``bias``, constants that broadcast to its shape."""
    for part in (scale, bias):
        if part is not None and np.broadcast_shapes(value.shape, finite(part).array.shape) != value.shape:
            raise RefusalError(f"its parameters of shape {list(part.array.shape)} do not fit {list(value.shape)}", "export the model again")
    gain, offset = scale or Fraction(1), bias or Fraction(0)
    return affine_step(builder, node, value, gain, offset, HostOp(kind="Mul"))


def _last_axes(builder: Builder, node: Node, *, centre: bool) -> Value:
    """Normalisation over the axes from ``axis`` to the last, with scale and bias of their shape."""
    if any(node.outputs[1:]):
        raise RefusalError("its second and third output are not supported", "use its first output only")
    value = builder.settle(node.activation())
    axis = positive_axis(node.attribute("axis", int, -1), len(value.shape))
    if axis == 0:
        raise RefusalError("it normalises along the batch axis", "normalise along axes other than 0")
    scale, bias = node.constant(1, "scale"), node.constant(2, "bias")
    rows = identity_view(value.shape).reshape(-1, int(np.prod(value.shape[axis:], dtype=np.int64)))
    result = normalised(builder, node, value, rows, groups=1, centre=centre, epsilon=_epsilon(node))
    return _scaled(builder, node, result, scale, bias)


@operator("LayerNormalization", "over the last axes, constant scale and bias (golden only)", runs=(GOLDEN,))
def _layer_normalization(builder: Builder, node: Node) -> Operand:
    return _last_axes(builder, node, centre=True)


@operator("RMSNormalization", "over the last axes, constant scale (golden only)", runs=(GOLDEN,))
@operator("SimplifiedLayerNormalization", "over the last axes, constant scale (golden only)", runs=(GOLDEN,))
def _rms_normalization(builder: Builder, node: Node) -> Operand:
    return _last_axes(builder, node, centre=False)


def _channels_first(builder: Builder, node: Node, groups: int) -> Value:
    """Normalisation of each group of channels over all pixels, with scale and bias for each channel."""
    value = builder.settle(node.activation())
    if len(value.shape) < 3 or value.shape[0] != 1:
        raise RefusalError(f"its input of shape {list(value.shape)} is not (N, C, ...)", "give it channels and at least one axis of pixels")
    channels = value.shape[1]
    if groups < 1 or channels % groups:
        raise RefusalError(f"{channels} channels do not make {groups} groups", "export the model again")
    along = (1, channels) + (1,) * (len(value.shape) - 2)
    parts = []
    for index, what in ((1, "scale"), (2, "bias")):
        constant = node.constant(index, what)
        if constant is None or constant.array.shape != (channels,):
            raise RefusalError(f"its {what} does not have one entry for each of {channels} channels", "export with opset 21 or later")
        parts.append(constant.moved(lambda array: array.reshape(along)))
    result = normalised(builder, node, value, None, groups=groups, centre=True, epsilon=_epsilon(node))
    return _scaled(builder, node, result, *parts)


@operator("InstanceNormalization", "constant scale and bias (golden only)", runs=(GOLDEN,))
def _instance_normalization(builder: Builder, node: Node) -> Operand:
    return _channels_first(builder, node, node.activation().shape[1] if len(node.activation().shape) > 1 else 0)


@operator("GroupNormalization", "constant scale and bias (golden only)", runs=(GOLDEN,))
def _group_normalization(builder: Builder, node: Node) -> Operand:
    return _channels_first(builder, node, node.attribute("num_groups", int, 0))
