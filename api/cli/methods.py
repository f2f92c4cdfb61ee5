"""``tritloom bench methods``: the training methods compared on one task, with several seeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    import numpy as np

    from tritloom.models.train.comparison import Run

__all__ = ["golden_logits", "methods"]


def methods(
    only: Annotated[
        str | None, typer.Option("--only", metavar="digits|text", help="Only this task. Default: both.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="METHOD", help="Only this method, such as twn or evolved; may be repeated.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, metavar="N", help="Runs of each method and split, seeds 0 .. N-1.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, metavar="N", help="Trainings at a time, a processor each.")] = 1,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="F.json", help="Results; what is in there is not run again.")] = Path(
        "docs/benchmarks/methods.json"
    ),
    page: Annotated[Path, typer.Option("--page", metavar="F.md", help="Page whose tables are rewritten.")] = Path("docs/methods.md"),
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Train digits and character models with every method and write the comparison. Run it where the project's docs/ are.

    Each result is stored as it comes; a second call goes on where the first stopped, and trains again what has another recipe.
    Needs PyTorch; 90 trainings of some 10 s, and 30 of some 4 minutes.

    [bold]Examples[/bold]

    tritloom bench methods --only digits

    tritloom bench methods --method twn --method bitnet --seeds 5 --jobs 2
    """
    from tritloom.errors import UserError
    from tritloom.models.train.comparison import DIGITS, Store, digits_runs, digits_table, text_runs, text_table

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if only not in (None, "digits", "text"):
        raise UserError(f"--only must be digits or text, not {only!r}")
    if unknown := sorted(set(method or ()) - set(DIGITS)):
        raise UserError(f"--method must name one of {', '.join(DIGITS)}, not {unknown[0]!r}")
    _write_tables(page, {"digits": "", "text": ""}, write=False)  # complains before hours of training
    if not output.parent.is_dir():
        raise UserError(f"folder {str(output.parent)!r} for the results does not exist; make it, or name another file with -o")
    store = Store(output)
    runs = [*(digits_runs(seeds) if only != "text" else ()), *(text_runs(seeds) if only != "digits" else ())]
    runs = [run for run in runs if not method or (run.recipe["method"] if run.task == "text" else run.method) in method]
    waiting = [run for run in runs if store.result(run) is None]
    console.say(f"{len(runs) - len(waiting)} of {len(runs)} trainings are stored already")
    with console.progress() as progress:
        progress("training", len(runs) - len(waiting), len(runs))
        for done, (run, result) in enumerate(_results(waiting, jobs), len(runs) - len(waiting) + 1):
            store.add(run, result)
            progress("training", done, len(runs))
            found = (
                f"{result['nats_pytorch']:.4f} nats" if run.task == "text" else f"{result['correct_trained']} of {result['held_out_rows']}"
            )
            progress.tell(f"{run.task} {run.method} seed {run.seed}: {found}")
    _write_tables(page, {"digits": digits_table(store), "text": text_table(store)})
    console.say(f"wrote {output} and the tables of {page}")
    console.result({"runs": [{"task": run.task, "method": run.method, "seed": run.seed, **(store.result(run) or {})} for run in runs]})


def _write_tables(page: Path, tables: dict[str, str], *, write: bool = True) -> None:
    from tritloom.errors import UserError
    from tritloom.files import read_bytes, write_bytes
    from tritloom.models.train.comparison import with_table

    try:
        text = read_bytes(page, "page").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"page {str(page)!r} is not UTF-8 text") from error
    for name, table in tables.items():
        text = with_table(text, name, table)
    if write:
        write_bytes(page, text.encode())


def golden_logits(model: bytes, images: "np.ndarray") -> "np.ndarray":
    """Outputs of a classifier in golden."""
    from tritloom.session import InferenceSession

    return InferenceSession(model).run(None, {"image": images})[0]


def _train(run: "Run") -> dict[str, Any]:
    from tritloom.errors import MissingToolError
    from tritloom.models.train.comparison import train_run

    try:
        return train_run(run, golden_logits)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingToolError("training needs PyTorch; install it with: pip install 'tritloom[train]'") from error


def _results(runs: "list[Run]", jobs: int) -> "Iterator[tuple[Run, dict[str, Any]]]":
    """Each run with its result, as they are done."""
    if jobs == 1:
        for run in runs:
            yield run, _train(run)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_train, run): run for run in runs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
