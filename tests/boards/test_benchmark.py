"""The stored figures still hold: no part of the array has grown, and no model keeps it less busy."""

import json
from pathlib import Path

import pytest

from tritloom import compile
from tritloom.boards.benchmark import UTILISATION, Row, area_rows, utilisation_rows
from tritloom.models.zoo import path as zoo_path

STORED = {
    (row["name"], row["family"]): row for row in json.loads((Path(__file__).parents[2] / "docs/benchmarks/quick.json").read_text())["rows"]
}
WORSE = 0.02


def held(row: Row) -> None:
    stored = STORED.pop((row.name, row.family))["figure"]
    worse = (stored - row.figure if row.unit == UTILISATION else row.figure - stored) / stored
    assert worse <= WORSE, f"{row.name} {row.family}: {row.figure} where {stored} is stored; tritloom bench -o docs/benchmarks/quick.json"


def test_no_figure_is_worse_than_the_stored_one():
    for row in area_rows():
        held(row)
    program = compile(Path(zoo_path("digits_cnn_twn"))).program
    for row in utilisation_rows({"digits_cnn_twn on 32 x 32, 16 post lanes": (program, 0.75)}):
        held(row)
    assert not STORED, "rows are stored that nothing measures any more"


@pytest.mark.parametrize(
    ("figure", "unit", "reached"), [(20, "cells", True), (20.1, "cells", False), (0.75, UTILISATION, False), (20, UTILISATION, True)]
)
def test_cells_must_be_few_and_utilisation_high(figure, unit, reached):
    row = Row(name="x", figure=figure, unit=unit, goal=20, floor=10)
    assert row.reached is reached
    assert row.to_json()["ratio"] == round(figure / 10, 3)
