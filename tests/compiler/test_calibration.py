"""Activation grids from samples."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.quantize.calibration import choose_grid, code_range
from tritloom.errors import UserError


def test_signed_values_are_symmetric_about_code_zero():
    scale, zero_point = choose_grid(np.array([-1.27, 0.5]), method="minmax")
    assert zero_point == 0 and scale == Fraction(float(np.float32(1.27 / 128)))
    assert choose_grid(np.array([-0.5, 1.27]), method="minmax")[0] == Fraction(float(np.float32(1.27 / 127)))


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
    assert float(choose_grid(samples, method="percentile", percentile=99.9)[0]) == pytest.approx(1 / 255, rel=0.01)
    assert float(choose_grid(samples, method="minmax")[0]) == pytest.approx(1000 / 255)
    signed = np.concatenate([-samples, samples])
    assert float(choose_grid(signed, method="percentile", percentile=99.9)[0]) == pytest.approx(1 / 128, rel=0.01)


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
    with pytest.raises(UserError, match=r"^calibration method must be one of minmax, percentile, mse, not 'mean'$"):
        choose_grid([1.0], method="mean")


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), bits=st.integers(2, 8))
@settings(deadline=None, max_examples=200)
def test_grid_covers_every_sample_within_half_a_step(values, bits):
    scale, zero_point = choose_grid(np.array(values), bits, method="minmax")
    low, high = code_range(bits)
    assert low <= zero_point <= high and Fraction(float(np.float32(float(scale)))) == scale
    for value in values:
        code = min(max(round(Fraction(value) / scale) + zero_point, low), high)
        assert abs(scale * (code - zero_point) - Fraction(value)) <= scale * Fraction(501, 1000)


def error_of(samples, scale, zero_point, bits):
    """Mean squared error of the codes of a grid, in plain NumPy."""
    low, high = code_range(bits)
    codes = np.clip(np.rint(samples / scale) + zero_point, low, high)
    return np.mean((scale * (codes - zero_point) - samples) ** 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", ["normal", "relu", "negative", "outlier", "levels"])
def test_mse_is_the_best_of_81_scales(shape, bits):
    rng = np.random.default_rng(17)
    samples = rng.normal(size=5000)
    samples = {
        "normal": samples,
        "relu": np.maximum(samples, 0),
        "negative": -np.abs(samples),
        "outlier": np.append(samples, 40.0),
        "levels": rng.integers(0, 1 << bits, 5000) / ((1 << bits) - 1),
    }[shape]
    widest, zero_point = choose_grid(samples, bits, method="minmax")
    scale, same = choose_grid(samples, bits)
    errors = {k: error_of(samples, float(widest) * k / 100, zero_point, bits) for k in range(20, 101)}
    best = min(errors, key=lambda k: (errors[k], -k))
    assert same == zero_point and float(scale) == pytest.approx(float(widest) * best / 100, rel=1e-6)
    if shape == "levels":
        assert best == 100, "levels that the widest grid meets exactly are kept"
    elif shape in ("normal", "relu", "negative") and bits < 8:
        assert best < 95


def test_mse_of_many_samples_looks_at_stretches_of_their_order():
    samples = np.random.default_rng(3).standard_t(3, 300_000)
    widest, zero_point = choose_grid(samples, 4, method="minmax")
    scale, _ = choose_grid(samples, 4)
    errors = [error_of(samples, float(widest) * k / 100, zero_point, 4) for k in range(20, 101)]
    assert error_of(samples, float(scale), zero_point, 4) <= 1.01 * min(errors)


@pytest.mark.parametrize("percentile", [60, 95.5, 99.99, 100])
@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_percentile_is_that_of_numpy(sign, percentile):
    samples = np.random.default_rng(4).gumbel(size=2001)
    samples = {"both": samples, "positive": np.abs(samples), "negative": -np.abs(samples)}[sign]
    if sign == "both":
        low, high = np.percentile(samples, [(100 - percentile) / 2, 100 - (100 - percentile) / 2])
        expected = max(high / 7, low / -8)
    else:
        expected = np.percentile(np.abs(samples), percentile) / 15
    assert float(choose_grid(samples, 4, method="percentile", percentile=percentile)[0]) == pytest.approx(expected, rel=1e-6)
