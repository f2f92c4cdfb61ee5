"""Elementwise arithmetic and batch normalisation: steps of a chain. And what only the host does at the end."""

from dataclasses import replace
from fractions import Fraction
from math import isqrt

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.curves import curve, forked
from tritloom.compiler.frontend.operators_shape import move
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import CORE, GOLDEN, HOST, Node, append, operator
from tritloom.compiler.frontend.rounding import scaled
from tritloom.compiler.frontend.sums import add_values
from tritloom.compiler.frontend.values import (
    Codes,
    Constant,
    Operand,
    Pending,
    Source,
    Tail,
    Value,
    affine_of,
    canonical_shape,
    channels_of,
    exact_values,
    identity_view,
)
from tritloom.compiler.frontend.vector import MASKED, product
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.chain import entry
from tritloom.compiler.quantize.steps import Affine

__all__ = ["ROOT_BITS", "add_constant", "affine_step", "channel_values", "finite", "host_axis", "is_mask", "root", "tail"]

ROOT_BITS = 256
"""Square roots that are not rational are cut to this many bits behind the point."""


def root(value: Fraction) -> Fraction:
    """Square root, exact where it is rational, else the largest multiple of ``2**-256`` below it."""
    numerator, denominator = isqrt(value.numerator), isqrt(value.denominator)
    if numerator**2 == value.numerator and denominator**2 == value.denominator:
        return Fraction(numerator, denominator)
    return Fraction(isqrt((value.numerator << 2 * ROOT_BITS) // value.denominator), 1 << ROOT_BITS)


def _broadcast(builder: Builder, node: Node, value: Value, shape: tuple[int, ...]) -> Value:
    """``value`` with its view repeated to the shape that broadcasting with a constant gives."""
    value = builder.settle(value)
    try:
        result = np.broadcast_shapes(value.shape, shape)
    except ValueError:
        raise RefusalError(f"shapes {list(value.shape)} and {list(shape)} do not broadcast", "export the model again") from None
    if result == value.shape:
        return value
    if int(np.prod(result, dtype=np.int64)) > LARGEST_TENSOR:
        raise RefusalError("the result is too large", f"use tensors of at most {LARGEST_TENSOR} elements")
    if len(result) > len(value.shape) and int(np.prod(result, dtype=np.int64)) == value.view.size:
        moved = move(builder, node, value, lambda array: array.reshape(result))
        assert isinstance(moved, Value)
        return replace(moved, name=value.name, witness=value.witness)
    raise RefusalError("a constant with more elements than the activation would repeat it", "give the constant the shape of the activation")


def affine_step(builder: Builder, node: Node, value: Value, gain: Constant | Fraction, offset: Constant | Fraction, host: HostOp) -> Value:
    """``gain * value + offset``; constants broadcast to the value's shape."""
    if value.rounding is not None:
        found = [part if isinstance(part, Fraction) else _uniform(part, value.shape) for part in (gain, offset)]
        if found[0] is not None and found[1] is not None:
            return scaled(value, node.outputs[0], found[0], found[1], host)
    for part in (gain, offset):
        if isinstance(part, Constant):
            value = _broadcast(builder, node, value, part.array.shape)
    if isinstance(value.base, Tail):
        return append(builder, node, value, None, host)
    found = [(part,) if isinstance(part, Fraction) else channels_of(part, value.view, value.base) for part in (gain, offset)]
    if None in found and isinstance(value.base, Codes | Pending):
        value = _as_features(builder, value)
        found = [(part,) if isinstance(part, Fraction) else channels_of(part, value.view, value.base) for part in (gain, offset)]
    gains, offsets = found
    if gains is None or offsets is None:
        if not isinstance(value.base, Source):
            raise RefusalError(
                "its constant differs between the pixels of a channel", "use a constant for each channel, or quantise before this node"
            )
        return append(builder, node, value, None, host)
    return append(builder, node, value, Affine(gains, offsets), host)


def _uniform(constant: Constant, shape: tuple[int, ...]) -> Fraction | None:
    """The one value of a constant that broadcasts to ``shape``, ``None`` where there are several."""
    flat = constant.array.ravel()
    if not flat.size or (flat != flat[0]).any() or constant.array.ndim > len(shape) or (flat.size > 1 and constant.array.shape != shape):
        return None
    return exact_values(constant, np.arange(1))[0]


def _as_features(builder: Builder, value: Value) -> Value:
    """Codes with every element a channel of its own, so that each may have its own constant."""
    value = builder.codes(value)
    affine = affine_of(value.chain)
    assert affine is not None
    base = value.base
    channels = value.view.ravel() // base.pixels
    placed = builder.placed(
        Value(name=value.name, base=base, view=value.view, chain=value.chain, trail=value.trail, start=value.start, witness=value.witness,
              label=value.label),
        (value.view.size, 1, 1),
    )  # fmt: skip
    gain = tuple(entry(affine.gain, int(c)) for c in channels) if len(affine.gain) > 1 else affine.gain
    offset = tuple(entry(affine.offset, int(c)) for c in channels) if len(affine.offset) > 1 else affine.offset
    placed.chain = (Affine(gain, offset),)
    return placed


def finite(constant: Constant) -> Constant:
    """The constant, if it is finite numbers. Raises :class:`RefusalError`."""
    if constant.array.dtype.kind not in "fiu":
        raise RefusalError(f"a constant of type {constant.array.dtype} is not supported here", "use float32 constants")
    if not np.isfinite(constant.array.astype(np.float64)).all():
        raise RefusalError("a constant is infinite or not a number", "replace the constant by a finite one")
    return constant


def _binary(node: Node) -> tuple[Value, Constant, bool] | None:
    """Activation, constant, and whether the constant is the left operand; ``None`` for two activations."""
    left, right = node.operand(0), node.operand(1)
    if isinstance(left, Value) and isinstance(right, Constant):
        return left, finite(_without_infinity(node, right)), False
    if isinstance(left, Constant) and isinstance(right, Value):
        return right, finite(_without_infinity(node, left)), True
    return None


def _without_infinity(node: Node, constant: Constant) -> Constant:
    """A mask that is added, with the lowest float32 for minus infinity: both leave an element out of a Softmax."""
    if node.op != "Add" or constant.array.dtype.kind != "f" or not is_mask(constant.array):
        return constant
    return Constant(np.where(np.isneginf(constant.array), np.finfo(np.float32).min, constant.array))


def _host(node: Node, constant: Constant, first: bool) -> HostOp:
    return HostOp(kind=node.op, constants={"A" if first else "B": constant.array})


def is_mask(array: np.ndarray) -> bool:
    """Whether a constant that is added leaves some elements out of the Softmax behind it: some entries are -9999 or below, others are not."""
    low = array <= MASKED
    return bool(low.any() and not low.all())


def _negated(constant: Constant) -> Constant:
    return Constant(-constant.array.astype(np.float64))


def channel_values(builder: Builder, node: Node, value: Value, constant: Constant) -> tuple[Value, tuple[Fraction, ...] | None]:
    """``value`` broadcast with a constant, and the constant by base channel: ``None`` where only the host can use it.

    Raises :class:`RefusalError` where the core would have to and the constant differs between the pixels of a channel.
    """
    value = _broadcast(builder, node, value, constant.array.shape)
    if isinstance(value.base, Tail):
        return value, None
    found = channels_of(constant, value.view, value.base)
    if found is None and isinstance(value.base, Codes | Pending):
        value = _as_features(builder, value)
        found = channels_of(constant, value.view, value.base)
    if found is None and not isinstance(value.base, Source):
        raise RefusalError(
            "its constant differs between the pixels of a channel", "use a constant for each channel, or quantise before this node"
        )
    return value, found


def add_constant(builder: Builder, node: Node, value: Value, constant: Constant, host: HostOp) -> Value:
    """``value + constant``."""
    if isinstance(value.base, Pending) and is_mask(constant.array):
        # A grid for the sum would have to reach the mask: the grid is that of the value before it.
        value = builder.codes(value)
    return affine_step(builder, node, value, Fraction(1), constant, host)


@operator("Add", "a constant for each channel, or two activations (residual)")
def _add(builder: Builder, node: Node) -> Operand:
    found = _binary(node)
    if found is None:
        left, right = node.activation(0), node.activation(1)
        return forked(builder, node, left, right, curved=True) or add_values(builder, node, left, right, subtract=False)
    value, constant, first = found
    return add_constant(builder, node, value, constant, _host(node, constant, first))


@operator("Sum", "activations of one shape, and any number of constants")
def _sum(builder: Builder, node: Node) -> Operand:
    # Of more than two, pairs were made when the model was read.
    activations = [operand for operand in node.inputs if isinstance(operand, Value)]
    result = activations[0]
    if len(activations) == 2:
        left, right = activations
        join = replace(node, op="Add")
        result = forked(builder, join, left, right, curved=True) or add_values(builder, join, left, right, subtract=False)
    for operand in node.inputs:
        if isinstance(operand, Constant):
            result = affine_step(builder, node, result, Fraction(1), operand, HostOp(kind="Add", constants={"B": finite(operand).array}))
    return result


@operator("Mean", "activations of one shape, and any number of constants")
def _mean(builder: Builder, node: Node) -> Operand:
    total, count = _sum(builder, node), len(node.inputs)
    assert isinstance(total, Value)
    host = HostOp(kind="Div", constants={"B": np.array(count, np.float32)})
    return append(builder, node, total, Affine((Fraction(1, count),), (Fraction(0),)), host)


@operator("Sub", "a constant for each channel, or two activations")
def _sub(builder: Builder, node: Node) -> Operand:
    found = _binary(node)
    if found is None:
        left, right = node.activation(0), node.activation(1)
        return forked(builder, node, left, right, curved=True) or add_values(builder, node, left, right, subtract=True)
    value, constant, first = found
    gain, offset = (Fraction(-1), constant) if first else (Fraction(1), _negated(constant))
    return affine_step(builder, node, value, gain, offset, _host(node, constant, first))


@operator(
    "Mul",
    "a constant for each channel; two activations computed element by element from one (x * Sigmoid(x)); other two activations that broadcast (golden only)",
    runs=(CORE, GOLDEN),
)
def _mul(builder: Builder, node: Node) -> Operand:
    found = _binary(node)
    if found is None:
        left, right = node.activation(0), node.activation(1)
        return forked(builder, node, left, right) or product(builder, node, left, right)
    value, constant, first = found
    return affine_step(builder, node, value, constant, Fraction(0), _host(node, constant, first))


@operator("Div", "by a constant for each channel; a constant by an activation; two activations computed element by element from one")
def _div(builder: Builder, node: Node) -> Operand:
    found = _binary(node)
    if found is None:
        result = forked(builder, node, node.activation(0), node.activation(1))
        if result is None:
            raise RefusalError(
                "the quotient of two activations is not supported: neither a core nor golden divides by codes",
                "divide by a constant, or by a value computed element by element from the same activation",
            )
        return result
    value, constant, first = found
    if first:
        inverse = curve(builder, node, value, "Reciprocal")
        result = affine_step(builder, node, inverse, constant, Fraction(0), HostOp(kind="Mul", constants={"B": constant.array}))
        if result.trail is not None and result.trail[-2].kind == "Function":
            # The host divides, which rounds once.
            result = replace(result, trail=(*result.trail[:-2], _host(node, constant, True)))
        return result
    if not constant.array.all():
        raise RefusalError("it divides by zero", "divide by constants other than zero")
    single = None if value.rounding is None else _uniform(constant, value.shape)
    if single is not None:
        return scaled(value, node.outputs[0], 1 / single, Fraction(0), _host(node, constant, False))
    value, divisors = channel_values(builder, node, value, constant)
    step = None if divisors is None else Affine(tuple(1 / part for part in divisors), (Fraction(0),))
    return append(builder, node, value, step, _host(node, constant, False))


@operator("Neg", "always")
def _neg(builder: Builder, node: Node) -> Operand:
    return append(builder, node, node.activation(), Affine((Fraction(-1),), (Fraction(0),)), HostOp(kind="Neg"))


@operator("BatchNormalization", "inference, constant parameters")
def _batch_normalization(builder: Builder, node: Node) -> Operand:
    if node.attribute("training_mode", int, 0) or any(node.outputs[1:]):
        raise RefusalError("BatchNormalization is in training mode", "export the model in evaluation mode")
    value = builder.settle(node.activation())
    names = ("scale", "bias", "mean", "var")
    constants = [node.constant(i + 1, name) for i, name in enumerate(names)]
    rank = len(value.shape)
    channels = value.shape[1] if rank > 1 else 1
    parts = []
    for constant in constants:
        if constant is None or constant.array.shape != (channels,):
            raise RefusalError(f"its parameters do not have one entry for each of {channels} channels", "export the model again")
        parts.append(finite(constant))
    epsilon = Fraction(float(np.float32(node.attribute("epsilon", float, 1e-5))))
    host = HostOp(
        kind="BatchNormalization",
        constants={name: part.array for name, part in zip(("scale", "B", "input_mean", "input_var"), parts, strict=True)},
        attributes={"epsilon": float(epsilon)},
    )
    if isinstance(value.base, Tail):
        return append(builder, node, value, None, host)
    along = (1, channels) + (1,) * (rank - 2)
    shaped = [part.moved(lambda array: array.reshape(along)) for part in parts]
    found = [channels_of(part, value.view, value.base) for part in shaped]
    if None in found and isinstance(value.base, Codes | Pending):
        value = _as_features(builder, value)
        found = [channels_of(part, value.view, value.base) for part in shaped]
    scale, bias, mean, variance = found
    if scale is None or bias is None or mean is None or variance is None:
        if isinstance(value.base, Source):
            return append(builder, node, value, None, host)
        raise RefusalError("its channels are not the channels of the layer before it", "normalise along the channel axis")
    gains, offsets = [], []
    for channel in range(max(map(len, (scale, bias, mean, variance)))):
        square = entry(variance, channel) + epsilon
        if square <= 0:
            raise RefusalError("its variance plus epsilon is not positive", "export the model again")
        gain = entry(scale, channel) / root(square)
        gains.append(gain)
        offsets.append(entry(bias, channel) - gain * entry(mean, channel))
    return append(builder, node, value, Affine(tuple(gains), tuple(offsets)), host)


def tail(builder: Builder, node: Node, value: Value, host: HostOp, shape: tuple[int, ...]) -> Value:
    """What the host computes behind the last integer tensor."""
    view = identity_view(shape)
    base = Tail(shape=canonical_shape(shape), inner=value, operator=node.op)
    return Value(name=node.outputs[0], base=base, view=view, chain=None, trail=(host,), start=view, witness=value.witness, label=node.label)


def host_axis(node: Node, value: Value, default: int) -> int:
    rank = len(value.shape)
    axis = node.attribute("axis", int, default)
    if not -rank <= axis < rank or axis % rank == 0 or value.shape[0] != 1:
        raise RefusalError("it works along the batch axis", "use an axis other than 0")
    return axis % rank


@operator("ArgMax", "at the end of the network, on the host", runs=(HOST,))
def _argmax(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    axis = host_axis(node, value, 0)
    keep = bool(node.attribute("keepdims", int, 1))
    shape = tuple(1 if i == axis else size for i, size in enumerate(value.shape) if keep or i != axis)
    last = bool(node.attribute("select_last_index", int, 0))
    return tail(builder, node, value, HostOp(kind="ArgMax", attributes={"axis": axis, "keepdims": keep, "select_last_index": last}), shape)


_FLOATS = (1, 10, 11, 16)
_INTEGERS = (5, 6, 7, 12, 13)


@operator("Cast", "to a float type; to integers at the end of the network")
def _cast(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    to = node.attribute("to", int, 1)
    if to in _FLOATS and not isinstance(value.base, Tail):
        return value
    if isinstance(value.base, Tail) and value.base.operator == "ArgMax" and to in _INTEGERS:
        return value
    raise RefusalError("a cast of an activation to an integer type is not supported", "use QuantizeLinear")
