"""The stored figures still hold: no part of the array has grown, and no model keeps it less busy."""

import json
from pathlib import Path

import pytest

from tritloom import compile
from tritloom.boards.benchmark import Row, area_rows
from tritloom.boards.routed import TARGETS, core_rows
from tritloom.measurement import speed_rows, utilisation_rows
from tritloom.models.zoo import path as zoo_path

FOLDER = Path(__file__).parents[2] / "docs/benchmarks"
WORSE = 0.02
MODEL = "digits_cnn_twn"


def test_no_figure_is_worse_than_the_stored_one():
    rows = json.loads((FOLDER / "quick.json").read_text())["rows"]
    stored = {(row["name"], row["family"]): row["figure"] for row in rows if row["guarded"]}
    for row in (*area_rows(), *utilisation_rows(MODEL, compile(zoo_path(MODEL)).program)):
        before = stored.pop((row.name, row.family))
        worse = (before - row.figure if row.higher else row.figure - before) / before
        assert worse <= WORSE, (
            f"{row.name} {row.family}: {row.figure} where {before} is stored; tritloom bench --quick -o docs/benchmarks/quick.json"
        )
    assert not stored, "rows are stored that nothing measures any more"


def test_speeds_are_measured():
    rows = list(speed_rows(MODEL, zoo_path(MODEL).read_bytes(), progress=lambda message: None))
    assert len(rows) == 4
    for row in rows:
        assert row.figure > 0 and not row.guarded
    # Far below the goals, which a busy machine may miss: a simulator that interprets, or a golden model of plain loops, would be caught.
    assert next(row for row in rows if "Amaranth" in row.name).figure > 50
    assert next(row for row in rows if "golden" in row.name).figure < 20


@pytest.mark.parametrize(("figure", "higher", "reached"), [(20, False, True), (20.1, False, False), (19.9, True, False), (20, True, True)])
def test_a_goal_is_reached_from_its_side(figure, higher, reached):
    row = Row(name="x", figure=figure, unit="u", goal=20, floor=10, higher=higher)
    assert row.reached is reached
    assert row.to_json()["ratio"] == round(figure / 10, 3)
    assert Row(name="x", figure=1, unit="u").to_json()["reached"] is None


@pytest.mark.place_and_route
@pytest.mark.timeout(3600)
def test_a_whole_core_is_routed_with_every_seed():
    (target,) = (target for target in TARGETS if target.board == "icebreaker")
    told = []
    array, clock, cells = core_rows((target,), seeds=2, progress=told.append)
    assert array.figure == target.rows * target.columns
    assert len([message for message in told if "place and route" in message]) == 2
    assert 10 < clock.figure < 60 and "over 2 seeds" in clock.compared
    assert cells.figure < 5280 / array.figure


def test_rows_of_other_boards_stay_in_the_file(monkeypatch, tmp_path, capsys):
    from tritloom.boards import routed
    from tritloom.cli.main import main

    def rows(targets, *, seeds, progress):
        return [Row(name=f"whole core, {target.board}", figure=seeds, unit="MHz") for target in targets]

    monkeypatch.setattr(routed, "core_rows", rows)
    path = tmp_path / "routed.json"
    for board, seeds in (("hx8k", 1), ("icebreaker", 2), ("hx8k", 3)):
        with pytest.raises(SystemExit) as caught:
            main(["bench", "--board", board, "--seeds", str(seeds), "-o", str(path)])
        assert caught.value.code == 0
    stored = json.loads(path.read_text())["rows"]
    assert {row["name"]: row["figure"] for row in stored} == {"whole core, icebreaker": 2, "whole core, hx8k": 3}
    path.write_text("[]")
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--board", "hx8k", "-o", str(path)])
    assert caught.value.code == 1 and "holds no rows of tritloom bench" in capsys.readouterr().err
    assert path.read_text() == "[]"
