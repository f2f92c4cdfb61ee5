"""QONNX Trunc: drops the lowest bits of integers, in both versions of the operator.

With ``u = x / scale + zero_point`` and ``k`` dropped bits the code is ``floor(round(u) / 2**k)``. Ties of the inner rounding go to
even numbers, and the multiples of ``2**k`` are even: ``round(u) >= m * 2**k`` exactly when ``u >= m * 2**k - 1/2``, so that the code is
``floor((u + 1/2) / 2**k)`` for every real ``u``. In the same way ``ceil(round(u) / 2**k) = ceil((u - 1/2) / 2**k)``. Other modes have no such
form; they are supported where ``u`` is an integer anyway, which is what Trunc is for.
"""

from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_elementwise import affine_step
from tritloom.compiler.frontend.operators_quantise import QONNX_DOMAINS, ROUNDING_MODES, needed, positive_scale, quantised
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.rounding import chain_range
from tritloom.compiler.frontend.values import Codes, Constant, Operand, Pending, Value, affine_of
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


def _is_integer(value: Value, scale: Fraction, zero: Fraction) -> bool:
    """Whether ``x / scale + zero`` is an integer for every integer that the value may be made of."""
    affine = affine_of(value.chain) if isinstance(value.base, Codes | Pending) else None
    if affine is None:
        return False
    return all((gain / scale).denominator == 1 for gain in affine.gain) and all(
        (part / scale + zero).denominator == 1 for part in affine.offset
    )


@operator("Trunc", "one scale; rounding modes FLOOR and CEIL, all others of integers", domains=QONNX_DOMAINS)
def _trunc(builder: Builder, node: Node) -> Operand:
    mode = str(node.attribute("rounding_mode", str, "FLOOR")).upper()
    if mode not in ROUNDING_MODES:
        raise RefusalError(f"rounding mode {mode} is not known", f"use one of {', '.join(ROUNDING_MODES)}")
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
    value = builder.settle(node.activation())
    low, high = _range(node, int(width), value, scale * (1 << bits), zero / (1 << bits))
    if not bits:
        rounding, half = "half_even", Fraction(0)
    elif mode in _MODES:
        rounding, half = _MODES[mode]
    elif _is_integer(value, scale, zero):
        rounding, half = ROUNDING_MODES[mode], Fraction(0)
    else:
        raise RefusalError(
            f"rounding mode {mode} of values that are no integers times the scale is not supported",
            "use FLOOR or CEIL, or put a Quant before it",
        )
    ratio = result / (scale * (1 << bits))
    shift = result * ((zero + half) / (1 << bits) - offset)
    value = affine_step(builder, node, value, ratio, Fraction(0), HostOp(kind="Mul", constants={"B": np.array(float(ratio), np.float32)}))
    value = affine_step(builder, node, value, Fraction(1), shift, HostOp(kind="Add", constants={"B": np.array(float(shift), np.float32)}))
    return quantised(builder, node, value, low=low, high=high, integer=False, scale=Constant(np.array(float(result))),
                     zero=Constant(np.array(int(offset))), rounding=rounding, clip_first=True)  # fmt: skip


def _range(node: Node, width: int, value: Value, step: Fraction, zero: Fraction) -> tuple[int, int]:
    """Codes of ``width`` bits. Version 1 does not say whether they are signed: what holds both is taken, for 8 bits what the value needs."""
    if len(node.inputs) > 5:
        narrow = int(bool(node.attribute("narrow", int, 0)))
        if node.attribute("signed", int, 1):
            return -(1 << (width - 1)) + narrow, (1 << (width - 1)) - 1
        return 0, (1 << width) - 1 - narrow
    if width == 8:
        ends = (
            chain_range(value.chain, 0, *value.base.reach)
            if affine_of(value.chain) is not None and value.chain is not None
            else (None, None)
        )
        if ends[0] is not None and ends[1] is not None:
            least, most = ends[0] / step + zero, ends[1] / step + zero
            if least >= 0 and most < 256:
                return 0, 255
            if least >= -128 and most < 128:
                return -128, 127
        raise RefusalError("version 1 of Trunc does not say whether its 8 bits are signed", "use version 2 of Trunc, or 7 bits")
    return -(1 << (width - 1)), (1 << width) - 1
