"""The one table of operators: (domain, operator) to the handler that lowers it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.values import Constant, Operand, Tail, Value
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.steps import Step

__all__ = [
    "CORE",
    "GOLDEN",
    "HOST",
    "OPERATORS",
    "PLACES",
    "Handler",
    "Movement",
    "Node",
    "Operator",
    "append",
    "handled",
    "operator",
    "supported_operators",
]


_LONGEST_CHAIN = 512
"""Steps of chain and trail together: the numbers of an exact chain grow with each."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node with its operands looked up. ``label`` is its name, or its first output where it has none."""

    label: str
    op: str
    domain: str
    opset: int
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    batch: int | None
    """The declared batch of the model's inputs where it is a number."""

    def attribute(self, name: str, kind: type, default: Any = None) -> Any:
        """An attribute of ``kind`` (int, float, str, or list for several integers). Raises :class:`RefusalError` for another type."""
        value = self.attributes.get(name, default)
        if value is None or value is default:
            return value
        if kind is str and isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if kind is list and isinstance(value, (list, tuple, np.ndarray)):
            return [int(item) for item in value]
        if (kind is float and isinstance(value, int)) or isinstance(value, kind):
            return value
        raise RefusalError(f"its attribute {name} has the wrong type", "export the model again")

    def operand(self, index: int) -> Operand:
        """An input, ``None`` where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int, what: str) -> Constant | None:
        """An input that must be constant, ``None`` where it is left out."""
        found = self.operand(index)
        if found is None or isinstance(found, Constant):
            return found
        raise RefusalError(f"its {what} is computed from the model's input", f"{what} must be a constant")

    def activation(self, index: int = 0) -> Value:
        """An input that must depend on the model's input."""
        found = self.operand(index)
        if isinstance(found, Value):
            return found
        raise RefusalError(f"its input {index + 1} is a constant or missing", "connect it to a value computed from the model's input")


Handler = Callable[[Builder, Node], Operand | list[Operand]]
"""Gives the first output of a node, or a list of all."""

Movement = Callable[[np.ndarray], np.ndarray]


CORE, GOLDEN, HOST = PLACES = ("core", "golden only", "host")
"""Where a node may run: on the core (an operator that only moves elements, too), in golden but on no core yet, or in float32 on the host."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An entry of :data:`OPERATORS`. ``forms`` says in words what is supported, ``runs`` where its forms may run (:data:`PLACES`)."""

    domain: str
    name: str
    forms: str
    handler: Handler
    runs: tuple[str, ...] = (CORE,)


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(name: str, forms: str, *, domains: tuple[str, ...] = ("",), runs: tuple[str, ...] = (CORE,)) -> Callable[[Handler], Handler]:
    """Register the handler of an operator in ``domains``; ``runs`` says where its forms may run."""

    def register(handler: Handler) -> Handler:
        for domain in domains:
            OPERATORS[domain, name] = Operator(domain=domain, name=name, forms=forms, handler=handler, runs=runs)
        return handler

    return register


def supported_operators() -> list[Operator]:
    """Every operator by domain and name, for the documentation."""
    return [OPERATORS[key] for key in sorted(OPERATORS)]


def append(builder: Builder, node: Node, value: Value, step: Step | None, host: HostOp | None) -> Value:
    """``value`` after one elementwise step; ``step`` is ``None`` where only the host can do it, ``host`` where it cannot."""
    value = builder.settle(value)
    if len(value.chain or ()) + len(value.trail or ()) > _LONGEST_CHAIN:
        raise RefusalError(f"more than {_LONGEST_CHAIN // 2} elementwise operators follow each other", "put a quantiser between them")
    return Value(
        name=node.outputs[0],
        base=value.base,
        view=value.view,
        chain=None if value.chain is None or step is None else (*value.chain, step),
        trail=None if value.trail is None or host is None else (*value.trail, host),
        start=value.start,
        witness=value.witness,
        label=node.label,
        head=value.head,
        stages=value.stages,
    )


def handled(handler: Handler, builder: Builder, node: Node) -> Operand | list[Operand]:
    """What a handler gives. What the host computes at the end of a network goes on there as long as the handlers can; after that it is
    computed inside the network, where it can be (:attr:`Value.inside`), and the handler is asked again."""
    late = [operand for operand in node.inputs if isinstance(operand, Value) and operand.inside is not None]
    if not late:
        return handler(builder, node)
    made: list[Operand | list[Operand]] = []

    def again() -> Operand | list[Operand]:
        if not made:
            operands = tuple(operand.inside() if isinstance(operand, Value) and operand.inside else operand for operand in node.inputs)
            made.append(handler(builder, replace(node, inputs=operands)))
        return made[0]

    try:
        result = handler(builder, node)
    except RefusalError:
        return again()
    for position, value in enumerate(result if isinstance(result, list) else [result]):
        if isinstance(value, Value) and isinstance(value.base, Tail) and value not in late:
            value.inside = partial(_output, again, position)
    return result


def _output(results: Callable[[], Operand | list[Operand]], position: int) -> Operand:
    found = results()
    return found[position] if isinstance(found, list) else found
