"""Writes ``docs/isa.md`` from the tables that the assembler and the gateware's decoder use.

``python -m tritloom.hw.arch.document`` prints the page; with a path it writes it there.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tritloom.hw.arch import isa, link, record, scalar, timing, vector
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["isa_page"]


def _markdown(text: str) -> str:
    """Docstring markup to Markdown: constants by their value, everything else as code."""

    def reference(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2].lstrip("~")
        value = getattr(isa, name, None)
        return str(value) if isinstance(value, int) else f"`{name}`"

    text = re.sub(r":\w+:`([^`]+)`", reference, text)
    return text.replace("``", "`")


def _table(header: list[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def _fields(fields: dict[str, isa.Field]) -> list[str]:
    rows = []
    for name, field in fields.items():
        last = field.bit + field.width - 1
        bits = f"{last}:{field.bit}" if field.width > 1 else str(field.bit)
        rows.append([field.word, bits, f"`{name}`", "signed" if field.signed else "", field.meaning])
    return _table(["word", "bits", "field", "", "meaning"], rows)


def _record_fields() -> list[str]:
    """The rows of the table in the text of :mod:`tritloom.hw.arch.record`, checked against the widths that code uses."""
    widths = [record.START_BITS, record.MULTIPLIER_BITS, record.BIAS_BITS, record.SHIFT_BITS, record.HALF_EVEN_BITS]
    names = ["start", "multiplier", "bias", "shift", "half_even"]
    rows, position = [], 0
    for name, width in zip(names, widths, strict=True):
        rows.append(
            [
                f"{position + width - 1}:{position}" if width > 1 else position,
                width,
                f"`{name}`",
                "" if name in ("shift", "half_even") else "signed",
            ]
        )
        position += width
    return _table(
        ["bits", "width", "field", ""],
        [*rows, [f"{8 * record.RECORD_BYTES - 1}:{position}", 8 * record.RECORD_BYTES - position, "zero", ""]],
    )


def _vector_sections() -> list[str]:
    """The function of VECTOR, and the scalar instructions."""
    function = _markdown(vector.__doc__ or "").strip().split("\n\n")
    registers, rest = (scalar.__doc__ or "").split("=============  ==", 1)
    rows = [line.split(None, 2) for line in rest.splitlines()[1:] if line and not line.startswith("=")]
    text = _markdown(registers).strip().split("\n\n")
    fields = [[f"{bit + width - 1}:{bit}" if width > 1 else bit, f"`{name}`"] for name, (bit, width) in vector.function_fields().items()]
    kinds = (
        ("second", vector.Second),
        ("factor", vector.Factor),
        ("low", vector.Low),
        ("statistic", vector.Statistic),
        ("lanes", vector.Lanes),
    )
    return [
        "## Function of VECTOR", "", *[line for paragraph in function[1:] for line in (paragraph, "")], *_table(["bits", "field"], fields),
        *_table(["field", "values"], [[f"`{name}`", ", ".join(f"{int(entry)} {entry.name}" for entry in kind)] for name, kind in kinds]),
        "## Scalar instructions", "", *[line for paragraph in text[1:] for line in (paragraph, "")],
        *_table(["register", "number", "use"], [[f"`{name}`", number, _markdown(use)] for name, number, use in rows]),
        *_table(["opcode", "operation", "`target` becomes"], [[f"`{code:#04x}`", f"`{code.name}`", _markdown(scalar.MEANING[code])] for code in scalar.ScalarOpcode]),
        *_table(["condition", "name"], [[int(condition), condition.name] for condition in scalar.Condition]),
    ]  # fmt: skip


def _vector_clocks() -> list[str]:
    one = CoreParameters(vector_lanes=1)
    before = scalar.Scalar(opcode=scalar.ScalarOpcode.ADD)
    behind = {code: timing.instruction_cycles(scalar.Scalar(opcode=code), one, before) for code in scalar.ScalarOpcode}
    usual = min(behind.values())
    branch = timing.instruction_cycles(before, one, scalar.Scalar(opcode=scalar.ScalarOpcode.BRANCH)) - usual
    others = ", ".join(f"{clocks} for {code.name}" for code, clocks in behind.items() if clocks != usual)
    more = timing.vector_pipeline(CoreParameters(vector_lanes=2)) - timing.vector_pipeline(one)
    kinds = (vector.Second.NONE, vector.Second.FACTOR, vector.Second.TABLE)
    finish = [timing.VECTOR_STAGES[kind] + timing.vector_pipeline(one) + 2 for kind in kinds]
    delay = [timing.vector_delay(kind, one) for kind in kinds]
    return [
        f"A VECTOR issues an element a clock, or one of each lane, every second clock where it reads two; its `finish` is {finish[0]} clocks with one operand,"
        f" {finish[1]} with two and {finish[2]} with a table, its `delay` {delay[0]}, {delay[1]} and {delay[2]}; both are {more} more on a core with several lanes. A scalar instruction behind another one takes"
        f" {usual} clocks; {others}, one more where its `target` is INDEX_A, and {branch} more behind a BRANCH.",
        "",
    ]


def isa_page() -> str:
    """Text of ``docs/isa.md``."""
    paragraphs = _markdown(isa.__doc__ or "").strip().split("\n\n")
    step = _markdown((record.__doc__ or "").split("A record is one")[0]).strip().split("\n\n")
    lines = [
        f"# Instruction set, version {isa.ISA_VERSION}", "", "<!-- Written by python -m tritloom.hw.arch.document; do not edit. -->", "",
        paragraphs[1], "", *[line for paragraph in paragraphs[2:] for line in (paragraph, "")],
        "## Operations", "",
        *_table(["opcode", "operation"], [[f"`{code:#04x}`", f"`{code.name}`"] for code in isa.Opcode]),
        "## Header", "",
        f"{isa.HEADER_WORDS} words of {8 * isa.PROGRAM_WORD_BYTES} bits. The gateware keeps of every address only the bits that its memories need.", "", *_fields(isa.FIELDS),
        "## Loop", "", f"{isa.LOOP_WORDS} words for each loop, innermost first, at most {isa.MAX_LOOPS} loops.", "", *_fields(isa.LOOP_FIELDS),
        "## Requantisation record", "", *[line for paragraph in step[1:] for line in (paragraph, "")],
        f"A record is one word of {8 * record.RECORD_BYTES} bits, little endian:", "", *_record_fields(),
        *_vector_sections(),
        "## State of the core", "",
        *_table(["state", "name"], [[int(state), state.name] for state in link.State]),
        *_table(["fault", "name"], [[int(fault), fault.name] for fault in link.Fault]),
        "After HALT the core is IDLE and `pc` is that of the HALT; after the last instruction that `limit` allows it is STOPPED and `pc` is that of the next",
        "one; at a word that is no instruction it is in FAULT and `pc` is that of the word. ABORT makes it IDLE at once: nothing more is written.", "",
        "## Clocks", "",
        "But for the counts that it takes from registers nothing in an instruction depends on data, so its duration is known before. With",
        "",
        "- `words` the length of the instruction,",
        "- `length` the elements of a reduction, plus one for every time that the plane loop advances in it,",
        "- `results` the columns that a reduction sends, with `wide` divided by `post_lanes` and rounded up (1 for POOL and ELEMENTWISE),",
        "- `pieces` the records of a result (1 for POOL and `raw`),",
        "- `start` the pipeline in front of the post unit:"
        f" {timing.OPERAND_STAGE + 1} + log2(rows) for MATRIX, {timing.OPERAND_STAGE - 1} for POOL and ELEMENTWISE,",
        f"- `requantise` {timing.REQUANTISE_LATENCY}, but 0 for POOL and `raw`,",
        "",
        "the clocks from the last write of the instruction before to its own last write are",
        "",
        "```text",
        "issue    = length + sum over all reductions but the last of max(length, results * pieces)",
        f"finish   = start + results * pieces of the last reduction + {timing.VALUE_LATENCY + timing.WRITE_LATENCY} + requantise",
        f"fetching = max(0, {timing.FETCH_LATENCY + 1} + delay + words - finish of the instruction before), but {timing.FETCH_LATENCY} + words for the first one",
        "clocks   = fetching + issue - 1 + finish",
        "```",
        "",
        f"where `delay` is what `start` of MATRIX is longer than {timing.FETCH_LATENCY + 1 + isa.FIELDS['o'].word}, at least 0. A HALT costs"
        f" max(0, {timing.FETCH_LATENCY + 3} + delay - finish of the instruction before), and {timing.FETCH_LATENCY + 2} when it is the first one.",
        *_vector_clocks(),
        "The core's cycle counter shows the sum over a program; `tritloom.hw.arch.timing.instruction_cycles`",
        "is this formula, and the gateware is built with its constants.", "",
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Print the page, or write it to the one path given."""
    if arguments:
        Path(arguments[0]).write_text(isa_page())
    else:
        sys.stdout.write(isa_page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
