"""The build loop, its cache and its failures, with outside tools replaced by scripts; one real bitstream at the end."""

import json
import sys
from pathlib import Path

import pytest

from tritloom.boards import bitstream, flow, get_board
from tritloom.boards.bitstream import build
from tritloom.boards.board import serial_rate
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
import json, pathlib, sys
arguments = dict(zip(sys.argv, sys.argv[1:]))
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
netlist = pathlib.Path("top.json").read_text()
pathlib.Path("top.asc").write_text(netlist + arguments["--seed"])
report = {{"fmax": {{"clk": {{"achieved": result, "constraint": asked[-1]}}, "slow": {{"achieved": 900.0, "constraint": 1.0}}}},
          "utilization": {{"ICESTORM_LC": {{"used": 7, "available": 5280}}}}}}
pathlib.Path("report.json").write_text(json.dumps(report))
"""
PACK = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes())"


def small_design(board, parameters, setting):
    """Stands for the elaborated core, which takes seconds: as there, all inputs of a build are in the text."""
    return {"top.il": f"# {board.name} {parameters} {setting}\n", "top.pcf": "set_io rx 1\n"}, serial_rate(setting.frequency)[0]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """``tools(results)`` puts scripts in the place of yosys, nextpnr and icepack: nextpnr achieves the results one after the other, MHz,
    or fails with a message. It returns a function that says which clocks were asked for."""
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
GUESS = BOARD.clock(BOARD.guess_mhz * 1e6).mhz


def clock(mhz: float) -> float:
    return BOARD.clock(mhz * 1e6).mhz


def test_a_clock_that_holds_with_little_to_gain_is_kept(tools, tmp_path):
    asked = tools([GUESS * 1.02])
    result = build(BOARD, CORE, tmp_path / "out")
    assert asked() == [GUESS]
    assert (result.clock_mhz, result.fmax_mhz) == (GUESS, pytest.approx(GUESS * 1.02, abs=1e-3))


def test_a_much_faster_result_is_built_again_at_its_clock(tools, tmp_path):
    asked = tools([40.2, 41.0])
    result = build(BOARD, CORE, tmp_path / "out")
    assert asked() == [GUESS, clock(40.2)]
    assert result.clock_mhz == clock(40.2)


def test_a_clock_that_fails_is_lowered_until_it_holds(tools, tmp_path):
    asked = tools([20.0, 19.0, 30.0])
    result = build(BOARD, CORE, tmp_path / "out")
    # 1 % less than was achieved for each failure so far; 30 MHz is not asked for, as more than 19 MHz has failed.
    assert asked() == [GUESS, clock(20.0 * 0.99), clock(19.0 * 0.98)]
    assert result.clock_mhz == asked()[2]
    assert result.clock_mhz <= result.fmax_mhz


def test_the_fastest_clock_that_held_is_taken_after_a_failure(tools, tmp_path):
    asked = tools([60.0, 40.0, 44.0])
    result = build(BOARD, CORE, tmp_path / "out")
    assert asked() == [GUESS, clock(60.0), clock(40.0 * 0.99)]
    assert result.clock_mhz == clock(40.0 * 0.99)
    assert result.fmax_mhz == 44.0


def test_a_faster_attempt_that_fails_altogether_leaves_what_held(tools, tmp_path):
    asked = tools([40.2, "ERROR: Failed to route arc 0 of net 'clk'"])
    result = build(BOARD, CORE, tmp_path / "out")
    assert len(asked()) == 2
    assert (result.clock_mhz, result.fmax_mhz) == (GUESS, 40.2)


def test_no_clock_that_holds_is_a_build_error(tools, tmp_path):
    tools([23.0, 22.0, 21.0, 20.0, 17.0])
    with pytest.raises(BuildError, match=r"^no clock holds on icebreaker: 17 MHz achieved where 1\d(\.\d+)? MHz was asked for$"):
        build(BOARD, CORE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tools_error_lines_are_passed_on_and_nothing_is_left(tools, tmp_path):
    tools(["ERROR: no BELs remaining to implement cell type 'ICESTORM_RAM'"])
    with pytest.raises(BuildError, match=r"^nextpnr-ice40 failed: ERROR: no BELs remaining to implement cell type 'ICESTORM_RAM'$"):
        build(BOARD, CORE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.suffix for path in (tmp_path / "cache" / "bitstreams").iterdir()] == [".lock"]


def test_a_second_build_comes_from_the_cache(tools, tmp_path):
    asked = tools([GUESS * 1.02])
    first = build(BOARD, CORE, tmp_path / "one")
    second = build(BOARD, CORE, tmp_path / "two")
    assert (first.cached, second.cached) == (False, True)
    assert len(asked()) == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert build(BOARD, CORE, tmp_path / "three", seed=2).cached is False
    assert build(BOARD, CORE, tmp_path / "four", cache=False).cached is False
    assert len(asked()) == 3


def test_two_builds_give_the_same_bytes(tools, tmp_path, monkeypatch):
    tools([GUESS * 1.02], design=flow.design_files)
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
    tools([GUESS * 1.02])
    build(BOARD, CORE, tmp_path / "one")
    (done,) = [path for path in (tmp_path / "cache" / "bitstreams").iterdir() if path.is_dir()]
    done.rename(done.with_suffix(".unfinished"))
    assert build(BOARD, CORE, tmp_path / "two").cached is False
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [path.name for path in (tmp_path / "cache" / "bitstreams").iterdir() if path.is_dir()] == [done.name]


def test_the_summary_says_what_was_built(tools, tmp_path):
    tools([GUESS * 1.02])
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
    tools([GUESS * 1.02])
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match=r"out exists and is not a folder$"):
        build(BOARD, CORE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
