"""Sums of two quantised tensors against rational arithmetic on all pairs of codes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.golden import requantise_sum
from tritloom.compiler.quantize.steps import ROUNDINGS, Affine, Clip, LeakyRelu, Quantiser, Relu, derive_add
from tritloom.compiler.quantize.sums import pair_codes
from tritloom.errors import ModelError
from tritloom.hw.arch.record import shift_round

F = Fraction


def affine(gain, offset=0):
    return Affine((F(gain),), (F(offset),))


def realised(step, a, b, channel=0):
    """The two-record form, written out in Python integers."""
    left, right = step.records[channel]
    value = left.multiplier * a + left.bias + right.multiplier * b
    return min(max(shift_round(value, left.shift, left.half_even), step.low), step.high)


def entry(values, channel):
    return values[channel] if len(values) > 1 else values[0]


def direct(left, right, chain, quantiser, a, b, channel=0):
    value = entry(left.gain, channel) * a + entry(left.offset, channel) + entry(right.gain, channel) * b + entry(right.offset, channel)
    for step in chain:
        match step:
            case Affine():
                value = value * entry(step.gain, channel) + entry(step.offset, channel)
            case Relu():
                value = max(value, F(0))
            case Clip():
                value = min(max(value, step.low), step.high)
    return quantiser.code(value, channel)


def check(left, right, chain, quantiser, left_range=(-12, 11), right_range=(-9, 14), channels=1):
    step = derive_add(left, right, chain, quantiser, left_range, right_range, channels)
    pairs = [(a, b) for a in range(left_range[0], left_range[1] + 1) for b in range(right_range[0], right_range[1] + 1)]
    wrong = [abs(realised(step, a, b, c) - direct(left, right, chain, quantiser, a, b, c)) for c in range(channels) for a, b in pairs]
    assert step.proof.reachable == len(pairs) * channels
    assert step.proof.differing == sum(error > 0 for error in wrong)
    assert step.proof.largest == max(wrong) and step.proof.exact == (max(wrong) == 0)
    assert all(len(records) == 2 for records in step.records) and len(step.records) == channels
    return step


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("residue", [F(1, 3**50), F(-1, 3**50)])
def test_sums_beside_a_tie_by_less_than_float64_sees(rounding, residue):
    # The common denominator has more than 64 bits; every other pair of codes lies within 1e-22 of a tie.
    quantiser = Quantiser(F(1), 1, -128, 127, rounding)
    left, right = affine(F(1, 2)), affine(F(1, 2) + residue)
    for a in range(-3, 4):
        expected = [direct(left, right, (), quantiser, a, b) for b in range(-4, 6)]
        codes = pair_codes(np.array([a]), np.arange(-4, 6), (left.gain[0], right.gain[0]), F(0), quantiser, 0)
        assert codes.ravel().tolist() == expected


@pytest.mark.parametrize("gains", [(F(1, 2), F(1, 4)), (F(1, 8), F(1, 8)), (F(-1, 4), F(3, 8)), (F(1), F(0)), (F(0), F(0))])
def test_power_of_two_scales_tie_to_even(gains):
    assert check(affine(gains[0]), affine(gains[1]), (), Quantiser(F(1), 0, -128, 127)).proof.exact


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("clip_first", [False, True])
def test_ties_of_every_rounding(rounding, clip_first):
    step = check(affine(F(1, 2)), affine(F(1, 4)), (), Quantiser(F(1), 2, -128, 127, rounding, clip_first=clip_first))
    # Roundings that depend on the sign bend the line at zero; the others are exact.
    assert step.proof.exact == (rounding in ("half_even", "half_up", "floor", "ceil"))
    thirds = check(affine(F(1, 6)), affine(F(1, 3)), (), Quantiser(F(1, 3), 0, 5, 127, rounding, clip_first=clip_first))
    assert thirds.proof.exact


def test_ties_to_even_before_an_odd_zero_point_are_counted():
    """Ties then go to odd codes, which the post unit cannot do: one pair in eight is a tie that goes the other way."""
    step = check(affine(F(1, 2)), affine(F(1, 4)), (), Quantiser(F(1), 1, -128, 127))
    assert not step.proof.exact and step.proof.largest == 1 and step.proof.differing == step.proof.reachable // 8


def test_all_pairs_of_eight_bits_with_float32_scales(rng):
    for trial in range(8):
        left, right, out = (F(float(np.float32(value))) for value in rng.uniform(0.004, 0.03, 3))
        chain = ((), (Relu(),), (Clip(F(-1, 3), F(1)),))[trial % 3]
        step = derive_add(
            affine(left), affine(right), chain, Quantiser(out, int(rng.integers(-9, 9)), -128, 127), (-128, 127), (-128, 127), 1
        )
        assert step.proof.exact and step.proof.reachable == 65536


def test_relu_is_a_clamp_at_the_code_of_zero():
    step = check(affine(F(1, 3)), affine(F(1, 5)), (Relu(),), Quantiser(F(1, 7), 4, -128, 127))
    assert step.low == 4 and step.proof.exact


def test_chain_with_negative_gain():
    assert check(affine(F(1, 3), 1), affine(F(1, 5)), (affine(-1, 2), Clip(F(-1), F(2))), Quantiser(F(1, 7), 0, -128, 127)).proof.exact


def test_constant_chain():
    step = check(affine(1), affine(1), (affine(0, 5),), Quantiser(F(1), 0, -128, 127))
    assert step.proof.exact and realised(step, 3, 3) == 5


def test_bipolar_sum():
    step = check(affine(1), affine(F(3, 7)), (affine(1, F(1, 2)),), Quantiser(F(1), 0, -1, 1, bipolar=True))
    assert step.proof.exact and {realised(step, a, 0) for a in range(-3, 3)} == {-1, 1}


def test_channels_differ():
    left = Affine((F(1, 3), F(1, 11), F(1, 2)), (F(0), F(1), F(-1, 7)))
    assert check(left, affine(F(1, 9)), (), Quantiser((F(1, 3), F(1, 4), F(2)), (0, 1, -1), -60, 60), channels=3).proof.exact


def test_golden_gives_the_same_codes(rng):
    left = Affine((F(1, 3), F(1, 11)), (F(0), F(1)))
    step = derive_add(left, affine(F(1, 9)), (), Quantiser(F(1, 4), 0, -128, 127), (-128, 127), (-128, 127), 2)
    a, b = (rng.integers(-128, 128, (5, 2, 3, 4)).astype(np.int8) for _ in range(2))
    codes = requantise_sum(step, a, b)
    assert all(codes[i] == realised(step, int(a[i]), int(b[i]), i[1]) for i in np.ndindex(a.shape))


@pytest.mark.parametrize("chain", [(LeakyRelu(F(1, 10)),), (Clip(F(-1), F(1)), affine(1, 3), LeakyRelu(F(1, 2)))])
def test_bent_lines_are_refused_with_a_hint(chain):
    if len(chain) > 1:
        # Behind the clamp -1..1 shifted to 2..4 the LeakyRelu is never bent.
        assert check(affine(F(1, 9)), affine(F(1, 9)), chain, Quantiser(F(1, 16), 0, -128, 127)).proof.exact
        return
    with pytest.raises(ModelError, match=r"put a quantiser right after the Add$"):
        derive_add(affine(1), affine(1), chain, Quantiser(F(1), 0, -128, 127), (-128, 127), (-128, 127), 1)


def test_unlike_clamps_are_refused():
    with pytest.raises(ModelError, match=r"^the channels of an Add are clamped to unlike codes; put a quantiser right after the Add$"):
        derive_add(affine(1), affine(1), (Relu(),), Quantiser((F(1), F(1)), (0, 3), -128, 127), (-9, 9), (-9, 9), 2)


POSITIVE = st.fractions(min_value=F(1, 32), max_value=2, max_denominator=64)


@given(
    left=POSITIVE, right=POSITIVE, scale=POSITIVE, offset=st.fractions(min_value=-2, max_value=2, max_denominator=16),
    zero_point=st.integers(-5, 5), rounding=st.sampled_from(ROUNDINGS), clip_first=st.booleans(), relu=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_random_sums_have_an_honest_proof(left, right, scale, offset, zero_point, rounding, clip_first, relu):
    quantiser = Quantiser(scale, zero_point, -100, 99, rounding, clip_first=clip_first)
    check(affine(left, offset), affine(right), (Relu(),) if relu else (), quantiser, (-10, 9), (-7, 8))
