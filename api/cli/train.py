"""``tritloom train``: a network for the array, trained by one of the methods."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from tritloom.models.train.language import LanguageTrainer
    from tritloom.models.train.language_settings import LanguageSettings
    from tritloom.models.train.loop import Trainer
    from tritloom.models.train.settings import Settings

__all__ = ["train"]

CHECKPOINT = "checkpoint.pt"


def train(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD]",
            help="twn, twn-tensor, bitnet, quest-w1a1 (also 1.58, 2, 3, 4 bits), drna-repaired, drna-reference, int8, int4; float for a language model; or in the file.",
            show_default=False,
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="mlp, cnn, or a language model with the blocks llama, bitnet, drna. Default: mlp.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="digits (other writers held out), digits:random[:SEED], mnist:PATH, fashion-mnist:PATH, cifar10:PATH; text or text:library for a "
            "language model. Default: digits, text.",
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
            metavar="N", help="Passes over the training rows, or 50 steps each of a language model. Default: 60, or 20.", show_default=False
        ),
    ] = None,
    every: Annotated[int, typer.Option("--checkpoint-every", metavar="N", help="Epochs between two checkpoints.")] = 5,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute; only the CPU gives the same bytes again.")] = "cpu",
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Train a classifier or a character language model whose integers fit the array; writes ONNX model, samples, figures, a chart and checkpoints.

    The model holds every quantiser, so it compiles without any other file. The same settings, processor kind and PyTorch give the same bytes, also after
    an interruption and --resume. Needs pip install 'tritloom[train]'.

    [bold]Examples[/bold]

    tritloom train twn --net cnn --data digits -o digits

    tritloom train quest-w2a2 --data mnist:mnist10k.npz --epochs 20

    tritloom train bitnet --net bitnet --data text -o characters

    tritloom train --config run.toml --resume
    """
    from tritloom.errors import UserError
    from tritloom.files import read_bytes
    from tritloom.models.methods.names import BASELINES
    from tritloom.models.train.settings import Settings, read_settings

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
    trainer = _trainer(settings, device)
    name = _name(settings)
    folder = Path(name) if output is None else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {str(folder)!r} cannot be made: {error.strerror}") from error
    checkpoint = folder / CHECKPOINT
    if resume:
        trainer.resume(read_bytes(checkpoint, "checkpoint"))
        console.say(f"going on after epoch {trainer.epoch} of {settings.epochs}")
    elif checkpoint.exists():
        raise UserError(f"folder {str(folder)!r} holds a training already; add --resume to go on, or name another folder with -o")
    _run(trainer, checkpoint, every, console)
    console.result(_write(trainer, folder, name, console))


def _name(settings: "Settings | LanguageSettings") -> str:
    """Of the model: data, network and method, the network left out where the method is named after it."""
    from tritloom.models.train.language_settings import LanguageSettings

    method, data = settings.method, settings.data.partition(":")[0]
    if isinstance(settings, LanguageSettings):
        data = "charlm"
    parts = (data, method) if method.partition("-")[0] == settings.net else (data, settings.net, method)
    return "_".join(parts).replace("-", "_").replace(".", "_")


def _trainer(settings: "Settings | LanguageSettings", device: str) -> "Trainer | LanguageTrainer":
    from tritloom.errors import MissingToolError
    from tritloom.models.data.pictures import load_pictures
    from tritloom.models.train.settings import Settings

    pictures = load_pictures(settings.data) if isinstance(settings, Settings) else None
    try:
        from tritloom.models.train.language import LanguageTrainer
        from tritloom.models.train.loop import Trainer, device_named
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingToolError("training needs PyTorch; install it with: pip install 'tritloom[train]'") from error
    if not isinstance(settings, Settings):
        return LanguageTrainer(settings, device=device_named(device))
    assert pictures is not None
    return Trainer(settings, pictures, device=device_named(device))


def _run(trainer: "Trainer | LanguageTrainer", checkpoint: Path, every: int, console: Console) -> None:
    from tritloom.files import write_bytes

    epochs = trainer.settings.epochs
    with console.progress() as progress:
        progress("epoch", trainer.epoch, epochs)
        while trainer.epoch < epochs:
            done = trainer.run_epoch()
            progress("epoch", trainer.epoch, epochs)
            progress.tell(f"epoch {trainer.epoch} of {epochs}: loss {done['loss']:.4f}, {done['flips']:.2%} of the weights changed")
            if trainer.epoch % every == 0 or trainer.epoch == epochs:
                write_bytes(checkpoint, trainer.checkpoint())


def _write(trainer: "Trainer | LanguageTrainer", folder: Path, name: str, console: Console) -> dict[str, Any]:
    """Everything but the checkpoint."""
    import json

    from tritloom.files import write_bytes
    from tritloom.models.train.chart import chart
    from tritloom.models.train.language import LanguageTrainer

    settings = trainer.settings
    words = {key: value for key, value in settings.as_dict().items() if value != getattr(type(settings)(settings.method), key)}
    command = f"tritloom train {settings.method}, settings {json.dumps(words)}" if words else f"tritloom train {settings.method}"
    path = folder / f"{name}.onnx"
    if isinstance(trainer, LanguageTrainer):
        figures, columns, rows = _write_language(trainer, path, command)
    else:
        figures, columns, rows = _write_classifier(trainer, path, command)
    write_bytes(folder / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    history = figures["history"]
    curves = [("loss", [entry["loss"] for entry in history]), ("weights changed", [entry["flips"] for entry in history])]
    write_bytes(folder / "training.svg", chart(name, curves).encode())
    console.table(f"{name}: {figures['weights']} weights, {figures['zeros']:.1%} of them zero", columns, rows)
    console.say(f"wrote {path}" if isinstance(trainer, LanguageTrainer) else f"wrote {path}; next: tritloom verify {path}")
    return {"model": str(path), **figures}


Written = tuple[dict[str, Any], tuple[str, ...], list[tuple[str, ...]]]
"""Figures, and a table of them."""


def _write_classifier(trainer: "Trainer", path: Path, command: str) -> Written:
    from tritloom.files import write_arrays, write_bytes
    from tritloom.models.train.results import finish
    from tritloom.session import InferenceSession

    data = trainer.data
    model, samples, figures = finish(trainer, path.stem, command)
    logits = InferenceSession(model).run(None, {"image": data.test_images})[0]
    figures["correct_golden"] = int((logits.argmax(1) == data.test_labels).sum())
    write_bytes(path, model)
    write_arrays(path.parent / "calibration.npz", samples)
    rows = figures["held_out_rows"]
    shown = (("PyTorch", "correct_pytorch"), ("ONNX Runtime", "correct_onnxruntime"), ("golden", "correct_golden"))
    table = [(title, f"{figures[key] / rows:.2%}", f"{figures[key]} of {rows}") for title, key in shown]
    return figures, ("held-out rows", "accuracy", "correct"), table


def _write_language(trainer: "LanguageTrainer", path: Path, command: str) -> Written:
    from tritloom.files import write_bytes
    from tritloom.models.train.language import finish

    model, figures = finish(trainer, path.stem, command)
    write_bytes(path, model)
    shown = (("PyTorch", "nats_pytorch"), ("ONNX Runtime", "nats_exported"))
    return figures, ("held-out characters", "nats a character"), [(title, f"{figures[key]:.4f}") for title, key in shown]
