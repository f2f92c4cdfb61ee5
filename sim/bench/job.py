"""The bench's job and timing: what both the process that starts the simulator and the one inside it must know."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tritloom.boards import get_board
from tritloom.boards.fitting import fit
from tritloom.compiler import golden
from tritloom.compiler.image import artefact_digest, read_artefact
from tritloom.compiler.ir.loop import has_loops
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule, schedule
from tritloom.errors import UserError

__all__ = ["CLOCK_NS", "DIFFERENCE_FILE", "DIVISOR", "Job"]

CLOCK_NS = 10
DIVISOR = 4
"""Clocks in a bit of the UART: the fewest that it allows."""

DIFFERENCE_FILE = "first_difference.json"
"""Written by the bench into its working folder when a tensor differs from golden."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the bench runs; travels to the simulator's process as JSON."""

    artefact: str
    board: str
    seed: int
    samples: int
    first_sample: int

    @classmethod
    def read(cls, path: Path) -> "Job":
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def load(self) -> tuple[Program, Schedule, bytes]:
        """Program, schedule for the board, artefact digest (8 bytes). A program with loops is scheduled here.

        Raises :class:`UserError` when there is no such schedule, and for a program that runs token by token.
        """
        artefact = read_artefact(Path(self.artefact))
        if artefact.program.states:
            raise UserError("a language model runs token by token; simulate it with 'tritloom verify' or 'tritloom chat --on verilator'")
        if has_loops(artefact.program):
            made = schedule(artefact.program, fit(get_board(self.board), artefact.program))
            return artefact.program, made, artefact_digest(artefact)[:8]
        if self.board not in artefact.schedules:
            raise UserError(f"{Path(self.artefact).name} has no schedule for board {self.board!r}: compile it with --board {self.board}")
        return artefact.program, artefact.schedules[self.board], artefact_digest(artefact)[:8]

    def codes(self, program: Program) -> dict[str, np.ndarray]:
        """Input codes of the job's samples, (samples, C, H, W): those that verification draws for the same seed and numbers."""
        feeds = golden.random_feeds(program, self.first_sample + self.samples, self.seed)
        return golden.quantise_inputs(program, {name: values[self.first_sample :] for name, values in feeds.items()})
