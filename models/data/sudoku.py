"""Sudoku puzzles of 4x4 and 9x9 with one solution, generated."""

from collections.abc import Iterator

import numpy as np

from tritloom.errors import UserError

__all__ = ["SIZES", "all_grids", "generate", "puzzles_of", "shuffled", "solutions"]

SIZES = (4, 9)


def _regions(size: int) -> list[list[int]]:
    """Cells, by flat number, of every row, column and box."""
    box = int(size**0.5)
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(box, box, box, box).swapaxes(1, 2).reshape(size, size)
    return [list(map(int, group)) for group in (*cells, *cells.T, *boxes)]


def solutions(puzzle: np.ndarray, *, limit: int = 2, rng: np.random.Generator | None = None) -> Iterator[np.ndarray]:
    """Up to ``limit`` solutions of a puzzle (size, size), 0 for an empty cell; none where the clues contradict each other.

    The cell with the fewest candidates is tried first; digits in rising order, or in the order that ``rng`` draws. Raises :class:`UserError` for what
    is no puzzle.
    """
    grid = np.asarray(puzzle)
    size = len(grid) if grid.ndim else 0
    if size not in SIZES or grid.shape != (size, size) or grid.dtype.kind not in "ui" or grid.min() < 0 or grid.max() > size:
        raise UserError(f"a puzzle is an array of 4x4 or 9x9 integers from 0 to its size, not {grid.dtype} {grid.shape}")
    regions = _regions(size)
    member = [[number for number, region in enumerate(regions) if cell in region] for cell in range(size * size)]
    values = [int(value) for value in grid.ravel()]
    used = [0] * len(regions)
    for cell, value in enumerate(values):
        if value:
            if any(used[region] >> value & 1 for region in member[cell]):
                return
            for region in member[cell]:
                used[region] |= 1 << value
    left = [limit]

    def search() -> Iterator[np.ndarray]:
        best, options = -1, list(range(size + 2))
        for cell, value in enumerate(values):
            if value == 0:
                taken = used[member[cell][0]] | used[member[cell][1]] | used[member[cell][2]]
                free = [digit for digit in range(1, size + 1) if not taken >> digit & 1]
                if len(free) < len(options):
                    best, options = cell, free
        if best < 0:
            left[0] -= 1
            yield np.array(values, np.int64).reshape(size, size)
            return
        if rng is not None:
            options = [options[index] for index in rng.permutation(len(options))]
        for digit in options:
            values[best] = digit
            for region in member[best]:
                used[region] |= 1 << digit
            yield from search()
            for region in member[best]:
                used[region] &= ~(1 << digit)
            values[best] = 0
            if left[0] <= 0:
                return

    yield from search()


def all_grids() -> np.ndarray:
    """The 288 full grids of 4x4, int64 (288, 4, 4), in rising order."""
    return np.stack(list(solutions(np.zeros((4, 4), np.int64), limit=288)))


def generate(count: int, *, size: int = 4, clues: tuple[int, int] = (4, 7), seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles and their only solutions, int64 (count, size, size).

    Clues of a random grid are taken away in random order as long as the solution stays the only one, down to a number drawn from ``clues`` (both ends included) for each
    puzzle; where none more can go, it keeps more. Raises :class:`UserError` for numbers that make no sense.
    """
    if size not in SIZES:
        raise UserError(f"size must be 4 or 9, not {size}")
    if count < 1 or not 0 <= clues[0] <= clues[1] <= size * size:
        raise UserError(f"count must be 1 or more and clues must rise within 0..{size * size}, not {count} and {clues}")
    rng = np.random.default_rng(seed)
    puzzles, answers = [], []
    for _ in range(count):
        answer = next(solutions(np.zeros((size, size), np.int64), limit=1, rng=rng))
        puzzle, target = answer.copy(), int(rng.integers(clues[0], clues[1] + 1))
        for cell in rng.permutation(size * size):
            if np.count_nonzero(puzzle) <= target:
                break
            row, column = divmod(int(cell), size)
            kept, puzzle[row, column] = puzzle[row, column], 0
            if sum(1 for _ in solutions(puzzle)) != 1:
                puzzle[row, column] = kept
        puzzles.append(puzzle)
        answers.append(answer)
    return np.stack(puzzles), np.stack(answers)


def puzzles_of(grids: np.ndarray, count: int, *, clues: tuple[int, int] = (4, 7), seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles of 4x4 whose solutions are among ``grids`` (G, 4, 4), and these solutions, int64 (count, 4, 4); fast, for training.

    A grid, a number of clues from ``clues`` (both ends included) and as many cells are drawn until no other of the 288 grids agrees with the clues. Raises
    :class:`UserError` for fewer than 4 clues, which no puzzle with one solution has, and for numbers that make no sense.
    """
    if count < 1 or not 4 <= clues[0] <= clues[1] <= 16 or not len(grids):
        raise UserError(f"count must be 1 or more and clues must rise within 4..16, not {count} and {clues}")
    rng = np.random.default_rng(seed)
    every, wanted = all_grids().reshape(-1, 16), np.asarray(grids, np.int64).reshape(-1, 16)
    # Bit c says that two grids differ in cell c: clues single out a grid where every other differs in one of them.
    differ = ((wanted[:, None] != every) << np.arange(16)).sum(2)
    grid, numbers = rng.integers(0, len(wanted), count), rng.integers(clues[0], clues[1] + 1, count)
    puzzles = np.zeros((count, 16), np.int64)
    left = np.arange(count)
    while len(left):
        # The cells with the smallest of 16 random numbers are the clues.
        shown = rng.random((len(left), 16)).argsort(1).argsort(1) < numbers[left, None]
        clue_bits = (shown << np.arange(16)).sum(1)
        single = np.concatenate([((part[:, None] & differ[grid[rows]]) == 0).sum(1) == 1 for part, rows in _parts(clue_bits, left)])
        puzzles[left[single]] = (wanted[grid[left]] * shown)[single]
        left = left[~single]
    return puzzles.reshape(-1, 4, 4), wanted[grid].reshape(-1, 4, 4)


def _parts(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Slices of a few thousand rows, which keep the tables between small."""
    for start in range(0, len(arrays[0]), 4096):
        yield tuple(array[start : start + 4096] for array in arrays)


def shuffled(puzzles: np.ndarray, answers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Puzzles and answers (N, size, size), each pair turned into another one of as many clues: digits renamed, bands, stacks, and rows and columns within them
    permuted, and maybe transposed. Puzzles of one solution stay such."""
    count, size, _ = puzzles.shape
    box = int(size**0.5)

    def order() -> np.ndarray:
        """A permutation of lines that keeps the bands together, (N, size)."""
        bands = rng.random((count, box)).argsort(1)
        return (bands[:, :, None] * box + rng.random((count, box, box)).argsort(2)).reshape(count, size)

    names = np.concatenate([np.zeros((count, 1), np.int64), rng.random((count, size)).argsort(1) + 1], 1)
    rows, columns, turned = order(), order(), rng.integers(0, 2, count).astype(bool)
    found = []
    for grids in (puzzles, answers):
        grids = grids[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        grids = np.where(turned[:, None, None], grids.swapaxes(1, 2), grids)
        found.append(np.take_along_axis(names, grids.reshape(count, size * size), 1).reshape(grids.shape))
    return found[0], found[1]
