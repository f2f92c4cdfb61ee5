"""A finished bitstream, unpacked to logic again and simulated through the serial pins of its board: the last step before a real board."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from tempfile import TemporaryDirectory

from tritloom.boards.bitstream import BuildResult, build
from tritloom.boards.board import Board
from tritloom.boards.flow import constraints_name
from tritloom.boards.toolchain import error_lines, run_tool
from tritloom.errors import BuildError, MissingToolError, UserError
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.sim.structural import cell_models
from tritloom.sim.verilator import WRAPPER, NativeCore
from tritloom.sim.verilator_build import build_library

__all__ = ["BitstreamCore", "Unpacked", "bench_verilog", "unpack"]

_RX, _TX = "uart_0__rx__io", "uart_0__tx__io"
"""Names of the serial pins, as the board's constraints have them."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A bitstream as Verilog with all models, top module ``top`` with the byte streams of a core, and which tools made it of what."""

    verilog: str
    bitstream: str
    tool: str

    def __str__(self) -> str:
        return f"{self.bitstream}, unpacked by {self.tool}"


class BitstreamCore(NativeCore):
    """The contents of a bitstream, simulated after reset; a transport for :class:`tritloom.boards.host.Host`.

    A byte takes ten bits of the serial line, so loading a network takes about a hundred times the clocks of other simulated cores.

    Parameters
    ----------
    board
        For which the bitstream is built, unless the cache of builds has it.
    parameters
        The core.
    progress
        Called with a few words at each stage.

    Raises :class:`UserError` for a board whose bitstreams no tool unpacks to logic, :class:`MissingToolError` and :class:`BuildError`.
    """

    def __init__(self, board: Board, parameters: CoreParameters, *, progress: Progress | None = None) -> None:
        _unpacker(board)  # before the minutes of a build
        tell = progress or (lambda message: None)
        with TemporaryDirectory(prefix="tritloom-") as folder:
            result = build(board, parameters, folder, progress=tell)
            tell("unpacking the bitstream")
            self.unpacked = unpack(board, result)
        super().__init__(build_library(self.unpacked.verilog, WRAPPER, netlist=True, progress=progress))


def unpack(board: Board, result: BuildResult) -> Unpacked:
    """The logic of a finished build, whose folder holds the pin constraints beside the bitstream. Raises like :class:`BitstreamCore`."""
    command = _unpacker(board)
    folder = result.bitstream.parent
    constraints = constraints_name(board)
    run_tool("iceunpack", [result.bitstream.name, "top.asc"], cwd=folder, log="unpack.log")
    done = subprocess.run(
        [command, "-s", "-p", constraints, "top.asc"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise BuildError("icebox_vlog failed: " + ("\n".join(error_lines(done.stderr)) or f"exit status {done.returncode}"))
    pins = [line.split()[1] for line in (folder / constraints).read_text().splitlines() if line.startswith("set_io ")]
    (clock,) = set(pins) - {_RX, _TX}
    chip = f"chip board (.{clock}(clk), .{_RX}(to_board), .{_TX}(from_board));"
    top = bench_verilog(chip, divisor=round(result.clock_mhz * 1e6 / result.baud))
    # icebox_vlog declares its ports once more as wires, which Verilog does not allow.
    logic = re.sub(r"^wire (.*);$", lambda line: _wires(set(line[1].split(", ")) - set(pins)), done.stdout, flags=re.MULTILINE)
    types = set(re.findall(r"^(SB_\w+) #\(", logic, re.MULTILINE))
    verilog = "\n".join([top, logic, cell_models(board.family, types)])
    return Unpacked(verilog=verilog, bitstream=f"{result.bitstream.name} at {result.clock_mhz:g} MHz", tool="icebox_vlog")


def _wires(names: set[str]) -> str:
    return f"wire {', '.join(sorted(names))};" if names else ""


def bench_verilog(board: str, *, divisor: int) -> str:
    """Verilog of a module ``top`` with the ports of a core, and behind them the host's side of a serial line of ``divisor`` clocks a bit.

    ``board`` is what the line goes to: Verilog that reads ``clk`` and ``to_board`` and drives ``from_board``.
    """
    bench = files("tritloom.sim").joinpath("cells", "serial_bench.v").read_text()
    return f"""\
module top (input clk, input rst, input rx__valid, input [7:0] rx__payload, output rx__ready,
            output tx__valid, output [7:0] tx__payload, input tx__ready);
  wire to_board, from_board;
  tritloom_serial_bench #(.DIVISOR({divisor})) bench (.*);
  {board}
endmodule
{bench}"""


def _unpacker(board: Board) -> str:
    """The program that unpacks the board's bitstreams to logic. Raises :class:`UserError` where there is none, :class:`MissingToolError`."""
    if board.family == "none":
        raise UserError(
            f"board {board.name!r} has no bitstream, as it is only simulated: choose one with an FPGA, --board hx8k for example"
        )
    if board.family == "ecp5":
        raise UserError(
            f"a bitstream of {board.name} cannot be simulated: no tool unpacks ECP5 to logic, only to configuration text; use netlist"
        )
    if board.family == "gowin":
        raise UserError(
            f"a bitstream of {board.name} cannot be simulated: gowin_unpack gives block RAM without width and mode, and no multipliers; use netlist"
        )
    if board.spram:
        raise UserError(
            f"a bitstream of {board.name} cannot be simulated: icebox_vlog unpacks neither multipliers nor single-port RAM of the iCE40 UP5K; "
            "use netlist"
        )
    command = os.environ.get("ICEBOX_VLOG") or "icebox_vlog"
    found = shutil.which(command)
    if found is None:
        raise MissingToolError(
            f"{command} was not found: install Project IceStorm (Debian and Ubuntu: sudo apt install fpga-icestorm), "
            "or set ICEBOX_VLOG to the program"
        )
    return found
