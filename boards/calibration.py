"""Measures the cells of cores, to check and renew the area model: ``python -m tritloom.boards.calibration [BOARD ...]``.

Every core is synthesised and packed by nextpnr for the real part, but not placed: about a minute each.
"""

import sys
import tempfile
from pathlib import Path

from tritloom.boards import get_board
from tritloom.boards.area import block_use, logic_cells
from tritloom.boards.board import Board
from tritloom.boards.flow import design_files, place_and_route, read_report, synthesise
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["main", "measure"]

_SHAPES = {
    "icebreaker": ((4, 4), (8, 2), (8, 4)),
    "hx8k": ((4, 4), (8, 8)),
    "ulx3s-25f": ((8, 8), (16, 16), (32, 16)),
    "tang-nano-20k": ((8, 8), (16, 16)),
}
"""Shapes of the arrays that :func:`main` packs, rows and columns."""


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
    """Print estimated and measured cells for the boards named on the command line, by default one of each family's."""
    for name in sys.argv[1:] or _SHAPES:
        board = get_board(name)
        shapes = _SHAPES.get(name, ((8, 8),))
        for rows, columns in shapes:
            for bits in (16, 24) if (rows, columns) == shapes[0] and board.dsp else (16,):
                core = CoreParameters(
                    rows=rows,
                    columns=columns,
                    accumulator_bits=bits,
                    reduction=board.reduction,
                    weight_words=256,
                    activation_words=256,
                    record_words=256,
                    program_words=256,
                )
                used = measure(board, core)
                estimate = (
                    f"estimated {logic_cells(board, core)} {board.logic_cell} and {sum(block_use(board, core).values())} {board.block}"
                )
                print(f"{name} {rows}x{columns} {bits} bits: {estimate}; measured {used}", flush=True)


if __name__ == "__main__":
    main()
