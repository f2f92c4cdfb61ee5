"""Round, Floor, Ceil and Sign of activations: quantisers of step 1, see :mod:`tritloom.compiler.frontend.rounding`."""

from dataclasses import replace
from fractions import Fraction

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.rounding import Rounding, closed
from tritloom.compiler.frontend.values import Operand, Tail, Value
from tritloom.compiler.quantize.steps import Quantiser

__all__: list[str] = []


def _input(builder: Builder, node: Node) -> Value:
    value = builder.settle(node.activation())
    if isinstance(value.base, Tail):
        raise RefusalError(f"{node.op} behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    return replace(value, name=node.outputs[0], witness=node.outputs[0], label=node.label, source="quantiser", integer=False)


def _rounded(builder: Builder, node: Node, mode: str) -> Operand:
    return closed(builder, replace(_input(builder, node), rounding=Rounding(mode)), demand=False)


@operator("Round", "with a Clip before or behind it, or of codes")
def _round(builder: Builder, node: Node) -> Operand:
    return _rounded(builder, node, "half_even")


@operator("Floor", "with a Clip before or behind it, or of codes")
def _floor(builder: Builder, node: Node) -> Operand:
    return _rounded(builder, node, "floor")


@operator("Ceil", "with a Clip before or behind it, or of codes")
def _ceil(builder: Builder, node: Node) -> Operand:
    return _rounded(builder, node, "ceil")


@operator("Sign", "codes -1, 0 and 1")
def _sign(builder: Builder, node: Node) -> Operand:
    # Away from zero everything but zero itself is at least one, and the range cuts it to one.
    return replace(_input(builder, node), quantiser=Quantiser(Fraction(1), 0, -1, 1, "away_from_zero"))
