"""The integer interpreter against plain loops in Python integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler import golden
from tritloom.compiler.golden import integer
from tritloom.compiler.ir.program import (
    Add,
    Convolution,
    Copy,
    InputSpec,
    MaxPool,
    Program,
    Proof,
    Rescale,
    StepFunction,
    SumPool,
    Tensor,
    Window,
)
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.record import START_MIN, Record, evaluate, shift_round

PROOF = Proof(exact=True, reachable=1)


def tensor(name, shape, bits=8, low=-128, high=127):
    return Tensor(name=name, shape=shape, bits=bits, low=low, high=high, scale=(Fraction(1),))


def program(tensors, operations, inputs=("x",)):
    specs = tuple(InputSpec(name=name, shape=("N", *tensors[name].shape), dtype="float32", tensor=name, prologue=()) for name in inputs)
    return Program(name="test", tensors=tensors, operations=operations, inputs=specs, outputs=())


def random_step(rng, channels, pieces=1, spread=1000):
    table = []
    for _ in range(channels):
        starts = [START_MIN, *sorted(int(v) for v in rng.integers(-spread, spread, pieces - 1))]
        rows = []
        for start in starts:
            shift = int(rng.integers(0, 20))
            size = max(1, (1 << shift) * 200 // spread)
            fields = int(rng.integers(-size, size + 1)), int(rng.integers(-(50 << shift), (50 << shift) + 1))
            rows.append(Record(start, *fields, shift, bool(rng.integers(0, 2))))
        table.append(tuple(rows))
    low = int(rng.integers(-128, 0))
    return StepFunction(records=tuple(table), low=low, high=int(rng.integers(0, 128)), proof=PROOF)


def taps(codes, window, pad, channel, y, x):
    """Codes below one output pixel, in Python integers."""
    _, height, width = codes.shape
    values = []
    for ky in range(window.kernel[0]):
        for kx in range(window.kernel[1]):
            row = y * window.strides[0] + ky * window.dilations[0] - window.pads[0]
            column = x * window.strides[1] + kx * window.dilations[1] - window.pads[1]
            inside = 0 <= row < height and 0 <= column < width
            values.append(int(codes[channel, row, column]) if inside else pad)
    return values


def slow_convolution(op, codes):
    outputs, per_group = op.weights.shape[:2]
    height, width = op.window.output_size(*codes.shape[1:])
    result = np.zeros((outputs, height, width), np.int64)
    for o, y, x in np.ndindex(result.shape):
        group = o // (outputs // op.groups)
        acc = 0
        for i in range(per_group):
            weights = [int(w) for w in op.weights[o, i].ravel()]
            acc += sum(w * v for w, v in zip(weights, taps(codes, op.window, op.pad_code, group * per_group + i, y, x), strict=True))
        result[o, y, x] = acc if op.step is None else evaluate(list(op.step.records[o]), acc, op.step.low, op.step.high)
    return result


WINDOWS = st.builds(
    lambda kernel, strides, dilations, pads: Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(*[st.integers(0, 2)] * 4),
)
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def fits(window, size):
    return all(value >= 1 for value in window.output_size(*size))


@given(
    window=WINDOWS, size=SIZES, groups=st.integers(1, 3), per_group=st.integers(1, 3), share=st.integers(1, 2), pad=st.sampled_from([0, -128, 7]),
    pieces=st.integers(0, 3), samples=st.integers(1, 3), largest=st.sampled_from([1, 4, 121, 255]), seed=st.integers(0, 1 << 30),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_convolution(window, size, groups, per_group, share, pad, pieces, samples, largest, seed):
    if not fits(window, size):
        return
    rng = np.random.default_rng(seed)
    outputs, inputs = groups * share, groups * per_group
    weights = rng.integers(-largest, largest + 1, (outputs, per_group, *window.kernel)).astype(np.int16)
    step = random_step(rng, outputs, pieces) if pieces else None
    bound = int(np.abs(weights.astype(int)).sum()) * 128
    op = Convolution(name="c", output="y", input="x", weights=weights, planes=1, window=window, groups=groups, pad_code=pad, step=step,
                     acc_low=-bound, acc_high=bound)  # fmt: skip
    shape = (outputs, *window.output_size(*size))
    tensors = {"x": tensor("x", (inputs, *size)), "y": tensor("y", shape, 8 if pieces else 32)}
    codes = rng.integers(-128, 128, (samples, inputs, *size)).astype(np.int8)
    got = golden.run(program(tensors, (op,)), {"x": codes})
    assert got["y"].dtype == (np.int8 if pieces else np.int32) and np.array_equal(got["x"], codes)
    for sample in range(samples):
        assert np.array_equal(got["y"][sample], slow_convolution(op, codes[sample]))


@given(window=WINDOWS, size=SIZES, channels=st.integers(1, 3), pad=st.sampled_from([0, -128, 7]), seed=st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=80)
def test_pools(window, size, channels, pad, seed):
    if not fits(window, size):
        return
    rng = np.random.default_rng(seed)
    height, width = window.output_size(*size)
    cut = int(rng.integers(0, width + 1)), int(rng.integers(0, height + 1))
    rectangles = [(0, cut[1], 0, width), (cut[1], height, 0, cut[0]), (cut[1], height, cut[0], width)]
    regions = tuple((r, random_step(rng, channels, int(rng.integers(1, 4)))) for r in rectangles if r[0] < r[1] and r[2] < r[3])
    operations = (
        MaxPool(name="m", output="m", input="x", window=window),
        SumPool(name="s", output="s", input="x", window=window, pad_code=pad, regions=regions, acc_low=-2000, acc_high=2000),
    )
    shape = (channels, height, width)
    tensors = {"x": tensor("x", (channels, *size)), "m": tensor("m", shape), "s": tensor("s", shape)}
    codes = rng.integers(-128, 128, (2, channels, *size)).astype(np.int8)
    got = golden.run(program(tensors, operations), {"x": codes})
    for sample in range(2):
        for c, y, x in np.ndindex(shape):
            assert got["m"][sample, c, y, x] == max(taps(codes[sample], window, -128, c, y, x))
            step = next(s for r, s in regions if r[0] <= y < r[1] and r[2] <= x < r[3])
            acc = sum(taps(codes[sample], window, pad, c, y, x))
            assert got["s"][sample, c, y, x] == evaluate(list(step.records[c]), acc, step.low, step.high)


@pytest.mark.parametrize("pieces", [1, 2, 5, 200])
@pytest.mark.parametrize("samples", [1, 400])
def test_step_functions_on_arrays(pieces, samples, rng):
    """One sample is computed directly, four hundred through the table of accumulators."""
    step = random_step(rng, 3, pieces)
    acc = rng.integers(-1500, 1500, (samples, 3, 5, 7))
    got = golden.requantise(step, acc)
    assert got.dtype == np.int8 and np.array_equal(golden.requantise(step, acc.astype(np.float32)), got)
    for index in [tuple(rng.integers(0, acc.shape)) for _ in range(2000)]:
        assert got[index] == evaluate(list(step.records[index[1]]), int(acc[index]), step.low, step.high)


def test_step_function_at_the_ends_of_its_arithmetic():
    records = [Record(START_MIN, (1 << 24) - 1, -(1 << 55), 55, True), Record(0, -(1 << 24), (1 << 55) - 1, 54)]
    step = StepFunction(records=(tuple(records),), low=-128, high=127, proof=PROOF)
    acc = np.array([-(1 << 31), -1, 0, 1, (1 << 31) - 1]).reshape(1, 1, 1, 5)
    assert golden.requantise(step, acc).ravel().tolist() == [evaluate(records, int(v), -128, 127) for v in acc.ravel()]


def test_rescale_fills_its_part_of_a_concatenation(rng):
    steps = [random_step(rng, 2), random_step(rng, 3, 3)]
    operations = (
        Rescale(name="a", output="y", input="p", step=steps[0]),
        Rescale(name="b", output="y", input="q", step=steps[1], channel_offset=2),
        Rescale(name="whole", output="z", input="p", step=steps[0]),
    )
    tensors = {"p": tensor("p", (2, 3, 4)), "q": tensor("q", (3, 3, 4)), "y": tensor("y", (5, 3, 4)), "z": tensor("z", (2, 3, 4))}
    codes = {name: rng.integers(-128, 128, (3, *tensors[name].shape)).astype(np.int8) for name in "pq"}
    got = golden.run(program(tensors, operations, "pq"), codes)
    assert np.array_equal(got["z"], got["y"][:, :2])
    for n, c, y, x in np.ndindex(3, 5, 3, 4):
        name, channel, step = ("p", c, steps[0]) if c < 2 else ("q", c - 2, steps[1])
        acc = int(codes[name][n, channel, y, x])
        assert got["y"][n, c, y, x] == evaluate(list(step.records[channel]), acc, step.low, step.high)


@given(seed=st.integers(0, 1 << 30), half_even=st.booleans())
@settings(deadline=None, max_examples=40)
def test_add(seed, half_even):
    rng = np.random.default_rng(seed)
    shift = int(rng.integers(0, 24))
    table = tuple(
        tuple(
            Record(START_MIN, int(rng.integers(-(1 << shift), (1 << shift) + 1)), int(rng.integers(-9, 9)), shift, half_even)
            for _ in range(2)
        )
        for _ in range(3)
    )
    step = StepFunction(records=table, low=-100, high=100, proof=PROOF)
    tensors = {name: tensor(name, (3, 2, 2)) for name in "xyz"}
    codes = {name: rng.integers(-128, 128, (2, 3, 2, 2)).astype(np.int8) for name in "xy"}
    got = golden.run(program(tensors, (Add(name="a", output="z", left="x", right="y", step=step),), "xy"), codes)["z"]
    for index in np.ndindex(got.shape):
        left, right = step.records[index[1]]
        value = left.multiplier * int(codes["x"][index]) + left.bias + right.multiplier * int(codes["y"][index])
        assert got[index] == min(max(shift_round(value, shift, half_even), -100), 100)


def test_copy_and_operand_used_twice(rng):
    index = rng.permutation(24)
    step = StepFunction(records=((Record(START_MIN, 1, 0, 0), Record(START_MIN, 1, 0, 0)),) * 4, low=-128, high=127, proof=PROOF)
    operations = (Copy(name="t", output="y", input="x", index=index), Add(name="a", output="z", left="y", right="y", step=step))
    tensors = {"x": tensor("x", (2, 3, 4)), "y": tensor("y", (4, 2, 3)), "z": tensor("z", (4, 2, 3))}
    codes = rng.integers(-128, 128, (2, 2, 3, 4)).astype(np.int8)
    got = golden.run(program(tensors, operations), {"x": codes})
    for sample in range(2):
        assert got["y"][sample].ravel().tolist() == [codes[sample].flat[i] for i in index]
        assert got["z"][sample].ravel().tolist() == [min(max(2 * int(codes[sample].flat[i]), -128), 127) for i in index]


def dense(inputs, weight, acc_bound):
    weights = np.full((1, inputs, 1, 1), weight, np.int16)
    op = Convolution(
        name="dense", output="y", input="x", weights=weights, planes=6, window=Window(), step=None, acc_low=-acc_bound, acc_high=acc_bound
    )
    return program({"x": tensor("x", (inputs, 1, 1)), "y": tensor("y", (1, 1, 1), 32)}, (op,))


@pytest.mark.parametrize(("inputs", "weight"), [(4, 255), (600, 255), (65000, 255)])
def test_largest_sums_are_exact(inputs, weight, rng):
    """The second and third need float64: float32 would round their odd totals."""
    codes = rng.integers(-128, 128, (3, inputs, 1, 1)).astype(np.int8)
    codes[0], codes[1] = -128, 127
    codes[1, 0] = 126
    got = golden.run(dense(inputs, weight, 1 << 31), {"x": codes})["y"].ravel().tolist()
    assert got == [sum(int(v) for v in sample.ravel()) * weight for sample in codes]


def test_float_type_follows_the_bound():
    for inputs, kind in ((514, np.float32), (515, np.float64)):
        tested = dense(inputs, 255, 1 << 31)
        assert integer._exact_float(tested.operations[0], tested.tensors["x"]) is kind
    huge = tensor("x", (1, 1, 1), 32, -(1 << 50), 1 << 50)
    with pytest.raises(ModelError, match=r"^layer 'dense' sums up to \d+, more than can be computed exactly$"):
        integer._exact_float(dense(1, 255, 1).operations[0], huge)


def test_accumulators_outside_their_proven_bounds_are_reported():
    with pytest.raises(ModelError, match=r"^layer 'dense' reached the accumulator 508\.\.508 outside its bounds -507\.\.507"):
        golden.run(dense(2, 2, 507), {"x": np.full((1, 2, 1, 1), 127, np.int8)})


def test_chunks_and_kept_tensors_change_nothing(rng, monkeypatch):
    window = Window(kernel=(3, 3), pads=(1, 1, 1, 1))
    weights = rng.integers(-1, 2, (4, 2, 3, 3)).astype(np.int16)
    operations = (
        Convolution(
            name="c",
            output="y",
            input="x",
            weights=weights,
            planes=1,
            window=window,
            step=random_step(rng, 4),
            acc_low=-9999,
            acc_high=9999,
        ),
        MaxPool(name="m", output="z", input="y", window=Window(kernel=(2, 2), strides=(2, 2))),
    )
    tensors = {"x": tensor("x", (2, 6, 6)), "y": tensor("y", (4, 6, 6)), "z": tensor("z", (4, 3, 3))}
    tested, codes = program(tensors, operations), {"x": rng.integers(-128, 128, (11, 2, 6, 6)).astype(np.int8)}
    whole = golden.run(tested, codes)
    monkeypatch.setattr(integer, "_CHUNK_ELEMENTS", 2 * 9 * 36 * 3)
    pieces = golden.run(tested, codes)
    assert list(whole) == ["x", "y", "z"] and all(np.array_equal(whole[name], pieces[name]) for name in whole)
    kept = golden.run(tested, codes, keep=["z"])
    assert list(kept) == ["z"] and np.array_equal(kept["z"], whole["z"])
    assert golden.run(tested, {"x": codes["x"][:0]})["z"].shape == (0, 4, 3, 3)
    with pytest.raises(UserError, match=r"^no operation writes a tensor 'q'; tensors are x, y, z$"):
        golden.run(tested, codes, keep=["q"])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({}, r"^codes of tensor 'x' are missing; given are \[\]$"),
        ({"x": np.zeros((1, 3, 1, 1), np.int8)}, r"^codes of 'x' must be integers of shape \(N, \*\(2, 1, 1\)\), not int8 \(1, 3, 1, 1\)$"),
        ({"x": np.zeros((1, 2, 1, 1))}, r"must be integers"),
        ({"x": np.full((1, 2, 1, 1), 200)}, r"^codes of tensor 'x' must lie in -128\.\.127, not 200\.\.200$"),
    ],
)
def test_wrong_codes_are_refused(codes, message):
    with pytest.raises(UserError, match=message):
        golden.run(dense(2, 1, 999), codes)
