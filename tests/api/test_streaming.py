"""The estimate with a board's SDRAM: bounds, what is streamed, and what is refused."""

import json

import pytest

import tritloom
from tritloom.models import zoo
from tritloom.streaming import estimate_streamed


def test_bounds_stand_below_what_is_said():
    model = tritloom.compile(zoo.path("trm_sudoku4"))
    found = estimate_streamed(model, board="ulx3s-85f")
    assert found.macs == model.schedule("ulx3s-85f").macs and found.clock_mhz == 66
    assert found.compute_bound == -(-found.macs // (found.rows * found.columns))
    assert found.compute_bound < found.cycles <= found.streamed_cycles <= found.cycles + found.bandwidth_bound
    # Everything but the weights stays on the chip: those of a trip's layers, 6 x 2 x (3 + 1) times two blocks of 40 128 trits, and the heads.
    assert found.activation_bytes < found.board_bytes
    trits = 8 * found.stream_bytes / 2 if found.stream_bytes else 0
    assert 6 * 8 * 2 * 40_128 <= trits < 1.5 * 6 * 8 * 2 * 40_128


def test_small_models_are_not_held_up_by_their_weights():
    found = estimate_streamed(tritloom.compile(zoo.path("digits_cnn_twn")), board="tang-nano-20k")
    assert found.cycles <= found.streamed_cycles and found.bandwidth_bound < found.streamed_cycles


def test_the_command_says_that_it_is_a_model(cli):
    outcome = cli("estimate", zoo.path("ring"), "--board", "ulx3s-85f", "--sdram", "--json")
    assert outcome.code == 0 and "a model: no core has an SDRAM controller yet" in outcome.err
    assert json.loads(outcome.out)["model"] == "no core has an SDRAM controller yet"


@pytest.mark.parametrize(("board", "words"), [("icebreaker", "has no SDRAM; choose ulx3s-25f"), ("sim", "has no SDRAM")])
def test_boards_without_sdram_are_refused(cli, board, words):
    outcome = cli("estimate", zoo.path("ring"), "--board", board, "--sdram")
    assert outcome.code == 1 and words in outcome.err
