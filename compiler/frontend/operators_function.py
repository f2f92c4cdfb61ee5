"""Curved functions of one value: steps of a chain whose codes are found by looking at every reachable integer."""

from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.curves import curve
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, append, operator
from tritloom.compiler.frontend.values import Operand
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.steps import LeakyRelu

__all__: list[str] = []

_MICROSOFT = ("com.microsoft",)

_SIMPLE = ("Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Erf", "Exp", "Log", "Sqrt", "Reciprocal")
_DEFAULTS: dict[str, dict[str, float]] = {
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "Celu": {"alpha": 1.0},
    "Swish": {"alpha": 1.0},
    "ThresholdedRelu": {"alpha": 1.0},
    "Shrink": {"bias": 0.0, "lambd": 0.5},
}
"""Attributes in the order of the function's parameters, with the defaults of ONNX."""


def _simple(builder: Builder, node: Node) -> Operand:
    parts = [float(np.float32(node.attribute(name, float, default))) for name, default in _DEFAULTS.get(node.op, {}).items()]
    if node.op == "Celu" and not parts[0]:
        raise RefusalError("its alpha is zero", "use an alpha other than zero")
    return curve(builder, node, node.activation(), node.op, *parts)


for _name in (*_SIMPLE, *_DEFAULTS):
    operator(_name, f"any {' and '.join(_DEFAULTS[_name])}" if _name in _DEFAULTS else "always")(_simple)


@operator("HardSwish", "always")
def _hard_swish(builder: Builder, node: Node) -> Operand:
    return curve(builder, node, node.activation(), "HardSwish", float(np.float32(1 / 6)), 0.5)


@operator("Gelu", "both approximations", domains=("", *_MICROSOFT))
def _gelu(builder: Builder, node: Node) -> Operand:
    kind = node.attribute("approximate", str, "none")
    if kind not in ("none", "tanh"):
        raise RefusalError(f"its approximation {kind} is not known", 'use "none" or "tanh"')
    return curve(builder, node, node.activation(), "GeluTanh" if kind == "tanh" else "Gelu")


@operator("QuickGelu", "any alpha", domains=_MICROSOFT)
def _quick_gelu(builder: Builder, node: Node) -> Operand:
    return curve(builder, node, node.activation(), "Swish", float(np.float32(node.attribute("alpha", float, 1.702))))


@operator("Abs", "always")
def _abs(builder: Builder, node: Node) -> Operand:
    return append(builder, node, node.activation(), LeakyRelu(Fraction(-1)), HostOp(kind="LeakyRelu", attributes={"alpha": -1.0}))


@operator("Pow", "constant exponent, one number")
def _pow(builder: Builder, node: Node) -> Operand:
    base, exponent = node.activation(), node.constant(1, "exponent")
    if exponent is None or exponent.array.size != 1 or exponent.array.ndim > len(base.shape):
        raise RefusalError("its exponent is not a single number", "use one exponent for the whole tensor")
    if abs(float(exponent.array.flat[0])) > 64:
        raise RefusalError("its exponent is larger than 64", "use a smaller exponent")
    return curve(builder, node, base, "Pow", float(exponent.array.flat[0]))
