"""From core parameters to a bitstream: elaborate, synthesise, place and route, set the clock, pack.

The clock of a board comes from its clock generator. How fast a design is shows after place and route only, and another netlist would be
another result, some 10 % away; so nothing but the dividers of the clock generator depends on the frequency, and they are set in the routed
design, to the highest legal frequency at which it holds. The serial port keeps its divisor, its bits per second follow the clock.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from tritloom.boards.board import Board
from tritloom.boards.flow import (
    FAMILY_TOOLS,
    bitstream_name,
    constraints_name,
    design_files,
    pack,
    place_and_route,
    read_report,
    set_clock,
    synthesis_script,
    synthesise,
)
from tritloom.boards.toolchain import tool_version
from tritloom.errors import BuildError, UserError
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["BuildResult", "build", "cache_folder"]

Progress = Callable[[str], None]

_FORMAT = 3
"""Raised whenever the flow changes, so that no bitstream of an older flow is taken from the cache."""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A finished build; everything but ``bitstream``, ``seconds`` and ``cached`` also stands in ``build.json``.

    Parameters
    ----------
    bitstream
        The file to load: ``.bin`` (iCE40), ``.bit`` (ECP5) or ``.fs`` (Gowin).
    fmax_mhz
        Highest frequency at which nextpnr's timing analysis of the routed design holds.
    clock_mhz
        What the clock generator makes: its highest frequency that is not above ``fmax_mhz``.
    utilisation
        nextpnr's cell names, each with ``used`` and ``available``.
    macs_per_cycle
        Ternary multiply-accumulates a clock: rows times columns.
    seconds
        Wall time of this call.
    baud
        Bits per second of the serial port.
    parameters
        The core that was built.
    tools
        Version of each tool.
    cached
        Whether the bitstream was found finished.
    """

    board: str
    bitstream: Path
    fmax_mhz: float
    clock_mhz: float
    utilisation: dict[str, dict[str, int]]
    macs_per_cycle: int
    seconds: float
    baud: int
    seed: int
    parameters: CoreParameters
    tools: dict[str, str] = field(default_factory=dict)
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bitstream": str(self.bitstream), "parameters": self.parameters.to_json()}


def cache_folder() -> Path:
    """Folder of finished builds: environment variable ``TRITLOOM_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("TRITLOOM_CACHE") or platformdirs.user_cache_dir("tritloom"))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """``folder``, made empty (an earlier build may have been killed in it), and removed whatever happens."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(
    board: Board, parameters: CoreParameters, out_dir: Path | str, *, seed: int = 1, progress: Progress | None = None, cache: bool = True
) -> BuildResult:
    """Build the bitstream of a core for a board into ``out_dir``.

    Written there: ``top.bin``, ``top.bit`` or ``top.fs``, ``report.json`` (nextpnr), ``build.json``, the netlist ``top.il``, the
    constraints, and the logs ``yosys.log``, ``nextpnr.log`` and ``pack.log``; nothing when the build fails. The same board,
    parameters, seed and tool versions give the same bytes in all of them. ``progress`` is called with one sentence a stage. With ``cache`` a finished build
    of the same design is taken from :func:`cache_folder`.

    Raises :class:`BuildError` with the tools' own error lines, :class:`MissingToolError`, or :class:`UserError` for a board
    without an FPGA.
    """
    started = time.monotonic()
    if board.family == "none":
        raise UserError(f"board {board.name!r} is simulated and has no bitstream; choose a board with an FPGA")
    if not 0 <= seed < 1 << 31:
        raise UserError(f"seed must be from 0 to {(1 << 31) - 1}, not {seed}")
    say = progress or (lambda message: None)
    tools = {name: tool_version(name) for name in FAMILY_TOOLS[board.family]}
    key = _digest(board, parameters, seed, tools)
    target = Path(out_dir)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} exists and is not a folder")

    if not cache:
        with tempfile.TemporaryDirectory(prefix="tritloom-") as folder:
            _build_into(Path(folder) / "done", board, parameters, seed, tools, say)
            return _publish(Path(folder) / "done", target, started, cached=False)
    store = cache_folder() / "bitstreams"
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / f"{key}.lock"):
        found = (store / key / "build.json").is_file()
        if not found:
            with _scratch(store / f"{key}.unfinished") as folder:
                _build_into(folder / "done", board, parameters, seed, tools, say)
                os.replace(folder / "done", store / key)
        else:
            say("taken from the cache of finished builds")
        return _publish(store / key, target, started, cached=found)


def _digest(board: Board, parameters: CoreParameters, seed: int, tools: dict[str, str]) -> str:
    """Name of a build in the cache: everything that the bytes depend on. The netlist stands for the gateware."""
    inputs = {
        "format": _FORMAT,
        "board": asdict(board),
        "core": parameters.digest.hex(),
        "files": design_files(board, parameters),
        "script": synthesis_script(board),
        "seed": seed,
        "tools": tools,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _build_into(folder: Path, board: Board, parameters: CoreParameters, seed: int, tools: dict[str, str], say: Progress) -> None:
    """Build into ``folder``, which is made; the tools work in a folder beside it."""
    work = folder.parent / "work"
    work.mkdir(parents=True)
    for name, text in design_files(board, parameters).items():
        (work / name).write_text(text)
    say("synthesis")
    synthesise(board, work)
    say(f"place and route for a clock of {board.typical_clock.mhz:g} MHz")
    place_and_route(board, work, seed=seed)
    fmax, utilisation = read_report(work)
    if fmax is None:
        raise BuildError("nextpnr reports no clock in the design")
    setting = board.clock(Fraction(fmax) * 1_000_000)
    say(f"{fmax:g} MHz achieved; the clock is set to {setting.mhz:g} MHz")
    set_clock(board, work, setting)
    say("packing the bitstream")
    pack(board, work)
    folder.mkdir()
    summary = {
        "board": board.name,
        "bitstream": bitstream_name(board),
        "fmax_mhz": fmax,
        "clock_mhz": setting.mhz,
        "utilisation": utilisation,
        "macs_per_cycle": parameters.macs_per_cycle,
        "baud": round(setting.frequency / board.divisor),
        "seed": seed,
        "parameters": parameters.to_json(),
        "core_digest": parameters.digest.hex(),
        "tools": tools,
    }
    for name in (summary["bitstream"], "report.json", "top.il", constraints_name(board)):
        shutil.copyfile(work / name, folder / name)
    for name in ("yosys.log", "nextpnr.log", "pack.log"):
        # Run times would make two equal builds differ: those with a unit, and the last two columns of the router's progress.
        text = re.sub(r"\b\d+(\.\d+)?\s?(s|ms|sec|seconds)\b", "- s", (work / name).read_text(errors="replace"))
        (folder / name).write_text(re.sub(r"\d+\.\d+ +\d+\.\d+\|$", "- -|", text, flags=re.MULTILINE))
    (folder / "build.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")


def _publish(source: Path, target: Path, started: float, *, cached: bool) -> BuildResult:
    """Copy a finished build to the user's folder, each file whole or not at all, ``build.json`` last."""
    target.mkdir(parents=True, exist_ok=True)
    summary = json.loads((source / "build.json").read_text())
    for path in sorted(source.iterdir(), key=lambda path: (path.name == "build.json", path.name)):
        partial = target / f".{path.name}.part"
        shutil.copyfile(path, partial)
        os.replace(partial, target / path.name)
    fields = {name: summary[name] for name in ("board", "fmax_mhz", "clock_mhz", "utilisation", "macs_per_cycle", "baud", "seed", "tools")}
    return BuildResult(
        **fields,
        bitstream=target / summary["bitstream"],
        parameters=CoreParameters.from_json(summary["parameters"]),
        seconds=round(time.monotonic() - started, 3),
        cached=cached,
    )
