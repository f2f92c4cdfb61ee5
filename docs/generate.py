"""Writes the generated pages of this folder; ``--check`` only says whether they are up to date.

Pages: ``cli.md`` from the command line itself, ``op-support.md`` from the front end's registry, ``isa.md`` from the tables of the instruction
set, ``pipeline.svg`` drawn here.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NOTICE = "<!-- Written by docs/generate.py; do not edit. -->"


def cli_page() -> str:
    """Every verb with its usage, text, examples and options."""
    import typer

    from tritloom.cli.main import app

    group = typer.main.get_command(app)
    lines = ["# Command line", "", NOTICE, "", group.help or "", ""]
    lines += ["Text goes to stderr; with `--json` one JSON object, with the version of its fields as `schema`, goes to stdout.", ""]
    lines += ["| exit code | meaning |", "| --- | --- |", "| 0 | done |", "| 1 | wrong option, file or model |", "| 2 | build failed |"]
    lines += ["| 3 | tool missing |", "| 4 | a candidate differs from golden |", "| 130 | interrupted |", ""]
    for name, command in _commands(group):
        lines += [f"## tritloom {name}", ""]
        text, _, examples = (command.help or "").partition("[bold]Examples[/bold]")
        for paragraph in filter(None, (block.strip() for block in text.split("\n\n"))):
            lines += [re.sub(r"\s+", " ", paragraph), ""]
        lines += ["```sh", *filter(None, (line.strip() for line in examples.splitlines())), "```", ""]
        lines += ["| argument or option | meaning | default |", "| --- | --- | --- |"]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            lines.append(f"| {_spelling(parameter)} | {_cell(parameter.help)} | {_default(parameter)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _commands(group, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its words, those of a group behind it."""
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")


def _spelling(parameter) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_cell(parameter.metavar or parameter.name)}`"
    names = ", ".join(f"`{option}`" for option in parameter.opts)
    return f"{names} `{_cell(parameter.metavar)}`" if parameter.metavar else names


def _default(parameter) -> str:
    if parameter.required:
        return "required"
    plain = parameter.default is None or isinstance(parameter.default, bool) or getattr(parameter, "count", False)
    return "" if plain else f"`{parameter.default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def instruction_page() -> str:
    """The instruction set, from the tables that assembler and decoder use."""
    from tritloom.hw.arch.document import isa_page

    return isa_page()


DOMAINS = {"": "ONNX", "ai.onnx": "ONNX"}


LANGUAGE_FORMS = (
    ("inputs", "tokens, `past_key_values.*` (1, heads, tokens, channels), and if there are `attention_mask` and `position_ids`"),
    (
        "norms",
        "one operator, or written out with `Pow` or `Mul`, `ReduceMean`, `Add`, `Sqrt`, `Div` or `Reciprocal`, `Mul`; with the sum before it",
    ),
    (
        "activations in front of a layer",
        "quantised by the largest magnitude of a token to 8 bits, or as QuEST does it: `MatMul` with a Hadamard matrix, the root mean square, at most 7 bits",
    ),
    ("layers", "`MatMul` with small integers of one scale; `Mul` behind it for scales of outputs; several in one, and `Split` or `Slice`"),
    ("rotary positions", "one operator, or `x * cosine + Concat(-second half, first half) * sine`; whole heads"),
    (
        "attention",
        "`GroupQueryAttention`, `Attention`, or written out, keys repeated by `Expand` or not; queries, keys and values that are floats get codes of 8 bits a head",
    ),
    ("gates", "`Relu`, `Sigmoid`, `Tanh`, `Swish` and every form of `Gelu`"),
)


def operator_page() -> str:
    """Every operator that the front end lowers, from its own table."""
    from tritloom.compiler.frontend import supported_operators
    from tritloom.compiler.frontend.loops import BLOCK_HANDLERS, INTEGER_HANDLERS, MOVEMENTS, SHARED
    from tritloom.compiler.frontend.sequence_values import HANDLERS, STEPS

    lines = ["# Supported operators", "", NOTICE, ""]
    lines += ["`tritloom check MODEL` says for a given model which nodes are not supported, why, and what to use instead.", ""]
    lines += [
        "*core*: in the network, on a core (operators that only move elements cost nothing there). *golden only*: in the network, in golden alone until"
    ]
    lines += [
        "cores can do it; such a model compiles without a schedule. *host*: before the first and behind the last layer, in float32.",
        "",
    ]
    lines += ["| operator | domain | runs | supported forms |", "| --- | --- | --- | --- |"]
    for operator in supported_operators():
        domain = DOMAINS.get(operator.domain, f"`{operator.domain}`")
        lines.append(f"| `{operator.name}` | {domain} | {', '.join(operator.runs)} | {_cell(operator.forms)} |")
    lines += ["", "## Language models", ""]
    lines += [
        "A model with inputs `past_key_values.*` is read by rules of its own ([numerics](numerics.md), section 12), and runs on cores with a vector unit. They know "
        + ", ".join(f"`{name}`" for name in sorted({*HANDLERS, *(name for table in STEPS.values() for name in table)}))
        + "; whatever depends on constants or on the number of tokens alone is computed."
    ]
    lines += ["", "| part | forms that are read |", "| --- | --- |", *(f"| {part} | {forms} |" for part, forms in LANGUAGE_FORMS)]
    lines += ["", "## Models with loops", ""]
    lines += [
        "A model with `Loop` nodes is read by rules of its own ([numerics](numerics.md), section 13), for a batch of 1, and runs on cores with a vector unit: a constant largest number of trips, a"
        " condition that is constant or that the body computes, no values collected from all trips. What the body carries from trip to trip is integers of 8 or 16 bits, or what"
        " `QuantizeLinear` brings to int16. Operators of integers are "
        + ", ".join(f"`{name}`" for name in sorted(INTEGER_HANDLERS))
        + "; of other values "
        + ", ".join(f"`{name}`" for name in sorted({*SHARED, *BLOCK_HANDLERS}))
        + "; elements are moved by "
        + ", ".join(f"`{name}`" for name in MOVEMENTS)
        + "."
    ]
    return "\n".join(lines) + "\n"


STAGES = (
    ("model.onnx", "float, QDQ, QONNX", "source"),
    ("front end", "one canonical graph", "compiler"),
    ("quantisers", "ternary digit planes", "compiler"),
    ("integer program", "exact step functions", "compiler"),
    ("schedule", "tiles, memory, cycles", "compiler"),
    ("model.loom", "one file", "source"),
)
TARGETS = (
    ("golden", "NumPy, defines every integer"),
    ("Amaranth, Verilator", "the core's RTL, bit by bit"),
    ("yosys, nextpnr", "bitstream, Fmax, LUTs"),
)


def pipeline_picture() -> str:
    """The way from a model to golden, simulators and a bitstream, with the array that it runs on."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 430" font-family="system-ui, sans-serif" role="img" '
        'aria-label="From an ONNX model to a bitstream">',
        "<style>text{fill:#1d2330;font-size:14px}.s{fill:#5d6675;font-size:11px}.b{fill:#ffffff;stroke:#b9b4a6}.c{fill:#e3f1ee;stroke:#0f7b6c}"
        ".l{stroke:#5d6675;stroke-width:1.5;fill:none}.p{fill:#0f7b6c}.n{fill:#c4562f}.z{fill:#ddd9cd}.w{fill:#ffffff;font-size:13px}</style>",
        '<rect width="1000" height="430" rx="12" fill="#fbfaf7"/>',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5d6675"/></marker></defs>',
    ]
    parts += _stages()
    parts += _targets()
    parts += _array(x=560, y=150)
    return "\n".join([*parts, "</svg>", ""])


def _stages() -> Iterator[str]:
    width, gap = 142, 20
    for index, (title, text, kind) in enumerate(STAGES):
        x = 24 + index * (width + gap)
        yield from _box(x, 30, width, 56, title, text, "c" if kind == "compiler" else "b")
        if index:
            yield f'<path class="l" marker-end="url(#a)" d="M{x - gap} 58H{x - 2}"/>'


def _targets() -> Iterator[str]:
    yield '<path class="l" d="M905 86V118H60V348"/>'
    for index, (title, text) in enumerate(TARGETS):
        y = 150 + index * 84
        yield from _box(110, y, 250, 60, title, text, "b")
        yield f'<path class="l" marker-end="url(#a)" d="M60 {y + 30}H108"/>'
    yield '<text class="s" x="470" y="256" text-anchor="middle">core, generated in Amaranth</text>'
    for y in (264, 348):
        yield f'<path class="l" stroke-dasharray="4 4" marker-end="url(#a)" d="M575 {y}H364"/>'


def _array(x: int, y: int) -> Iterator[str]:
    """Cells with weights -1, 0 and 1 between activations from the left and sums at the bottom."""
    trits = ("+0-+0+", "0++-0-", "-0+0+0", "+-00-+")
    yield f'<text x="{x + 40}" y="{y - 8}">add, subtract or skip: no multipliers</text>'
    for row, line in enumerate(trits):
        top = y + 10 + row * 44
        yield f'<text class="s" x="{x + 30}" y="{top + 22}" text-anchor="end">a{row}</text>'
        yield f'<path class="l" marker-end="url(#a)" d="M{x + 34} {top + 18}H{x + 50}"/>'
        for column, trit in enumerate(line):
            left = x + 54 + column * 52
            name = {"+": "p", "-": "n", "0": "z"}[trit]
            yield f'<rect class="{name}" x="{left}" y="{top}" width="44" height="36" rx="5"/>'
            text = {"+": "+1", "-": "\u22121", "0": "0"}[trit]
            yield f'<text {"" if trit == "0" else "class=" + chr(34) + "w" + chr(34) + " "}x="{left + 22}" y="{top + 23}" text-anchor="middle">{text}</text>'
    bottom = y + 10 + len(trits) * 44
    for column in range(len(trits[0])):
        left = x + 54 + column * 52
        yield f'<path class="l" marker-end="url(#a)" d="M{left + 22} {bottom - 6}V{bottom + 10}"/>'
    yield from _box(x + 54, bottom + 12, 304, 40, "accumulators, exact step functions", "", "c")


def _box(x: int, y: int, width: int, height: int, title: str, text: str, kind: str) -> Iterator[str]:
    middle = x + width / 2
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
    yield f'<text x="{middle:g}" y="{y + height / 2 + (-3 if text else 5):g}" text-anchor="middle">{escape(title)}</text>'
    if text:
        yield f'<text class="s" x="{middle:g}" y="{y + height / 2 + 16:g}" text-anchor="middle">{escape(text)}</text>'


PAGES = {"cli.md": cli_page, "isa.md": instruction_page, "op-support.md": operator_page, "pipeline.svg": pipeline_picture}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a page is out of date")
    stale = []
    check = parser.parse_args().check
    for name, make in PAGES.items():
        text, path = make(), FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(("out of date, run 'make docs': " if check else "wrote ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
