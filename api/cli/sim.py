"""``tritloom sim``: the cocotb bench of the whole core through its serial link."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import BoardOption, JsonOption, LoomArgument, QuietOption, ShapeOption, VerboseOption, sizes_of

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
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many random inputs.")] = 2,
    first_sample: Annotated[int, typer.Option("--first-sample", metavar="N", help="Number of the first input.")] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the inputs and of the stalls.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for waves and results.")] = Path("sim-output"),
    shape: ShapeOption = None,
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
    from tempfile import TemporaryDirectory

    from tritloom.errors import MismatchError, UserError

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if waves is not None and waves not in WAVES:
        raise UserError(f"--waves must be one of {', '.join(WAVES)}, not {waves!r}")
    if simulator not in SIMULATORS:
        raise UserError(f"--simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if samples < 1 or first_sample < 0 or seed < 0:
        raise UserError("--samples must be 1 or more, --first-sample and --seed 0 or more")
    from tritloom.compiled import open_model
    from tritloom.compiler.ir.loop import has_loops
    from tritloom.sim.cocotb_bench import run_bench

    compiled = open_model(model, shapes=sizes_of(shape))
    if not compiled.program.states and not has_loops(compiled.program):
        compiled = compiled.with_schedule(board)
    with TemporaryDirectory(prefix="tritloom-") as folder, console.progress() as progress:
        artefact = Path(folder) / f"{model.stem}.loom"
        compiled.save(artefact)
        result = run_bench(
            artefact,
            board,
            out_dir=output,
            waves=waves,
            simulator=simulator,
            seed=seed,
            samples=samples,
            first_sample=first_sample,
            progress=progress.tell,
        )
    columns = ("test", "result", "seconds", "message")
    rows = [(test.name, "passed" if test.passed else "FAILED", f"{test.seconds:.1f}", test.message) for test in result.tests]
    console.table(f"{compiled.program.name} on {simulator}, seed {seed}", columns, rows)
    for path in (result.waves, *result.views):
        if path is not None:
            console.say(f"wrote {_shown(path)}")
    if result.waves is not None and result.views:
        gtkwave, surfer = (view.name for view in result.views)
        # GTKWave looks for the files that a save file names in the current folder.
        look = f"cd {_shown(result.waves.parent)} && gtkwave {gtkwave}"
        console.say(f"look at the waves: {look} (or surfer --command-file {surfer} {result.waves.name})")
    fields = [{"name": test.name, "passed": test.passed, "seconds": test.seconds, "message": test.message} for test in result.tests]
    written = {
        "log": _shown(result.log),
        "waves": None if result.waves is None else _shown(result.waves),
        "views": [*map(_shown, result.views)],
    }
    console.result({"passed": result.passed, "simulator": simulator, "board": board, "seed": seed, "tests": fields, **written})
    if not result.passed:
        failed = ", ".join(test.name for test in result.tests if not test.passed)
        raise MismatchError(f"the bench failed in {failed}; its log is {_shown(result.log)}")


def _shown(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
