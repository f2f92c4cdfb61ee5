"""QONNX Trunc: drops the lowest bits of integers, in both versions of the operator.

With ``u = x / scale + zero_point`` and ``k`` dropped bits the code is ``floor(round(u) / 2**k)``. Ties of the inner rounding go to
even numbers, and the multiples of ``2**k`` are even: ``round(u) >= m * 2**k`` exactly when ``u >= m * 2**k - 1/2``, so that the code is
``floor((u + 1/2) / 2**k)`` for every real ``u``. In the same way ``ceil(round(u) / 2**k) = ceil((u - 1/2) / 2**k)``.
"""

from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_elementwise import affine_step
from tritloom.compiler.frontend.operators_quantise import QONNX_DOMAINS, needed, positive_scale, quantised
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import Constant, Operand
from tritloom.compiler.ir.program import HostOp

__all__: list[str] = []

_MODES = {"FLOOR": ("floor", Fraction(1, 2)), "CEIL": ("ceil", Fraction(-1, 2))}


def _number(constant: Constant | None, what: str) -> Fraction:
    array = needed(constant, what).array.astype(np.float64)
    if (array != array.flat[0]).any() or not np.isfinite(array.flat[0]):
        raise RefusalError(f"its {what} is not a single number", "use one number for the whole tensor")
    return Fraction(float(array.flat[0]))


def _dropped_bits(scale: Fraction, result: Fraction) -> int:
    """Exponent of the ratio of two scales, a power of two."""
    bits = round(float(np.log2(float(result / scale))))
    if bits < 0 or result != scale * (1 << bits):
        raise RefusalError("its scales are not a power of two apart", "use an output scale of 2**n times the input scale")
    return bits


@operator("Trunc", "rounding modes FLOOR and CEIL, one scale", domains=QONNX_DOMAINS)
def _trunc(builder: Builder, node: Node) -> Operand:
    mode = str(node.attribute("rounding_mode", str, "FLOOR")).upper()
    if mode not in _MODES:
        raise RefusalError(f"rounding mode {mode} of Trunc is not supported", f"use {' or '.join(_MODES)}, or a Quant of fewer bits")
    scale, zero = _number(positive_scale(node, 1), "scale"), _number(node.constant(2, "zero point"), "zero point")
    if len(node.inputs) > 5:
        result, width = _number(positive_scale(node, 4), "output scale"), _number(node.constant(5, "output bit width"), "output bit width")
        bits, offset = _dropped_bits(scale, result), zero / (result / scale)
    else:
        width = _number(node.constant(4, "output bit width"), "output bit width")
        bits, result, offset = int(_number(node.constant(3, "input bit width"), "input bit width") - width), scale, zero
    if width.denominator != 1 or not 1 <= width <= 8 or not 0 <= bits <= 32:
        raise RefusalError(f"it drops {bits} bits and leaves {float(width):g}", "leave 1 to 8 bits")
    if offset.denominator != 1:
        raise RefusalError("its zero point is not an integer", "export the quantiser with an integer zero point")
    low, high = _range(node, int(width))
    rounding, half = _MODES[mode] if bits else ("half_even", Fraction(0))
    ratio = result / (scale * (1 << bits))
    shift = result * ((zero + half) / (1 << bits) - offset)
    value = affine_step(
        builder, node, node.activation(), ratio, Fraction(0), HostOp(kind="Mul", constants={"B": np.array(float(ratio), np.float32)})
    )
    value = affine_step(builder, node, value, Fraction(1), shift, HostOp(kind="Add", constants={"B": np.array(float(shift), np.float32)}))
    return quantised(builder, node, value, low=low, high=high, integer=False, scale=Constant(np.array(float(result))),
                     zero=Constant(np.array(int(offset))), rounding=rounding)  # fmt: skip


def _range(node: Node, width: int) -> tuple[int, int]:
    """Codes of ``width`` bits. Version 1 does not say whether they are signed: what holds both is taken."""
    if len(node.inputs) > 5:
        narrow = int(bool(node.attribute("narrow", int, 0)))
        if node.attribute("signed", int, 1):
            return -(1 << (width - 1)) + narrow, (1 << (width - 1)) - 1
        return 0, (1 << width) - 1 - narrow
    if width == 8:
        raise RefusalError("version 1 of Trunc does not say whether its 8 bits are signed", "use version 2 of Trunc, or 7 bits")
    return -(1 << (width - 1)), (1 << width) - 1
