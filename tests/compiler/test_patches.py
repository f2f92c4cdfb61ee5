"""Inputs stored as patches: the same sums as the plain convolution, the choice of what is stored, and the way back."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder

from tritloom.compiler.ir.program import Window
from tritloom.compiler.schedule import Placement, schedule, sim_parameters, tensor_from_bytes, tensor_to_bytes
from tritloom.compiler.schedule.patches import input_patches, patch_elements, remaining_weights, remaining_window
from tritloom.hw.arch.parameters import CoreParameters

PARAMETERS = CoreParameters(rows=8, columns=4, accumulator_bits=16, weight_words=1, activation_words=1, record_words=1, program_words=1)


def first_layer(shape, outputs=4, **window):
    builder = ProgramBuilder()
    given_input = builder.input(shape)
    builder.output(builder.convolution(given_input, outputs, **window))
    return builder.program()


def convolve(codes, weights, window, pad_code):
    """Plain loops over output pixels and taps: int64 (outputs, rows, columns)."""
    rows, columns = window.output_size(*codes.shape[1:])
    result = np.zeros((len(weights), rows, columns), np.int64)
    for y, x, ky, kx in np.ndindex(rows, columns, *window.kernel):
        row = y * window.strides[0] + ky * window.dilations[0] - window.pads[0]
        column = x * window.strides[1] + kx * window.dilations[1] - window.pads[1]
        inside = 0 <= row < codes.shape[1] and 0 <= column < codes.shape[2]
        result[:, y, x] += weights[:, :, ky, kx].astype(np.int64) @ (codes[:, row, column] if inside else np.full(len(codes), pad_code))
    return result


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 4), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel=pairs, strides=pairs,
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)), pads=st.tuples(*[st.integers(0, 3)] * 4), pad_code=st.integers(-128, 127),
    rows=st.sampled_from([4, 8, 16, 32]),
)  # fmt: skip
def test_sums_stay_and_bytes_come_back(seed, channels, size, kernel, strides, dilations, pads, pad_code, rows):
    window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
    assume(min(window.output_size(*size)) > 0)
    program = first_layer((channels, *size), kernel=kernel, strides=strides, dilations=dilations, pads=pads)
    object.__setattr__(program.operations[0], "pad_code", pad_code)
    for name, patches in input_patches(program, rows).items():
        assert patches.pad_code == pad_code
        rng = np.random.default_rng(seed)
        codes = rng.integers(-128, 128, (channels, *size))
        weights = rng.integers(-1, 2, (3, channels, *kernel))
        stored = np.append(codes, pad_code)[patch_elements(patches.window, codes.shape)]
        part = remaining_window(window, patches.window)
        np.testing.assert_array_equal(
            convolve(stored, remaining_weights(weights, patches.window), part, pad_code), convolve(codes, weights, window, pad_code)
        )
        # Fewer words are read for an output pixel, and no more are stored.
        words = -(-len(stored) // rows)
        assert words * np.prod(part.kernel) < -(-channels // rows) * np.prod(kernel)
        assert words * stored[0].size <= -(-channels // rows) * np.prod(size)
        placement = Placement(address=0, pixel_bytes=words * rows, element_bytes=1, shape=codes.shape, patches=patches)
        assert program.inputs[0].tensor == name
        data = tensor_to_bytes(placement, codes, CoreParameters.from_json({**PARAMETERS.to_json(), "rows": rows}))
        assert len(data) == placement.bytes
        np.testing.assert_array_equal(tensor_from_bytes(placement, data, PARAMETERS), codes)


@pytest.mark.parametrize(
    ("shape", "window", "rows", "kernel"),
    [
        ((1, 8, 8), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}, 16, (3, 3)),  # all nine taps in one word
        ((1, 8, 8), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}, 8, (1, 3)),  # nine need two words, three need one
        ((1, 9, 9), {"kernel": (3, 3), "strides": (2, 2)}, 4, (3, 3)),  # three words, but a quarter of the pixels
        ((3, 8, 8), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}, 16, (1, 3)),
        ((3, 8, 8), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}, 32, (3, 3)),
        ((3, 8, 8), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}, 8, None),  # nine lanes for a row are too many
        ((1, 1, 16), {"kernel": (1, 5)}, 8, (1, 5)),  # one dimension
        ((1, 16, 1), {"kernel": (5, 1)}, 8, (5, 1)),
        ((1, 8, 8), {"kernel": (3, 1), "strides": (1, 1)}, 4, (3, 1)),
        ((1, 8, 8), {"kernel": (3, 3), "strides": (2, 2)}, 16, None),  # the last row and column would not be stored
        ((1, 8, 8), {"kernel": (8, 8)}, 16, None),  # dense
        ((8, 4, 4), {"kernel": (1, 1)}, 4, None),
        ((4, 8, 8), {"kernel": (3, 3), "groups": 2}, 64, None),
    ],
)
def test_what_is_stored(shape, window, rows, kernel):
    found = input_patches(first_layer(shape, **window), rows)
    assert [patches.window.kernel for patches in found.values()] == ([] if kernel is None else [kernel])


def test_a_tensor_with_two_readers_or_also_an_output_stays_plain():
    for twice in (False, True):
        builder = ProgramBuilder()
        image = builder.input((1, 8, 8))
        builder.output(builder.convolution(image, 2, (3, 3)))
        builder.output(builder.convolution(image, 2, (3, 3)) if twice else image)
        assert input_patches(builder.program(), 16) == {}


def test_a_first_layer_takes_one_clock_a_pixel():
    program = first_layer((1, 20, 20), 16, kernel=(3, 3), pads=(1, 1, 1, 1))
    plan = schedule(program, sim_parameters(program))
    assert plan.cycles < 400 * max(1, 16 // plan.parameters.post_lanes * program.operations[0].step.pieces) + 60
    plain = Placement(address=0, pixel_bytes=16, element_bytes=1, shape=(1, 20, 20))
    assert plan.placements[program.inputs[0].tensor].bytes == plain.bytes
