"""ONNX graphs with ``Loop`` nodes, written node by node; needs no PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tritloom.models.nets.export import Graph

__all__ = ["IR_VERSION", "OPSET", "Body", "Scope", "State", "model_of", "typed"]

OPSET, IR_VERSION = 23, 11


@dataclass(frozen=True)
class State:
    """What a loop hands from turn to turn: ``source`` is the value before the first."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: int = TensorProto.FLOAT


class Scope(Graph):
    """A graph or the body of a loop; constants all belong to the graph."""

    def __init__(self, outside: "Scope | None" = None) -> None:
        super().__init__()
        self.known: set[str] = set() if outside is None else outside.known
        if outside is not None:
            self.initializers = outside.initializers

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in self.known:
            self.known.add(name)
            self.initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))  # scalars stay scalars
        return name

    def loop(self, name: str, trips: int, states: Sequence[State], body: "Body") -> list[str]:
        """A ``Loop`` over ``states``. Returns the names of their last values."""
        inner = Scope(self)
        number, condition = f"{name}.number", f"{name}.condition"
        inside = [f"{name}.before.{state.name}" for state in states]
        goes_on, results = body(inner, number, inside)
        goes_on = inner.node("Identity", [goes_on or condition], f"{name}.again")
        shapes = [(state.kind, state.shape) for state in states]
        flag = (TensorProto.BOOL, ())
        graph = helper.make_graph(
            inner.nodes,
            name,
            typed([number, condition, *inside], [(TensorProto.INT64, ()), flag, *shapes]),
            typed([goes_on, *results], [flag, *shapes]),
        )
        ends = [f"{name}.last.{state.name}" for state in states]
        sources = [self.constant(f"{name}.trips", np.int64(trips)), self.constant("always", np.bool_(True)), *(s.source for s in states)]
        self.nodes.append(helper.make_node("Loop", sources, ends, name=name, body=graph))
        return ends


Body = Callable[[Scope, str, list[str]], tuple[str, list[str]]]
"""From the scope inside, the name of the turn's number and those of the states to the condition to go on, "" for always, and the names of the next states."""


def typed(names: Sequence[str], kinds: Sequence[tuple[int, tuple[int, ...]]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in zip(names, kinds, strict=True)]


def model_of(
    scope: Scope,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Mapping[str, tuple[str, int, tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """The checked model of a graph; ``outputs`` maps names to the value inside, its type and its shape. The same arguments give the same bytes."""
    for output, (value, _, _) in outputs.items():
        scope.node("Identity", [value], output)
    kinds = [(kind, shape) for _, kind, shape in outputs.values()]
    graph = helper.make_graph(scope.nodes, name, list(inputs), typed(list(outputs), kinds), initializer=scope.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tritloom")
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
