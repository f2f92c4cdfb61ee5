"""Boards: what is on them, which array fits, and how a bitstream is built."""

from difflib import get_close_matches

from tritloom.boards import hx8k, icebreaker, sim, tang_nano_9k, tang_nano_20k, ulx3s
from tritloom.boards.bitstream import BuildResult, build
from tritloom.boards.board import Board
from tritloom.boards.fitting import fit, fitting_cores
from tritloom.errors import UserError

__all__ = ["BOARDS", "Board", "BuildResult", "build", "fit", "fitting_cores", "get_board"]

BOARDS: dict[str, Board] = {
    board.name: board
    for board in (icebreaker.BOARD, hx8k.BOARD, ulx3s.ULX3S_25F, ulx3s.ULX3S_85F, tang_nano_9k.BOARD, tang_nano_20k.BOARD, sim.BOARD)
}


def get_board(name: str) -> Board:
    """The board of that name. Raises :class:`UserError` with the nearest name for an unknown one."""
    if name in BOARDS:
        return BOARDS[name]
    close = get_close_matches(name.lower().replace("_", "-"), BOARDS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"boards are {', '.join(BOARDS)}"
    raise UserError(f"unknown board {name!r}; {hint}")
