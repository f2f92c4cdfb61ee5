"""``tritloom solve``: Sudoku puzzles by a recursive network, drawn after each supervision step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import BoardOption, JsonOption, ModelOrLoomArgument, QuietOption, VerboseOption

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text

__all__ = ["solve"]

CLUES = {4: (4, 7), 9: (28, 32)}
"""Clues of generated puzzles, those that the networks are trained with, by size."""


def solve(
    model: ModelOrLoomArgument,
    puzzle: Annotated[
        list[str] | None,
        typer.Option(
            "--puzzle",
            metavar="DIGITS",
            help="A puzzle, row by row, 0 or . for an empty cell; once for each puzzle. Without it puzzles are generated.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Puzzles to generate.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the generated puzzles.")] = 0,
    on: Annotated[str, typer.Option("--on", metavar="golden|verilator", help="What computes.")] = "golden",
    board: BoardOption = "sim",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="F.npz", help="File for the puzzles, as 'tritloom verify --input' takes them.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Let a recursive network solve Sudoku puzzles.

    The grid is drawn after each supervision step, given digits in bold, until the network's halting head says that it is right. An answer counts as solved when it
    is a full Sudoku that keeps the given digits. The model is an ONNX file of a Tiny Recursive Model, or compiled from one. A simulated core runs the loops and halts by
    itself; its clocks, and what the board's usual clock makes of them, are those of an uninterrupted run.

    [bold]Examples[/bold]

    tritloom zoo trm_sudoku4

    tritloom solve trm_sudoku4.onnx --count 3

    tritloom solve trm_sudoku4.onnx --puzzle 1.....3..2.....4 --json

    tritloom solve trm_sudoku4.onnx --on verilator --board ulx3s-85f -o puzzles.npz
    """
    from time import monotonic

    import numpy as np

    from tritloom.boards import get_board
    from tritloom.compiled import open_model
    from tritloom.files import write_arrays
    from tritloom.solving import PuzzleSolver

    console = Console(json=json, verbose=verbose, quiet=quiet)
    compiled = open_model(model)
    with console.progress() as progress:
        solver = PuzzleSolver(compiled, on=on, board=board, progress=progress.tell)
    puzzles = [_read(text, solver.size) for text in puzzle] if puzzle else _generated(solver.size, count, seed)
    if output is not None:
        write_arrays(output, {"puzzle": np.stack([puzzle.ravel() for puzzle in puzzles]).astype(np.int64)})
    found, clocks = [], 0
    started = monotonic()
    for number, given in enumerate(puzzles, start=1):
        steps = []
        console.draw(_drawn(given, given), title=f"puzzle {number} of {len(puzzles)}")
        for step in solver.steps(given):
            steps.append(step)
            console.draw(_drawn(step.grid, given), title=f"step {step.number}, halt {step.halt:+.2f}")
        right = _is_solution(steps[-1].grid, given)
        console.say(f"{'solved' if right else 'not solved'} after {len(steps)} step{'s' * (len(steps) > 1)}")
        entry = {
            "puzzle": _digits(given),
            "answer": _digits(steps[-1].grid),
            "steps": len(steps),
            "halted": steps[-1].halt > 0,
            "solved": right,
        }
        if on != "golden":
            entry["cycles"] = solver.cycles(len(steps))
            clocks += solver.cycles(len(steps))
        found.append({**entry, "grids": [_digits(step.grid) for step in steps]})
    seconds = monotonic() - started
    solved = sum(bool(entry["solved"]) for entry in found)
    console.say(f"{solved} of {len(found)} puzzles solved on {on}, {len(found) / seconds:.2g} a second here")
    result = {"on": on, "board": board, "puzzles": found, "solved": solved, "seconds": round(seconds, 3)}
    if clocks:
        mhz = get_board(board).expected_mhz(compiled.schedule(board).parameters) or None
        rate = mhz and mhz * 1e6 * len(found) / clocks
        result.update(cycles=clocks, clock_mhz=mhz, puzzles_per_second=rate and round(rate, 2))
        clock = "" if mhz is None else f", {rate:.1f} puzzles a second at the {mhz:g} MHz that cores on {board} typically reach"
        console.say(f"{clocks // len(found)} clocks a puzzle{clock}")
    console.result(result)
    solver.close()


def _read(text: str, size: int) -> "np.ndarray":
    """Raises :class:`UserError` for another number of digits, and for digits that the puzzles do not have."""
    import numpy as np

    from tritloom.errors import UserError

    digits = [0 if character == "." else ord(character) - ord("0") for character in text if not character.isspace()]
    if len(digits) != size * size or not all(0 <= digit <= size for digit in digits):
        raise UserError(f"a puzzle has {size * size} digits from 0 to {size}, row by row, 0 or . for an empty cell; not {text[:100]!r}")
    return np.array(digits).reshape(size, size)


def _generated(size: int, count: int, seed: int) -> "list[np.ndarray]":
    from tritloom.errors import UserError
    from tritloom.models.data.sudoku import SIZES, generate

    if size not in SIZES:
        raise UserError(f"puzzles of {size}x{size} are not generated; give them with --puzzle")
    return list(generate(count, size=size, clues=CLUES[size], seed=seed)[0])


def _is_solution(answer: "np.ndarray", given: "np.ndarray") -> bool:
    from tritloom.models.data.sudoku import SIZES, solutions

    kept = ((answer == given) | (given == 0)).all() and (answer > 0).all()
    return bool(kept) and len(answer) in SIZES and any(True for _ in solutions(answer, limit=1))


def _digits(grid: "np.ndarray") -> str:
    return "".join(map(str, grid.ravel().tolist()))


def _drawn(grid: "np.ndarray", given: "np.ndarray") -> "Text":
    """The grid with lines around its boxes; given digits bold, others green, a given one that was changed red."""
    from rich.text import Text

    size = len(grid)
    box = round(size**0.5)
    drawn = Text()
    for row in range(size):
        if row % box == 0:
            left, middle, right = "┌┬┐" if row == 0 else "├┼┤"
            drawn.append(left + middle.join(["─" * (2 * box + 1)] * (size // box)) + right + "\n")
        for column in range(size):
            drawn.append("│ " if column % box == 0 else "")
            digit, clue = int(grid[row, column]), int(given[row, column])
            style = "green" if not clue else "bold" if clue == digit else "bold red"
            drawn.append(str(digit) if digit else ".", style).append(" ")
        drawn.append("│\n")
    return drawn.append("└" + "┴".join(["─" * (2 * box + 1)] * (size // box)) + "┘")
