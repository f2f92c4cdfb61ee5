"""Activation grids from samples."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.quantize.calibration import choose_grid, code_range
from tritloom.errors import UserError


def test_signed_values_are_symmetric_about_code_zero():
    scale, zero_point = choose_grid(np.array([-1.27, 0.5]))
    assert zero_point == 0 and scale == Fraction(float(np.float32(1.27 / 128)))
    assert choose_grid(np.array([-0.5, 1.27]))[0] == Fraction(float(np.float32(1.27 / 127)))


def test_one_sided_values_use_every_code():
    assert choose_grid(np.array([0.0, 51.0])) == (Fraction(float(np.float32(51 / 255))), -128)
    assert choose_grid(np.array([-51.0, -2.0])) == (Fraction(float(np.float32(51 / 255))), 127)
    assert choose_grid(np.array([0.0, 3.0]), 2) == (Fraction(1), -2)


def test_degenerate_samples():
    assert choose_grid(np.zeros(5)) == (Fraction(1), -128)
    assert choose_grid(np.array([7.0]), 4) == (Fraction(float(np.float32(7 / 15))), -8)
    scale, zero_point = choose_grid(np.array([1e-45]))
    assert scale > 0 and zero_point == -128
    assert choose_grid(np.array([-3.0e38, 3.0e38]))[0] > 0


def test_percentile_ignores_outliers():
    samples = np.concatenate([np.linspace(0, 1, 9999), [1000.0]])
    assert float(choose_grid(samples, percentile=99.9)[0]) == pytest.approx(1 / 255, rel=0.01)
    assert float(choose_grid(samples)[0]) == pytest.approx(1000 / 255)
    signed = np.concatenate([-samples, samples])
    assert float(choose_grid(signed, percentile=99.9)[0]) == pytest.approx(1 / 128, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], 1), r"^activation bits must be from 2 to 8, not 1$"),
        (([0.0], 9), r"^activation bits must be from 2 to 8, not 9$"),
        (([],), r"^calibration samples must not be empty$"),
        (([1.0, np.nan],), r"^calibration samples must be finite, but value 1 is nan$"),
        (([np.inf, 1.0],), r"^calibration samples must be finite, but value 0 is inf$"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        choose_grid(*arguments)


def test_refused_percentile():
    with pytest.raises(UserError, match=r"^percentile must be above 50 and at most 100, not 0$"):
        choose_grid([1.0], percentile=0)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), bits=st.integers(2, 8))
@settings(deadline=None, max_examples=200)
def test_grid_covers_every_sample_within_half_a_step(values, bits):
    scale, zero_point = choose_grid(np.array(values), bits)
    low, high = code_range(bits)
    assert low <= zero_point <= high and Fraction(float(np.float32(float(scale)))) == scale
    for value in values:
        code = min(max(round(Fraction(value) / scale) + zero_point, low), high)
        assert abs(scale * (code - zero_point) - Fraction(value)) <= scale * Fraction(501, 1000)
