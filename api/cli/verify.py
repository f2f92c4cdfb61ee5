"""``tritloom verify``: every tensor of every candidate against golden, and golden against the outside witness."""

from pathlib import Path
from typing import Annotated

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

__all__ = ["verify"]

SHOWN = 5
"""Disagreements with the outside witness that are printed."""


def verify(
    model: ModelOrLoomArgument,
    on: Annotated[
        str, typer.Option("--on", metavar="A,B,...", help="Candidates: golden, amaranth, verilator, netlist, bitstream.")
    ] = "golden,verilator",
    input: Annotated[
        Path | None, typer.Option("--input", metavar="F.npz", help="Inputs by name; default: random ones.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="How many inputs; random ones: 20.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the random inputs.")] = 0,
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
    """Compare every integer tensor of every candidate with golden, bit by bit, and golden with ONNX Runtime or the qonnx executor.

    Exits with 4 when a candidate differs from golden anywhere.

    [bold]Examples[/bold]

    tritloom verify model.loom

    tritloom verify model.loom --on golden,verilator --samples 200 --json

    tritloom verify model.onnx --input images.npz --board ulx3s-25f

    tritloom verify model.loom --on golden,netlist --board icebreaker

    tritloom verify model.loom --on golden,bitstream --board hx8k --samples 2
    """
    from tritloom.compiled import open_model
    from tritloom.errors import MismatchError
    from tritloom.files import read_arrays
    from tritloom.verification import verify as verify_model

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
    feeds = None if input is None else read_arrays(input, "input file")
    names = [name.strip() for name in on.split(",") if name.strip()]
    with console.progress() as progress:
        found = verify_model(compiled, on=names, board=board, feeds=feeds, samples=samples, seed=seed, progress=progress)
    rows = [(c.reference, c.candidate, c.tensor, c.values, c.mismatches, f"{c.top1_agreement:.2%}") for c in found.comparisons]
    columns = ("reference", "candidate", "tensor", "values", "differing", "same top class")
    console.table(f"{compiled.program.name}, {found.samples} samples", columns, rows)
    for name, text in found.details.items():
        console.say(f"{name}: {text}")
    candidates = [name for name in dict.fromkeys(names) if name != "golden"]
    if candidates and found.exact:
        console.say(f"exact: {', '.join(candidates)} equal{'s' if len(candidates) == 1 else ''} golden on every tensor")
    for comparison in found.against("onnx"):
        if comparison.mismatches:
            share = f"{comparison.mismatches} of {comparison.values} codes"
            where = f"; first: {comparison.first}" if comparison.first else ""
            console.say(f"output {comparison.tensor!r}: {share} differ from the float32 witness{where}")
    for disagreement in found.disagreements[:SHOWN]:
        console.say(str(disagreement))
    if len(found.disagreements) > SHOWN:
        console.say(f"and {len(found.disagreements) - SHOWN} more, all of them with --json")
    fields = {"exact": found.exact, "samples": found.samples, "board": board, "seed": seed, "details": dict(found.details)}
    traced = [disagreement.to_json() for disagreement in found.disagreements]
    console.result({**fields, "comparisons": [comparison.to_json() for comparison in found.comparisons], "disagreements": traced})
    if not found.exact:
        first = found.first
        sentence = "a candidate differs from golden" if first is None else str(first)
        replay = "" if first is None or feeds is not None else f"; replay: {first.replay_command(str(model), board=board, seed=seed)}"
        console.say(f"tritloom: {sentence}{replay}", level=-2)
        raise typer.Exit(MismatchError.exit_code)
