"""``tritloom estimate``: cycles and size without any tool."""

from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import (
    BiasCorrectionOption,
    BoardOption,
    CalibrationMethodOption,
    CalibrationOption,
    CompensationOption,
    JsonOption,
    LayersOption,
    MethodOption,
    ModelOrLoomArgument,
    PercentileOption,
    PlanesOption,
    QuietOption,
    ShapeOption,
    VerboseOption,
    sizes_of,
)  # fmt: skip

if TYPE_CHECKING:
    from tritloom.compiled import CompiledModel

__all__ = ["estimate"]


def estimate(
    model: ModelOrLoomArgument,
    board: BoardOption = "sim",
    calibration: CalibrationOption = None,
    calibration_method: CalibrationMethodOption = "mse",
    percentile: PercentileOption = 99.99,
    no_bias_correction: BiasCorrectionOption = False,
    no_compensation: CompensationOption = False,
    method: MethodOption = "auto",
    planes: PlanesOption = None,
    layers: LayersOption = None,
    shape: ShapeOption = None,
    sdram: Annotated[
        bool, typer.Option("--sdram", help="For a model larger than the board's memories: a model of one whose weights come from SDRAM.")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Predict cycles per layer exactly, and the size of the core roughly. Needs no tools.

    [bold]Examples[/bold]

    tritloom estimate model.loom

    tritloom estimate model.loom --board tang-nano-20k --json

    tritloom estimate large.onnx --board ulx3s-85f --sdram
    """
    from dataclasses import asdict

    from tritloom.compiled import open_model
    from tritloom.estimation import estimate as estimate_model

    console = Console(json=json, verbose=verbose, quiet=quiet)
    compiled = open_model(
        model,
        calibration=calibration,
        calibration_method=calibration_method,
        percentile=percentile,
        bias_correction=not no_bias_correction,
        compensation=not no_compensation,
        method=method,
        planes=planes,
        layers=layers,
        shapes=sizes_of(shape),
    )
    if sdram:
        _streamed(console, compiled, board)
        return
    found = estimate_model(compiled, board=board)
    rows = [(layer.name, layer.cycles, layer.macs, f"{layer.utilisation:.1%}") for layer in found.layers]
    console.table(f"{compiled.program.name} on {found.board}", ("layer", "cycles", "multiply-accumulates", "utilisation"), rows)
    console.say(f"{found.cycles} cycles an inference, {found.macs} multiply-accumulates")
    if found.first_token is not None:
        console.say(f"of a token: {found.first_token} cycles for the first one, {found.further_token} more for each token before it")
    if found.first_trip is not None:
        console.say(f"the loop may end sooner: {found.first_trip} cycles with one trip, {found.further_trip} more for each other one")
    if found.clock_mhz is not None and found.inferences_per_second is not None:
        console.say(f"{found.inferences_per_second:.0f} inferences a second at {found.clock_mhz:g} MHz, not yet placed and routed")
    if found.cells is not None:
        console.say(f"about {found.cells} LUTs")
    fields = asdict(found)
    console.result({**fields, "layers": [asdict(layer) for layer in found.layers], "inferences_per_second": found.inferences_per_second})


def _streamed(console: Console, compiled: "CompiledModel", board: str) -> None:
    from dataclasses import asdict

    from tritloom.streaming import EFFICIENCY, estimate_streamed

    found = estimate_streamed(compiled, board=board)
    percent = {
        name: cycles / found.streamed_cycles for name, cycles in (("compute", found.compute_bound), ("bandwidth", found.bandwidth_bound))
    }
    rows = [
        ("array", f"{found.rows} x {found.columns}, about {found.cells} LUTs"),
        ("multiply-accumulates", f"{found.macs:,}".replace(",", " ")),
        (
            "weights, activations",
            f"{found.weight_bytes / 1e6:.2f} MB, {found.activation_bytes / 1e6:.2f} MB; the part holds {found.board_bytes / 1e6:.2f} MB",
        ),
        ("SDRAM traffic", f"{found.stream_bytes / 1e6:.0f} MB"),
        ("clocks of the core, were its memories large enough", f"{found.cycles:,}".replace(",", " ")),
        ("clocks with SDRAM", f"{found.streamed_cycles:,}".replace(",", " ")),
        ("bound by computing", f"{found.compute_bound:,} ({percent['compute']:.1%})".replace(",", " ")),
        ("bound by bandwidth", f"{found.bandwidth_bound:,} ({percent['bandwidth']:.1%})".replace(",", " ")),
    ]
    console.table(f"{compiled.program.name} on {found.board}, a model: no core has an SDRAM controller yet", ("figure", "value"), rows)
    console.say(
        f"{found.seconds:.3g} s an inference at {found.clock_mhz:g} MHz, all trips of its loops made, with an SDRAM that delivers a word in {EFFICIENCY:.0%} of the clocks"
    )
    console.result({**asdict(found), "seconds": found.seconds, "model": "no core has an SDRAM controller yet"})
