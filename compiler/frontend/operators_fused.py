"""Integer operators that fuse a layer with its quantisers: ONNX's QLinear operators and ONNX Runtime's contributed ones.

Each is what the table's operators give when written out: DequantizeLinear of every operand, the float operator, QuantizeLinear of
the result. A bias of 32-bit integers counts the product of its operands' scales. ONNX Runtime multiplies the integer
sums by one float32 number instead, so that its codes may differ where a value lies within float32 rounding of a step.
Its QLinearAdd, QLinearMul and QLinearAveragePool add the zero point before they round, the others behind (measured, release 1.31).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_quantise import needed, positive_scale
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import CORE, GOLDEN, HOST, OPERATORS, Node, handled, operator
from tritloom.compiler.frontend.values import Constant, Grid, Operand, Value

__all__ = ["MICROSOFT", "apply"]

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's contributed operators."""

_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def apply(builder: Builder, node: Node, op: str, inputs: Sequence[Operand], *, result: str = "", **attributes: Any) -> Operand:
    """What the standard operator ``op`` gives in place of ``node``; ``result`` names its value, by default the node's own output."""
    own = replace(node, op=op, domain="", inputs=tuple(inputs), outputs=(result or node.outputs[0],), attributes=attributes)
    found = handled(OPERATORS["", op].handler, builder, own)
    return found[0] if isinstance(found, list) else found


def _attributes(node: Node, *names: str) -> dict[str, Any]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _dequantised(builder: Builder, node: Node, first: int, *, axis: int = 0) -> Operand:
    """The real value of the operand at inputs ``first`` to ``first + 2``: codes, scale, zero point. ``axis`` is that of several scales."""
    scale, zero = positive_scale(node, first + 1), node.constant(first + 2, "zero point")
    inputs = [node.operand(first), scale, *([] if zero is None else [zero])]
    return apply(builder, node, "DequantizeLinear", inputs, result=f"{node.outputs[0]}_operand_{first}", axis=axis)


def _requantised(builder: Builder, node: Node, value: Operand, first: int, *, zero_first: bool = False) -> Operand:
    """``value`` as codes by the scale and zero point at inputs ``first`` and ``first + 1``.

    With ``zero_first`` the zero point is added before rounding: ties then go to other codes where it is odd.
    """
    if not isinstance(value, Value):
        raise RefusalError("it does not depend on the model's input", "store its result as a constant")
    scale, zero = positive_scale(node, first), node.constant(first + 1, "zero point")
    codes = apply(builder, node, "QuantizeLinear", [value, scale, *([] if zero is None else [zero])], axis=1)
    if not isinstance(codes, Value) or codes.quantiser is None:
        return codes
    # The value before the quantiser has no name in the model, so it is the codes that a witness is asked for.
    return replace(codes, witness=node.outputs[0], quantiser=replace(codes.quantiser, clip_first=zero_first))


def _wide_bias(constant: Constant | None, *scales: Constant, factor: float = 1.0) -> list[Operand]:
    """A bias of 32-bit integers in units of the product of ``scales``, exact; nothing where it is left out."""
    if constant is None:
        return []
    if constant.array.dtype.kind not in "iu":
        raise RefusalError(f"its bias is of type {constant.array.dtype}", "give the bias as int32")
    scale = np.full((), factor, np.float64)
    for part in scales:
        # The product of two float32 numbers is exact in float64.
        scale = scale * part.array.astype(np.float64).ravel()
    try:
        scale = np.broadcast_to(scale.reshape(()) if scale.size == 1 else scale, constant.array.shape)
    except ValueError:
        raise RefusalError(f"its bias of shape {list(constant.array.shape)} does not fit its scales", "export the model again") from None
    codes = constant.array.astype(np.int64)
    return [Constant((codes * scale).astype(np.float32), Grid(codes, scale))]


@operator("QLinearConv", "as Conv and QuantizeLinear")
def _qlinear_conv(builder: Builder, node: Node) -> Operand:
    bias = _wide_bias(node.constant(8, "bias"), positive_scale(node, 1), positive_scale(node, 4))
    x, w = _dequantised(builder, node, 0), _dequantised(builder, node, 3)
    y = apply(builder, node, "Conv", [x, w, *bias], result=f"{node.outputs[0]}_sum", **_attributes(node, *_WINDOW))
    return _requantised(builder, node, y, 6)


def _row_scales(node: Node, first: int, axis: int) -> int:
    """``axis`` of a matrix operand's scales; those of an activation must be one."""
    if isinstance(node.operand(first), Value) and positive_scale(node, first + 1).array.size > 1:
        raise RefusalError("an activation has a scale for each row or column", "use one scale for activations")
    return axis


@operator("QLinearMatMul", "as MatMul and QuantizeLinear", runs=(CORE, GOLDEN))
def _qlinear_matmul(builder: Builder, node: Node) -> Operand:
    a = _dequantised(builder, node, 0, axis=_row_scales(node, 0, -2))
    b = _dequantised(builder, node, 3, axis=_row_scales(node, 3, -1))
    return _requantised(builder, node, apply(builder, node, "MatMul", [a, b], result=f"{node.outputs[0]}_sum"), 6)


@operator("QGemm", "as Gemm and QuantizeLinear", domains=(MICROSOFT,))
def _qgemm(builder: Builder, node: Node) -> Operand:
    alpha = float(np.float32(node.attribute("alpha", float, 1.0)))
    bias = _wide_bias(node.constant(6, "bias"), positive_scale(node, 1), positive_scale(node, 4), factor=alpha)
    a = _dequantised(builder, node, 0, axis=_row_scales(node, 0, 0))
    b = _dequantised(builder, node, 3, axis=0 if node.attribute("transB", int, 0) else 1)
    quantised = node.operand(7) is not None
    result = f"{node.outputs[0]}_sum" if quantised else ""
    y = apply(builder, node, "Gemm", [a, b, *bias], result=result, **_attributes(node, "alpha", "transA", "transB"))
    return _requantised(builder, node, y, 7) if quantised else y


def _integers(builder: Builder, node: Node, index: int, zero_index: int, *, axis: int = 0) -> Operand:
    """An operand of an integer layer less its zero point."""
    zero = node.constant(zero_index, "zero point")
    inputs = [node.operand(index), Constant(np.array(1.0, np.float32)), *([] if zero is None else [zero])]
    return apply(builder, node, "DequantizeLinear", inputs, result=f"{node.outputs[0]}_operand_{index}", axis=axis)


@operator("ConvInteger", "as Conv of integers")
def _conv_integer(builder: Builder, node: Node) -> Operand:
    x, w = _integers(builder, node, 0, 2), _integers(builder, node, 1, 3)
    return apply(builder, node, "Conv", [x, w], **_attributes(node, *_WINDOW))


@operator("MatMulInteger", "as MatMul of integers")
def _matmul_integer(builder: Builder, node: Node) -> Operand:
    return apply(builder, node, "MatMul", [_integers(builder, node, 0, 2, axis=-2), _integers(builder, node, 1, 3, axis=-1)])


def _elementwise(builder: Builder, node: Node, op: str) -> Operand:
    parts = [_dequantised(builder, node, first) for first in (0, 3)]
    return _requantised(builder, node, apply(builder, node, op, parts, result=f"{node.outputs[0]}_real"), 6, zero_first=True)


@operator("QLinearAdd", "as Add and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_add(builder: Builder, node: Node) -> Operand:
    return _elementwise(builder, node, "Add")


@operator("QLinearMul", "as Mul and QuantizeLinear", domains=(MICROSOFT,), runs=(CORE, GOLDEN))
def _qlinear_mul(builder: Builder, node: Node) -> Operand:
    return _elementwise(builder, node, "Mul")


def _unary(builder: Builder, node: Node, op: str, *names: str, **attributes: Any) -> Operand:
    y = apply(
        builder, node, op, [_dequantised(builder, node, 0)], result=f"{node.outputs[0]}_real", **_attributes(node, *names), **attributes
    )
    return _requantised(builder, node, y, 3)


def _pool(builder: Builder, node: Node, op: str, *names: str, zero_first: bool) -> Operand:
    """A pool, whose channels are the last axis with ``channels_last``."""
    x = _dequantised(builder, node, 0)
    if not node.attribute("channels_last", int, 0):
        y = apply(builder, node, op, [x], result=f"{node.outputs[0]}_real", **_attributes(node, *names))
        return _requantised(builder, node, y, 3, zero_first=zero_first)
    if not isinstance(x, Value) or len(x.shape) < 3:
        raise RefusalError("its input has no spatial axes", "export the model again")
    rank, name = len(x.shape), node.outputs[0]
    first = apply(builder, node, "Transpose", [x], result=f"{name}_first", perm=[0, rank - 1, *range(1, rank - 1)])
    y = apply(builder, node, op, [first], result=f"{name}_pooled", **_attributes(node, *names))
    last = apply(builder, node, "Transpose", [y], result=f"{name}_last", perm=[0, *range(2, rank), 1])
    return _requantised(builder, node, last, 3, zero_first=zero_first)


@operator("QLinearGlobalAveragePool", "as GlobalAveragePool and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_global_average_pool(builder: Builder, node: Node) -> Operand:
    return _pool(builder, node, "GlobalAveragePool", zero_first=False)


@operator("QLinearAveragePool", "as AveragePool and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_average_pool(builder: Builder, node: Node) -> Operand:
    return _pool(builder, node, "AveragePool", *_WINDOW, zero_first=True)


@operator("QLinearReduceMean", "as ReduceMean and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_reduce_mean(builder: Builder, node: Node) -> Operand:
    return _unary(builder, node, "ReduceMean", "axes", "keepdims")


@operator("QLinearLeakyRelu", "as LeakyRelu and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_leaky_relu(builder: Builder, node: Node) -> Operand:
    return _unary(builder, node, "LeakyRelu", "alpha")


@operator("QLinearSigmoid", "as Sigmoid and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_sigmoid(builder: Builder, node: Node) -> Operand:
    return _unary(builder, node, "Sigmoid")


@operator("QLinearSoftmax", "as Softmax and QuantizeLinear", domains=(MICROSOFT,), runs=(GOLDEN, HOST))
def _qlinear_softmax(builder: Builder, node: Node) -> Operand:
    older = replace(node, opset=node.attribute("opset", int, node.opset))
    return _unary(builder, older, "Softmax", axis=node.attribute("axis", int, -1))


@operator("QLinearConcat", "as Concat and QuantizeLinear", domains=(MICROSOFT,))
def _qlinear_concat(builder: Builder, node: Node) -> Operand:
    needed(node.constant(0, "scale"), "scale")
    if len(node.inputs) < 5 or (len(node.inputs) - 2) % 3:
        raise RefusalError("its operands are not triples of codes, scale and zero point", "export the model again")
    parts = [_dequantised(builder, node, first) for first in range(2, len(node.inputs), 3)]
    joined = apply(builder, node, "Concat", parts, result=f"{node.outputs[0]}_real", **_attributes(node, "axis"))
    return _requantised(builder, node, joined, 0)


@operator("QuantizeLinear", "as QuantizeLinear of the standard operator set", domains=(MICROSOFT,))
def _quantize_linear(builder: Builder, node: Node) -> Operand:
    return apply(builder, node, "QuantizeLinear", node.inputs, **node.attributes)


@operator("DequantizeLinear", "as DequantizeLinear of the standard operator set", domains=(MICROSOFT,))
def _dequantize_linear(builder: Builder, node: Node) -> Operand:
    return apply(builder, node, "DequantizeLinear", node.inputs, **node.attributes)
