"""Entry point: registers the verbs and turns every error into one sentence and an exit code.

Exit codes: 0 ok, 1 user or model error (bad options too), 2 build failed, 3 tool missing, 4 verification mismatch,
130 interrupted.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tritloom.cli.bench import bench_group
from tritloom.cli.boards import boards
from tritloom.cli.build import build
from tritloom.cli.chat import chat
from tritloom.cli.check import check
from tritloom.cli.compile import compile
from tritloom.cli.console import SCHEMA
from tritloom.cli.demo import demo
from tritloom.cli.doctor import doctor
from tritloom.cli.estimate import estimate
from tritloom.cli.import_ import import_
from tritloom.cli.run import run
from tritloom.cli.sim import WAVES, sim
from tritloom.cli.solve import solve
from tritloom.cli.train import train
from tritloom.cli.verify import verify
from tritloom.cli.zoo import zoo
from tritloom.errors import TritloomError

__all__ = ["INTERRUPTED", "USER_ERROR", "app", "main"]

USER_ERROR = 1
INTERRUPTED = 130

app = typer.Typer(
    name="tritloom",
    help="Compile quantised ONNX networks to ternary integers, verify them in RTL bit by bit, and build FPGA bitstreams.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, check, estimate, compile, run, chat, solve, verify, sim, build, train, zoo, boards, doctor):
    app.command()(verb)
app.command(name="import")(import_)
app.add_typer(bench_group)

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Base of every complaint about the command line; typer exports only this subclass of it."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("tritloom"))
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with the code of the module's text."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(words))


def _run(words: list[str]) -> int:
    try:
        code = app(_with_waves_value(words), prog_name="tritloom", standalone_mode=False)
        if code == INTERRUPTED:
            return _fail(words, "interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except TritloomError as error:
        return _fail(words, str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(words, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone; do not let the interpreter complain when it flushes
        return USER_ERROR
    except Exception as error:  # the outermost frame: a defect of tritloom itself must not end in a traceback
        if isinstance(error, _UsageError):
            # Without any word the command line library has printed the help already, and has nothing more to say.
            return _fail(words, _usage_sentence(error), USER_ERROR) if words else USER_ERROR
        if _verbosity(words) >= 2:
            traceback.print_exc()
        kind = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = "please report it together with the traceback that the same command prints with -vv"
        return _fail(words, f"internal error ({kind}); {hint}", USER_ERROR)


def _fail(words: list[str], sentence: str, code: int) -> int:
    print(f"tritloom: {sentence}", file=sys.stderr)
    if "--json" in words:
        print(json.dumps({"schema": SCHEMA, "error": sentence, "exit_code": code}))
    return code


def _usage_sentence(error: Exception) -> str:
    sentence = getattr(error, "format_message", lambda: str(error))().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "tritloom"
    return f"{sentence[:1].lower()}{sentence[1:]}; see '{path} --help'"


def _verbosity(words: list[str]) -> int:
    short = sum(len(word) - 1 for word in words if word.startswith("-v") and set(word[1:]) == {"v"})
    return short + words.count("--verbose")


def _with_waves_value(words: list[str]) -> list[str]:
    """``--waves`` alone means ``--waves always``; the command line library has no options with an optional value."""
    result = []
    for index, word in enumerate(words):
        result.append(word)
        if word == "--waves" and (index + 1 == len(words) or words[index + 1] not in WAVES):
            result.append("always")
    return result
