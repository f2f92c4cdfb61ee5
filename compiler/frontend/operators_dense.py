"""Conv, Gemm and MatMul with constant weights."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.compensation import LayerInputs, dense_inputs, window_inputs
from tritloom.compiler.frontend.convolution import accumulators_value, integer_weights, pad_code_of
from tritloom.compiler.frontend.operators_elementwise import affine_step
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import CORE, GOLDEN, Node, operator
from tritloom.compiler.frontend.values import Codes, Constant, Operand, Value, affine_of, exact_values, identity_view
from tritloom.compiler.frontend.vector import matrix_product
from tritloom.compiler.frontend.windows import spatial_rank, window_of
from tritloom.compiler.ir.program import HostOp, Window
from tritloom.compiler.quantize.chain import entry

__all__ = ["bias_of", "prepared"]

_KERNEL_LIMIT = 1 << 26
"""Weights of the largest layer."""


def _equal_in_groups(value: Value, groups: int) -> bool:
    """Whether the gain is the same for all channels of each group."""
    affine = affine_of(value.chain)
    assert affine is not None
    channels = value.base.shape[0]
    size = channels // groups
    return len(affine.gain) == 1 or all(len(set(affine.gain[g * size : (g + 1) * size])) == 1 for g in range(groups))


def bias_of(constant: Constant | None, outputs: int) -> tuple[Fraction, ...] | None:
    """One bias, or one an output. Raises :class:`RefusalError` for another number of them."""
    if constant is None:
        return None
    size = constant.array.size
    if size not in (1, outputs):
        raise RefusalError(f"its bias has {size} entries for {outputs} outputs", "export the model again")
    values = exact_values(constant, np.arange(size))
    return values


@operator("Conv", "1-D and 2-D, constant weights, strides, pads, auto_pad, dilations, groups")
def _conv(builder: Builder, node: Node) -> Operand:
    value = node.activation()
    rank = spatial_rank(value.shape)
    weights = node.constant(1, "weight")
    if weights is None or weights.array.ndim != rank + 2 or 0 in weights.array.shape:
        raise RefusalError(
            "its weights do not have one axis more than its input has spatial ones", "use (outputs, inputs / groups, kernel ...) weights"
        )
    outputs, inputs, *kernel = weights.array.shape
    groups = node.attribute("group", int, 1)
    channels, size = value.shape[1], value.shape[2:]
    stated = node.attribute("kernel_shape", list)
    if groups < 1 or outputs % groups or inputs * groups != channels or (stated is not None and stated != list(kernel)):
        raise RefusalError(
            f"its weights of shape {list(weights.array.shape)} and {groups} groups do not fit {channels} input channels",
            "export the model again",
        )
    bias = bias_of(node.constant(2, "bias"), outputs)
    flat, _ = window_of(node, size, list(kernel), pool=False)
    value, vertical = prepared(builder, value, groups, padded=any(flat.pads))
    window, _ = window_of(node, size, list(kernel), pool=False, vertical=vertical)
    spatial = (lambda array: array.reshape(1, outputs, -1)) if rank == 1 else (lambda array: array[None])
    lowered = integer_weights(builder, weights, node.label, node.outputs[0], _window_inputs(value, window, groups, outputs, spatial))
    matrix = lowered.codes.reshape(outputs, inputs, *window.kernel)
    return accumulators_value(
        builder, value, lowered, matrix, window, groups, bias, name=node.outputs[0], label=node.label, arrange=spatial
    )


def _window_inputs(value: Value, window: Window, groups: int, outputs: int, arrange: Callable[[np.ndarray], np.ndarray]) -> LayerInputs:
    assert isinstance(value.base, Codes)
    affine = affine_of(value.chain)
    assert affine is not None
    size = window.output_size(*value.base.shape[1:])
    gains = tuple(entry(affine.gain, group * (value.base.shape[0] // groups)) for group in range(groups))
    pad_code = pad_code_of(affine) if any(window.pads) else 0
    return window_inputs(value.base.tensor.name, window, pad_code, gains, size[0] * size[1], arrange(identity_view((outputs, *size))))


def prepared(builder: Builder, value: Value, groups: int, *, padded: bool) -> tuple[Value, bool]:
    """Codes that a convolution can read, (C, H, W) for (1, C, H, W), one scale a group, and a code for 0 where it is ``padded``.

    For (1, C, L) they are (C, 1, L), or (C, L, 1) where they lie so already; the second result says so.
    """
    channels, size = value.shape[1], value.shape[2:]
    value = builder.codes(value)
    vertical = len(size) == 1 and value.base.shape == (channels, size[0], 1) and size[0] > 1
    shape = (channels, size[0], 1) if vertical else (channels, 1, size[0]) if len(size) == 1 else (channels, size[0], size[1])
    value = builder.placed(value, shape)
    if not _equal_in_groups(value, groups) or (padded and not _pads_with_code(value)):
        value = builder.placed(builder.requantised(value), shape)
    return value, vertical


def _pads_with_code(value: Value) -> bool:
    """Whether the real value 0 is one 8-bit code for all channels."""
    affine = affine_of(value.chain)
    assert affine is not None
    codes = {
        -entry(affine.offset, c) / entry(affine.gain, c) if entry(affine.gain, c) else None
        for c in range(max(len(affine.gain), len(affine.offset)))
    }
    code = codes.pop() if len(codes) == 1 else None
    return code is not None and code.denominator == 1 and -128 <= code <= 127


def _dense(builder: Builder, node: Node, value: Value, rows_of: Callable[[np.ndarray], np.ndarray], weights: Constant,
           bias: tuple[Fraction, ...] | None, arrange: Callable[[np.ndarray], np.ndarray], *, whole: bool = True) -> Value:  # fmt: skip
    """``y[t, o] = sum_k x[t, k] * w[o, k] + bias[o]``, ``weights`` (O, K).

    ``rows_of`` takes the view of the input to (T, K), ``arrange`` takes (T, O) to the view of the result, which with ``whole`` is
    the node's first output.
    """
    value = builder.codes(value)
    if not _equal_in_groups(value, 1):
        value = builder.requantised(value)
    rows = rows_of(value.view)
    count, features = rows.shape
    outputs = weights.array.shape[0]
    affine = affine_of(value.chain)
    assert isinstance(value.base, Codes) and affine is not None
    view = arrange(identity_view((outputs, count)).T)
    inputs = dense_inputs(value.base.tensor.name, rows, affine.gain[0], view) if whole else None
    lowered = integer_weights(builder, weights, node.label, node.outputs[0], inputs)
    matrix = lowered.codes.reshape(outputs, features).astype(np.int64)
    if count == 1:
        shape = value.base.shape
        elements = int(np.prod(shape))
        if outputs * elements > _KERNEL_LIMIT:
            raise RefusalError("the layer is too large", f"use layers of at most {_KERNEL_LIMIT} weights")
        kernel = np.zeros((elements, outputs), np.int64)
        np.add.at(kernel, rows[0], matrix.T)
        return accumulators_value(builder, value, lowered, kernel.T.reshape(outputs, *shape), Window(kernel=shape[1:]), 1, bias,
                                  name=node.outputs[0], label=node.label, arrange=lambda array: arrange(array.reshape(1, outputs)), whole=whole)  # fmt: skip
    channel, pixel = rows // value.base.pixels, rows % value.base.pixels
    if not ((channel == channel[:1]).all() and (pixel == pixel[:, :1]).all() and len(set(channel[0])) == features == value.base.shape[0]):
        # The same weights for many rows are a 1 x 1 convolution once every row is a pixel.
        value = builder.placed(replace(value, view=rows.T.reshape(1, features, count)), (features, 1, count))
        channel, pixel = np.arange(features)[None], np.arange(count)[:, None]
    order = np.empty(features, np.int64)
    order[channel[0]] = np.arange(features)
    return accumulators_value(builder, value, lowered, matrix[:, order, None, None], Window(), 1, bias, name=node.outputs[0], label=node.label,
                              arrange=lambda array: arrange(array.reshape(outputs, -1)[:, pixel[:, 0]].T), whole=whole)  # fmt: skip


@operator("Gemm", "constant weights; alpha, beta, transA, transB")
def _gemm(builder: Builder, node: Node) -> Operand:
    value, weights, addend = node.activation(), node.constant(1, "weight"), node.constant(2, "bias")
    if len(value.shape) != 2 or weights is None or weights.array.ndim != 2:
        raise RefusalError("its operands are not matrices", "use matrices, with constant weights as the second")
    if not node.attribute("transB", int, 0):
        weights = weights.moved(np.transpose)
    alpha, beta = (float(np.float32(node.attribute(name, float, 1.0))) for name in ("alpha", "beta"))
    turned = bool(node.attribute("transA", int, 0))
    features = value.shape[0 if turned else 1]
    if weights.array.shape[1] != features:
        raise RefusalError(f"its weights of shape {list(weights.array.shape)} do not fit {features} features", "export the model again")
    if addend is not None and beta != 1:
        addend = Constant((addend.array * np.float32(beta)).astype(np.float32)) if beta else None
    outputs = weights.array.shape[0]
    fused = addend is not None and alpha == 1 and addend.array.size in (1, outputs) and addend.array.shape[-1:] in ((), (1,), (outputs,))
    result = _dense(builder, node, value, lambda view: view.T if turned else view, weights, bias_of(addend, outputs) if fused else None,
                    lambda array: array, whole=alpha == 1 and (addend is None or fused))  # fmt: skip
    if alpha != 1:
        factor = np.array(alpha, np.float32)
        host = HostOp(kind="Mul", constants={"B": factor})
        result = affine_step(builder, node, result, Constant(factor), Fraction(0), host)
    if addend is not None and not fused:
        host = HostOp(kind="Add", constants={"B": addend.array})
        result = affine_step(builder, node, result, Fraction(1), addend, host)
    return result


@operator("MatMul", "one constant matrix; two activations, in batches (golden only)", runs=(CORE, GOLDEN))
def _matmul(builder: Builder, node: Node) -> Operand:
    left, right = node.operand(0), node.operand(1)
    if isinstance(left, Value) and isinstance(right, Constant):
        return _matmul_right(builder, node, left, right)
    if isinstance(left, Constant) and isinstance(right, Value):
        return _matmul_left(builder, node, left, right)
    return matrix_product(builder, node, node.activation(0), node.activation(1))


def _matrix(constant: Constant) -> Constant:
    array = constant.array
    if array.ndim < 2 or int(np.prod(array.shape[:-2], dtype=np.int64)) != 1:
        raise RefusalError(f"a constant of shape {list(array.shape)} is not one matrix", "use the same matrix for every sample")
    return constant.moved(lambda moved: moved.reshape(array.shape[-2:]))


def _matmul_right(builder: Builder, node: Node, value: Value, constant: Constant) -> Value:
    vector = constant.array.ndim == 1
    weights = constant.moved(lambda array: array[None, :]) if vector else _matrix(constant).moved(np.transpose)
    if not value.shape or weights.array.shape[1] != value.shape[-1] or constant.array.ndim > max(len(value.shape), 2):
        raise RefusalError(f"shapes {list(value.shape)} and {list(constant.array.shape)} do not fit", "export the model again")
    shape = value.shape[:-1] + (() if vector else (weights.array.shape[0],))
    return _dense(builder, node, value, lambda view: view.reshape(-1, view.shape[-1]), weights, None, lambda array: array.reshape(shape))


def _matmul_left(builder: Builder, node: Node, constant: Constant, value: Value) -> Value:
    """``A @ x`` is the transpose of ``x.T @ A.T``."""
    weights = _matrix(constant)
    if len(value.shape) < 2 or weights.array.shape[1] != value.shape[-2]:
        raise RefusalError(f"shapes {list(constant.array.shape)} and {list(value.shape)} do not fit", "export the model again")
    shape = (*value.shape[:-2], value.shape[-1], weights.array.shape[0])
    return _dense(builder, node, value, lambda view: np.swapaxes(view, -1, -2).reshape(-1, view.shape[-2]), weights, None,
                  lambda array: np.swapaxes(array.reshape(shape), -1, -2))  # fmt: skip
