"""Measures the cells of cores, to check and renew the area model: ``python -m tritloom.boards.calibration [-o F.json] [BOARD ...]``.

Every core is synthesised and packed by nextpnr for the real part, but not placed: about a minute each. The stored figures are
``docs/benchmarks/area.json``.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tritloom.boards import get_board
from tritloom.boards.area import block_use, logic_cells
from tritloom.boards.board import Board
from tritloom.boards.flow import design_files, place_and_route, read_report, synthesise
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["cores", "main", "measure"]

_VARIANTS = {
    "icebreaker": ((4, 4, 16, 58, 1, "trit2"), (8, 4, 16, 36, 1, "trit2"), (8, 4, 16, 48, 1, "trit2"), (8, 4, 20, 40, 1, "trit2")),
    "hx8k": ((4, 4, 16, 58, 1, "trit2"), (8, 8, 16, 40, 1, "trit2"), (8, 4, 16, 40, 1, "trit5")),
    "ulx3s-25f": ((8, 8, 16, 58, 1, "trit2"), (16, 16, 20, 40, 2, "trit2"), (32, 16, 20, 40, 4, "trit2"), (16, 16, 20, 58, 4, "trit5")),
    "tang-nano-20k": ((8, 8, 16, 58, 1, "trit2"), (16, 12, 20, 40, 4, "trit2"), (32, 8, 16, 40, 1, "trit2"), (8, 8, 16, 40, 1, "trit5")),
}
"""Rows, columns, accumulator bits, scaled bits, post lanes and weight encoding of the cores that :func:`main` packs."""


def cores(name: str) -> list[CoreParameters]:
    """The cores that are measured on a board."""
    board = get_board(name)
    return [
        CoreParameters(
            rows=rows, columns=columns, accumulator_bits=bits, scaled_bits=scaled, post_lanes=lanes, weight_encoding=encoding, reduction=board.reduction,
            weight_words=256, activation_words=256, record_words=256, program_words=256,
        )
        for rows, columns, bits, scaled, lanes, encoding in _VARIANTS[name]
    ]  # fmt: skip


def measure(board: Board, parameters: CoreParameters) -> dict[str, int]:
    """Cells of a core by nextpnr's count, packed but not placed. Raises like :func:`tritloom.boards.bitstream.build`."""
    with tempfile.TemporaryDirectory(prefix="tritloom-") as name:
        folder = Path(name)
        for file, text in design_files(board, parameters).items():
            (folder / file).write_text(text)
        synthesise(board, folder)
        place_and_route(board, folder, seed=1, pack_only=True)
        return {cell: count["used"] for cell, count in read_report(folder)[1].items() if count["used"]}


def main() -> None:
    """Print estimated and measured cells for the boards named on the command line, by default one of each family's and both of iCE40."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("boards", nargs="*", metavar="BOARD", help="default: all of " + ", ".join(_VARIANTS))
    parser.add_argument("-o", "--output", metavar="F.json", help="file for the figures")
    arguments = parser.parse_args()
    for name in arguments.boards:
        if name not in _VARIANTS:
            parser.error(f"no core is measured on {name!r}; boards are {', '.join(_VARIANTS)}")
    figures = []
    for name in arguments.boards or _VARIANTS:
        board = get_board(name)
        for core in cores(name):
            used, estimate = measure(board, core), logic_cells(board, core)
            measured, blocks = used[board.logic_cell], used.get(board.block, 0)
            figures.append({"board": name, "core": core.to_json(), "cells": measured, "blocks": blocks})
            error = 100 * (estimate / measured - 1)
            print(
                f"{name} {core.rows}x{core.columns} {core.accumulator_bits} and {core.scaled_bits} bits, {core.post_lanes} lanes, {core.weight_encoding}: {measured} "
                f"{board.logic_cell}, estimated {estimate} ({error:+.1f} %); {blocks} {board.block}, estimated {sum(block_use(board, core).values())}",
                flush=True,
            )
    if arguments.output:
        Path(arguments.output).write_text(json.dumps({"cores": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
