"""``tritloom bench``: how near the array is to its limits, measured; and the group of the other benchmarks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.methods import methods
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["MODEL", "bench", "bench_group"]

MODEL = "digits_cnn_twn"

bench_group = typer.Typer(name="bench")
bench_group.command()(methods)


@bench_group.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="F.json", help="File for the rows as JSON; with --board its other rows stay.", show_default=False
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out place and route of whole cores, which takes hours.")] = False,
    board: Annotated[
        list[str] | None,
        typer.Option("--board", metavar="B", help="Only place and route, and only for this board; may be repeated.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, metavar="N", help="Seeds of place and route.")] = 5,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Measure cells by nextpnr's count, clocks after place and route, utilisation and speeds, beside the goal and the floor.

    Needs yosys and nextpnr. With --quick a few minutes: parts of the array, utilisation, simulation. Its stored figures
    are docs/benchmarks/quick.json. 'bench methods' compares the training methods instead.

    [bold]Examples[/bold]

    tritloom bench --quick

    tritloom bench --board ulx3s-25f --seeds 3 -o figures.json
    """
    if context.invoked_subcommand:
        return
    from json import dumps

    from tritloom.boards import get_board
    from tritloom.boards.benchmark import area_rows, clock_row
    from tritloom.boards.routed import TARGETS, core_rows
    from tritloom.compiled import compile
    from tritloom.errors import UserError
    from tritloom.files import write_bytes
    from tritloom.measurement import speed_rows, utilisation_rows
    from tritloom.models.zoo import path as zoo_path

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if quick and board:
        raise UserError("--quick leaves out what --board asks for; give one of them")
    names = [get_board(name).name for name in board or [target.board for target in TARGETS]]
    targets = tuple(target for target in TARGETS if target.board in names)
    if missing := sorted(set(names) - {target.board for target in TARGETS}):
        raise UserError(f"no core is measured on {missing[0]}; boards are {', '.join(target.board for target in TARGETS)}")
    rows = []
    with console.progress() as progress:
        if not board:
            for row in area_rows():
                progress.tell(f"{row.name} {row.family}")
                rows.append(row)
            source = zoo_path(MODEL).read_bytes()
            rows += utilisation_rows(MODEL, compile(source).program)
            rows += speed_rows(MODEL, source, progress=progress.tell)
        if not quick:
            if not board:
                progress.tell("dot product: place and route")
                rows.append(clock_row(seeds=seeds))
            rows += core_rows(targets, seeds=seeds, progress=progress.tell)
    console.table(
        "",
        ("what", "figure", "goal", "floor", "to compare"),
        [
            (
                f"{r.name} {r.family}".strip(),
                f"{r.figure:g} {r.unit}",
                "" if r.goal is None else f"{r.goal:g} {'' if r.reached else 'missed'}",
                "" if r.floor is None else f"{r.floor:g}, times {r.figure / r.floor:.2f}",
                r.compared,
            )
            for r in rows
        ],
    )  # fmt: skip
    fields = {"rows": [row.to_json() for row in rows]}
    if output is not None:
        # A board takes hours: its rows replace those of the same board, and others stay.
        stored = [*_stored(output, {row.name for row in rows}), *fields["rows"]] if board else fields["rows"]
        write_bytes(output, (dumps({"rows": stored}, indent=2, sort_keys=True) + "\n").encode())
        console.say(f"wrote {output}")
    console.result(fields)


def _stored(path: Path, measured: set[str]) -> list[dict[str, Any]]:
    """Rows of an earlier run in a file, without those that have been ``measured`` again. Raises :class:`UserError` for a file of another kind."""
    from json import loads

    from tritloom.errors import UserError
    from tritloom.files import read_bytes

    if not path.exists():
        return []
    try:
        rows = [row for row in loads(read_bytes(path, "benchmark file"))["rows"] if row["name"] not in measured]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} holds no rows of tritloom bench; name another file with -o") from None
    return rows
