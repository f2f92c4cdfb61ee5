from pathlib import Path

import pytest

import tritloom
from tritloom.boards import BuildResult, fitting_cores, get_board
from tritloom.building import build
from tritloom.errors import BuildError


@pytest.fixture
def tools(monkeypatch):
    """Stands for yosys and nextpnr: fails for arrays in ``refused``, records every array that was asked for."""

    class Tools:
        def __init__(self):
            self.asked, self.refused = [], set()

        def build(self, board, parameters, out_dir, *, seed=1, progress=None):
            array = (parameters.rows, parameters.columns)
            self.asked.append(array)
            if array in self.refused:
                raise BuildError(f"nextpnr failed: ERROR: no place for {array}")
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            return BuildResult(
                board=board.name, bitstream=Path(out_dir) / "top.bit", fmax_mhz=81.0, clock_mhz=80.0, macs_per_cycle=parameters.macs_per_cycle,
                utilisation={"TRELLIS_COMB": {"used": 6000, "available": 24288}, "EHXPLLL": {"used": 0, "available": 0}}, seconds=1.234, baud=1, seed=seed,
                parameters=parameters,
            )  # fmt: skip

    found = Tools()
    monkeypatch.setattr("tritloom.building.build_core", found.build)
    return found


def _arrays(model):
    return [(core.rows, core.columns) for core in fitting_cores(get_board("ulx3s-25f"), model.program)]


def test_the_fastest_core_is_built_and_its_schedule_kept(mlp, tools, tmp_path):
    model = tritloom.compile(mlp)
    built = build(model, board="ulx3s-25f", output=tmp_path)
    assert tools.asked == _arrays(model)[:1]
    assert built.schedule.parameters == built.result.parameters
    assert "ulx3s-25f" in built.model.boards
    assert built.inferences_per_second == 80e6 / built.schedule.cycles


def test_a_core_that_cannot_be_routed_gives_way_to_a_smaller_one(mlp, tools, tmp_path):
    model = tritloom.compile(mlp)
    arrays = _arrays(model)
    assert len(arrays) > 1
    tools.refused = {arrays[0]}
    said = []
    built = build(model, board="ulx3s-25f", output=tmp_path, progress=said.append)
    assert tools.asked == arrays[:2]
    assert built.result.macs_per_cycle < arrays[0][0] * arrays[0][1]
    assert any("no place for" in text for text in said)


def test_the_tools_own_words_are_kept_when_nothing_can_be_built(mlp, tools, tmp_path):
    model = tritloom.compile(mlp)
    tools.refused = set(_arrays(model))
    with pytest.raises(BuildError, match=r"^nextpnr failed: ERROR: no place for"):
        build(model, board="ulx3s-25f", output=tmp_path)


def test_a_stored_schedule_and_a_wanted_array_are_not_replaced(mlp, tools, tmp_path):
    model = tritloom.compile(mlp, board="ulx3s-25f")
    stored = model.schedule("ulx3s-25f").parameters
    build(model, board="ulx3s-25f", output=tmp_path)
    build(model, board="ulx3s-25f", output=tmp_path, array=(4, 2))
    assert tools.asked == [(stored.rows, stored.columns), (4, 2)]


def test_the_command_line_leaves_bitstream_and_model_in_the_folder(cli, loom, tools, tmp_path):
    done = cli("build", loom, "--board", "ulx3s-25f", "-o", "out", "--array", "8x4", "--seed", "3", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["bitstream"] == "out/top.bit"
    assert (found["fmax_mhz"], found["clock_mhz"], found["macs_per_cycle"], found["seed"]) == (81.0, 80.0, 32, 3)
    assert found["utilisation"]["TRELLIS_COMB"] == {"used": 6000, "available": 24288}
    assert found["seconds"] == 1.2
    assert found["cycles"] == cli("estimate", "out/mlp.loom", "--board", "ulx3s-25f", "--json").json["cycles"]


def test_a_failed_build_exits_with_2_and_the_tools_own_lines(cli, loom, tools):
    tools.refused = {(8, 4)}
    done = cli("build", loom, "--board", "ulx3s-25f", "-o", "out", "--array", "8x4")
    assert done.code == 2
    assert "ERROR: no place for (8, 4)" in done.err


def test_an_array_that_no_core_can_have_is_refused(cli, loom, tools):
    assert cli("build", loom, "--board", "ulx3s-25f", "-o", "out", "--array", "5x5").code == 1
    assert cli("build", loom, "--board", "icebreaker", "-o", "out", "--array", "64x64").code == 1
    assert tools.asked == []
