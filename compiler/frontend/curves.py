"""Curved steps of a chain: functions of one value, and operators whose two operands are both computed from one value."""

from dataclasses import replace

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.registry import Node, append
from tritloom.compiler.frontend.values import Codes, Tail, Value, dequantising, fractions
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.functions import FUNCTIONS
from tritloom.compiler.quantize.steps import Fork, Function, Quantised, Step, is_curved

__all__ = ["curve", "forked"]


def curve(builder: Builder, node: Node, value: Value, name: str, *parameters: float) -> Value:
    """``value`` after a function of :data:`FUNCTIONS`; ``parameters`` are float32 numbers. Raises :class:`RefusalError` where one is not finite."""
    assert name in FUNCTIONS
    value = builder.settle(value)
    exact = fractions(np.array(parameters, np.float64))
    host = HostOp(kind="Function", attributes={"name": name, "parameters": tuple(float(part) for part in exact)})
    return append(builder, node, value, Function(name, exact, value.name), host)


def forked(builder: Builder, node: Node, left: Value, right: Value, *, curved: bool = False) -> Value | None:
    """``left`` and ``right`` joined by the node's operator as one step, ``None`` where they are not elements of one base in one order.

    With ``curved`` also ``None`` where both are piecewise linear. Between the two and what they are computed from quantisers may stand.
    """
    for first in _origins(builder.settle(left)):
        for second in _origins(builder.settle(right)):
            if first.base is second.base and np.array_equal(first.view, second.view) and not isinstance(first.base, Tail):
                chains = first.chain, second.chain
                if chains[0] is None or chains[1] is None or (curved and not is_curved((*chains[0], *chains[1]))):
                    return None
                return _joined(builder, node, first, second, chains[0], chains[1])
    return None


def _origins(value: Value) -> list[Value]:
    """``value``, and the same elements as they come out of the codes that its own codes were made from, and so on."""
    found = [value]
    while isinstance(value.base, Codes) and value.base.origin is not None:
        origin = value.base.origin
        if origin.chain is None or origin.quantiser is None or not value.chain or value.chain[0] != dequantising(value.base.tensor):
            break
        chain = (*origin.chain, Quantised(origin.quantiser, origin.name), *value.chain[1:])
        value = replace(value, base=origin.base, chain=chain, trail=None, stages={})
        found.append(value)
    return found


def _joined(builder: Builder, node: Node, left: Value, right: Value, first: tuple[Step, ...], second: tuple[Step, ...]) -> Value:
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    fork = Fork(node.op, first[shared:], second[shared:], left.stages.get(shared, "") or right.stages.get(shared, ""))
    prefix = replace(left, chain=first[:shared], quantiser=None, trail=_host(node, left, right))
    result = append(builder, node, prefix, fork, None)
    return replace(result, trail=prefix.trail)


def _host(node: Node, left: Value, right: Value) -> tuple[HostOp, ...] | None:
    """The same as steps of the host, ``None`` where it cannot."""
    first, second = left.trail, right.trail
    if first is None or second is None or not np.array_equal(left.start, right.start) or left.head != right.head:
        return None
    shared = 0
    # Equality of host operations leaves out their constants: only the very same operations are shared.
    while shared < min(len(first), len(second)) and first[shared] is second[shared]:
        shared += 1
    if shared < left.head:
        return None
    join = HostOp(kind="Join", attributes={"operator": node.op})
    return (*first[:shared], HostOp(kind="Fork"), *first[shared:], HostOp(kind="Swap"), *second[shared:], join)
