"""The steps of a build, each one tool: design files, synthesis, place and route, report, clock, packing.

Every step works in one folder on fixed file names; together they are put in order by :mod:`tritloom.boards.bitstream`.
"""

import json
import math
import re
from functools import lru_cache
from pathlib import Path

from tritloom.boards.board import Board
from tritloom.boards.pll import PllSetting
from tritloom.boards.toolchain import run_tool, run_yosys
from tritloom.errors import BuildError
from tritloom.hw.arch.parameters import CoreParameters

__all__ = [
    "FAMILY_TOOLS", "bitstream_name", "constraints_name", "design_files", "pack", "place_and_route", "read_report", "set_clock",
    "synthesis_script", "synthesise",
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


@lru_cache(maxsize=2)  # the key of the cache and the build need the same ones
def design_files(board: Board, parameters: CoreParameters) -> dict[str, str]:
    """Input files of the flow, netlist ``top.il`` and pin constraints, with the board's typical clock."""
    from tritloom.boards.top import Top  # loads all of the gateware, which only a build needs

    top = Top(board=board, parameters=parameters)
    plan = board.make_platform().build(top, "top", do_build=False, emit_src=False)
    files = {}
    for name in ("top.il", constraints_name(board)):
        content = plan.files[name]
        files[name] = content.decode() if isinstance(content, bytes) else content
    return files


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


def place_and_route(board: Board, cwd: Path, *, seed: int, pack_only: bool = False) -> None:
    """``top.json`` to the routed design and ``report.json``; the typical clock is asked for, and not reaching it is no error.

    ``pack_only`` stops when the cells have been counted.
    """
    frequency = f"{board.typical_clock.mhz:.6f}"
    common = ["--json", "top.json", "--seed", str(seed), "--freq", frequency, "--timing-allow-fail", "--report", "report.json"]
    pins, result = {
        "ice40": (["--pcf", "top.pcf"], ["--write", "routed.json", "--asc", "top.asc"]),
        "ecp5": (["--lpf", "top.lpf"], ["--textcfg", "top.config"]),
        "gowin": (["--vopt", "cst=top.cst"], ["--write", "routed.json"]),
    }[board.family]
    last = ["--pack-only"] if pack_only else result
    run_tool(FAMILY_TOOLS[board.family][1], [*board.place, *common, *pins, *last], cwd=cwd, log="nextpnr.log")


def read_report(cwd: Path) -> tuple[float | None, dict[str, dict[str, int]]]:
    """From ``report.json``: lowest achieved frequency over all clocks, MHz, rounded down to kHz (``None`` before routing), and cells used
    and available."""
    report = json.loads((cwd / "report.json").read_text())
    fmax = min((clock["achieved"] for clock in report.get("fmax", {}).values()), default=None)
    cells = {name: {"used": cell["used"], "available": cell["available"]} for name, cell in sorted(report["utilization"].items())}
    return None if fmax is None else math.floor(fmax * 1000) / 1000, cells


def set_clock(board: Board, cwd: Path, setting: PllSetting) -> None:
    """Write another setting of the clock generator into the routed design, of which nothing else changes."""
    if board.family == "ecp5":
        text = (cwd / "top.config").read_text()
        for name, value in setting.registers.items():
            code = value - 1 if name.endswith("_DIV") else value
            text, count = re.subn(rf"^word: {name} [01]{{7}}$", f"word: {name} {code:07b}", text, flags=re.MULTILINE)
            if count != 1:
                raise BuildError(f"nextpnr's configuration of {board.name} has {count} words {name!r} instead of 1")
        (cwd / "top.config").write_text(text)
        return
    routed = json.loads((cwd / "routed.json").read_text())
    cells = routed["modules"]["top"]["cells"].values()
    generators = [cell for cell in cells if cell["type"] == {"ice40": "ICESTORM_PLL", "gowin": "rPLL"}[board.family]]
    if len(generators) != 1:
        raise BuildError(f"nextpnr's netlist of {board.name} has {len(generators)} clock generators instead of 1")
    generators[0]["parameters"] |= {name: f"{value:032b}" for name, value in setting.registers.items()}
    (cwd / "routed.json").write_text(json.dumps(routed))
    if board.family == "ice40":
        kept = ["--no-pack", "--no-place", "--no-route"]
        run_tool(
            "nextpnr-ice40",
            [*board.place, "--json", "routed.json", "--pcf", "top.pcf", *kept, "--asc", "top.asc"],
            cwd=cwd,
            log="clock.log",
        )


def pack(board: Board, cwd: Path) -> None:
    """The routed design to the bitstream."""
    arguments = {
        "ice40": ["top.asc", bitstream_name(board)],
        "ecp5": [*board.pack, "--input", "top.config", "--bit", bitstream_name(board)],
        "gowin": [*board.pack, "-o", bitstream_name(board), "routed.json"],
    }[board.family]
    run_tool(FAMILY_TOOLS[board.family][2], arguments, cwd=cwd, log="pack.log")
