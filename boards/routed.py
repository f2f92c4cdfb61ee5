"""Whole cores on real parts, placed and routed with several seeds: clock and cells of link, sequencer, array, memories and post unit together."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tritloom.boards import get_board
from tritloom.boards.benchmark import Row
from tritloom.boards.flow import design_files, place_and_route, read_report, synthesise
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["TARGETS", "Target", "core_rows"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A core that is measured on a board, and what the project wants there.

    ``macs_goal`` multiply-accumulates a clock at ``mhz_goal``; ``cells_goal`` cells for each of them, or ``None``.
    """

    board: str
    rows: int
    columns: int
    post_lanes: int
    macs_goal: int
    mhz_goal: float
    cells_goal: float | None = None
    weight_storage: str = "block"


TARGETS = (
    Target(board="ulx3s-25f", rows=16, columns=48, post_lanes=1, macs_goal=768, mhz_goal=105, cells_goal=24),
    Target(board="ulx3s-85f", rows=64, columns=40, post_lanes=4, macs_goal=2560, mhz_goal=80),
    Target(board="icebreaker", rows=8, columns=4, post_lanes=1, macs_goal=128, mhz_goal=24, weight_storage="spram"),
    Target(board="hx8k", rows=8, columns=4, post_lanes=1, macs_goal=192, mhz_goal=60),
    Target(board="tang-nano-20k", rows=16, columns=12, post_lanes=1, macs_goal=512, mhz_goal=80),
)
"""The largest arrays that have been routed, and on the 85F one that has been packed only; ``docs/decisions/whole-cores.md`` says what bounds them."""


def core_rows(targets: tuple[Target, ...], *, seeds: int, progress: Callable[[str], None]) -> Iterator[Row]:
    """Rows of the targets: accumulators of 20 bits, sums of 40 in the post unit, which digits_cnn_twn needs. Each core is synthesised once, and
    placed and routed with the seeds 1 to ``seeds``; many minutes each.

    Raises like :func:`tritloom.boards.bitstream.build`.
    """
    for target in targets:
        board = get_board(target.board)
        core = CoreParameters(
            rows=target.rows, columns=target.columns, post_lanes=target.post_lanes, accumulator_bits=20, scaled_bits=40, reduction=board.reduction,
            weight_storage=target.weight_storage, weight_words=512, activation_words=512, record_words=256, program_words=256,
        )  # fmt: skip
        clocks = []
        with tempfile.TemporaryDirectory(prefix="tritloom-") as name:
            folder = Path(name)
            for file, text in design_files(board, core).items():
                (folder / file).write_text(text)
            progress(f"{target.board}: synthesis")
            synthesise(board, folder)
            for seed in range(1, seeds + 1):
                progress(f"{target.board}: place and route, seed {seed} of {seeds}")
                place_and_route(board, folder, seed=seed)
                clock, cells = read_report(folder)
                clocks.append(clock or 0.0)
        used = cells[board.logic_cell]["used"]
        name = f"whole core {target.rows} x {target.columns}, {target.board}"
        spread = f"{min(clocks):g} to {max(clocks):g} over {seeds} seeds"
        yield Row(
            name=f"{name}: array",
            family=board.family,
            figure=core.macs_per_cycle,
            unit="MACs a clock",
            goal=target.macs_goal,
            higher=True,
        )
        yield Row(
            name=f"{name}: clock", family=board.family, figure=statistics.median(clocks), unit="MHz, median", goal=target.mhz_goal, higher=True,
            compared=spread,
        )  # fmt: skip
        unit, goal = f"{board.logic_cell} a MAC", target.cells_goal
        compared = f"{used} of {board.logic_cells} cells"
        yield Row(
            name=f"{name}: cells",
            family=board.family,
            figure=round(used / core.macs_per_cycle, 2),
            unit=unit,
            goal=goal,
            floor=12,
            compared=compared,
        )
