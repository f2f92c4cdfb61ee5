"""Schedules of copies: index maps as few affine nests."""

from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder
from schedule_cases import run, tight

from tritloom.compiler.schedule import memory_needs, schedule
from tritloom.compiler.schedule.nest import separable_nests
from tritloom.errors import ModelError

COPIES = {
    "transpose": ((5, 3, 4), (3, 4, 5), lambda values: values.transpose(1, 2, 0)),
    "flatten": ((6, 4, 4), (96, 1, 1), lambda values: values),
    "unflatten": ((60, 1, 1), (5, 3, 4), lambda values: values),
    "reshape": ((12, 5, 5), (10, 30, 1), lambda values: values),
    "flip": ((3, 4, 5), (3, 4, 5), lambda values: values[:, ::-1, ::-1]),
    "repeat": ((3, 1, 1), (3, 4, 4), lambda values: np.broadcast_to(values, (3, 4, 4))),
    "slice": ((9, 5, 5), (2, 2, 3), lambda values: values[3:7:2, 1:4:2, 2:]),
    "shuffle": ((12, 3, 3), (12, 3, 3), lambda values: values.reshape(3, 4, 3, 3).swapaxes(0, 1)),
    "every third": ((8, 6, 4), (8, 9, 6), lambda values: values[:, np.arange(9) * 2 // 3][:, :, np.arange(6) * 2 // 3]),
    "uneven": ((8, 7, 5), (8, 10, 3), lambda values: values[::-1, np.arange(10) * 7 // 10][:, :, [4, 0, 0]]),
    "double": ((8, 6, 4), (8, 12, 8), lambda values: values.repeat(2, 1).repeat(2, 2)),
    "single": ((1, 1, 1), (1, 1, 1), lambda values: values),
}


@pytest.mark.parametrize("case", COPIES)
def test_copies(case):
    shape, target, view = COPIES[case]
    builder = ProgramBuilder()
    index = np.ascontiguousarray(view(np.arange(np.prod(shape)).reshape(shape))).ravel()
    builder.output(builder.copy(builder.input(shape), index, target))
    result = run(builder.program(), tight(builder.program(), 8, 4))
    # One of them halts.
    assert len(result.instructions) <= {"reshape": 30, "every third": 10, "uneven": 15}.get(case, 2)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)), scales=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_nests_of_a_resized_image_are_the_image(sizes, scales, seed):
    channels, height, width = sizes
    source = np.arange(channels)[:, None, None] + 7 * np.random.default_rng(seed).permutation(height)[None, :, None] * width
    source = source + 7 * (np.arange(width) * scales[0] // scales[1])[None, None, :] * 11
    target = (1000 + np.arange(channels * height * width).reshape(height, width, channels).transpose(2, 0, 1)).astype(np.int64)
    found = []
    for start, loops in separable_nests(source.astype(np.int64), target):
        points = start[None]
        for count, stride in loops:
            points = (points[None] + np.arange(count)[:, None, None] * stride).reshape(-1, 2)
        found.append(points)
    got = np.concatenate(found)
    np.testing.assert_array_equal(got[np.argsort(got[:, 1])], np.stack([source, target], axis=-1).transpose(1, 2, 0, 3).reshape(-1, 2))


def test_a_map_that_is_no_sum_of_its_axes_has_no_separable_nests():
    source = np.arange(24).reshape(2, 3, 4)
    source[1, 2, 3] += 1
    assert separable_nests(source, np.arange(24).reshape(2, 3, 4)) == []
    # What does not go on starts anew, and its second entry with it.
    assert len(separable_nests(np.array([[[0, 1, 2, 7, 8, 9]]]), np.arange(6).reshape(1, 1, 6))) == 2


def test_large_images_are_resized_quickly():
    """Maps with long periods and with none; the time is bounded against quadratic searches only."""
    for factor, instructions in ((2.0, 1), (1.5, 9), (1.23, 1000)):
        builder = ProgramBuilder()
        rows = (np.arange(int(64 * factor)) / factor).astype(np.int64)
        index = np.arange(32 * 64 * 64).reshape(32, 64, 64)[:, rows][:, :, rows]
        builder.output(builder.copy(builder.input((32, 64, 64)), index.ravel(), index.shape))
        begin = process_time()
        found = len(schedule(builder.program(), tight(builder.program(), 8, 8, lanes=4)).instructions) - 1
        taken = process_time() - begin
        print(f"64 x 64 x 32 by {factor}: {found} instructions in {taken:.2f} s")
        assert taken < 15 and found <= instructions


def test_random_permutation_takes_many_instructions_and_an_absurd_one_is_refused():
    builder = ProgramBuilder()
    builder.output(builder.copy(builder.input((40, 1, 1)), np.random.default_rng(0).permutation(40), (40, 1, 1)))
    run(builder.program(), tight(builder.program(), 8, 4))
    builder = ProgramBuilder()
    builder.output(builder.copy(builder.input((5000, 1, 1)), np.random.default_rng(0).permutation(5000), (5000, 1, 1)))
    with pytest.raises(ModelError, match=r"^layer 'copy_t1' moves its elements in more than 1000 separate runs; use a regular"):
        memory_needs(builder.program(), rows=8, columns=4, weight_encoding="trit2")
