"""``tritloom train``: a network for the array, trained by one of the methods."""

from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from tritloom.models.train.training import Training

__all__ = ["train"]


def train(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD]",
            help="twn, twn-tensor, bitnet, quest-w1a1 (also 1.58, 2, 3, 4 bits), drna-repaired, drna-reference, int8, int4; float for language and recursive networks; evolve; or in the file.",
            show_default=False,
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="mlp, cnn; a language model: llama, bitnet, drna; recursive: trm-sudoku4, trm-small, trm-mlp, ...; for evolve layered, ring. Default: mlp.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="digits (other writers held out), digits:random[:SEED], mnist:PATH, fashion-mnist:PATH, cifar10:PATH; text or text:library for a language model; sudoku4, sudoku9, maze; addition for a ring.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; options of the command line win.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for all results. Default: NET_METHOD.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of weights, order and distortions. Default: 0.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Passes over the training rows, 50 steps of a language model or recursive network, or some generations.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option("--checkpoint-every", metavar="N", help="Epochs between two checkpoints.")] = 5,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute; only the CPU gives the same bytes again.")] = "cpu",
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Train a network whose integers fit the array; writes ONNX model, samples, figures, a chart and checkpoints.

    The model holds every quantiser, so it compiles without any other file. The same settings, processor kind and PyTorch give the same bytes, also after
    an interruption and --resume. All but evolve needs pip install 'tritloom[train]'.

    [bold]Examples[/bold]

    tritloom train twn --net cnn --data digits -o digits

    tritloom train quest-w2a2 --data mnist:mnist10k.npz --epochs 20

    tritloom train bitnet --net bitnet --data text -o characters

    tritloom train bitnet --net trm-sudoku4

    tritloom train evolve --net layered --data digits

    tritloom train --config run.toml --resume

    torchrun --no-python --nproc-per-node 2 tritloom train bitnet --net bitnet --data text -o characters
    """
    from tritloom.errors import UserError
    from tritloom.files import read_bytes
    from tritloom.models.methods.names import BASELINES
    from tritloom.models.train.settings import Settings, read_settings
    from tritloom.models.train.training import begin

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if method is None and config is None:
        raise UserError("name a METHOD, or a settings file that names one with --config; see 'tritloom train --help'")
    text, origin = "", "the command line"
    if config is not None:
        origin = f"config file {str(config)!r}"
        try:
            text = read_bytes(config, "config file").decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{origin} is not UTF-8 text") from error
    overrides = {"method": method, "net": net, "data": data, "seed": seed, "epochs": epochs}
    settings = read_settings(text, origin, overrides)
    if isinstance(settings, Settings) and settings.method in BASELINES:
        raise UserError(f"method {settings.method} is a baseline of 'tritloom bench methods' and has no integers to export; take another")
    if every < 1:
        raise UserError(f"--checkpoint-every must be 1 or more, not {every}")
    trainer = begin(settings, device)
    name = settings.name
    folder = Path(name) if output is None else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {str(folder)!r} cannot be made: {error.strerror}") from error
    checkpoint = folder / settings.checkpoint
    if resume:
        trainer.resume(read_bytes(checkpoint, "checkpoint"))
        console.say(f"going on after epoch {trainer.epoch} of {settings.epochs}")
    elif checkpoint.exists():
        raise UserError(f"folder {str(folder)!r} holds a training already; add --resume to go on, or name another folder with -o")
    if int(environ.get("RANK", "0")) > 0:
        # Under torchrun the first process alone writes and talks.
        while trainer.epoch < settings.epochs:
            trainer.run_epoch()
        return
    _run(trainer, checkpoint, every, console)
    console.result(_write(trainer, folder, name, console))


def _run(trainer: "Training", checkpoint: Path, every: int, console: Console) -> None:
    from tritloom.files import write_bytes

    epochs = trainer.settings.epochs
    with console.progress() as progress:
        progress("epoch", trainer.epoch, epochs)
        while trainer.epoch < epochs:
            trainer.run_epoch()
            progress("epoch", trainer.epoch, epochs)
            progress.tell(f"epoch {trainer.epoch} of {epochs}: {trainer.told()}")
            if trainer.epoch % every == 0 or trainer.epoch == epochs:
                write_bytes(checkpoint, trainer.checkpoint())


def _write(trainer: "Training", folder: Path, name: str, console: Console) -> dict[str, Any]:
    """Everything but the checkpoint."""
    import json

    from tritloom.files import write_arrays, write_bytes
    from tritloom.models.train.chart import chart
    from tritloom.session import InferenceSession

    model, samples, figures = trainer.finish(name, trainer.settings.command)
    path = folder / f"{name}.onnx"
    pictures = trainer.pictures()
    if pictures is not None:
        logits = InferenceSession(model).run(None, {"image": pictures[0]})[0]
        figures["correct_golden"] = int((logits.argmax(1) == pictures[1]).sum())
    write_bytes(path, model)
    if samples:
        write_arrays(folder / "calibration.npz", samples)
    write_bytes(folder / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    write_bytes(folder / "training.svg", chart(name, trainer.curves()).encode())
    rows = figures.get("held_out_rows", 0)
    shown = (
        ("evolved", "correct_evolved"),
        ("PyTorch", "correct_pytorch"),
        ("ONNX Runtime", "correct_onnxruntime"),
        ("golden", "correct_golden"),
    )
    title = f"{name}: {figures['weights']} weights, {figures['zeros']:.1%} of them zero"
    if rows:
        lines = [(by, f"{figures[key] / rows:.2%}", f"{figures[key]} of {rows}") for by, key in shown if key in figures]
        console.table(title, ("held-out rows", "accuracy", "correct"), lines)
    elif "nats_exported" in figures:
        nats = [("PyTorch", f"{figures['nats_pytorch']:.4f}"), ("ONNX Runtime", f"{figures['nats_exported']:.4f}")]
        console.table(title, ("held-out characters", "nats a character"), nats)
    else:
        console.say(f"{title}; {trainer.told()}")
    console.say(f"wrote {path}" + ("" if pictures is None else f"; next: tritloom verify {path}"))
    return {"model": str(path), **figures}
