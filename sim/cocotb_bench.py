"""Runs the cocotb bench of the whole core, UART included, on Verilator or Icarus Verilog.

The simulator is built by our own builder and started directly, so neither make nor perl is needed. Waves are recorded on request, or of a
failing test in a second run with the same seed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tritloom.boards.toolchain import to_verilog
from tritloom.errors import BuildError, MissingToolError, UserError
from tritloom.hw.top import UartCore
from tritloom.sim.bench.job import DIFFERENCE_FILE, DIVISOR, Job
from tritloom.sim.cache import cached_build, digest_of
from tritloom.sim.replay import record_sample
from tritloom.sim.verilator_build import build_bench
from tritloom.sim.waves import write_views

__all__ = ["BenchResult", "BenchTest", "run_bench"]

SIMULATORS = ("verilator", "icarus")

_TOP = "uart_core"
_MODULE = "tritloom.sim.bench.core_bench"
_POLL_SECONDS = 0.5
_BEGUN = re.compile(r" running \S+\.(\w+ \(\d+/\d+\))")
"""cocotb's line when a test begins."""


@dataclass(frozen=True, kw_only=True)
class BenchTest:
    """One test of the bench; ``message`` says what failed."""

    name: str
    passed: bool
    seconds: float
    message: str


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Outcome of :func:`run_bench`. ``waves`` is the dump, ``views`` are its GTKWave save file and Surfer command file."""

    simulator: str
    seed: int
    tests: tuple[BenchTest, ...]
    log: Path
    waves: Path | None = None
    views: tuple[Path, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.tests) and all(test.passed for test in self.tests)


def run_bench(
    artefact_path: Path | str,
    board: str = "sim",
    *,
    out_dir: Path | str,
    waves: str | None = None,
    simulator: str = "verilator",
    seed: int = 1,
    samples: int = 2,
    first_sample: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BenchResult:
    """Simulate the whole core with an artefact's program and compare every tensor of random samples with golden.

    Parameters
    ----------
    artefact_path, board
        The ``.loom`` file, and the board whose core is simulated.
    out_dir
        Folder for log, results and waves; made when absent.
    waves
        ``None``, ``fail`` or ``always``. The first sample with a wrong tensor (with ``always``, when all is right, the first sample) is run
        again below the UART and recorded; a test that fails otherwise, and any on Icarus Verilog, is recorded as it ran.
    simulator
        ``verilator`` or ``icarus``.
    seed, samples, first_sample
        Seed of inputs and pauses, number of samples, and the number of the first one: sample ``n`` is the same in every run.

    Raises :class:`UserError`, :class:`MissingToolError`, :class:`BuildError`; a failing test is a result, not an error.
    """
    if simulator not in SIMULATORS:
        raise UserError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if waves not in (None, "always", "fail"):
        raise UserError(f"waves must be 'always' or 'fail', not {waves!r}")
    if samples < 1 or first_sample < 0:
        raise UserError(f"samples must be at least 1 and the first sample at least 0, not {samples} and {first_sample}")
    job = Job(artefact=str(Path(artefact_path).absolute()), board=board, seed=seed, samples=samples, first_sample=first_sample)
    program, schedule, _ = job.load()
    tell = progress or (lambda message: None)
    tell("writing the core's Verilog")
    verilog = to_verilog(UartCore(schedule.parameters, divisor=DIVISOR), name=_TOP)
    folder = Path(out_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (DIFFERENCE_FILE, "core.vcd", "core.gtkw", "core.sucl", "results.xml"):
        (folder / stale).unlink(missing_ok=True)

    result = _run(verilog, job, folder, simulator, record=False, only="", tell=tell)
    if waves is None or (waves == "fail" and result.passed):
        return result
    tell("recording waves")
    dump = folder / "core.vcd"
    failed = next((test.name for test in result.tests if not test.passed), None)
    difference = folder / DIFFERENCE_FILE
    if simulator == "verilator" and (failed is None or difference.exists()):
        # A serial port takes forty clocks for a byte, and a second of simulated time a gigabyte of waves: a tensor is shown below the UART.
        sample = json.loads(difference.read_text())["sample"] if difference.exists() else first_sample
        found = record_sample(
            program, schedule, replace(job, first_sample=sample, samples=1).codes(program), dump, seed=seed, progress=tell
        )
        if found is not None or failed is None:
            return replace(result, waves=dump, views=write_views(dump))
    replay = _run(verilog, job, folder, simulator, record=True, only=failed or result.tests[0].name, tell=tell)
    return replace(result, waves=replay.waves, views=replay.views)


def _run(verilog: str, job: Job, folder: Path, simulator: str, *, record: bool, only: str, tell: Callable[[str], None]) -> BenchResult:
    job.write(folder / "job.json")
    results, log, dump = folder / "results.xml", folder / ("replay.log" if only else "bench.log"), folder / "core.vcd"
    results.unlink(missing_ok=True)
    build = _verilator_command if simulator == "verilator" else _icarus_command
    command = build(verilog, dump if record else None, tell)
    environment = {**os.environ, **_cocotb_environment(), "COCOTB_RESULTS_FILE": str(results), "TRITLOOM_BENCH": str(folder / "job.json")}
    environment["COCOTB_RANDOM_SEED"] = str(job.seed)
    if only:
        environment["COCOTB_TEST_FILTER"] = rf"\.{only}$"
    tell(f"simulating on {simulator}, seed {job.seed}")
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _watch(process, log, lambda test: tell(f"simulating on {simulator}, seed {job.seed}: {test}"))
    finally:
        process.kill()
        process.wait()
    tests = _read_results(results)
    if not tests:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise BuildError(f"the {simulator} simulation ended without a result: " + "\n".join(lines[-4:]))
    views: tuple[Path, ...] = ()
    if record and dump.exists():
        views = write_views(dump)
    return BenchResult(
        simulator=simulator, seed=job.seed, tests=tests, log=log, waves=dump if record and dump.exists() else None, views=views
    )


def _watch(process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> None:
    """Wait for a simulator to end; each test that begins is told as it stands in the log."""
    told = ""
    while True:
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            begun = _BEGUN.findall(log.read_text(errors="replace"))
            if begun and begun[-1] != told:
                told = begun[-1]
                say(told)
        else:
            return


def _verilator_command(verilog: str, dump: Path | None, tell: Callable[[str], None]) -> list[str]:
    program = build_bench(verilog, _TOP, trace=dump is not None, progress=tell)
    return [str(program), *(("--trace", "--trace-file", str(dump)) if dump else ())]


def _icarus_command(verilog: str, dump: Path | None, tell: Callable[[str], None]) -> list[str]:
    for tool in ("iverilog", "vvp"):
        if shutil.which(tool) is None:
            raise MissingToolError("Icarus Verilog is not installed: sudo apt install iverilog (or use the simulator verilator)")
    recorder = f'module recorder;\ninitial begin $dumpfile("core.vcd"); $dumpvars(0, {_TOP}); end\nendmodule\n' if dump else ""
    tops = ["-s", _TOP, *(("-s", "recorder") if dump else ())]
    version = subprocess.run(["iverilog", "-V"], capture_output=True, text=True).stdout.splitlines()[0]

    def build(folder: Path) -> None:
        tell("compiling the core for Icarus Verilog")
        text = "`timescale 1ns/1ps\n" + verilog + recorder
        (folder / "core.v").write_text(text)
        # From -g2009 on, a register has its initial value before time 0 without a change, which the always @* blocks of yosys wait for.
        done = subprocess.run(["iverilog", "-g2005", "-o", "core.vvp", *tops, "core.v"], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise BuildError("iverilog failed: " + "\n".join(done.stderr.splitlines()[:8]))

    image = cached_build("icarus", digest_of(verilog, recorder, version), build) / "core.vvp"
    return ["vvp", "-m", _cocotb_config().lib_entry("vpi", "icarus"), str(image), "-vcd"]


def _cocotb_config() -> Any:
    try:
        return import_module("cocotb_tools.config")
    except ImportError:
        raise MissingToolError("cocotb is not installed: pip install 'tritloom[sim]'") from None


def _cocotb_environment() -> dict[str, str]:
    """The variables of cocotb's manual, chapter "Extending existing build flows"."""
    config = _cocotb_config()
    library = import_module("find_libpython").find_libpython()
    if library is None:
        raise MissingToolError(
            "this Python has no shared library, which cocotb needs: install python3-dev, or a Python built with --enable-shared"
        )
    return {
        "GPI_USERS": f"{library};{config.pygpi_entry_point()}",
        "PYGPI_PYTHON_BIN": sys.executable,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "COCOTB_TOPLEVEL": _TOP,
        "COCOTB_TEST_MODULES": _MODULE,
        "TOPLEVEL_LANG": "verilog",
        "PYTHONUNBUFFERED": "1",  # the log shows at once which test runs
        # Inputs are written between clock edges only, so Verilator may apply them at once.
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
    }


def _read_results(path: Path) -> tuple[BenchTest, ...]:
    if not path.exists():
        return ()
    tests = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        message = (
            "" if problem is None else (problem.get("error_msg") or problem.get("message") or (problem.text or "").strip() or "failed")
        )
        tests.append(
            BenchTest(
                name=case.get("name", "?"),
                passed=problem is None,
                seconds=float(case.get("time") or 0),
                message=message.splitlines()[0] if message else "",
            )
        )
    return tuple(tests)
