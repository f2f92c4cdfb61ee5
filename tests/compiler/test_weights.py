"""Recognition and ternarisation of weights."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.quantize.weights import absmean, lower_weights, recognise, residual_planes, twn
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.trits import digit_planes, plane_count

GAUSS = np.random.default_rng(5).standard_normal((1000, 1000))
UNIFORM = np.random.default_rng(6).uniform(-1, 1, (1000, 1000))


def relative_error(values, result):
    scale = np.array([float(s) for s in result.scale]).reshape(-1, *[1] * (values.ndim - 1))
    return ((values - scale * result.codes) ** 2).sum() / (values**2).sum()


@pytest.mark.parametrize(
    ("method", "scale", "zeros", "error"),
    [(absmean, 0.798, 0.310, 0.263), (twn, 1.184, 0.424, 0.192), (lambda values: residual_planes(values, 1), 1.224, 0.460, 0.1902)],
)
def test_published_figures_on_gaussian_weights(method, scale, zeros, error):
    result = method(GAUSS if method is not absmean else GAUSS.ravel()[None])
    assert np.mean([float(s) for s in result.scale]) == pytest.approx(scale, abs=0.003)
    assert np.mean(result.codes == 0) == pytest.approx(zeros, abs=0.003)
    assert result.error == pytest.approx(error, abs=0.003)
    assert result.error == pytest.approx(relative_error(GAUSS if method is not absmean else GAUSS.ravel()[None], result))


@pytest.mark.parametrize(("method", "zeros", "error"), [(absmean, 0.25, 0.156), (twn, 0.35, 0.1115)])
def test_published_figures_on_uniform_weights(method, zeros, error):
    result = method(UNIFORM)
    assert np.mean(result.codes == 0) == pytest.approx(zeros, abs=0.003)
    assert result.error == pytest.approx(error, abs=0.003)


def test_twn_by_hand():
    # mean|w| = 1, threshold 0.7 strictly: 0.7 itself becomes zero.
    values = np.array([[0.7, -0.1, 1.0], [-2.0, 1.5, 0.7]])
    result = twn(values)
    assert result.codes.tolist() == [[0, 0, 1], [-1, 1, 0]]
    assert result.scale == (Fraction(1.5),) and result.planes == 1 and result.method == "twn"
    rows = twn(np.array([[4.0, 1.0, -1.0], [0.0, 0.0, 0.0]]), per_row=True)
    assert rows.codes.tolist() == [[1, 0, 0], [0, 0, 0]] and rows.scale == (Fraction(4), Fraction(1))


def test_absmean_by_hand():
    # mean|w| = 1: 0.5 ties to even (0), 1.5 clamps to 1.
    result = absmean(np.array([[0.5, -0.5, 1.5], [-1.5, 1.0, -1.0]]))
    assert result.codes.tolist() == [[0, 0, 1], [-1, 1, -1]] and result.scale == (Fraction(1),)


@pytest.mark.parametrize(
    ("dtype", "largest"), [*((np.float32, n) for n in (1, 2, 7, 40, 127, 128)), (np.float64, 1), (np.float64, 100), (np.float16, 3)]
)
@pytest.mark.parametrize("per_row", [False, True])
def test_grids_are_recognised_exactly(dtype, largest, per_row, rng):
    codes = rng.integers(-largest, largest + 1, (5, 30))
    codes[:, 0], codes[:, 1] = largest, 1
    scale = rng.uniform(0.01, 0.1, (5, 1) if per_row else 1).astype(dtype)
    values = (codes.astype(dtype) * scale).astype(dtype)
    result = recognise(values)
    assert result is not None and result.method == "exact" and result.planes == plane_count(largest)
    assert np.array_equal(result.codes, codes) and result.codes.dtype == np.int16
    assert len(result.scale) == (5 if per_row else 1)
    exact = np.array([float(s) for s in result.scale]).reshape(-1, 1) * result.codes
    assert np.array_equal(exact.astype(dtype), values)


def test_bipolar_and_zero_weights():
    bipolar = recognise(np.array([[0.3, -0.3], [-0.3, -0.3]], np.float32))
    assert bipolar is not None and bipolar.codes.tolist() == [[1, -1], [-1, -1]] and bipolar.planes == 1
    zero = lower_weights(np.zeros((2, 3), np.float32))
    assert zero.method == "exact" and not zero.codes.any() and zero.error == 0


def test_a_scale_a_row_is_taken_when_it_saves_planes():
    result = recognise(np.array([[1.0, -1.0, 0.0], [5.0, 5.0, -5.0]], np.float32))
    assert result is not None and result.planes == 1 and result.scale == (Fraction(1), Fraction(5))


def test_float_weights_are_not_taken_for_a_grid(rng):
    assert recognise(rng.standard_normal((4, 50)).astype(np.float32)) is None
    almost = np.array([[0.3, -0.3, 0.3]], np.float32)
    almost[0, 1] = np.nextafter(almost[0, 1], np.float32(0))
    assert recognise(almost) is None


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_planes_lower_the_error_and_fit_the_digits(planes, rng):
    values = rng.standard_normal((6, 4, 3, 3))
    result = lower_weights(values, method="planes", planes=planes)
    assert result.method == "planes" and result.planes == planes and result.codes.shape == values.shape
    assert len(digit_planes(result.codes, planes)) == planes and len(result.scale) == 6
    assert result.error == pytest.approx(relative_error(values, result))
    # No grid of this many codes does much better: brute force over the scale.
    largest = (3**planes - 1) // 2
    best = 0.0
    for row in values.reshape(6, -1):
        scales = np.linspace(0.02, np.abs(row).max() / largest * 1.5, 4000)[:, None]
        best += ((row - scales * np.clip(np.rint(row / scales), -largest, largest)) ** 2).sum(axis=1).min()
    assert result.error <= best / (values**2).sum() * 1.1


def test_explicit_codes_are_lossless(rng):
    codes = rng.integers(-255, 256, (3, 7))
    codes[0, 0] = -255
    result = lower_weights(codes * 0.25, codes=codes, scale=(Fraction(1, 4), Fraction(1, 3), Fraction(1)))
    assert result.method == "exact" and result.error == 0 and result.planes == plane_count(255)
    assert np.array_equal(result.codes, codes) and result.scale == (Fraction(1, 4), Fraction(1, 3), Fraction(1))
    assert lower_weights(codes * 0.25, codes=codes, scale=np.float32(0.1)).scale == (Fraction(float(np.float32(0.1))),)


def test_auto_takes_the_smallest_error_and_says_which(rng):
    values = rng.standard_normal((8, 60)) * rng.uniform(0.5, 2, (8, 1))
    result = lower_weights(values)
    others = [twn(values), twn(values, per_row=True), absmean(values), residual_planes(values, 1)]
    assert result.error == min(other.error for other in others)
    assert lower_weights(values, planes=2).planes == 2 and lower_weights(values, planes=2).error < result.error


def test_a_named_method_applies_to_integer_weights_but_not_to_ternary_ones(rng):
    codes = rng.integers(-7, 8, (4, 30))
    values = codes * 0.5
    assert lower_weights(values, codes=codes, scale=Fraction(1, 2), method="twn").method == "twn"
    assert lower_weights(np.sign(values), method="twn").method == "exact"
    assert lower_weights(values, method="absmean").error == absmean(values).error
    assert lower_weights(values, method="twn").error == min(twn(values).error, twn(values, per_row=True).error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "xnor"}, r"^method must be one of auto, twn, absmean, planes, not 'xnor'$"),
        ({"method": "planes", "planes": 7}, r"^planes must be from 1 to 6, not 7$"),
        ({"planes": 0}, r"^planes must be from 1 to 6, not 0$"),
        ({"method": "twn", "planes": 2}, r"^method twn makes one plane, not 2; use method planes$"),
    ],
)
def test_illegal_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        lower_weights(np.ones((2, 2)), **arguments)


def test_weights_that_are_not_finite():
    with pytest.raises(ModelError, match=r"^weights must be finite, not NaN or infinite$"):
        lower_weights(np.array([[1.0, np.nan]]))


@given(
    seed=st.integers(0, 1 << 30), outputs=st.integers(1, 4), inputs=st.integers(1, 12), method=st.sampled_from(["auto", "twn", "absmean", "planes"]),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_any_weights_give_codes_that_fit_their_planes(seed, outputs, inputs, method, size):
    values = (np.random.default_rng(seed).laplace(size=(outputs, inputs)) * size).astype(np.float32)
    result = lower_weights(values, method=method)
    digit_planes(result.codes, result.planes)
    assert 0 <= result.error <= 1.0 + 1e-9 and len(result.scale) in (1, outputs) and all(s > 0 for s in result.scale)
