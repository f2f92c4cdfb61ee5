"""The steps of a build, each one tool: design files, synthesis, place and route, report, packing.

Every step works in one folder on fixed file names; together they are put in order by :mod:`tritloom.boards.bitstream`.
"""

import json
from functools import lru_cache
from pathlib import Path

from tritloom.boards.board import Board, serial_rate
from tritloom.boards.pll import PllSetting
from tritloom.boards.toolchain import run_tool, run_yosys
from tritloom.hw.arch.parameters import CoreParameters

__all__ = [
    "FAMILY_TOOLS", "bitstream_name", "constraints_name", "design_files", "pack", "place_and_route", "read_report", "synthesis_script", "synthesise",
]  # fmt: skip

FAMILY_TOOLS = {
    "ice40": ("yosys", "nextpnr-ice40", "icepack"),
    "ecp5": ("yosys", "nextpnr-ecp5", "ecppack"),
    "gowin": ("yosys", "nextpnr-himbaechel-gowin", "gowin_pack"),
}
"""Synthesis, place and route, and packing of each family."""


def bitstream_name(board: Board) -> str:
    return {"ice40": "top.bin", "ecp5": "top.bit", "gowin": "top.fs"}[board.family]


def constraints_name(board: Board) -> str:
    return {"ice40": "top.pcf", "ecp5": "top.lpf", "gowin": "top.cst"}[board.family]


@lru_cache(maxsize=2)  # the cache's key and the first attempt need the same one
def design_files(board: Board, parameters: CoreParameters, setting: PllSetting) -> tuple[dict[str, str], int]:
    """Input files of the flow (netlist ``top.il`` and pin constraints), and the bits per second of the serial port."""
    from tritloom.boards.top import Top  # loads all of the gateware, which only a build needs

    baud, divisor = serial_rate(setting.frequency)
    top = Top(board=board, parameters=parameters, setting=setting, divisor=divisor)
    plan = board.make_platform().build(top, "top", do_build=False, emit_src=False)
    files = {}
    for name in ("top.il", constraints_name(board)):
        content = plan.files[name]
        files[name] = content.decode() if isinstance(content, bytes) else content
    return files, baud


def synthesis_script(board: Board) -> str:
    """yosys script from ``top.il`` to ``top.json``."""
    tables = 'setattr -set ram_style "logic" m:*_steps' if board.tables_in_logic else "# tables of the loop registers: block RAM"
    return f"""\
read_rtlil top.il
{tables}
# Amaranth names the elements of an array a as wires a[0], a[1] and so on; yosys 0.70 gives the bits of a wire a the same names when it
# hands logic to abc9, and stops at an assertion where both occur (yosys issue 4349). Wires with such names therefore lose them.
rename -hide w:*[[]*
# The core never reads a word that is being written. Amaranth's read ports promise the old word even so; taken apart here and put
# together again without that promise (-no-rw-check), they need no logic beside the block RAM.
memory_nordff
synth_{board.family} {" ".join([*board.synthesis, "-no-rw-check"])} -top top -json top.json
"""


def synthesise(board: Board, cwd: Path) -> None:
    """``top.il`` to ``top.json``. Raises like :func:`tritloom.boards.toolchain.run_tool`, as do the other steps."""
    run_yosys(synthesis_script(board), cwd=cwd)


def place_and_route(board: Board, cwd: Path, *, seed: int, mhz: float, pack_only: bool = False) -> None:
    """``top.json`` to the routed design and ``report.json``; a clock that is not reached is no error here.

    ``pack_only`` stops when the cells have been counted.
    """
    common = ["--json", "top.json", "--seed", str(seed), "--freq", f"{mhz:.6f}", "--timing-allow-fail", "--report", "report.json"]
    pins, result = {
        "ice40": (["--pcf", "top.pcf"], ["--asc", "top.asc"]),
        "ecp5": (["--lpf", "top.lpf"], ["--textcfg", "top.config"]),
        "gowin": (["--vopt", "cst=top.cst"], ["--write", "routed.json"]),
    }[board.family]
    last = ["--pack-only"] if pack_only else result
    run_tool(FAMILY_TOOLS[board.family][1], [*board.place, *common, *pins, *last], cwd=cwd, log="nextpnr.log")


def read_report(cwd: Path) -> tuple[float | None, dict[str, dict[str, int]]]:
    """From ``report.json``: lowest achieved frequency over all clocks, MHz (``None`` before routing), and cells used and available."""
    report = json.loads((cwd / "report.json").read_text())
    fmax = min((clock["achieved"] for clock in report.get("fmax", {}).values()), default=None)
    cells = {name: {"used": cell["used"], "available": cell["available"]} for name, cell in sorted(report["utilization"].items())}
    return None if fmax is None else round(fmax, 3), cells


def pack(board: Board, cwd: Path) -> None:
    """The routed design to the bitstream."""
    arguments = {
        "ice40": ["top.asc", bitstream_name(board)],
        "ecp5": [*board.pack, "--input", "top.config", "--bit", bitstream_name(board)],
        "gowin": [*board.pack, "-o", bitstream_name(board), "routed.json"],
    }[board.family]
    run_tool(FAMILY_TOOLS[board.family][2], arguments, cwd=cwd, log="pack.log")
