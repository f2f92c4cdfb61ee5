"""The TWN rule against the paper's formulas and known values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tritloom.models.methods.twn import THRESHOLD, ternarise


def by_hand(group: np.ndarray) -> tuple[list[int], float]:
    """One group, element by element, as the paper writes it."""
    values = [float(value) for value in group.ravel()]
    delta = THRESHOLD * sum(abs(value) for value in values) / len(values)
    trits = [1 if value > delta else -1 if value < -delta else 0 for value in values]
    kept = [abs(value) for value in values if abs(value) > delta]
    return trits, sum(kept) / len(kept) if kept else 0.0


@settings(deadline=None, max_examples=150)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-4, 4, width=32)), st.booleans())
def test_formula(weights, per_channel):
    trits, scale = ternarise(weights, per_channel=per_channel)
    assert trits.shape == weights.shape and trits.dtype == weights.dtype
    groups = weights.reshape(len(weights) if per_channel else 1, -1)
    assert scale.shape == (len(groups),)
    for group, got, alpha in zip(groups, trits.reshape(len(groups), -1), scale, strict=True):
        expected, wanted = by_hand(group)
        delta = THRESHOLD * np.abs(group).mean()
        clear = np.abs(np.abs(group) - delta) > 1e-12  # elsewhere the order of a sum may decide
        assert np.array_equal(got[clear], np.array(expected)[clear])
        if clear.all():
            assert alpha == pytest.approx(wanted, rel=1e-12)


def test_scale_is_the_least_squares_one():
    weights = np.random.default_rng(0).normal(size=(3, 400))
    trits, scale = ternarise(weights)
    for row, digits, alpha in zip(weights, trits, scale, strict=True):
        assert alpha == pytest.approx(row @ digits / (digits @ digits), rel=1e-12)


def test_error_on_gaussian_and_uniform_weights():
    """Zeros and relative squared error on known distributions: 42.4 % and 0.192; 35 % and 0.1115."""
    rng = np.random.default_rng(1)
    for weights, zeros, error in ((rng.normal(size=(1, 1_000_000)), 0.424, 0.192), (rng.uniform(-1, 1, (1, 1_000_000)), 0.35, 0.1115)):
        trits, scale = ternarise(weights)
        assert (trits == 0).mean() == pytest.approx(zeros, abs=0.003)
        assert ((weights - scale * trits) ** 2).sum() / (weights**2).sum() == pytest.approx(error, abs=0.003)


def test_borders():
    trits, scale = ternarise(np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [10.0, 7.0, 13.0]]))
    assert trits.tolist() == [[0, 0, 0], [1, -1, 1], [1, 0, 1]], "a weight at the threshold (7) is dropped"
    assert scale.tolist() == [0.0, 1.0, 11.5]
