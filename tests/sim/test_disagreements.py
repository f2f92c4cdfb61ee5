"""Disagreements with the outside witness: located and explained, on models where float32 does decide codes."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))

from frontend_models import Graph

import tritloom
from tritloom.compiler.golden import random_feeds
from tritloom.sim.disagreements import _distance


def _averages(*, behind: bool) -> tuple[bytes, str]:
    """An average of 2 x 2 codes onto their own grid of 0.1, often exactly half a code; ``behind``: and a layer after it.

    Gives the model, and the name of the tensor behind the pool's quantiser.
    """
    g = Graph()
    pooled = g.add("AveragePool", g.qdq("x", 0.1), kernel_shape=[2, 2], strides=[2, 2])
    codes = g.qdq(pooled, 0.1)  # its tensor is called after the codes of QuantizeLinear
    y = g.add("Conv", codes, g.constant(np.ones((1, 2, 1, 1)))) if behind else codes
    return g.model({"x": ("N", 2, 8, 8)}, {y: None}), g.nodes[3].output[0]


@pytest.mark.parametrize("behind", [False, True])
def test_each_difference_is_traced_to_the_value_that_the_witness_rounded(behind: bool) -> None:
    data, codes = _averages(behind=behind)
    found = tritloom.verify(data, on=["golden"], samples=60)
    assert found.comparisons[0].mismatches > 20
    if not behind:
        assert len(found.disagreements) == found.comparisons[0].mismatches
    for one in found.disagreements:
        assert one.tensor == codes and abs(one.golden - one.witness) == 1
        assert one.position is not None and one.distance is not None
        # The witness's own rounding explains it: a half within float32, on the other side of which the exact value lies.
        assert abs(one.position - (one.golden + one.witness) / 2) == pytest.approx(one.distance, abs=1e-12)
        assert one.distance < 2**-16
        assert "codes, " in str(one) and f"golden {one.golden}, witness {one.witness}" in str(one)
    # The exact average of the four codes at that place, by hand.
    x = random_feeds(tritloom.compile(data).program, 60, 0)["x"]
    first = found.disagreements[0]
    channel, row, column = first.index
    window = np.rint(x[first.sample, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(np.float64) / 0.1)
    average = Fraction(int(window.sum()), 4)
    assert average.denominator == 2 and round(average) == first.golden


@pytest.mark.parametrize("features", [4, 5])
def test_matrices_that_golden_holds_the_other_way_round(features: int) -> None:
    """Tokens times features in the model, features as channels in golden: also where both are as many."""
    g = Graph()
    product = g.add("MatMul", g.qdq("x", 0.1), g.weights(6, features, low=0, high=1, scale=0.25))
    codes = g.qdq(product, 0.1)
    tensor = g.nodes[-2].output[0]
    y = g.add("MatMul", codes, g.constant(np.ones((features, 3))))
    found = tritloom.verify(g.model({"x": ("N", 4, 6)}, {y: None}), on=["golden"], samples=60)
    assert len({one.sample for one in found.disagreements}) > 10
    for one in found.disagreements:
        assert one.tensor == tensor and abs(one.golden - one.witness) == 1
        assert one.distance is not None and one.distance < 2**-16
        assert one.index[0] < features and one.index[2] < 4


def test_models_without_a_difference_list_nothing() -> None:
    g = Graph()
    y = g.qdq(g.add("Conv", g.qdq("x"), g.weights(2, 3, 1, 1)), 0.5)
    found = tritloom.verify(g.model({"x": ("N", 3, 4, 4)}, {y: None}), on=["golden"], samples=9)
    assert found.disagreements == () and found.comparisons[0].mismatches == 0


@pytest.mark.parametrize(("position", "codes", "fraction", "zero", "expected"), [
    (42.5, (42, 43), 0.5, 0.0, 0.0),
    (42.75, (42, 43), 0.5, 0.0, 0.25),
    (42.25, (43, 42), 0.5, 0.0, 0.25),
    (44.5, (42, 43), 0.5, 0.0, 2.0),
    (40.0, (42, 45), 0.5, 0.0, 2.5),
    (43.75, (42, 45), 0.5, 0.0, 0.25),
    (-0.5, (-1, 0), 0.5, 0.0, 0.0),
    (43.25, (42, 43), 0.0, 0.0, 0.25),
    (0.125, (-1, 1), None, 0.0, 0.125),
    (-126.5, (-127, -125), None, -126.0, 0.5),
])  # fmt: skip
def test_distance_to_the_nearest_step_between_two_codes(
    position: float, codes: tuple, fraction: float | None, zero: float, expected: float
) -> None:
    assert _distance(position, codes, fraction, zero) == expected
