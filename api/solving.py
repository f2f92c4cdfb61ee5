"""Puzzles solved by a compiled recursive network, supervision step by supervision step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tritloom.compiled import CompiledModel
from tritloom.compiler import golden
from tritloom.compiler.ir.loop import Loop
from tritloom.errors import UserError

__all__ = ["PuzzleSolver", "Step"]

_OUTPUTS = {"logits", "halt", "steps"}


@dataclass(frozen=True)
class Step:
    """What the network says when a supervision step ends: ``grid`` int64 (size, size), and the logit ``halt``, above 0 where it would go no further."""

    number: int
    grid: np.ndarray
    halt: float


class PuzzleSolver:
    """A recursive network in golden.

    Parameters
    ----------
    model
        Compiled from a model with the input ``puzzle`` (1, cells), and the outputs ``logits`` (1, cells, symbols), ``halt`` and ``steps`` of one outer ``Loop``, as
        ``tritloom train`` writes them; ``size * size`` cells of the symbols 0 (empty) to ``size``.

    Raises :class:`UserError` for a model of another kind.
    """

    def __init__(self, model: CompiledModel) -> None:
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
        self._program, self._loop = program, outer[0]

    def steps(self, puzzle: np.ndarray) -> Iterator[Step]:
        """The supervision steps of a puzzle, integers (size, size) from 0 to size, until the network halts; every step is computed from the first one anew.

        Raises :class:`UserError` for what is no puzzle.
        """
        grid = np.asarray(puzzle)
        if grid.shape != (self.size, self.size) or grid.dtype.kind not in "iu":
            raise UserError(f"a puzzle must have {self.size} rows of {self.size} integers, not {grid.dtype} {grid.shape}")
        codes = golden.quantise_inputs(self._program, {"puzzle": grid.reshape(1, -1)})
        for number in range(1, self.most_steps + 1):
            operations = tuple(
                replace(operation, limit=number) if operation is self._loop else operation for operation in self._program.operations
            )
            program = replace(self._program, operations=operations)
            tensors = golden.run(program, codes, keep=[spec.tensor for spec in program.outputs])
            found = golden.dequantise_outputs(program, tensors)
            halt = float(found["halt"].ravel()[0])
            yield Step(number, found["logits"][0].argmax(-1).reshape(grid.shape), halt)
            if halt > 0:
                return
