"""Building, its cache and its failures, with outside tools replaced by scripts."""

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tritloom.boards import bitstream, flow, get_board
from tritloom.boards.bitstream import build
from tritloom.errors import BuildError, UserError
from tritloom.hw.arch.parameters import CoreParameters

CORE = CoreParameters(rows=4, columns=1, accumulator_bits=16, weight_words=16, activation_words=16, record_words=16, program_words=32)

YOSYS = """
import hashlib, pathlib, sys
script = pathlib.Path(sys.argv[1]).read_text()
assert "read_rtlil top.il" in script
digest = hashlib.sha256(pathlib.Path("top.il").read_bytes()).hexdigest()
pathlib.Path("top.json").write_text(digest)
print("synthesis took 1.25 s")
"""
PLACE = """
import json, pathlib, sys, time
arguments = dict(zip(sys.argv, sys.argv[1:]))
if "--no-route" in sys.argv:
    assert arguments["--json"] == "routed.json"
    pathlib.Path(arguments["--asc"]).write_bytes(pathlib.Path("routed.json").read_bytes())
    sys.exit(0)
calls = pathlib.Path({calls!r})
asked = json.loads(calls.read_text()) if calls.exists() else []
asked.append(float(arguments["--freq"]))
calls.write_text(json.dumps(asked))
results = {results!r}
result = results[min(len(asked), len(results)) - 1]
if isinstance(result, str):
    print("Info: placing in 3.1s")
    print(result)
    sys.exit(1)
now = time.perf_counter()
print("Info: placing in %.3fs" % now)
print("Info:       1000 |       32        967 |   32   967 |     15109|       %.3f      %.3f|" % (now, now + 1))
netlist = pathlib.Path("top.json").read_text()
cells = {{"pll": {{"type": "ICESTORM_PLL", "parameters": {{"DIVF": "0", "FEEDBACK_PATH": "001"}}}}, "cell": {{"type": "LUT4"}}}}
pathlib.Path("routed.json").write_text(json.dumps({{"modules": {{"top": {{"cells": cells, "netlist": netlist + arguments["--seed"]}}}}}}))
report = {{"fmax": {{"clk": {{"achieved": result, "constraint": asked[-1]}}, "slow": {{"achieved": 900.0, "constraint": 1.0}}}},
          "utilization": {{"ICESTORM_LC": {{"used": 7, "available": 5280}}}}}}
pathlib.Path("report.json").write_text(json.dumps(report))
"""
PACK = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())"


def small_design(board, parameters):
    """Stands for the elaborated core, which takes seconds: as there, all inputs of a build are in the text."""
    return {"top.il": f"# {board.name} {parameters}\n", "top.pcf": "set_io rx 1\n"}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """``tools(results)`` puts scripts in the place of yosys, nextpnr and icepack: nextpnr achieves the results one after the other, MHz,
    or fails with a message. It returns a function that says which clocks it was asked for."""
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tools"
    folder.mkdir()

    def install(results, *, design=small_design):
        monkeypatch.setattr(bitstream, "design_files", design)
        calls = folder / "calls.json"
        for variable, body in (("YOSYS", YOSYS), ("NEXTPNR_ICE40", PLACE.format(calls=str(calls), results=results)), ("ICEPACK", PACK)):
            path = folder / variable
            path.write_text(f"#!{sys.executable}\nimport sys\nif '--version' in sys.argv: print('{variable} 1.0'); sys.exit(0)\n{body}")
            path.chmod(0o755)
            monkeypatch.setenv(variable, str(path))
        return lambda: json.loads(calls.read_text()) if calls.exists() else []

    return install


BOARD = get_board("icebreaker")
TYPICAL = BOARD.typical_clock.mhz


@pytest.mark.parametrize("achieved", [TYPICAL, TYPICAL * 1.02, 16.6, 19.0, 64.3])
def test_the_clock_is_the_highest_that_holds_after_one_run(tools, tmp_path, achieved):
    asked = tools([achieved])
    result = build(BOARD, CORE, tmp_path / "out")
    assert asked() == [pytest.approx(TYPICAL)]
    assert result.fmax_mhz == math.floor(achieved * 1000) / 1000
    setting = BOARD.clock(Fraction(result.fmax_mhz) * 1_000_000)
    assert result.clock_mhz == setting.mhz <= result.fmax_mhz
    # The bitstream holds the dividers of that very clock, and the serial port follows it.
    cells = json.loads((tmp_path / "out" / "top.bin").read_bytes())["modules"]["top"]["cells"]
    codes = {name: int(cells["pll"]["parameters"][name], 2) for name in ("DIVR", "DIVF", "DIVQ")}
    assert Fraction(12_000_000 * (codes["DIVF"] + 1), (codes["DIVR"] + 1) << codes["DIVQ"]) == setting.frequency
    assert cells["pll"]["parameters"]["FEEDBACK_PATH"] == "001"
    assert result.baud == round(setting.frequency / BOARD.divisor)


def test_a_design_slower_than_the_clock_generator_is_a_build_error(tools, tmp_path):
    tools([15.9])
    with pytest.raises(BuildError, match=r"^the clock generator of icebreaker cannot make a clock as slow as 15\.9 MHz$"):
        build(BOARD, CORE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tools_error_lines_are_passed_on_and_nothing_is_left(tools, tmp_path):
    tools(["ERROR: no BELs remaining to implement cell type 'ICESTORM_RAM'"])
    with pytest.raises(BuildError, match=r"^nextpnr-ice40 failed: ERROR: no BELs remaining to implement cell type 'ICESTORM_RAM'$"):
        build(BOARD, CORE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.suffix for path in (tmp_path / "cache" / "bitstreams").iterdir()] == [".lock"]


def test_a_second_build_comes_from_the_cache(tools, tmp_path):
    asked = tools([TYPICAL * 1.02])
    first = build(BOARD, CORE, tmp_path / "one")
    second = build(BOARD, CORE, tmp_path / "two")
    assert (first.cached, second.cached) == (False, True)
    assert len(asked()) == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert build(BOARD, CORE, tmp_path / "three", seed=2).cached is False
    assert build(BOARD, CORE, tmp_path / "four", cache=False).cached is False
    assert len(asked()) == 3


def test_two_builds_give_the_same_bytes(tools, tmp_path, monkeypatch):
    tools([TYPICAL * 1.02], design=flow.design_files)
    build(BOARD, CORE, tmp_path / "one")
    flow.design_files.cache_clear()
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "other"))
    build(BOARD, CORE, tmp_path / "two")
    one = contents(tmp_path / "one")
    assert sorted(one) == ["build.json", "nextpnr.log", "pack.log", "report.json", "top.bin", "top.il", "top.pcf", "yosys.log"]
    assert one == contents(tmp_path / "two")
    for name, content in one.items():
        assert str(tmp_path).encode() not in content, name


def test_what_a_killed_build_left_is_cleared_away(tools, tmp_path):
    tools([TYPICAL * 1.02])
    build(BOARD, CORE, tmp_path / "one")
    (done,) = [path for path in (tmp_path / "cache" / "bitstreams").iterdir() if path.is_dir()]
    done.rename(done.with_suffix(".unfinished"))
    assert build(BOARD, CORE, tmp_path / "two").cached is False
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [path.name for path in (tmp_path / "cache" / "bitstreams").iterdir() if path.is_dir()] == [done.name]


def test_the_summary_says_what_was_built(tools, tmp_path):
    tools([TYPICAL * 1.02])
    result = build(BOARD, CORE, tmp_path / "out", seed=3)
    summary = json.loads((tmp_path / "out" / "build.json").read_text())
    assert summary["bitstream"] == "top.bin"
    assert CoreParameters.from_json(summary["parameters"]) == CORE
    assert summary["core_digest"] == CORE.digest.hex()
    assert summary["tools"] == {"yosys": "YOSYS 1.0", "nextpnr-ice40": "NEXTPNR_ICE40 1.0", "icepack": "ICEPACK 1.0"}
    assert result.utilisation == {"ICESTORM_LC": {"used": 7, "available": 5280}}
    assert (result.macs_per_cycle, result.seed, result.baud) == (4, 3, summary["baud"])
    json.dumps(result.to_json())


@pytest.mark.parametrize(
    ("board", "seed", "message"),
    [
        ("sim", 1, r"^board 'sim' is simulated and has no bitstream; choose a board with an FPGA$"),
        ("icebreaker", -1, r"^seed must be from 0 to 2147483647, not -1$"),
    ],
)
def test_wrong_arguments(tmp_path, board, seed, message):
    with pytest.raises(UserError, match=message):
        build(get_board(board), CORE, tmp_path / "out", seed=seed)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder(tools, tmp_path):
    tools([TYPICAL * 1.02])
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match=r"out exists and is not a folder$"):
        build(BOARD, CORE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
