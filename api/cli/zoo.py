"""``tritloom zoo``: the packaged models."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["zoo"]


def zoo(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Model to fetch; without it all are listed.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.onnx", help="Default: NAME.onnx.", show_default=False)
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """List the packaged models with method, accuracy and training command, or write one of them to a file.

    [bold]Examples[/bold]

    tritloom zoo

    tritloom zoo digits_mlp_twn -o digits.onnx
    """
    from tritloom.errors import UserError
    from tritloom.files import read_bytes, write_bytes
    from tritloom.models.zoo import names, path, properties

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if name is None:
        if output is not None:
            raise UserError("--output needs the NAME of a model; 'tritloom zoo' lists them")
        models = [{"name": known, **properties(known)} for known in names()]
        rows = [(model["name"], model.get("method", ""), model.get("accuracy", ""), model.get("data", "")) for model in models]
        console.table("packaged models", ("name", "method", "accuracy", "data"), rows)
        for model in models:
            console.say(f"{model['name']}: {model.get('training', '')}", level=1)
        console.result({"models": models})
        return
    source = path(name)
    target = Path(f"{name}.onnx") if output is None else output
    write_bytes(target, read_bytes(source, "model"))
    card = source.with_suffix(".md")
    console.say(f"wrote {target}; its card: {card}")
    console.result({"name": name, "file": str(target), "card": str(card), **properties(name)})
