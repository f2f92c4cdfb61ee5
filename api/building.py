"""From a compiled model to a bitstream on a board: the largest useful array that place and route can finish."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritloom.boards import BuildResult, fitting_cores, get_board
from tritloom.boards import build as build_core
from tritloom.compiled import CompiledModel
from tritloom.compiler.schedule import Schedule, schedule
from tritloom.errors import BuildError

__all__ = ["Build", "build"]


@dataclass(frozen=True)
class Build:
    """A finished build: what the tools said, the schedule for the core that was built, and the model with it."""

    result: BuildResult
    schedule: Schedule
    model: CompiledModel

    @property
    def inferences_per_second(self) -> float:
        return self.result.clock_mhz * 1e6 / self.schedule.cycles


def build(
    model: CompiledModel,
    *,
    board: str,
    output: str | os.PathLike[str],
    array: tuple[int, int] | None = None,
    seed: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Build:
    """Build the bitstream of a core that runs ``model``.

    Parameters
    ----------
    board
        A board with an FPGA.
    output
        Folder for the bitstream, the tools' reports and logs.
    array
        Rows and columns. By default the core of the schedule that the model stores for the board, or else the fastest that fits; when it
        cannot be placed and routed, the next smaller one.
    seed
        Of place and route.
    progress
        Called with one sentence a stage.

    Raises :class:`UserError`, :class:`ModelError` when nothing fits, :class:`BuildError` with the tools' own error lines when the last
    core fails too, :class:`MissingToolError`.
    """
    found = get_board(board)
    say = progress or (lambda text: None)
    if array is None and found.name in model.boards:
        cores = [model.schedule(found.name).parameters]
    else:
        cores = fitting_cores(found, model.program, array=array)
    failure: BuildError | None = None
    for core in cores:
        if failure is not None:
            say(f"an array of {core.rows} x {core.columns} instead")
        try:
            result = build_core(found, core, Path(output), seed=seed, progress=progress)
        except BuildError as error:
            say(f"an array of {core.rows} x {core.columns} failed: {error}")
            failure = failure or error
            continue
        plan = schedule(model.program, core)
        return Build(result, plan, model.with_schedule(found.name, plan))
    assert failure is not None
    raise failure
