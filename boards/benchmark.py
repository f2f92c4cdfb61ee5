"""How near the array is to its limits: cells of its parts by nextpnr's count.

Parts of the core are synthesised and packed for a real part without their pins; a bitstream is not made. The floor of a sum is one
4-input table a bit of every addition.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritloom.boards import get_board
from tritloom.boards.board import Board
from tritloom.boards.flow import FAMILY_TOOLS, read_report, synthesis_script
from tritloom.boards.toolchain import run_tool, run_yosys

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["Row", "area_rows", "clock_row", "packed_cells"]

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
        What the project wants to reach; ``None`` for a figure that only explains another one.
    floor
        What no design of the kind can do better, or ``None``.
    higher
        Whether more is better.
    compared
        A figure of something else, measured in the same run or of another project with its source, in words.
    guarded
        Whether the figure is the same on every machine, so that a test can hold it.
    """

    name: str
    family: str = ""
    figure: float
    unit: str
    goal: float | None = None
    floor: float | None = None
    higher: bool = False
    compared: str = ""
    guarded: bool = True

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.higher else self.figure <= self.goal

    def to_json(self) -> dict[str, Any]:
        ratio = None if self.floor is None else round(self.figure / self.floor, 3)
        return {**asdict(self), "ratio": ratio, "reached": self.reached}


_SUM_BITS = 16
_LANES = 80
_OTHERS = {"ecp5": 44, "ice40": 45}
"""Cells of ``ternary_mac`` (16-bit sum) of github.com/Ternarycore/ternarycore, commit 111ac94 (CERN-OHL-S 2.0), with the same tools, 2026-11-23."""


def _cell(board: Board) -> "Component":
    from tritloom.hw.measured import AccumulateCell

    return AccumulateCell(bits=_SUM_BITS)


def _plain(board: Board) -> "Component":
    from tritloom.hw.measured import PlainCell

    return PlainCell(bits=_SUM_BITS)


def _dot(board: Board) -> "Component":
    from tritloom.hw.array import ColumnSums

    return ColumnSums(rows=_LANES, columns=1, reduction=board.reduction)


def _array(board: Board) -> "Component":
    from tritloom.hw.array import TernaryMesh

    return TernaryMesh(rows=32, columns=8, accumulator_bits=24, reduction=board.reduction)


def _decoder(board: Board) -> "Component":
    from tritloom.hw.memory import Trit5Decoder

    return Trit5Decoder()


_GOWIN_PINS = 'IO_LOC "clk" 4;\nIO_LOC "data" 15;\n'
"""nextpnr packs nothing for a Gowin part that has pins without a place."""


def _synthesised(board: Board, component: "Component", folder: Path) -> list[str]:
    """Put a netlist of the component without pins into ``folder``; the arguments for nextpnr that go with it."""
    from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue] (missing in the stubs)

    from tritloom.hw.measured import Enclosed

    if board.family == "gowin":
        component = Enclosed(component)
        (folder / "top.cst").write_text(_GOWIN_PINS)
    (folder / "top.il").write_text(rtlil.convert(component, name="top", platform=board.make_platform(), emit_src=False))
    script = synthesis_script(board)
    if board.family == "ecp5":
        script = script.replace("synth_ecp5 ", "synth_ecp5 -noiopad ")
    run_yosys(script, cwd=folder)
    pins = {"ecp5": ["--out-of-context"], "ice40": ["--pcf-allow-unconstrained"], "gowin": ["--vopt", "cst=top.cst"]}[board.family]
    return [*board.place, "--json", "top.json", "--report", "report.json", *pins]


def packed_cells(board: Board, component: "Component") -> dict[str, int]:
    """Cells of a component on the part of ``board``, packed by nextpnr without pins; raises like :func:`tritloom.boards.bitstream.build`."""
    with tempfile.TemporaryDirectory(prefix="tritloom-") as name:
        folder = Path(name)
        arguments = [*_synthesised(board, component, folder), "--pack-only"]
        run_tool(FAMILY_TOOLS[board.family][1], arguments, cwd=folder, log="nextpnr.log")
        return {cell: count["used"] for cell, count in read_report(folder)[1].items() if count["used"]}


def clock_row(*, seeds: int) -> Row:
    """Clock of the dot product alone, synthesised once and placed and routed with the seeds 1 to ``seeds``; a minute each."""
    board, clocks = get_board(_PARTS["ecp5"]), []
    with tempfile.TemporaryDirectory(prefix="tritloom-") as name:
        folder = Path(name)
        arguments = [*_synthesised(board, _dot(board), folder), "--freq", "200", "--timing-allow-fail"]
        for seed in range(1, seeds + 1):
            run_tool(FAMILY_TOOLS[board.family][1], [*arguments, "--seed", str(seed)], cwd=folder, log="nextpnr.log")
            clocks.append(read_report(folder)[0] or 0.0)
    return Row(
        name=f"dot product of {_LANES} lanes: clock", family="ecp5", figure=round(statistics.median(clocks), 1), unit="MHz, median", goal=150, higher=True,
        compared=f"{min(clocks):g} to {max(clocks):g} over {seeds} seeds", guarded=False,
    )  # fmt: skip


def area_rows() -> Iterator[Row]:
    """The rows of parts of the array, one after the other; about half a minute each."""
    cell, lane, mac = "cells", "cells a lane", "cells a MAC"
    plain = {}
    for family, goal in (("ecp5", 20), ("ice40", 19), ("gowin", 19)):
        plain[family] = _cells(family, _plain)
        figure, compared = _cells(family, _cell), f"{plain[family]} written plainly, same run"
        if family in _OTHERS:
            compared += f"; {_OTHERS[family]} in github.com/Ternarycore/ternarycore (ternary_mac, commit 111ac94, same tools)"
        yield Row(
            name="accumulate cell, 16-bit sum", family=family, figure=figure, unit=cell, goal=goal, floor=_SUM_BITS, compared=compared
        )
    figure = round(_cells("ecp5", _dot) / _LANES, 2)
    yield Row(name=f"dot product of {_LANES} lanes", family="ecp5", figure=figure, unit=lane, goal=18, floor=12)
    for family, goal in (("ecp5", 16), ("ice40", 19), ("gowin", 20)):
        figure = round(_cells(family, _array) / 256, 2)
        name, compared = "array of 32 x 8 with accumulators", f"{plain[family]} for a plain cell, same run"
        yield Row(name=name, family=family, figure=figure, unit=mac, goal=goal, floor=12, compared=compared)
    for family, goal in (("ice40", 43), ("ecp5", 60)):
        yield Row(name="decoder of 5 trits", family=family, figure=_cells(family, _decoder), unit=cell, goal=goal, floor=10)


def _cells(family: str, make: Callable[[Board], "Component"]) -> int:
    """Cells that hold a table or a carry."""
    board = get_board(_PARTS[family])
    used = packed_cells(board, make(board))
    return sum(used.get(kind, 0) for kind in _COUNTED[family])
