"""``tritloom compile``: ONNX model to ``.loom`` file."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import (
    BoardOption,
    CalibrationOption,
    JsonOption,
    MethodOption,
    ModelArgument,
    PlanesOption,
    QuietOption,
    VerboseOption,
)

__all__ = ["compile"]


def compile(
    model: ModelArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.loom", help="Default: the model's name.", show_default=False)
    ] = None,
    board: BoardOption = "sim",
    calibration: CalibrationOption = None,
    method: MethodOption = "auto",
    planes: PlanesOption = None,
    activation_bits: Annotated[int, typer.Option(metavar="N", help="Width of activations that the model does not quantise, 2 to 8.")] = 8,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Compile a model to ternary integers, with the proof of every step, and schedule it for a board.

    [bold]Examples[/bold]

    tritloom compile quantised.onnx -o model.loom

    tritloom compile float.onnx -o model.loom --calibration samples.npz --planes 3

    tritloom compile quantised.onnx -o model.loom --board ulx3s-25f
    """
    from tritloom.compiled import compile as compile_model

    console = Console(json=json, verbose=verbose, quiet=quiet)
    target = Path(f"{model.stem}.loom") if output is None else output
    with console.progress() as progress:
        progress.tell(f"compiling {model.name}")
        compiled = compile_model(model, board=board, calibration=calibration, method=method, planes=planes, activation_bits=activation_bits)
    compiled.save(target)
    for note in compiled.notes:
        console.say(note)
    schedule = compiled.schedule(board)
    console.table("", ("layer", "multiply-accumulates", "cycles"), [(layer.name, layer.macs, layer.cycles) for layer in schedule.layers])
    console.say(
        f"wrote {target} ({target.stat().st_size} bytes) for {board}: {schedule.macs} multiply-accumulates in {schedule.cycles} cycles"
    )
    fields = {"file": str(target), "board": board, "digest": compiled.digest, "macs": schedule.macs, "cycles": schedule.cycles}
    console.result({**fields, "notes": list(compiled.notes)})
