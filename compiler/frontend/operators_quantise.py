"""Quantisers: QONNX Quant, IntQuant and BipolarQuant, and ONNX QuantizeLinear and DequantizeLinear."""

from fractions import Fraction

import numpy as np
import onnx.helper

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.grids import host_quantise
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, append, operator
from tritloom.compiler.frontend.values import (
    Base,
    Codes,
    Constant,
    Grid,
    Operand,
    Source,
    Tail,
    Value,
    canonical_shape,
    channels_of,
    dequantising,
    identity_view,
    moves_only,
)
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.steps import Affine, Quantiser
from tritloom.errors import ModelError

__all__ = ["QONNX_DOMAINS", "ROUNDING_MODES", "constant_on_grid", "needed", "positive_scale", "quantised", "round_array"]

QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")

ROUNDING_MODES = {
    "ROUND": "half_even",
    "HALF_EVEN": "half_even",
    "CEIL": "ceil",
    "FLOOR": "floor",
    "UP": "away_from_zero",
    "DOWN": "toward_zero",
    "ROUND_TO_ZERO": "toward_zero",
    "HALF_UP": "half_away",
    "HALF_DOWN": "half_toward_zero",
}
"""QONNX's names; its HALF_UP rounds halves away from zero."""

_INTEGER_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint2": (0, 3),
    "int2": (-2, 1),
}

_ONNX_TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 21: "uint4", 22: "int4", 25: "uint2", 26: "int2"}
_TYPE_NUMBERS = {name: number for number, name in _ONNX_TYPES.items()}


def round_array(values: np.ndarray, rounding: str) -> np.ndarray:
    """Round floats in their own type, as the qonnx executor does."""
    match rounding:
        case "half_even":
            return np.round(values)
        case "ceil":
            return np.ceil(values)
        case "floor":
            return np.floor(values)
        case "toward_zero":
            return np.fix(values)
        case "away_from_zero":
            return np.sign(values) * np.ceil(np.abs(values))
        case "half_away":
            return np.sign(values) * np.floor(np.abs(values) + 0.5)
        case _:
            return np.sign(values) * np.ceil(np.abs(values) - 0.5)


def needed(constant: Constant | None, what: str) -> Constant:
    """The constant, if it is there and not empty. Raises :class:`RefusalError`."""
    if constant is None or not constant.array.size:
        raise RefusalError(f"its {what} is missing", f"give the {what} as a constant")
    return constant


def positive_scale(node: Node, index: int) -> Constant:
    """A constant input as the scale of a quantiser. Raises :class:`RefusalError`."""
    constant = needed(node.constant(index, "scale"), "scale")
    values = constant.array.astype(np.float64)
    if constant.array.dtype.kind not in "fiuV" or not (np.isfinite(values).all() and (values > 0).all()):
        raise RefusalError("its scale is not a positive finite number", "export the quantiser with positive scales")
    return Constant(constant.array.astype(np.float32) if constant.array.dtype.kind != "f" else constant.array)


def _by_channel(constant: Constant, value: Value, what: str) -> tuple[Fraction, ...]:
    """A quantiser's parameter by channel of the tensor that it makes."""
    base, view = value.base, value.view
    if isinstance(base, Source) and not moves_only(value.trail or ()):
        base, view = Base(shape=canonical_shape(value.shape)), identity_view(value.shape)
    try:
        found = channels_of(constant, view, base)
    except ValueError:
        raise RefusalError(f"its {what} does not broadcast to the tensor", "use one value, or one a channel") from None
    if found is None:
        raise RefusalError(f"its {what} differs within a channel", "use one value, or one a channel")
    return found


def _single(values: tuple[Fraction, ...]) -> Fraction | tuple[Fraction, ...]:
    return values[0] if len(values) == 1 else values


def _zero(values: tuple[Fraction, ...]) -> int | tuple[int, ...]:
    if any(value.denominator != 1 for value in values):
        raise RefusalError("its zero point is not an integer", "export the quantiser with an integer zero point")
    numbers = tuple(int(value) for value in values)
    return numbers[0] if len(numbers) == 1 else numbers


def quantised(builder: Builder, node: Node, value: Value, *, low: int, high: int, integer: bool, scale: Constant, zero: Constant,
               rounding: str, bipolar: bool = False, clip_first: bool = False) -> Value:  # fmt: skip
    """``value`` behind a quantiser of codes ``low..high``; with ``integer`` the result is the code itself. Raises :class:`RefusalError`."""
    value = builder.settle(value)
    if high - low > 255:
        raise RefusalError(f"activations of codes {low}..{high} need more than 8 bits", "quantise activations to 8 bits or fewer")
    offset = 0 if -128 <= low and high <= 127 else -128 - low
    try:
        quantiser = Quantiser(
            _single(_by_channel(scale, value, "scale")),
            _zero(_by_channel(zero, value, "zero point")),
            low,
            high,
            rounding,
            bipolar=bipolar,
            clip_first=clip_first,
            offset=offset,
        )
    except ModelError as error:
        raise RefusalError(str(error), "export the quantiser again") from None
    if isinstance(value.base, Tail):
        return _on_host(builder, node, value, quantiser, integer=integer)
    return Value(
        name=node.outputs[0],
        base=value.base,
        view=value.view,
        chain=value.chain,
        trail=value.trail,
        start=value.start,
        witness=value.name if integer else node.outputs[0],
        label=node.label,
        quantiser=quantiser,
        integer=integer,
        head=value.head,
    )


def _on_host(builder: Builder, node: Node, value: Value, quantiser: Quantiser, *, integer: bool) -> Value:
    """A quantiser behind the host's part of the network (QDQ exporters put one behind a final Softmax) rounds on the host."""
    if isinstance(quantiser.scale, tuple) or isinstance(quantiser.zero_point, tuple):
        raise RefusalError("a quantiser with a scale for each channel behind the last layer is not supported", "use one scale")
    codes = append(builder, node, value, None, host_quantise(quantiser, len(value.shape), np.dtype(np.float32)))
    scale, zero = (1.0, quantiser.offset) if integer else (float(quantiser.scale), quantiser.zero_point + quantiser.offset)
    return append(builder, node, codes, None, HostOp(kind="Dequantize", constants={"scale": np.array(scale), "zero_point": np.array(zero)}))


def _widths(node: Node) -> tuple[int, int, bool]:
    """Smallest and largest code, and whether the quantiser is bipolar: a signed one of 1 bit."""
    constant = needed(node.constant(3, "bit width"), "bit width")
    bits = constant.array.astype(np.float64).ravel()
    if (bits != bits[0]).any() or bits[0] != round(bits[0]) or not 1 <= bits[0] <= 32:
        raise RefusalError("its bit width is not one integer from 1 to 32", "use one bit width for the tensor")
    width = int(bits[0])
    signed, narrow = bool(node.attribute("signed", int, 1)), bool(node.attribute("narrow", int, 0))
    if signed and width == 1:
        return -1, 1, True
    if signed:
        return -(1 << (width - 1)) + narrow, (1 << (width - 1)) - 1, False
    return 0, (1 << width) - 1 - narrow, False


@operator("Quant", "integer widths, all rounding modes", domains=QONNX_DOMAINS)
@operator("IntQuant", "integer widths, all rounding modes", domains=QONNX_DOMAINS)
def _quant(builder: Builder, node: Node) -> Operand:
    low, high, bipolar = _widths(node)
    scale, zero = positive_scale(node, 1), needed(node.constant(2, "zero point"), "zero point")
    mode = str(node.attribute("rounding_mode", str, "ROUND")).upper()
    if mode not in ROUNDING_MODES:
        raise RefusalError(f"rounding mode {mode} is not known", f"use one of {', '.join(ROUNDING_MODES)}")
    rounding = ROUNDING_MODES[mode]
    operand = node.operand(0)
    if not isinstance(operand, Constant):
        return quantised(builder, node, node.activation(), low=low, high=high, integer=False, scale=scale, zero=zero, rounding=rounding,
                          bipolar=bipolar, clip_first=True)  # fmt: skip
    shift = zero.array.astype(np.float32)
    scaled = _divided(operand.array, scale.array) + shift
    codes = np.where(scaled >= 0, 1, -1) if bipolar else round_array(np.clip(scaled, low, high), rounding)
    return constant_on_grid(codes - shift, scale.array)


@operator("BipolarQuant", "codes -1 and 1", domains=QONNX_DOMAINS)
def _bipolar_quant(builder: Builder, node: Node) -> Operand:
    scale = positive_scale(node, 1)
    operand = node.operand(0)
    if isinstance(operand, Constant):
        return constant_on_grid(np.where(operand.array >= 0, 1.0, -1.0), scale.array)
    zero = Constant(np.zeros((), np.int64))
    return quantised(
        builder, node, node.activation(), low=-1, high=1, integer=False, scale=scale, zero=zero, rounding="half_even", bipolar=True
    )


def _divided(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``values / scale`` in float32; overflow goes to infinity and is clipped later."""
    if not np.isfinite(values.astype(np.float64)).all():
        raise RefusalError("a constant is infinite or not a number", "replace the constant by a finite one")
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32) / scale


def constant_on_grid(codes: np.ndarray, scale: np.ndarray, *, blocked: bool = False) -> Constant:
    """A quantised constant; ``codes`` have their zero point subtracted. Fractional zero points leave no integer grid."""
    dtype = scale.dtype if scale.dtype.kind == "f" else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        array = (codes.astype(dtype) * scale.astype(dtype)).astype(dtype)
    if not np.isfinite(array).all():
        raise RefusalError("a constant is infinite or not a number", "export the quantiser with smaller scales")
    integers = np.rint(codes).astype(np.int64)
    if not np.array_equal(integers, codes):
        return Constant(array)
    return Constant(array, Grid(np.broadcast_to(integers, array.shape), np.broadcast_to(scale.astype(np.float64), array.shape), blocked))


def _along(node: Node, constant: Constant, shape: tuple[int, ...], what: str) -> Constant:
    """Shape the parameters of QuantizeLinear and DequantizeLinear so that they broadcast: one, one along ``axis``, or one a block of it."""
    array, rank = constant.array, len(shape)
    if node.attribute("block_size", int, 0):
        return _unblocked(node, array, shape, what)
    if array.ndim == 0 or array.size == 1:
        return Constant(array.reshape(()))
    axis = node.attribute("axis", int, 1)
    if array.ndim != 1 or not -rank <= axis < rank:
        raise RefusalError(
            f"its {what} is neither one value nor one for each channel", "quantise with one scale for the tensor or for each channel"
        )
    return Constant(array.reshape([-1 if i == axis % rank else 1 for i in range(rank)]))


def _unblocked(node: Node, array: np.ndarray, shape: tuple[int, ...], what: str) -> Constant:
    """Parameters of blocks of ``block_size`` along ``axis``, repeated to the shape of the tensor."""
    if isinstance(node.operand(0), Value):
        raise RefusalError(
            "activations have a scale for each block", "quantise activations with one scale for the tensor or for each channel"
        )
    size, axis = node.attribute("block_size", int, 0), node.attribute("axis", int, 1)
    if size < 0 or not -len(shape) <= axis < len(shape):
        raise RefusalError(f"its block_size {size} or axis {axis} is impossible", "export the model again")
    axis %= len(shape)
    blocks = tuple(-(-length // size) if i == axis else length for i, length in enumerate(shape))
    if array.shape != blocks:
        raise RefusalError(
            f"its {what} of shape {list(array.shape)} does not have one entry for each block of {size}", "export the model again"
        )
    return Constant(np.repeat(array, size, axis=axis).take(np.arange(shape[axis]), axis=axis))


def _parameters(node: Node) -> tuple[Constant, Constant | None]:
    operand = node.operand(0)
    shape = operand.array.shape if isinstance(operand, Constant) else node.activation().shape
    zero = node.constant(2, "zero point")
    return _along(node, positive_scale(node, 1), shape, "scale"), None if zero is None else _along(node, zero, shape, "zero point")


@operator("QuantizeLinear", "8 bits or fewer, one scale or one a channel")
def _quantize_linear(builder: Builder, node: Node) -> Operand:
    operand = node.operand(0)
    scale, zero = _parameters(node)
    kind = _ONNX_TYPES.get(node.attribute("output_dtype", int, 0), "uint8") if zero is None else str(zero.array.dtype)
    if kind not in _INTEGER_RANGES:
        raise RefusalError(f"quantisation to {kind} is not supported", "quantise to int8, uint8, int4, uint4, int2 or uint2")
    low, high = _INTEGER_RANGES[kind]
    numbers = Constant(np.zeros((), np.int64) if zero is None else zero.array.astype(np.int64))
    if isinstance(operand, Constant):
        scaled = np.round(_divided(operand.array, scale.array)) + numbers.array
        return Constant(np.clip(scaled, low, high).astype(np.int64).astype(onnx.helper.tensor_dtype_to_np_dtype(_TYPE_NUMBERS[kind])))
    return quantised(builder, node, node.activation(), low=low, high=high, integer=True, scale=scale, zero=numbers, rounding="half_even")


@operator("DequantizeLinear", "one scale or one a channel; constants also by blocks, integers of any width")
def _dequantize_linear(builder: Builder, node: Node) -> Operand:
    operand = node.operand(0)
    scale, zero = _parameters(node)
    numbers = Constant(np.zeros((), np.int64) if zero is None else zero.array.astype(np.int64))
    if isinstance(operand, Constant):
        if str(operand.array.dtype) not in _INTEGER_RANGES:
            raise RefusalError(f"constants of type {operand.array.dtype} are not supported here", "store the weights as int8, int4 or int2")
        blocked = bool(node.attribute("block_size", int, 0))
        return constant_on_grid(operand.array.astype(np.int64) - numbers.array, scale.array, blocked=blocked)
    value = builder.settle(node.activation())
    gain = _by_channel(scale, value, "scale")
    shift = _by_channel(numbers, value, "zero point")
    base = value.base
    if isinstance(base, Codes) and value.integer:
        count = max(len(gain), len(shift))
        step = Affine(gain, tuple(-gain[c % len(gain)] * shift[c % len(shift)] for c in range(count)))
        if _same_grid(value, step, base):
            return Value(name=node.outputs[0], base=base, view=value.view, chain=(dequantising(base.tensor),), trail=(HostOp(kind="Dequantize"),),
                         start=value.view, witness=node.outputs[0], label=node.label)  # fmt: skip
    shifted = append(builder, node, value, Affine((Fraction(1),), tuple(-part for part in shift)),
                     HostOp(kind="Sub", constants={"B": numbers.array.astype(np.float32)}))  # fmt: skip
    return append(builder, node, shifted, Affine(gain, (Fraction(0),)),
                  HostOp(kind="Mul", constants={"B": scale.array}))  # fmt: skip


def _same_grid(value: Value, step: Affine, base: Codes) -> bool:
    """Whether the code without its offset, dequantised by ``step``, is the real value of the tensor's own grid."""
    chain = value.chain
    if chain is None or len(chain) != 1 or not isinstance(chain[0], Affine) or chain[0].gain != (Fraction(1),):
        return False
    own = dequantising(base.tensor)
    offset = chain[0].offset[0]
    count = max(len(own.gain), len(own.offset), len(step.gain), len(step.offset))
    return all(
        own.gain[c % len(own.gain)] == step.gain[c % len(step.gain)]
        and own.offset[c % len(own.offset)] == step.gain[c % len(step.gain)] * offset + step.offset[c % len(step.offset)]
        for c in range(count)
    )
