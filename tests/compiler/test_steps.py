"""Step functions against the direct rational evaluation at every reachable accumulator."""

from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.quantize.chain import compose, find_runs
from tritloom.compiler.quantize.pieces import differences, realise
from tritloom.compiler.quantize.steps import ROUNDINGS, Affine, Clip, LeakyRelu, Quantiser, Relu, derive_step
from tritloom.errors import ModelError
from tritloom.hw.arch.record import Record, evaluate

F = Fraction

# The decimal module has its own implementation of every rounding mode but half up, which is floor(x + 1/2).
DECIMAL = {
    "half_even": ROUND_HALF_EVEN, "half_away": ROUND_HALF_UP, "half_toward_zero": ROUND_HALF_DOWN, "floor": ROUND_FLOOR, "ceil": ROUND_CEILING,
    "toward_zero": ROUND_DOWN, "away_from_zero": ROUND_UP,
}  # fmt: skip


def rounded(value, rounding):
    if rounding == "half_up":
        return (2 * value + 1) // 2
    # A tenth of the distance to the nearest half cannot be lost: three exact cases stand for all values.
    whole = value.numerator // value.denominator
    rest = value - whole
    digit = {F(0): "0", F(1, 2): ".5"}.get(rest, ".25" if rest < F(1, 2) else ".75")
    return int((Decimal(whole) + Decimal(digit)).to_integral_value(DECIMAL[rounding]))


def entry(values, channel):
    return values[channel] if len(values) > 1 else values[0]


def direct(chain, quantiser, acc, channel=0):
    """The definition, step by step."""
    value = F(acc)
    for step in chain:
        match step:
            case Affine():
                value = value * entry(step.gain, channel) + entry(step.offset, channel)
            case Relu():
                value = max(value, F(0))
            case LeakyRelu():
                value = value if value >= 0 else value * step.slope
            case Clip():
                value = value if step.low is None else max(value, step.low)
                value = value if step.high is None else min(value, step.high)
    scale = entry(quantiser.scale, channel) if isinstance(quantiser.scale, tuple) else quantiser.scale
    zero = entry(quantiser.zero_point, channel) if isinstance(quantiser.zero_point, tuple) else quantiser.zero_point
    value = value / scale
    if quantiser.bipolar:
        return (quantiser.high if value + zero >= 0 else quantiser.low) + quantiser.offset
    if quantiser.clip_first:
        return rounded(min(max(value + zero, F(quantiser.low)), F(quantiser.high)), quantiser.rounding) + quantiser.offset
    return min(max(rounded(value, quantiser.rounding) + zero, quantiser.low), quantiser.high) + quantiser.offset


def check(chain, quantiser, low, high, channels=1, pieces=None):
    step = derive_step(chain, quantiser, low, high, channels)
    lows = [low] * channels if isinstance(low, int) else low
    highs = [high] * channels if isinstance(high, int) else high
    reached = set()
    for channel in range(channels):
        records = list(step.records[channel])
        assert len(records) == step.pieces
        for acc in range(lows[channel], highs[channel] + 1):
            expected = direct(chain, quantiser, acc, channel)
            assert evaluate(records, acc, step.low, step.high) == expected, (channel, acc)
            reached.add(expected)
    assert step.proof.exact and step.proof.differing == step.proof.largest == 0
    assert step.proof.reachable == sum(last - first + 1 for first, last in zip(lows, highs, strict=True))
    assert (step.low, step.high) == (min(reached), max(reached))
    if pieces is not None:
        assert step.pieces == pieces
    return step


def affine(gain, offset=0):
    return Affine((F(gain),), (F(offset),))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("gain", [F(1, 4), F(-1, 4), F(3, 8), F(1, 6), F(-1, 6), F(7, 3), F(0)])
@pytest.mark.parametrize("clip_first", [False, True])
def test_ties_of_every_rounding(rounding, gain, clip_first):
    check((affine(gain, F(1, 2)),), Quantiser(F(1), 3, -20, 21, rounding, clip_first=clip_first), -130, 130)


@pytest.mark.parametrize("exponent", [0, 1, 3, 7])
def test_power_of_two_scale_with_half_even_is_one_piece(exponent):
    step = check((affine(F(1, 2**exponent)),), Quantiser(F(1), 0, -128, 127), -300 << exponent, 300 << exponent, pieces=1)
    assert exponent == 0 or step.records[0][0].half_even


def test_odd_zero_point_differs_between_the_two_orders():
    chain = (affine(F(1, 2)),)
    onnx = check(chain, Quantiser(F(1), 1, -128, 127), -9, 9)
    qonnx = check(chain, Quantiser(F(1), 1, -128, 127, clip_first=True), -9, 9)
    # 1/2: round(1/2) + 1 = 1, but round(1/2 + 1) = 2.
    assert evaluate(list(onnx.records[0]), 1, onnx.low, onnx.high) == 1
    assert evaluate(list(qonnx.records[0]), 1, qonnx.low, qonnx.high) == 2


@given(numerator=st.integers(-4000, 4000), rounding=st.sampled_from(ROUNDINGS), low=st.integers(-128, 0), high=st.integers(1, 127))
@settings(deadline=None, max_examples=200)
def test_clamping_before_or_after_rounding_is_the_same(numerator, rounding, low, high):
    value = F(numerator, 12)
    before = rounded(min(max(value, F(low)), F(high)), rounding)
    assert before == min(max(rounded(value, rounding), low), high)


def test_relu_at_the_lowest_code_costs_no_piece():
    check((affine(F(1, 37), F(1, 3)), Relu()), Quantiser(F(1, 4), -128, -128, 127), -2000, 2000, pieces=1)


def test_relu_on_a_symmetric_grid_is_a_tighter_clamp():
    step = check((affine(F(1, 37)), Relu()), Quantiser(F(1, 4), 0, -128, 127), -2000, 2000, pieces=1)
    assert step.low == 0


@pytest.mark.parametrize("slope", [F(1, 10), F(-1, 2), F(2), F(0), F(-1)])
@pytest.mark.parametrize("gain", [F(1, 9), F(-1, 9)])
def test_leaky_relu_takes_a_piece_a_side(slope, gain):
    step = check((affine(gain, F(1, 5)), LeakyRelu(slope)), Quantiser(F(3, 16), -5, -128, 127), -1000, 1000)
    assert step.pieces <= 2


def test_clip_then_affine_then_clip():
    check(
        (affine(F(1, 8)), Clip(F(-3), F(5)), affine(-2, F(1, 7)), Clip(None, F(4)), Clip(F(-9), None)),
        Quantiser(F(1, 3), 2, -128, 127),
        -90,
        90,
    )


def test_bipolar_takes_the_upper_code_at_zero():
    step = check((affine(F(1, 3), F(-7, 3)),), Quantiser(F(1), 0, -1, 1, bipolar=True), -20, 20, pieces=1)
    assert [evaluate(list(step.records[0]), acc, -1, 1) for acc in (6, 7)] == [-1, 1]
    check((affine(F(-1, 3), F(7, 3)),), Quantiser(F(1), 0, -1, 1, bipolar=True), -20, 20, pieces=1)
    check((affine(F(-1, 3), F(7, 3)),), Quantiser(F(1), 0, -128, 127, bipolar=True), -20, 20, pieces=1)
    check((affine(0, F(7, 3)),), Quantiser(F(1), 0, -1, 1, bipolar=True), -20, 20, pieces=1)


def test_channels_have_their_own_everything():
    gains, offsets = (F(1, 7), F(-1, 5), F(0), F(3)), (F(1), F(2), F(300), F(-1, 3))
    quantiser = Quantiser((F(1), F(1, 2), F(2), F(1, 3)), (0, -3, 5, 7), -100, 90)
    step = check((Affine(gains, offsets),), quantiser, [-300, -5, 0, -128], [40, 300, 3, 127], channels=4)
    assert len(step.records) == 4


def test_fold_of_an_unsigned_grid_keeps_the_sign_that_rounding_sees():
    quantiser = Quantiser(F(1), 100, 0, 255, "half_away", offset=-128)
    check((affine(F(1, 2)),), quantiser, -300, 400)


def test_one_reachable_value_and_one_code():
    assert check((affine(F(1, 3)),), Quantiser(F(1), 0, -2, 1), 5, 5, pieces=1).proof.reachable == 1
    check((affine(F(1, 300)),), Quantiser(F(1), 0, -2, 1), -3, 3, pieces=1)


def test_wide_accumulators_are_fast_and_exact():
    channels = 64
    gains = tuple(F(float(sign * (0.00011 + 0.0000013 * c))) for c, sign in zip(range(channels), [1, -1] * 32, strict=True))
    offsets = tuple(F(c, 7) for c in range(channels))
    quantiser = Quantiser(F(1234567, 2**23), 0, -128, 127)
    step = derive_step((Affine(gains, offsets),), quantiser, -(1 << 19), (1 << 19) - 1, channels)
    # A multiplier of 24 bits is nearly always enough; one channel here has no such multiplier and takes a second piece.
    assert step.proof.exact and step.pieces <= 2 and step.proof.reachable == channels << 20
    for channel in (0, 1, 63):
        for acc in range(-(1 << 19), 1 << 19, 9973):
            assert evaluate(list(step.records[channel]), acc, step.low, step.high) == direct(
                (Affine(gains, offsets),), quantiser, acc, channel
            )


def test_extremes_of_the_accumulator():
    for gain in (F(1, 2**31), F(1, 2**24), F(1), F(2**20), F(-3, 2**26)):
        step = derive_step((affine(gain, F(1, 3)),), Quantiser(F(1), 0, -128, 127), -(1 << 31), (1 << 31) - 1, 1)
        assert step.proof.exact
        for acc in (-(1 << 31), -(1 << 30), -1, 0, 1, 1 << 30, (1 << 31) - 1):
            assert evaluate(list(step.records[0]), acc, step.low, step.high) == direct(
                (affine(gain, F(1, 3)),), Quantiser(F(1), 0, -128, 127), acc
            )


def test_too_many_pieces_give_the_closest_step_and_an_honest_proof():
    chain, quantiser = (affine(F(1, 6)),), Quantiser(F(1), 0, -128, 127)
    exact = derive_step(chain, quantiser, -500, 500, 1)
    assert exact.proof.exact and exact.pieces > 8
    step = derive_step(chain, quantiser, -500, 500, 1, max_pieces=8)
    errors = [abs(evaluate(list(step.records[0]), acc, step.low, step.high) - direct(chain, quantiser, acc)) for acc in range(-500, 501)]
    assert step.pieces <= 8 and not step.proof.exact
    assert step.proof.differing == sum(error > 0 for error in errors) > 0
    assert step.proof.largest == max(errors) == 1


def test_differences_counts_each_accumulator():
    runs = find_runs(compose((affine(F(1, 4)),), 0), Quantiser(F(1), 0, -3, 3, "floor"), 0, -20, 20)
    assert differences(runs, realise(runs, -3, 3), -3, 3) == (0, 0)
    shifted = [Record(-(1 << 31), 1, 1, 2)]
    wrong = [acc for acc in range(-20, 21) if evaluate(shifted, acc, -3, 3) != min(max(acc // 4, -3), 3)]
    assert differences(runs, shifted, -3, 3) == (len(wrong), 1)
    mirrored = [Record(-(1 << 31), -1, 0, 2, True), Record(3, -1, 0, 2, True)]
    errors = [abs(evaluate(mirrored, acc, -3, 3) - min(max(acc // 4, -3), 3)) for acc in range(-20, 21)]
    assert differences(runs, mirrored, -3, 3) == (sum(e > 0 for e in errors), max(errors))


@pytest.mark.parametrize(
    "fields", [{"rounding": "banker"}, {"scale": F(0)}, {"scale": (F(1), F(-1))}, {"low": -200}, {"high": 128}, {"low": 5, "high": 4}]
)
def test_illegal_quantisers_are_refused(fields):
    with pytest.raises(ModelError):
        Quantiser(**{"scale": F(1), "zero_point": 0, "low": -128, "high": 127, **fields})


SMALL = st.fractions(min_value=-4, max_value=4, max_denominator=48)
STEPS = st.one_of(
    st.builds(lambda g, o: Affine((g,), (o,)), SMALL, SMALL),
    st.just(Relu()),
    st.builds(LeakyRelu, SMALL),
    st.builds(lambda a, b: Clip(min(a, b), max(a, b)), SMALL, SMALL),
    st.builds(lambda a: Clip(a, None), SMALL),
    st.builds(lambda a: Clip(None, a), SMALL),
)


@given(
    chain=st.lists(STEPS, max_size=5),
    scale=st.fractions(min_value=F(1, 64), max_value=3, max_denominator=64),
    zero_point=st.integers(-9, 9),
    bounds=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
    rounding=st.sampled_from(ROUNDINGS),
    bipolar=st.booleans(),
    clip_first=st.booleans(),
    low=st.integers(-400, 100),
    count=st.integers(0, 400),
)
@settings(deadline=None, max_examples=250)
def test_random_chains(chain, scale, zero_point, bounds, rounding, bipolar, clip_first, low, count):
    quantiser = Quantiser(scale, zero_point, min(bounds), max(bounds), rounding, bipolar, clip_first)
    check(tuple(chain), quantiser, low, low + count)


@given(
    gains=st.lists(st.fractions(min_value=-1, max_value=1, max_denominator=40), min_size=1, max_size=3),
    slope=st.fractions(min_value=-1, max_value=1, max_denominator=9),
)
@settings(deadline=None, max_examples=40)
def test_no_other_cut_into_records_is_shorter(gains, slope):
    chain = tuple(step for gain in gains for step in (affine(gain, 1), LeakyRelu(slope)))
    runs = find_runs(compose(chain, 0), Quantiser(F(1, 5), 0, -9, 8), 0, -30, 30)
    low, high = min(run.code for run in runs), max(run.code for run in runs)

    def single(first, last):
        return len(realise(runs[first:last], low, high, half_even=True)) == 1

    shortest = [0] + [len(runs)] * len(runs)
    for last in range(1, len(runs) + 1):
        shortest[last] = min(shortest[first] + 1 for first in range(last) if single(first, last))
    assert len(realise(runs, low, high, half_even=True)) == shortest[-1]
