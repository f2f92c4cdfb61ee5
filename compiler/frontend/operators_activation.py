"""Activations: piecewise linear functions of one value, steps of a chain."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_elementwise import channel_values, finite
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, append, operator
from tritloom.compiler.frontend.rounding import bounded
from tritloom.compiler.frontend.values import Constant, Operand, Value
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.steps import Affine, Clip, LeakyRelu, Relu

__all__: list[str] = []


@operator("Relu", "always")
def _relu(builder: Builder, node: Node) -> Operand:
    value = node.activation()
    if value.rounding is not None:
        return bounded(builder, value, node.outputs[0], Fraction(0), None)
    return append(builder, node, value, Relu(), HostOp(kind="Relu"))


@operator("LeakyRelu", "any slope")
def _leaky_relu(builder: Builder, node: Node) -> Operand:
    alpha = float(np.float32(node.attribute("alpha", float, float(np.float32(0.01)))))
    if not np.isfinite(alpha):
        raise RefusalError("its slope is infinite or not a number", "use a finite slope")
    return append(builder, node, node.activation(), LeakyRelu(Fraction(alpha)), HostOp(kind="LeakyRelu", attributes={"alpha": alpha}))


@operator("PRelu", "constant slopes, one or one a channel")
def _prelu(builder: Builder, node: Node) -> Operand:
    constant = node.constant(1, "slope")
    if constant is None:
        raise RefusalError("its slope is missing", "give the slope as a constant")
    value, slopes = channel_values(builder, node, node.activation(), finite(constant))
    host = HostOp(kind="PRelu", constants={"slope": constant.array})
    return append(builder, node, value, None if slopes is None else LeakyRelu(slopes), host)


@operator("HardSigmoid", "any alpha and beta")
def _hard_sigmoid(builder: Builder, node: Node) -> Operand:
    alpha, beta = (np.float32(node.attribute(name, float, default)) for name, default in (("alpha", float(np.float32(0.2))), ("beta", 0.5)))
    if not (np.isfinite(alpha) and np.isfinite(beta)):
        raise RefusalError("its alpha or beta is infinite or not a number", "use finite attributes")
    value = append(
        builder,
        node,
        node.activation(),
        Affine((Fraction(float(alpha)),), (Fraction(0),)),
        HostOp(kind="Mul", constants={"B": np.array(alpha)}),
    )
    value = append(
        builder, node, value, Affine((Fraction(1),), (Fraction(float(beta)),)), HostOp(kind="Add", constants={"B": np.array(beta)})
    )
    return _bounded(builder, node, value, Fraction(0), Fraction(1))


def _extreme(builder: Builder, node: Node, choose: Callable[[list[Fraction]], Fraction], *, lower: bool) -> Operand:
    """Max (``lower``) or Min of one activation and any number of constant bounds."""
    # Of two and more, a reduction was made when the model was read.
    values = [operand for operand in node.inputs if isinstance(operand, Value)]
    bounds = []
    for operand in node.inputs:
        if isinstance(operand, Constant):
            array = finite(operand).array
            if not array.size or (array != array.flat[0]).any():
                raise RefusalError("its bound is not a single number", "use one bound for the whole tensor")
            if array.ndim > len(values[0].shape):
                raise RefusalError("its bound has more axes than the activation", "use a single number as the bound")
            bounds.append(Fraction(float(array.flat[0])))
    bound = choose(bounds) if bounds else None
    return _bounded(builder, node, values[0], bound if lower else None, None if lower else bound)


@operator("Max", "activations of one shape, and any number of constants")
def _max(builder: Builder, node: Node) -> Operand:
    return _extreme(builder, node, max, lower=True)


@operator("Min", "activations of one shape, and any number of constants")
def _min(builder: Builder, node: Node) -> Operand:
    return _extreme(builder, node, min, lower=False)


@operator("Clip", "constant bounds, as attributes or inputs")
def _clip(builder: Builder, node: Node) -> Operand:
    bounds: list[Fraction | None] = []
    for index, name in ((1, "min"), (2, "max")):
        constant = node.constant(index, f"{name} bound")
        value = (
            node.attribute(name, float) if constant is None else float(constant.array.reshape(-1)[0]) if constant.array.size == 1 else None
        )
        if constant is not None and value is None:
            raise RefusalError(f"its {name} bound is not a single number", "use one bound for the whole tensor")
        if value is not None and np.isnan(value):
            raise RefusalError(f"its {name} bound is not a number", "use a finite bound")
        wide = value is None or np.isinf(value) or abs(value) >= float(np.finfo(np.float32).max)
        bounds.append(None if wide or value is None else Fraction(value))
    low, high = bounds
    if low is not None and high is not None and low > high:
        raise RefusalError("its lower bound is above its upper bound", "exchange the bounds")
    return _bounded(builder, node, node.activation(), low, high)


def _bounded(builder: Builder, node: Node, value: Value, low: Fraction | None, high: Fraction | None) -> Value:
    if value.rounding is not None:
        return bounded(builder, value, node.outputs[0], low, high)
    if value.quantiser is not None and value.integer:
        return _narrowed(value, low, high, node)
    constants = {name: np.array(float(bound), np.float32) for name, bound in (("min", low), ("max", high)) if bound is not None}
    host = HostOp(kind="Clip", constants=constants)
    return append(builder, node, value, Clip(low, high), host)


def _narrowed(value: Value, low: Fraction | None, high: Fraction | None, node: Node) -> Value:
    """A Clip of integer codes right behind QuantizeLinear narrows its range: how QCDQ says fewer than 8 bits."""
    quantiser = value.quantiser
    assert quantiser is not None
    bottom = quantiser.low if low is None else max(quantiser.low, -(-low.numerator // low.denominator))
    top = quantiser.high if high is None else min(quantiser.high, high.numerator // high.denominator)
    if bottom > top:
        raise RefusalError("no code lies between its bounds", "use bounds inside the range of the quantiser")
    offset = 0 if top <= 127 else quantiser.offset
    return replace(value, name=node.outputs[0], quantiser=replace(quantiser, low=bottom, high=top, offset=offset))
