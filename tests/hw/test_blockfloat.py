"""Formulas of block floating point against exact fractions: extremes, zeros, ties, random values."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritloom.hw.arch import blockfloat

SCALES = st.tuples(st.integers(1 << 15, (1 << 16) - 1), st.integers(-60, 60))
ULP = Fraction(1, 1 << 15)
"""Relative error of one cut to 16 bits."""


def value(scale) -> Fraction:
    return Fraction(int(scale[0])) * Fraction(2) ** int(scale[1])


def array(pair):
    return np.array(pair[0], np.int64), np.array(pair[1], np.int64)


def is_normal(scale) -> bool:
    return int(scale[0]) >> 15 == 1


def test_bit_length() -> None:
    values = [0, *(value for bits in range(63) for value in ((1 << bits) - 1, 1 << bits)), (1 << 63) - 1]
    assert blockfloat.bit_length(np.array(values, np.int64)).tolist() == [value.bit_length() for value in values]


@pytest.mark.parametrize("amount", [-58, -3, 0, 1, 62, 70])
def test_shifts_round_down(amount) -> None:
    values = np.array([-5, -1, 0, 1, 5], np.int64)
    expected = [math.floor(v * Fraction(2) ** -amount) for v in values.tolist()]
    assert blockfloat.shifted(values, np.array(amount)).tolist() == expected


@given(st.integers(1, (1 << 62) - 1), st.integers(-50, 50))
def test_scale_drops_low_bits_only(number, exponent) -> None:
    scale = blockfloat.scale_of(np.array(number), exponent)
    assert is_normal(scale)
    exact = number * Fraction(2) ** exponent
    assert 0 <= exact - value(scale) < exact * ULP
    if number < 1 << 16:
        assert value(scale) == exact


@given(SCALES, SCALES)
def test_product(left, right) -> None:
    scale = blockfloat.scale_product(array(left), array(right))
    exact = value(left) * value(right)
    assert is_normal(scale) and 0 <= exact - value(scale) < exact * ULP


@given(SCALES)
def test_reciprocal(pair) -> None:
    scale = blockfloat.reciprocal(array(pair))
    exact = 1 / value(pair)
    assert is_normal(scale) and 0 <= exact - value(scale) < 2 * exact * ULP


def test_reciprocal_of_powers_of_two_is_exact() -> None:
    assert value(blockfloat.reciprocal(array((1 << 15, 3)))) == Fraction(1, 1 << 18)


@given(SCALES, SCALES)
def test_sum_of_scales(left, right) -> None:
    scale = blockfloat.scale_sum(array(left), array(right))
    exact = value(left) + value(right)
    assert is_normal(scale) and 0 <= exact - value(scale) < 2 * exact * ULP


@given(SCALES)
def test_root_reciprocal(pair) -> None:
    scale = blockfloat.root_reciprocal(array(pair))
    assert is_normal(scale)
    ratio = float(value(scale)) * math.sqrt(value(pair))
    assert abs(ratio - 1) < 4 * float(ULP)


@pytest.mark.parametrize("exponent", [-3, 0, 8, 7])
def test_root_reciprocal_falls(exponent) -> None:
    """Over every mantissa, from one parity of the exponent to the other."""
    mantissas = np.concatenate([np.arange(1 << 15, 1 << 16), np.arange(1 << 15, (1 << 15) + 9)])
    exponents = np.where(np.arange(len(mantissas)) < 1 << 15, exponent, exponent + 1)
    found = blockfloat.root_reciprocal((mantissas, exponents))
    reals = np.ldexp(found[0].astype(float), found[1])
    assert np.all(np.diff(reals) <= 0)
    assert np.abs(reals * np.sqrt(np.ldexp(mantissas.astype(float), exponents)) - 1).max() < 4 * float(ULP)


def test_zeros_have_no_effect() -> None:
    """Where the mantissa is 0 the exponent is what the formula gives; the codes of a block of zeros lie below everything."""
    assert tuple(map(int, blockfloat.scale_of(np.array(0), 7))) == (0, 7 - 16)
    assert int(blockfloat.scale_product((np.array(0), np.array(5)), array((1 << 15, 9)))[0]) == 0
    assert int(blockfloat.reciprocal((np.array(0), np.array(0)))[0]) == (1 << 16) - 1
    codes, scale = blockfloat.quantise_block(np.zeros((1, 3), np.int64), 1)
    assert not codes.any() and (int(scale[0][0, 0]), int(scale[1][0, 0])) == (0, blockfloat.NOTHING)


@given(st.lists(st.integers(-(1 << 46) + 1, (1 << 46) - 1), min_size=1, max_size=9))
def test_normalised_blocks_have_15_bits(values) -> None:
    elements, right = blockfloat.normalise(np.array([values], np.int64), 1)
    assert elements.tolist() == [[math.floor(value * Fraction(2) ** -int(right[0, 0])) for value in values]]
    largest = max(abs(value) for value in values)
    assert int(right[0, 0]) == largest.bit_length() - 15
    assert -(1 << 15) <= elements.min() and elements.max() < 1 << 15


@given(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=9))
def test_codes_of_a_block(values) -> None:
    codes, scale = blockfloat.quantise_block(np.array([values], np.int64), 1)
    largest = max(abs(value) for value in values)
    if not largest:
        assert not codes.any() and int(scale[0][0, 0]) == 0
        return
    assert np.abs(codes).max() == 127
    for value_, code in zip(values, codes[0].tolist(), strict=True):
        # Fifteen bits and a ratio of sixteen leave less than one hundredth of a code beside the half of rounding.
        assert abs(Fraction(127 * value_, largest) - code) <= Fraction(51, 100)
    exact = Fraction(largest)
    found = value((scale[0][0, 0], scale[1][0, 0]))
    assert 0 <= exact - found < 2 * exact * ULP


def test_a_half_goes_up() -> None:
    codes, _ = blockfloat.quantise_block(np.array([[254, 1, -1, 3, -3]], np.int64), 1)
    assert codes.tolist() == [[127, 1, 0, 2, -1]]


@given(
    st.lists(st.tuples(st.integers(-(1 << 15), (1 << 15) - 1), st.integers(-(1 << 15), (1 << 15) - 1)), min_size=1, max_size=6),
    SCALES,
    SCALES,
)
def test_sum_of_blocks(pairs, left_scale, right_scale) -> None:
    left, right = (np.array([[pair[side] for pair in pairs]], np.int64) for side in (0, 1))
    total, scale = blockfloat.add_blocks(left, array(left_scale), right, array(right_scale))
    assert np.abs(total).max() < 1 << 32
    step = value(scale)
    for (a, b), found in zip(pairs, total[0].tolist(), strict=True):
        exact = a * value(left_scale) + b * value(right_scale)
        assert -2 * step < found * step - exact <= 0


def test_sum_with_nothing() -> None:
    block = np.array([[100, -100]], np.int64)
    zero = (np.array(0), np.array(blockfloat.NOTHING))
    total, scale = blockfloat.add_blocks(block, array((1 << 15, -15)), np.zeros_like(block), zero)
    assert [Fraction(int(element)) * value(scale) for element in total[0]] == [100, -100]
    total, scale = blockfloat.add_blocks(np.zeros_like(block), zero, np.zeros_like(block), zero)
    assert not total.any()


def test_cosine() -> None:
    turns = np.arange(-(1 << 17), 1 << 17, 5)
    found = blockfloat.cosine(turns)
    assert np.abs(found / (1 << 14) - np.cos(2 * np.pi * turns / (1 << 16))).max() < 0.0009
    assert blockfloat.cosine(np.array([0, 1 << 14, 1 << 15, 3 << 14, 1 << 16])).tolist() == [1 << 14, 0, -(1 << 14), 0, 1 << 14]
    assert np.array_equal(blockfloat.cosine(16 * turns), blockfloat.cosine(-16 * turns))


def test_powers_of_two() -> None:
    steps = np.arange(-256 * 18 + 1, 1)
    found = blockfloat.power_of_two(steps)
    exact = 2.0 ** (15 + steps / 256)
    assert np.all((found <= exact + 0.26) & (found > exact - 1))
    assert found[-1] == 1 << 15 and found[-257] == 1 << 14 and found[0] == 0
    assert np.all(np.diff(found) >= 0)
    entries = np.arange(256)
    assert np.abs(blockfloat.POWERS - 2.0 ** (15 + entries / 256)).max() <= 0.5000001
