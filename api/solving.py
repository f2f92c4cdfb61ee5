"""Puzzles solved by a compiled recursive network, supervision step by supervision step."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tritloom.compiled import DEFAULT_BOARD, CompiledModel
from tritloom.compiler import golden
from tritloom.compiler.ir.loop import Loop
from tritloom.errors import UserError
from tritloom.sim.backends import open_backend

__all__ = ["PuzzleSolver", "Step"]

_OUTPUTS = {"logits", "halt", "steps"}


@dataclass(frozen=True)
class Step:
    """What the network says when a supervision step ends: ``grid`` int64 (size, size), and the logit ``halt``, above 0 where it would go no further."""

    number: int
    grid: np.ndarray
    halt: float


class PuzzleSolver:
    """A recursive network in golden or on a simulated core.

    Parameters
    ----------
    model
        Compiled from a model with the input ``puzzle`` (1, cells), and the outputs ``logits`` (1, cells, symbols), ``halt`` and ``steps`` of one outer ``Loop``, as
        ``tritloom train`` writes them; ``size * size`` cells of the symbols 0 (empty) to ``size``.
    on, board
        What computes, of :data:`tritloom.session.PROVIDERS`, and on which board's core.
    progress
        Called with a few words while a simulator is built.

    Raises :class:`UserError` for a model of another kind, :class:`MissingToolError` where the tools are not there.
    """

    def __init__(
        self, model: CompiledModel, *, on: str = "golden", board: str = DEFAULT_BOARD, progress: Callable[[str], None] | None = None
    ) -> None:
        program = model.program
        outputs = {spec.name: spec for spec in program.outputs}
        outer = [operation for operation in program.operations if isinstance(operation, Loop)]
        if (
            len(outer) != 1
            or [spec.name for spec in program.inputs] != ["puzzle"]
            or set(outputs) != _OUTPUTS
            or outputs["steps"].tensor != outer[0].output
        ):
            raise UserError(
                "the model solves no puzzles: it has not the input puzzle, and the outputs logits, halt and steps of one loop; use 'tritloom run'"
            )
        cells, *rest = program.inputs[0].shape[1:]
        self.size = math.isqrt(int(cells))
        shape = list(outputs["logits"].shape[1:])
        if rest or shape != [self.size**2, self.size + 1]:
            raise UserError(f"the model's puzzles are no Sudoku: {cells} cells, logits of shape {shape}; use 'tritloom run'")
        self.most_steps = outer[0].limit
        self._model, self._board, self._program, self._loop = model, board, program, outer[0]
        plan = None if on == "golden" else model.schedule(board)
        self._backend = open_backend(on, program, plan, board=board, digest=bytes.fromhex(model.digest), progress=progress)

    def steps(self, puzzle: np.ndarray) -> Iterator[Step]:
        """The supervision steps of a puzzle, integers (size, size) from 0 to size, until the network halts; in golden every step is computed from the first one anew.

        Raises :class:`UserError` for what is no puzzle.
        """
        grid = np.asarray(puzzle)
        if grid.shape != (self.size, self.size) or grid.dtype.kind not in "iu":
            raise UserError(f"a puzzle must have {self.size} rows of {self.size} integers, not {grid.dtype} {grid.shape}")
        codes = golden.quantise_inputs(self._program, {"puzzle": grid.reshape(1, -1)})
        for number, tensors in enumerate(self._backend.trips(codes, self._loop.name), start=1):
            found = golden.dequantise_outputs(self._program, tensors)
            yield Step(number, found["logits"][0].argmax(-1).reshape(grid.shape), float(found["halt"].ravel()[0]))

    def cycles(self, steps: int) -> int:
        """Clocks of a core that solves a puzzle in so many steps by itself."""
        return self._model.schedule(self._board).cycles_of({self._loop.name: steps})

    def close(self) -> None:
        self._backend.close()
