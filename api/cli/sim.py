"""``tritloom sim``: the cocotb bench of the whole core through its serial link."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import BoardOption, JsonOption, LoomArgument, QuietOption, VerboseOption

__all__ = ["SIMULATORS", "WAVES", "sim"]

WAVES = ("always", "fail")
SIMULATORS = ("verilator", "icarus")


def sim(
    model: LoomArgument,
    waves: Annotated[
        str | None,
        typer.Option("--waves", metavar="[always|fail]", help="Keep a wave file: always, or only of a failing run.", show_default=False),
    ] = None,
    simulator: Annotated[str, typer.Option("--simulator", metavar="verilator|icarus", help="Simulator under cocotb.")] = "verilator",
    board: BoardOption = "sim",
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many random inputs.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the inputs and of the stalls.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for waves and results.")] = Path("sim-output"),
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Drive the whole core through its link with random stalls and compare every tensor with golden.

    Exits with 4 when a tensor differs.

    [bold]Examples[/bold]

    tritloom sim model.loom

    tritloom sim model.loom --waves

    tritloom sim model.loom --waves fail --simulator icarus
    """
    from tritloom.errors import UserError

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if simulator not in SIMULATORS:
        raise UserError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    raise NotImplementedError(console)
