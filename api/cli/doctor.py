"""``tritloom doctor``: what is installed, what is missing, and the command that installs it; the cache; serial ports."""

from pathlib import Path
from typing import Any, NamedTuple

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["doctor"]

PACKAGES = {
    "numpy": "", "onnx": "", "onnx-ir": "", "onnxruntime": "", "amaranth": "",
    "qonnx": "qonnx", "scikit-learn": "models", "cocotb": "sim", "verilator": "sim", "amaranth-boards": "fpga",
}  # fmt: skip
"""Python packages to report, and the extra that brings each."""


class _Finding(NamedTuple):
    name: str
    found: str | None
    used_by: str
    fix: str


def doctor(json: JsonOption = False, verbose: VerboseOption = 0, quiet: QuietOption = 0) -> None:
    """Check the tools on this machine, the cache and the serial ports; paste the result into a bug report.

    Exits with 3 when a tool is missing.

    [bold]Examples[/bold]

    tritloom doctor

    tritloom doctor --json > environment.json
    """
    import platform
    from importlib.metadata import version

    from tritloom.errors import MissingToolError

    console = Console(json=json, verbose=verbose, quiet=quiet)
    findings = [*_packages(), _compiler(), *_tools()]
    missing = [finding for finding in findings if finding.found is None]
    rows = [(finding.name, finding.found or "missing", finding.used_by, "" if finding.found else finding.fix) for finding in findings]
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    console.table(f"tritloom {version('tritloom')} on {system}", ("tool", "version", "used by", "how to install"), rows)
    console.say("everything is installed" if not missing else f"{len(missing)} missing; the other verbs work without")
    cache = _cache()
    console.say(f"cache {cache['folder']}: {_held(cache['bitstreams'], 'bitstream')}, {_held(cache['simulators'], 'simulator')}")
    ports = _ports(console)
    tools = [{"name": finding.name, "version": finding.found, "used_by": finding.used_by, "fix": finding.fix} for finding in findings]
    fields = {"tritloom": version("tritloom"), "system": system, "complete": not missing}
    console.result({**fields, "tools": tools, "cache": cache, "ports": ports})
    if missing:
        raise typer.Exit(MissingToolError.exit_code)


def _packages() -> list[_Finding]:
    from importlib.metadata import PackageNotFoundError, version

    uses = {
        "": "every verb",
        "qonnx": "verify, for QONNX models",
        "models": "demo",
        "sim": "verify, run and sim on Verilator",
        "fpga": "build",
    }
    findings = []
    for package, extra in PACKAGES.items():
        try:
            found: str | None = version(package)
        except PackageNotFoundError:
            found = None
        findings.append(_Finding(package, found, uses[extra], f"pip install 'tritloom[{extra}]'" if extra else "pip install tritloom"))
    return findings


def _compiler() -> _Finding:
    import subprocess

    from tritloom.errors import MissingToolError
    from tritloom.sim.verilator_build import compiler_command

    try:
        command = compiler_command()
    except MissingToolError as error:
        return _Finding("C++ compiler", None, "verify, run and sim on Verilator", str(error))
    done = subprocess.run([*command, "--version"], check=False, capture_output=True, text=True, errors="replace")
    found = done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None
    return _Finding("C++ compiler", found, "verify, run and sim on Verilator", f"{command[0]} does not run; set CXX to a C++17 compiler")


def _tools() -> list[_Finding]:
    from tritloom.boards.toolchain import TOOLS, tool_version
    from tritloom.errors import MissingToolError

    findings = []
    for name in TOOLS:
        try:
            findings.append(_Finding(name, tool_version(name), "build", ""))
        except MissingToolError as error:
            findings.append(_Finding(name, None, "build", str(error)))
    return findings


def _cache() -> dict[str, Any]:
    """Folder of the cache; how many finished bitstreams and simulators lie there, and their bytes."""
    from tritloom.boards.bitstream import cache_folder

    folder = cache_folder()
    kinds = {"bitstreams": {"count": 0, "bytes": 0}, "simulators": {"count": 0, "bytes": 0}}
    for kind in sorted(folder.iterdir()) if folder.is_dir() else ():
        held = kinds["bitstreams" if kind.name == "bitstreams" else "simulators"]
        held["bytes"] += _bytes(kind)
        # What is being built has a suffix, and so has a lock.
        if kind.is_dir() and kind.name in ("bitstreams", "verilator", "icarus"):
            held["count"] += sum(entry.is_dir() and not entry.suffix for entry in kind.iterdir())
    return {"folder": str(folder), **kinds}


def _bytes(path: Path) -> int:
    """Size of a file, or of all files below a folder; what another process removes meanwhile counts nothing."""
    total = 0
    for entry in (path, *path.rglob("*")):
        try:
            total += 0 if entry.is_dir() else entry.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _held(held: dict[str, int], name: str) -> str:
    return f"{held['count']} {name}{'' if held['count'] == 1 else 's'} ({held['bytes'] / 1e6:.1f} MB)"


def _ports(console: Console) -> list[dict[str, Any]] | None:
    """Serial ports on USB as JSON, printed too; ``None`` without pyserial."""
    from dataclasses import asdict

    from tritloom.boards.ports import serial_ports
    from tritloom.errors import MissingToolError

    try:
        ports = serial_ports()
    except MissingToolError as error:
        console.say(f"serial ports: {error}")
        return None
    if not ports:
        console.say("serial ports on USB: none")
        return []
    rows = []
    for port in ports:
        board = " or ".join(port.boards) + (", programming" if port.programs else "")
        rows.append((port.device, port.usb, port.product, board, port.fix or "may be opened"))
    console.table("serial ports on USB", ("port", "USB", "calls itself", "probably", "access"), rows)
    return [asdict(port) for port in ports]
