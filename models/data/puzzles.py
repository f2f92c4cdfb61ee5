"""Puzzles as sequences of symbols, split into rows for training and rows held out; and the data sets by name."""

from dataclasses import dataclass

import numpy as np

from tritloom.errors import UserError
from tritloom.models.data import mazes, sudoku

__all__ = ["PUZZLES", "Puzzles", "load_puzzles"]

PUZZLES = {"sudoku4": (20_000, 1_000), "sudoku9": (1_000, 200), "maze": (4_000, 500)}
"""What :func:`load_puzzles` understands, and how many puzzles for training and held out suit it."""

HELD_OUT_GRIDS = 48
"""Of the 288 grids of a 4x4 Sudoku; no training puzzle has one of these as its solution."""

MAZE_SIZE = 11


@dataclass(frozen=True)
class Puzzles:
    """Symbols int64 (N, cells) below ``symbols``: puzzles and, in the same alphabet, their answers. ``size`` is the side of the square of cells.

    ``shuffles`` says that :func:`tritloom.models.data.sudoku.shuffled` makes new training rows of old ones.
    """

    name: str
    train: np.ndarray
    train_answers: np.ndarray
    test: np.ndarray
    test_answers: np.ndarray
    symbols: int
    size: int
    shuffles: bool = False

    @property
    def cells(self) -> int:
        return self.size * self.size


def load_puzzles(data: str, *, count: int = 0, held_out: int = 0, seed: int) -> Puzzles:
    """Generated puzzles: ``count`` for training and ``held_out`` others; 0 for the numbers of :data:`PUZZLES`.

    ``sudoku4``: 4 to 7 clues, symbols 0 (empty) to 4; solutions of the held-out puzzles are never solutions in training. ``sudoku9``: about 30 clues, symbols 0 to 9;
    slow to make (an eighth of a second each). ``maze``: 11x11 places with the symbols 0 wall, 1 free, 2 start, 3 end, and 4 for the way in the answer.
    Raises :class:`UserError` for another name.
    """
    if data not in PUZZLES:
        raise UserError(f"data must be one of {', '.join(PUZZLES)}, not {data!r}")
    count, held_out = count or PUZZLES[data][0], held_out or PUZZLES[data][1]
    if data == "sudoku4":
        grids = np.random.default_rng([seed, 4]).permutation(sudoku.all_grids())
        train = sudoku.puzzles_of(grids[HELD_OUT_GRIDS:], count, seed=2 * seed)
        test = sudoku.puzzles_of(grids[:HELD_OUT_GRIDS], held_out, seed=2 * seed + 1)
        name = f"4x4 Sudoku, 4 to 7 clues, {count} puzzles of {len(grids) - HELD_OUT_GRIDS} grids; held out: the {HELD_OUT_GRIDS} others"
        return Puzzles(name, *_flat(train), *_flat(test), symbols=5, size=4)
    if data == "sudoku9":
        train = sudoku.generate(count, size=9, clues=(28, 32), seed=2 * seed)
        test = sudoku.generate(held_out, size=9, clues=(28, 32), seed=2 * seed + 1)
        return Puzzles(f"9x9 Sudoku, 28 to 32 clues, {count} puzzles", *_flat(train), *_flat(test), symbols=10, size=9, shuffles=True)
    walls, ways = mazes.generate(count + held_out, size=MAZE_SIZE, seed=seed)
    puzzles = np.where(walls, 0, 1)
    puzzles[:, 1, 1], puzzles[:, -2, -2] = 2, 3
    test, test_answers = _flat((puzzles[:held_out], np.where(ways & (puzzles == 1), 4, puzzles)[:held_out]))
    train, train_answers = _flat((puzzles[held_out:], np.where(ways & (puzzles == 1), 4, puzzles)[held_out:]))
    new = ~np.isin(_keys(train), _keys(test))  # small mazes come more than once
    parts = train[new], train_answers[new], test, test_answers
    return Puzzles(f"mazes of {MAZE_SIZE}x{MAZE_SIZE} places, {new.sum()} of them", *parts, symbols=5, size=MAZE_SIZE)


def _flat(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    puzzles, answers = (grids.reshape(len(grids), -1).astype(np.int64) for grids in pair)
    return puzzles, answers


def _keys(rows: np.ndarray) -> np.ndarray:
    """Each row as one value."""
    return np.ascontiguousarray(rows.astype(np.uint8)).view(f"V{rows.shape[1]}").ravel()
