"""``tritloom demo``: the whole chain on the packaged model, from ONNX to a bitstream."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    import numpy as np

    from tritloom.report import Sample

__all__ = ["demo"]

MODEL = "digits_cnn_twn"
BOARD = "ulx3s-25f"
ARRAY = (16, 16)
"""On this board: a third of the part, placed and routed in a few minutes; ``tritloom build`` takes the largest useful array."""
SHOWN = 40
"""Pictures in the report: all that the model gets wrong, then the first ones."""


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for model, bitstream and report.")] = Path(
        "demo-output"
    ),
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="Board to build for.")] = BOARD,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Take the packaged ternary CNN for 8x8 digits through the whole chain: accuracy, RTL verification, bitstream, report.

    Minutes the first time; later runs take simulator and bitstream from the cache.

    [bold]Examples[/bold]

    tritloom demo

    tritloom demo --board tang-nano-20k -o tang/
    """
    from time import monotonic

    from tritloom.boards import get_board
    from tritloom.building import build
    from tritloom.compiled import compile
    from tritloom.errors import MismatchError, UserError
    from tritloom.files import write_bytes
    from tritloom.models.data.digits import load as load_digits
    from tritloom.models.zoo import path as zoo_path
    from tritloom.report import Accuracy, BuildFacts, render
    from tritloom.session import InferenceSession
    from tritloom.sim.witness import run_witness
    from tritloom.verification import verify

    console = Console(json=json, verbose=verbose, quiet=quiet)
    started = monotonic()
    found = get_board(board)
    if found.family == "none":
        raise UserError(f"board {found.name!r} is simulated and has no bitstream; 'tritloom boards' lists the others")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {str(output)!r} cannot be made: {error.strerror}") from error
    source = Path(zoo_path(MODEL))

    console.say(f"1/5  compile {source.name}")
    compiled = compile(source)
    first = compiled.schedule()
    console.say(f"     {len(first.layers)} layers, {first.macs} multiply-accumulates")

    digits = load_digits()
    pictures, labels = digits.test_images, digits.test_labels
    console.say(f"2/5  accuracy on {len(labels)} held-out digits")
    session = InferenceSession(compiled)
    argument = session.get_inputs()[0]
    feeds = {argument.name: pictures}
    name = session.get_outputs()[0].name
    reference = run_witness(compiled.source, feeds, outputs=[name])[name].reshape(len(labels), -1).argmax(axis=1)
    predicted = session.run([name], feeds)[0].reshape(len(labels), -1).argmax(axis=1)
    accuracies = [
        Accuracy("ONNX Runtime", int((reference == labels).sum()), len(labels)),
        Accuracy("golden", int((predicted == labels).sum()), len(labels)),
    ]
    console.table("", ("", "accuracy", "correct"), [(a.name, f"{a.share:.2%}", f"{a.correct} of {a.samples}") for a in accuracies])

    console.say(f"3/5  bitstream for {found.title} (minutes the first time)")
    with console.progress() as progress:
        array = ARRAY if found.name == BOARD else None
        built = build(compiled, board=found.name, output=output / found.name, array=array, progress=progress.tell)
    result, plan, compiled = built.result, built.schedule, built.model
    target = output / f"{MODEL}.loom"
    compiled.save(target)
    core = f"{plan.parameters.rows} x {plan.parameters.columns}"
    console.say(f"     array of {core} at {result.clock_mhz:g} MHz: {result.bitstream}{' (cached)' if result.cached else ''}")

    console.say(f"4/5  verify every integer tensor of all {len(labels)} digits in Verilator, on this very core")
    with console.progress() as progress:
        verification = verify(compiled, on=["golden", "verilator"], board=found.name, feeds=feeds, progress=progress)
    against = verification.against("golden")
    if not verification.exact:
        raise MismatchError(f"Verilator differs from golden: {verification.first}")
    console.say(f"     exact: all {sum(comparison.values for comparison in against)} integers of {len(against)} tensors are equal")

    console.say("5/5  report")
    page = output / "report.html"
    facts = BuildFacts(
        board=found.title,
        bitstream=result.bitstream.name,
        fmax_mhz=result.fmax_mhz,
        clock_mhz=result.clock_mhz,
        macs_per_cycle=result.macs_per_cycle,
        utilisation=result.utilisation,
    )
    text = render(
        compiled,
        board=found.name,
        accuracies=accuracies,
        verification=verification,
        built=facts,
        samples=_samples(pictures, labels, predicted),
        versions=_versions(result.tools),
    )
    write_bytes(page, text.encode())

    rate = built.inferences_per_second
    logic = result.utilisation.get(found.logic_cell, {})
    rows = [
        ("accuracy, ONNX Runtime", f"{accuracies[0].share:.2%}"),
        ("accuracy, golden", f"{accuracies[1].share:.2%}"),
        ("Verilator against golden", f"exact on every tensor of {verification.samples} digits"),
        ("cycles an inference", f"{plan.cycles}"),
        ("highest clock", f"{result.fmax_mhz:.1f} MHz"),
        ("clock", f"{result.clock_mhz:g} MHz"),
        ("inferences a second", f"{rate:.0f}"),
        (found.logic_cell or "logic cells", f"{logic.get('used', 0)} of {logic.get('available', 0)}"),
        ("multiply-accumulates a clock", f"{result.macs_per_cycle}"),
        ("time taken", f"{monotonic() - started:.0f} s"),
    ]
    console.table("", ("", ""), rows)
    console.say(f"report: {page}")
    console.result(
        {
            "accuracy": {accuracy.name: accuracy.share for accuracy in accuracies},
            "exact": verification.exact,
            "samples": verification.samples,
            "cycles": plan.cycles,
            "inferences_per_second": rate,
            "fmax_mhz": result.fmax_mhz,
            "clock_mhz": result.clock_mhz,
            "utilisation": result.utilisation,
            "bitstream": str(result.bitstream),
            "model": str(target),
            "report": str(page),
            "seconds": round(monotonic() - started, 1),
        }
    )


def _samples(pictures: "np.ndarray", labels: "np.ndarray", predicted: "np.ndarray") -> "list[Sample]":
    """Everything that went wrong, then the first pictures."""
    from tritloom.report import Sample

    wrong = [index for index in range(len(labels)) if labels[index] != predicted[index]]
    chosen = list(dict.fromkeys([*wrong, *range(len(labels))]))[:SHOWN]
    return [Sample(pictures[index, 0], str(labels[index]), str(predicted[index])) for index in chosen]


def _versions(tools: dict[str, str]) -> dict[str, str]:
    import platform
    from importlib.metadata import version

    packages = ("tritloom", "numpy", "onnx", "onnxruntime", "amaranth", "verilator", "scikit-learn")
    return {"Python": platform.python_version(), **{name: version(name) for name in packages}, **tools}
