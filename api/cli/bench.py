"""``tritloom bench``: how near the array is to its limits, measured."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["bench"]

MODEL = "digits_cnn_twn"
GOAL = 0.75
"""Share of the array that the packaged model should use."""


def bench(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="F.json", help="File for the rows as JSON.", show_default=False)
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Measure cells of the array's parts by nextpnr's count, and how busy the array is, beside the goal and the floor.

    Needs yosys and nextpnr, and takes a minute or two. The stored figures are docs/benchmarks/quick.json.

    [bold]Examples[/bold]

    tritloom bench

    tritloom bench -o figures.json
    """
    from json import dumps

    from tritloom.boards.benchmark import area_rows, utilisation_rows
    from tritloom.compiled import compile
    from tritloom.files import write_bytes
    from tritloom.models.zoo import path as zoo_path

    console = Console(json=json, verbose=verbose, quiet=quiet)
    rows = []
    with console.progress() as progress:
        for row in area_rows():
            progress.tell(f"{row.name} {row.family}")
            rows.append(row)
        program = compile(Path(zoo_path(MODEL))).program
        rows += utilisation_rows({f"{MODEL} on 32 x 32, 16 post lanes": (program, GOAL)})
    console.table(
        "",
        ("what", "family", "figure", "goal", "floor", "figure / floor", "reached", "unit"),
        [(r.name, r.family, r.figure, r.goal, r.floor, f"{r.figure / r.floor:.2f}", "yes" if r.reached else "no", r.unit) for r in rows],
    )
    fields = {"rows": [row.to_json() for row in rows]}
    if output is not None:
        write_bytes(output, (dumps(fields, indent=2, sort_keys=True) + "\n").encode())
        console.say(f"wrote {output}")
    console.result(fields)
