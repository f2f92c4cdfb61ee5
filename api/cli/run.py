"""``tritloom run``: inference on arrays in a file."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import BoardOption, JsonOption, LoomArgument, QuietOption, ShapeOption, VerboseOption, sizes_of

__all__ = ["run"]


def run(
    model: LoomArgument,
    input: Annotated[
        Path,
        typer.Option("--input", metavar="F.npz", help="Arrays under the model's input names, first axis the batch.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="F.npz", help="Arrays under the model's output names.", show_default=False)
    ],
    on: Annotated[str, typer.Option("--on", metavar="golden|amaranth|verilator|netlist|bitstream", help="What computes.")] = "golden",
    board: BoardOption = "sim",
    shape: ShapeOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Run a compiled model on the arrays of a file.

    [bold]Examples[/bold]

    tritloom run model.loom --input in.npz --output out.npz

    tritloom run model.loom --on verilator --board ulx3s-25f --input in.npz --output out.npz --json
    """
    from time import monotonic

    from tritloom.compiled import open_model
    from tritloom.files import read_arrays, write_arrays
    from tritloom.session import InferenceSession

    console = Console(json=json, verbose=verbose, quiet=quiet)
    feeds = read_arrays(input, "input file")
    started = monotonic()
    with console.progress() as progress:
        session = InferenceSession(open_model(model, shapes=sizes_of(shape)), providers=[(on, {"board": board})], progress=progress.tell)
        results = session.run(None, feeds)
    seconds = monotonic() - started
    arrays = {argument.name: array for argument, array in zip(session.get_outputs(), results, strict=True)}
    write_arrays(output, arrays)
    samples = len(results[0])
    console.table(
        "", ("output", "shape", "type"), [(name, "x".join(map(str, array.shape)), str(array.dtype)) for name, array in arrays.items()]
    )
    cycles = None if on == "golden" else session.last_cycles
    counted = "" if cycles is None else f" in {cycles} cycles"
    console.say(f"{samples} sample{'s' if samples != 1 else ''} on {on}{counted}; wrote {output}")
    outputs = {name: {"shape": list(array.shape), "type": str(array.dtype)} for name, array in arrays.items()}
    console.result({"on": on, "board": board, "samples": samples, "cycles": cycles, "seconds": round(seconds, 3), "outputs": outputs})
