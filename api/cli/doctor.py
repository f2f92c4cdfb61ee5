"""``tritloom doctor``: what is installed, what is missing, and the command that installs it."""

from typing import NamedTuple

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
    """Check the tools on this machine; paste the result into a bug report.

    Exits with 3 when something is missing.

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
    tools = [{"name": finding.name, "version": finding.found, "used_by": finding.used_by, "fix": finding.fix} for finding in findings]
    console.result({"tritloom": version("tritloom"), "system": system, "complete": not missing, "tools": tools})
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
