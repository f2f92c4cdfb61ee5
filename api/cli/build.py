"""``tritloom build``: bitstream for a board."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, LoomArgument, QuietOption, VerboseOption

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
    raise NotImplementedError(Console(json=json, verbose=verbose, quiet=quiet))
