"""Mazes with one way between any two places, and the shortest way from the upper left to the lower right corner."""

import numpy as np

from tritloom.errors import UserError

__all__ = ["generate", "shortest"]

_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


def generate(count: int, *, size: int = 9, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Walls and ways, bool (count, size, size); ``size`` is odd and at least 3, the border is wall.

    A random walk that goes back where it is stuck digs the places of odd row and column; the way leads from (1, 1) to (size - 2, size - 2), both included. Raises
    :class:`UserError` for other numbers.
    """
    if count < 1 or size < 3 or size % 2 == 0:
        raise UserError(f"count must be 1 or more and size an odd number from 3 on, not {count} and {size}")
    rng = np.random.default_rng(seed)
    walls = np.ones((count, size, size), bool)
    for maze in walls:
        stack = [(1, 1)]
        maze[1, 1] = False
        while stack:
            row, column = stack[-1]
            near = [(row + 2 * down, column + 2 * across) for down, across in _STEPS]
            free = [(a, b) for a, b in near if 0 < a < size and 0 < b < size and maze[a, b]]
            if not free:
                stack.pop()
                continue
            a, b = free[int(rng.integers(0, len(free)))]
            maze[(row + a) // 2, (column + b) // 2] = maze[a, b] = False
            stack.append((a, b))
    return walls, np.stack([shortest(maze) for maze in walls])


def shortest(walls: np.ndarray) -> np.ndarray:
    """Places of a shortest way from (1, 1) to the opposite corner, bool (size, size); none where there is no way."""
    size = len(walls)
    start, end = (1, 1), (size - 2, size - 2)
    way = np.zeros(walls.shape, bool)
    came: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
    front = [start]
    while front and end not in came:
        reached = []
        for row, column in front:
            for down, across in _STEPS:
                place = (row + down, column + across)
                if not walls[place] and place not in came:
                    came[place] = (row, column)
                    reached.append(place)
        front = reached
    place: tuple[int, int] | None = end if end in came else None
    while place is not None:
        way[place] = True
        place = came[place]
    return way
