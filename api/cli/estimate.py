"""``tritloom estimate``: cycles and size without any tool."""

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
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Predict cycles per layer exactly, and the size of the core roughly. Needs no tools.

    [bold]Examples[/bold]

    tritloom estimate model.loom

    tritloom estimate model.loom --board tang-nano-20k --json
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
