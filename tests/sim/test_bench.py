"""The cocotb bench of the whole core through its UART: it passes on the real core, and finds what is wrong in a spoilt one."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tritloom.compiler.image import Artefact, write_artefact
from tritloom.errors import BuildError, MissingToolError, UserError
from tritloom.sim import cocotb_bench, verilator_build
from tritloom.sim.cocotb_bench import run_bench

TESTS = [
    "every_tensor_equals_golden",
    "damaged_frames_change_nothing",
    "garbage_is_survived",
    "reset_in_a_frame",
    "reset_and_abort_in_a_run",
]


def test_the_core_passes(artefact_path, tmp_path):
    """Every tensor, damaged frames, 10 kB of garbage, resets; no waves are left behind."""
    result = run_bench(artefact_path, out_dir=tmp_path / "bench", seed=3, samples=2, waves="fail")
    assert [test.name for test in result.tests] == TESTS
    assert result.passed, [f"{test.name}: {test.message}" for test in result.tests if not test.passed]
    assert result.waves is None
    assert not list((tmp_path / "bench").glob("*.vcd"))
    assert "seed 3, samples 0 to 1" in result.log.read_text()


def test_a_wrong_weight_is_found_and_recorded(model_bytes, program, schedule, tmp_path):
    """The failing sample alone is replayed with waves; the views name signals of every group."""
    weights = schedule.weights.copy()
    weights[3, 0] ^= 1
    spoilt = replace(schedule, weights=weights)
    path = tmp_path / "spoilt.loom"
    write_artefact(path, Artefact(source=model_bytes, program=program, schedules={"sim": spoilt}, settings={}))
    result = run_bench(path, out_dir=tmp_path / "bench", seed=4, samples=3, waves="fail")
    first = result.tests[0]
    assert not first.passed
    assert "layer 'conv_in'" in first.message and "expected" in first.message, first.message
    assert result.waves is not None
    header = result.waves.read_text(errors="replace").partition("$enddefinitions")[0]
    assert "$var" in header
    save, commands = (view.read_text() for view in result.views)
    for group in ("clock", "link", "sequencer", "array", "post"):
        assert f"-{group}\n" in save
        assert f"divider_add {group}\n" in commands
    assert "variable_add core.clk\n" in commands
    assert "core.state.txt" in save
    assert (tmp_path / "bench" / "core.state.txt").read_text() == "0 IDLE\n1 RUNNING\n2 STOPPED\n3 FAULT\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulator": "questa"}, r"^simulator must be one of verilator, icarus, not 'questa'$"),
        ({"waves": "yes"}, r"^waves must be 'always' or 'fail', not 'yes'$"),
        ({"samples": 0}, r"^samples must be at least 1"),
        ({"board": "hx8k"}, r"^mixed.loom has no schedule for board 'hx8k': compile it with --board hx8k$"),
    ],
)
def test_wrong_options(artefact_path, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_bench(artefact_path, out_dir=tmp_path / "bench", **options)
    assert not (tmp_path / "bench").exists()


def test_missing_icarus_names_the_command(monkeypatch, artefact_path, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingToolError, match=r"^Icarus Verilog is not installed: sudo apt install iverilog"):
        run_bench(artefact_path, out_dir=tmp_path / "bench", simulator="icarus")


def _program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("record", [False, True])
def test_command_lines_of_icarus(monkeypatch, tmp_path, record):
    """Verilog of 2005: in later ones the initial values of registers start no always block. Waves come from a second top module."""
    tools = tmp_path / "bin"
    tools.mkdir()
    _program(tools / "iverilog", '[ "$1" = -V ] && echo "Icarus Verilog version 0" && exit\necho "$@" > core.vvp')
    _program(tools / "vvp", "exit 1")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    verilog = "module uart_core;\nendmodule\n"
    told = []
    command = cocotb_bench._icarus_command(verilog, tmp_path / "core.vcd" if record else None, told.append)
    assert command[:2] == ["vvp", "-m"] and command[-1] == "-vcd"
    assert Path(command[2]).is_file(), "cocotb's library for Icarus Verilog"
    image = Path(command[3])
    tops = "-s uart_core -s recorder" if record else "-s uart_core"
    assert image.read_text() == f"-g2005 -o core.vvp {tops} core.v\n"
    source = (image.parent / "core.v").read_text()
    assert source.startswith("`timescale 1ns/1ps\nmodule uart_core;") and ('$dumpfile("core.vcd")' in source) == record
    assert told == ["compiling the core for Icarus Verilog"]


def test_an_error_of_icarus_is_quoted(monkeypatch, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    _program(tools / "iverilog", '[ "$1" = -V ] && echo "Icarus Verilog version 0" && exit\necho "core.v:3: syntax error" >&2; exit 1')
    _program(tools / "vvp", "exit 1")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=r"^iverilog failed: core.v:3: syntax error$"):
        cocotb_bench._icarus_command("module", None, print)
    assert not list((tmp_path / "cache" / "icarus").glob("*/core.v"))


def test_each_test_that_begins_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(cocotb_bench, "_POLL_SECONDS", 0.02)
    line = "0.00ns INFO cocotb.regression running tritloom.sim.bench.core_bench."
    script = f"import time\nfor n in (1, 2):\n  print('{line}test_%d (%d/2)' % (n, n), flush=True)\n  time.sleep(0.5)"
    log, told = tmp_path / "bench.log", []
    with open(log, "wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=stream)
    cocotb_bench._watch(process, log, told.append)
    assert process.returncode == 0
    assert told == ["test_1 (1/2)", "test_2 (2/2)"]


def test_missing_cocotb_names_the_command(monkeypatch, artefact_path, tmp_path):
    def absent(name):
        raise ImportError(name)

    for module in (verilator_build, cocotb_bench):
        monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(MissingToolError, match=r"^cocotb is not installed: pip install 'tritloom\[sim\]'$"):
        run_bench(artefact_path, out_dir=tmp_path / "bench")
