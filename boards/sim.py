"""The simulated board: a fixed array whose memories are as large as the model needs."""

from tritloom.boards.board import Board

__all__ = ["BOARD", "COLUMNS", "ROWS"]

ROWS, COLUMNS = 16, 16

BOARD = Board(name="sim", title="Simulator", family="none")
