"""``tritloom build``: bitstream for a board."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, LoomArgument, QuietOption, ShapeOption, VerboseOption, sizes_of
from tritloom.errors import UserError

__all__ = ["build"]


def build(
    model: LoomArgument,
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="'tritloom boards' lists them.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the bitstream, its reports and the model.", show_default=False)
    ],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of place and route.")] = 1,
    array: Annotated[
        str | None,
        typer.Option("--array", metavar="ROWSxCOLS", help="Size of the array; default: the largest that fits.", show_default=False),
    ] = None,
    shape: ShapeOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Build the bitstream of a core that holds the model, at the highest clock that place and route reaches.

    Exits with 2 and the tool's own error lines when a tool fails.

    [bold]Examples[/bold]

    tritloom build model.loom --board ulx3s-25f -o build/

    tritloom build model.loom --board icebreaker -o build/ --array 8x4 --seed 2 --json
    """
    from tritloom.boards import get_board
    from tritloom.building import build as build_model
    from tritloom.compiled import open_model

    console = Console(json=json, verbose=verbose, quiet=quiet)
    found = get_board(board)
    if found.family == "none":
        raise UserError(f"board {found.name!r} is simulated and has no bitstream; 'tritloom boards' lists the others")
    size = None if array is None else _array_size(array)
    compiled = open_model(model, shapes=sizes_of(shape))
    with console.progress() as progress:
        built = build_model(compiled, board=found.name, output=output, array=size, seed=seed, progress=progress.tell)
    result, core = built.result, built.schedule.parameters
    target = output / f"{model.stem}.loom"
    built.model.save(target)
    rows = [(name, use["used"], use["available"], _share(use)) for name, use in result.utilisation.items() if use["used"]]
    console.table("", ("cells", "used", "available", ""), rows)
    console.say(
        f"{compiled.program.name} on {found.title}: an array of {core.rows} x {core.columns}, {result.macs_per_cycle} multiply-accumulates a clock"
    )
    console.say(
        f"highest clock {result.fmax_mhz:g} MHz; the clock generator runs at {result.clock_mhz:g} MHz, the serial port at {result.baud} baud"
    )
    console.say(f"{built.schedule.cycles} cycles an inference, {built.inferences_per_second:.0f} inferences a second")
    console.say(f"wrote {result.bitstream} and {target}" + (" (cached)" if result.cached else ""))
    fields = {**result.to_json(), "seconds": round(result.seconds, 1), "model": str(target), "cycles": built.schedule.cycles}
    console.result({**fields, "inferences_per_second": built.inferences_per_second})


def _share(use: dict[str, int]) -> str:
    return f"{use['used'] / use['available']:.0%}" if use["available"] else ""


def _array_size(text: str) -> tuple[int, int]:
    """``8x4`` as (8, 4)."""
    rows, cross, columns = text.lower().partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal()):
        raise UserError(f"--array must be ROWSxCOLS such as 16x8, not {text!r}")
    return int(rows), int(columns)
