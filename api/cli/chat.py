"""``tritloom chat``: text from a language model as it is generated."""

import sys
from typing import Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import BoardOption, ContextOption, JsonOption, ModelOrLoomArgument, QuietOption, VerboseOption

__all__ = ["chat"]


def chat(
    model: ModelOrLoomArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What the text begins with.")] = "The ",
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate.")] = 128,
    on: Annotated[str, typer.Option("--on", metavar="golden|amaranth|verilator|netlist|bitstream", help="What computes.")] = "golden",
    board: BoardOption = "sim",
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
    On a simulated core the clocks of each token are counted; with the board's own clock they give tokens a second.

    [bold]Examples[/bold]

    tritloom zoo charlm_bitnet

    tritloom chat charlm_bitnet.onnx --prompt "The " --tokens 100

    tritloom chat charlm_bitnet.onnx --on verilator --board ulx3s-85f --tokens 20
    """
    from time import monotonic

    from tritloom.boards import get_board
    from tritloom.compiled import open_model
    from tritloom.generation import TextGenerator
    from tritloom.session import InferenceSession

    console = Console(json=json, verbose=verbose, quiet=quiet)
    compiled = open_model(model, context=context)
    with console.progress() as progress:
        generator = TextGenerator(InferenceSession(compiled, providers=[(on, {"board": board})], progress=progress.tell))
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
    computed = len(given) + tokens - 1
    console.say(f"{len(given)} + {tokens} tokens on {on}, {computed / seconds:.1f} a second here")
    found = {"on": on, "board": board, "prompt": prompt, "text": "".join(pieces), "tokens": tokens, "seconds": round(seconds, 3)}
    if generator.cycles is not None:
        cycles = generator.cycles / computed
        mhz = get_board(board).expected_mhz(compiled.schedule(board).parameters) or None
        found.update(cycles_per_token=round(cycles, 1), clock_mhz=mhz, tokens_per_second=mhz and round(mhz * 1e6 / cycles, 1))
        clock = (
            "" if mhz is None else f", {mhz * 1e6 / cycles:.0f} tokens a second at the {mhz:g} MHz that cores on {board} typically reach"
        )
        console.say(f"{cycles:.0f} clocks a token{clock}")
    console.result(found)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
