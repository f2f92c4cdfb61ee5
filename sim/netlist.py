"""The core after synthesis for a board, as native code: what yosys made of the gateware, cell by cell."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue] (missing in the stubs)

from tritloom.boards.board import Board
from tritloom.boards.flow import synthesis_script, synthesise
from tritloom.boards.toolchain import tool_version
from tritloom.errors import UserError
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.core import Core
from tritloom.sim.cache import cached_build, digest_of
from tritloom.sim.structural import cell_counts, cell_models, structural_verilog
from tritloom.sim.verilator import WRAPPER, NativeCore
from tritloom.sim.verilator_build import build_library

__all__ = ["Netlist", "NetlistCore", "core_netlist"]

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """A core after synthesis: Verilog with the models of its cells, top module ``top``, and which yosys made how many cells of each type."""

    verilog: str
    tool: str
    family: str
    cells: dict[str, int]

    def __str__(self) -> str:
        return f"netlist by {self.tool}, synth_{self.family}, {sum(self.cells.values())} cells"


def core_netlist(board: Board, parameters: CoreParameters, *, progress: Progress | None = None) -> Netlist:
    """The core, elaborated for the board's platform and synthesised with the very script of a build; cached.

    The core alone, without clock generator, pins and UART: its link is driven byte by byte, as :class:`tritloom.sim.verilator.VerilatorCore` does.
    Raises :class:`UserError` for the simulated board, :class:`MissingToolError` and :class:`BuildError`.
    """
    if board.family == "none":
        raise UserError(
            f"board {board.name!r} has no netlist, as it is only simulated: choose one with an FPGA, --board icebreaker for example"
        )
    tell = progress or (lambda message: None)
    tell("elaborating the core")
    design = _design(board, parameters)

    def build(folder: Path) -> None:
        (folder / "top.il").write_text(design)
        tell(f"synthesis for {board.title}")
        synthesise(board, folder)
        netlist = json.loads((folder / "top.json").read_text())
        for path in folder.iterdir():
            path.unlink()
        cells = cell_counts(netlist)
        (folder / "netlist.v").write_text(structural_verilog(netlist) + cell_models(board.family, cells))
        (folder / "cells.json").write_text(json.dumps(cells, indent=2) + "\n")

    tool = tool_version("yosys")
    sources = [Path(__file__).with_name("structural.py"), *sorted(Path(__file__).parent.joinpath("cells").glob("*.v"))]
    digest = digest_of(design, synthesis_script(board), tool, *(path.read_bytes() for path in sources))
    folder = cached_build("netlist", digest, build)
    cells = json.loads((folder / "cells.json").read_text())
    return Netlist(verilog=(folder / "netlist.v").read_text(), tool=tool, family=board.family, cells=cells)


class NetlistCore(NativeCore):
    """A simulated core after reset, as :class:`tritloom.sim.verilator.VerilatorCore`, of the netlist for a board.

    Parameters
    ----------
    board
        Whose platform and synthesis options count.
    parameters
        The core.
    progress
        Called with a few words at each stage of a build.

    Raises like :func:`core_netlist` and :func:`tritloom.sim.verilator_build.build_library`.
    """

    def __init__(self, board: Board, parameters: CoreParameters, *, progress: Progress | None = None) -> None:
        self.netlist = core_netlist(board, parameters, progress=progress)
        super().__init__(build_library(self.netlist.verilog, WRAPPER, netlist=True, progress=progress))


@lru_cache(maxsize=4)
def _design(board: Board, parameters: CoreParameters) -> str:
    """RTLIL of the core as the board's platform has it."""
    return rtlil.convert(Core(parameters), name="top", platform=board.make_platform(), emit_src=False)
