"""One self-contained HTML page about a compiled model: accuracy, layers, proofs, cycles, weights, build, samples, versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np

from tritloom.compiled import CompiledModel
from tritloom.report.charts import bars, count, grey_picture, split_bars, usage_bars
from tritloom.report.exactness import exactness
from tritloom.report.facts import layer_facts
from tritloom.verification import Verification

__all__ = ["Accuracy", "BuildFacts", "Sample", "render"]


@dataclass(frozen=True)
class Accuracy:
    """Share of correct answers of one way of computing the model, 0 to 1."""

    name: str
    correct: int
    samples: int

    @property
    def share(self) -> float:
        return self.correct / self.samples


@dataclass(frozen=True)
class Sample:
    """A picture, float (height, width), what it shows and what the model says."""

    pixels: np.ndarray
    label: str
    prediction: str

    @property
    def right(self) -> bool:
        return self.label == self.prediction


@dataclass(frozen=True)
class BuildFacts:
    """What place and route said. ``utilisation`` is used and available by the tool's own cell names."""

    board: str
    bitstream: str
    fmax_mhz: float
    clock_mhz: float
    macs_per_cycle: int
    utilisation: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def render(
    model: CompiledModel,
    *,
    board: str,
    accuracies: Sequence[Accuracy] = (),
    verification: Verification | None = None,
    built: BuildFacts | None = None,
    samples: Sequence[Sample] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """The page as text. ``board`` names the schedule whose cycles are shown."""
    schedule = model.schedule(board)
    layers = layer_facts(model.program, schedule)
    weighted = [(layer.name, layer.trits, f"{layer.sparsity:.0%} zero") for layer in layers if layer.trits and layer.sparsity is not None]
    width = schedule.parameters.accumulator_bits
    accumulators = [(layer.name, layer.accumulator_bits, width) for layer in layers if layer.accumulator_bits is not None]
    cells = [] if built is None else [(name, use["used"], use["available"]) for name, use in built.utilisation.items() if use["used"]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tritloom.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["count"] = count
    compared = [] if verification is None else verification.against("golden")
    clocks = [(layer.name, layer.cycles, f"{count(layer.cycles)} ({layer.cycles / schedule.cycles:.0%})") for layer in layers]
    values: dict[str, Any] = {
        "model": model,
        "board": board,
        "schedule": schedule,
        "layers": layers,
        "tensors": exactness(model.program)["tensors"],
        "accuracies": accuracies,
        "verification": verification,
        "built": built,
        "rate": None if built is None else built.clock_mhz * 1e6 / schedule.cycles,
        "pictures": [(sample, grey_picture(sample.pixels, f"sample of {sample.label}")) for sample in samples],
        "compared": sum(comparison.values for comparison in compared),
        "candidates": list(dict.fromkeys(comparison.candidate for comparison in compared)),
        "cycle_chart": bars(clocks, "Clocks per layer"),
        "weight_chart": split_bars(weighted, "Weight digits -1, 0 and 1 per layer"),
        "accumulator_chart": usage_bars(accumulators, "Accumulator bits that the weights can reach, of those that the core has"),
        "usage_chart": usage_bars(cells, "Cells used and available"),
        "versions": dict(versions or {}),
    }
    return environment.get_template("page.html.j2").render(values)
