"""How near the array is to its limits: cells by nextpnr's count, and how busy it is.

Parts of the core are synthesised and packed for a real part without their pins; a bitstream is not made. The floor of a sum is one
4-input table a bit of every addition.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritloom.boards import get_board
from tritloom.boards.board import Board
from tritloom.boards.flow import FAMILY_TOOLS, read_report, synthesis_script
from tritloom.boards.toolchain import run_tool, run_yosys
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import memory_needs, schedule
from tritloom.hw.arch.parameters import CoreParameters

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["Row", "area_rows", "packed_cells", "utilisation_rows"]

_PARTS = {"ecp5": "ulx3s-25f", "ice40": "hx8k", "gowin": "tang-nano-20k"}
_COUNTED = {"ecp5": ("TRELLIS_COMB",), "ice40": ("ICESTORM_LC",), "gowin": ("LUT4",)}
"""Cells that hold a 4-input table or a carry, by nextpnr's names. On Gowin the number for LUT4 holds the ALU cells: a netlist of 8 tables and
16 ALU cells is reported as 26 LUT4 and 18 ALU, two ALU cells being nextpnr's own at the ends of the chain."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure.

    Parameters
    ----------
    name, family
        What was measured, and for which family; empty for figures that depend on none.
    figure, unit
    goal
        What the project wants to reach; at most that for cells, at least that for utilisation.
    floor
        What no design of the kind can do better.
    """

    name: str
    family: str = ""
    figure: float
    unit: str
    goal: float
    floor: float

    @property
    def reached(self) -> bool:
        return self.figure >= self.goal if self.unit == UTILISATION else self.figure <= self.goal

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "family": self.family, "figure": self.figure, "unit": self.unit, "goal": self.goal, "floor": self.floor,
            "ratio": round(self.figure / self.floor, 3), "reached": self.reached,
        }  # fmt: skip


UTILISATION = "of the multiply-accumulates that the array could do"

_SUM_BITS = 16


def _cell(board: Board) -> "Component":
    from tritloom.hw.measured import AccumulateCell

    return AccumulateCell(bits=_SUM_BITS)


def _dot(board: Board) -> "Component":
    from tritloom.hw.array import ColumnSums

    return ColumnSums(rows=64, columns=1, reduction=board.reduction)


def _array(board: Board) -> "Component":
    from tritloom.hw.array import TernaryMesh

    return TernaryMesh(rows=32, columns=8, accumulator_bits=24, reduction=board.reduction)


def _decoder(board: Board) -> "Component":
    from tritloom.hw.memory import Trit5Decoder

    return Trit5Decoder()


_GOWIN_PINS = 'IO_LOC "clk" 4;\nIO_LOC "data" 15;\n'
"""nextpnr packs nothing for a Gowin part that has pins without a place."""


def packed_cells(board: Board, component: "Component") -> dict[str, int]:
    """Cells of a component on the part of ``board``, packed by nextpnr without pins; raises like :func:`tritloom.boards.bitstream.build`."""
    from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue] (missing in the stubs)

    from tritloom.hw.measured import Enclosed

    with tempfile.TemporaryDirectory(prefix="tritloom-") as name:
        folder = Path(name)
        if board.family == "gowin":
            component = Enclosed(component)
            (folder / "top.cst").write_text(_GOWIN_PINS)
        (folder / "top.il").write_text(rtlil.convert(component, name="top", platform=board.make_platform(), emit_src=False))
        script = synthesis_script(board)
        if board.family == "ecp5":
            script = script.replace("synth_ecp5 ", "synth_ecp5 -noiopad ")
        run_yosys(script, cwd=folder)
        pins = {"ecp5": ["--out-of-context"], "ice40": ["--pcf-allow-unconstrained"], "gowin": ["--vopt", "cst=top.cst"]}[board.family]
        arguments = [*board.place, "--json", "top.json", "--report", "report.json", "--pack-only", *pins]
        run_tool(FAMILY_TOOLS[board.family][1], arguments, cwd=folder, log="nextpnr.log")
        return {cell: count["used"] for cell, count in read_report(folder)[1].items() if count["used"]}


def area_rows() -> Iterator[Row]:
    """The rows of parts of the array, one after the other; about half a minute each."""
    cell, lane, mac = "cells", "cells a lane", "cells a multiply-accumulate a clock"
    rows: list[tuple[str, str, Callable[[Board], Component], int, str, float, float]] = [
        *((f"accumulate cell, {_SUM_BITS}-bit sum", family, _cell, 1, cell, goal, _SUM_BITS) for family, goal in (("ecp5", 20), ("ice40", 19), ("gowin", 19))),
        ("dot product of 64 lanes", "ecp5", _dot, 64, lane, 18, 12),
        *(("array of 32 x 8, 24-bit accumulators and drain included", family, _array, 256, mac, goal, 12) for family, goal in (("ecp5", 16), ("ice40", 19), ("gowin", 20))),
        *(("decoder of 5 trits", family, _decoder, 1, cell, goal, 10) for family, goal in (("ice40", 43), ("ecp5", 60))),
    ]  # fmt: skip
    for name, family, make, units, unit, goal, floor in rows:
        board = get_board(_PARTS[family])
        used = packed_cells(board, make(board))
        count = sum(used.get(kind, 0) for kind in _COUNTED[family])
        yield Row(name=name, family=family, figure=round(count / units, 2), unit=unit, goal=goal, floor=floor)


def utilisation_rows(programs: dict[str, tuple[Program, float]]) -> Iterator[Row]:
    """Share of the multiply-accumulates of an array of 32 x 32 with 16 post lanes that a whole inference uses, by the exact cycle model.

    ``programs`` maps a name to a program and the goal.
    """
    for name, (program, goal) in programs.items():
        needs = memory_needs(program, rows=32, columns=32, weight_encoding="trit2")
        core = CoreParameters(
            rows=32, columns=32, post_lanes=16, accumulator_bits=max(24, needs.accumulator_bits), weight_words=needs.weight_words,
            activation_words=needs.activation_words, record_words=needs.record_words, program_words=needs.program_words,
        )  # fmt: skip
        plan = schedule(program, core)
        figure = plan.macs / (core.macs_per_cycle * plan.cycles)
        yield Row(name=name, figure=round(figure, 4), unit=UTILISATION, goal=goal, floor=1.0)
