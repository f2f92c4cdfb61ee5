"""``tritloom chat``: text from a language model as it is generated."""

import sys
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import ContextOption, JsonOption, ModelOrLoomArgument, QuietOption, VerboseOption

__all__ = ["chat"]


def chat(
    model: ModelOrLoomArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the text begins with.")] = "The ",
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate.")] = 128,
    on: Annotated[str, typer.Option("--on", metavar="golden", help="What computes.")] = "golden",
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, metavar="T", help="0 takes the likeliest token every time.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, metavar="K", help="Draw among the K likeliest tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the draws.")] = 0,
    context: ContextOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Let a language model go on with a text.

    The text goes to stdout as it is made, with --json into the object. The model is an ONNX file with inputs past_key_values.*, or compiled from one.

    [bold]Examples[/bold]

    tritloom zoo charlm_bitnet

    tritloom chat charlm_bitnet.onnx --prompt "The " --tokens 100
    """
    from time import monotonic

    from tritloom.compiled import open_model
    from tritloom.errors import UserError
    from tritloom.generation import TextGenerator

    console = Console(json=json, verbose=verbose, quiet=quiet)
    if on != "golden":
        raise UserError(f"no core runs language models yet, so --on must be golden, not {on!r}")
    generator = TextGenerator(open_model(model, context=context))
    pieces: list[str] = []
    started = monotonic()
    given = generator.tokens(prompt)
    following = generator.generate(given, count=tokens, temperature=temperature, top_k=top_k, seed=seed)
    if not json:
        _write(prompt)
    for token in following:
        pieces.append(generator.vocabulary[token])
        if not json:
            _write(pieces[-1])
    seconds = monotonic() - started
    if not json:
        _write("\n")
    rate = (len(given) + tokens - 1) / seconds
    console.say(f"{len(given)} + {tokens} tokens in golden, {rate:.1f} a second")
    console.result({"on": on, "prompt": prompt, "text": "".join(pieces), "tokens": tokens, "seconds": round(seconds, 3)})


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
