"""What the front end says of a model that it cannot lower."""

from dataclasses import dataclass, field
from typing import Any

from tritloom.compiler.ir.program import Program
from tritloom.compiler.quantize.weights import IntegerWeights
from tritloom.errors import ModelError

__all__ = ["CheckReport", "Lowered", "Problem", "RefusalError", "problems_error"]


class RefusalError(Exception):
    """Raised by an operator handler. ``reason`` is a sentence about the node, ``hint`` the nearest supported form."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True)
class Problem:
    """One node that cannot be lowered; ``node`` is its name, or its first output where it has none."""

    node: str
    op: str
    reason: str
    hint: str


@dataclass(frozen=True)
class CheckReport:
    """Result of :func:`tritloom.compiler.frontend.check`.

    ``layers`` describes the operations of the integer program in order (``name``, ``op``, ``input``, ``output``, ``macs``, ``runs``: core, golden
    only or host), with what the host computes before and behind them; it is empty when the model is not supported. ``facts`` holds what else was found: producer, opsets, inputs, outputs, where each operator may run, and the values
    that need calibration samples because the model states no quantiser for them.
    """

    supported: bool
    problems: list[Problem] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lowered:
    """Result of :func:`tritloom.compiler.frontend.lower`; ``notes`` are sentences about what the compiler chose.

    ``weights`` holds the integer weights of each layer by its name, as they were made: in the layout of the ONNX file's rows.
    """

    program: Program
    notes: list[str] = field(default_factory=list)
    weights: dict[str, IntegerWeights] = field(default_factory=dict)


def problems_error(name: str, problems: list[Problem]) -> ModelError:
    """One sentence for a model with problems: the first of them, and how many more there are."""
    first = problems[0]
    more = f" ({len(problems) - 1} more found by check)" if len(problems) > 1 else ""
    hint = f"; {first.hint}" if first.hint else ""
    return ModelError(f"{name}: node {first.node!r}: {first.reason}{more}{hint}")
