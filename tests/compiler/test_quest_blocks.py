"""QuEST's operations on blocks: against matrices and float64, in files, and what the front end takes for a Hadamard matrix."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.frontend.operators_sequence import rotation_of
from tritloom.compiler.golden.block import run_block
from tritloom.compiler.golden.quest import hadamard, quantise_by_deviation
from tritloom.compiler.image.block_codec import check_block
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.program import InputSpec, OutputSpec, Program, Tensor
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.hw.arch.blockfloat import NOTHING, scale_of
from tritloom.models.methods import quest


def real(scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.ldexp(scale[0].astype(np.float64), scale[1])


def ratio_of(channels: int, bits: float) -> tuple[np.ndarray, np.ndarray]:
    """``sqrt(C)`` over the distance of two levels, to 16 bits."""
    distance = quest.unit_of(1.0, bits) * (1 if quest.levels(bits) == 3 else 2)
    mantissa, exponent = np.frexp(np.sqrt(channels) / distance)
    return scale_of(np.int64(round(mantissa * 2**30)), int(exponent) - 30)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 7), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([1, 1 << 15, (1 << 24) - 1]))
def test_butterflies_are_the_matrix(exponent, blocks, seed, largest):
    """Exact, up to the sum of 128 values of 24 bits; every block by itself, every row of pixels by itself."""
    size = 1 << exponent
    values = np.random.default_rng(seed).integers(-largest, largest + 1, (2, blocks * size, 3, 1))
    values[0, :, 0] = largest
    expected = np.einsum("ij,nbjhw->nbihw", quest.hadamard(size).astype(np.int64), values.reshape(2, blocks, size, 3, 1))
    np.testing.assert_array_equal(hadamard(values, size), expected.reshape(values.shape))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 1.585, 2, 3, 4]), st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 1 << 14, (1 << 31) - 1])
)
def test_codes_are_those_of_the_float_quantiser(bits, channels, seed, largest):
    """Where a value does not lie near the border of two levels; the scale is the root mean square times the root of the channels."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-largest, largest + 1, (1, channels, 2, 1))
    if largest > 1 << 14:
        values[:, :, 1] = np.rint(rng.standard_t(3, (1, channels, 1)) * largest / 1000)
    codes, scale = quantise_by_deviation(values, quest.levels(bits), ratio_of(channels, bits))
    sigma = np.sqrt((values.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(real(scale), sigma * np.sqrt(channels), rtol=3e-4)
    for pixel in range(2):
        x = values[0, :, pixel, 0].astype(np.float64)
        found = codes[0, :, pixel, 0]
        if not x.any():
            assert (found == (0 if quest.levels(bits) == 3 else -1)).all()
            continue
        unit = quest.unit_of(sigma[0, 0, pixel, 0], bits)
        steps = x / unit + 0.5 if quest.levels(bits) == 3 else x / unit / 2
        clear = (np.abs(steps - np.rint(steps)) > 1e-3 * (1 + np.abs(steps))) | (x == 0)
        np.testing.assert_array_equal(found[clear], quest.quantise(x, bits, unit)[clear])


def test_nothing_and_ties():
    """Zeros have no scale; a zero among others is -1 of an even number of levels, and 0 of three; one value alone is the outermost level that its own size reaches."""
    codes, scale = quantise_by_deviation(np.zeros((1, 4, 1, 1), np.int64), 2, ratio_of(4, 1))
    assert (codes == -1).all() and scale[0].item() == 0 and scale[1].item() == NOTHING
    values = np.array([0, 5, -5, 0]).reshape(1, 4, 1, 1)
    for bits, expected in ((1, [-1, 1, -1, -1]), (1.585, [0, 1, -1, 0]), (2, [-1, 3, -3, -1])):
        assert quantise_by_deviation(values, quest.levels(bits), ratio_of(4, bits))[0].ravel().tolist() == expected
    assert quantise_by_deviation(np.array([-7]).reshape(1, 1, 1, 1), 2, ratio_of(1, 1))[0].item() == -1


def program(**changes: object) -> Program:
    tensors = {
        "x": Tensor(name="x", shape=(16, 2, 1), bits=8, low=-128, high=127, scale=(1,)),
        "h": Tensor(name="h", shape=(16, 2, 1), bits=32, low=-(1 << 31), high=(1 << 31) - 1, scale=(1,)),
        "h.scale": Tensor(name="h.scale", shape=(2, 2, 1), bits=32, low=-(1 << 31), high=(1 << 31) - 1, scale=(1,)),
        "q": Tensor(name="q", shape=(16, 2, 1), bits=3, low=-4, high=3, scale=(1,)),
        "q.scale": Tensor(name="q.scale", shape=(2, 2, 1), bits=32, low=-(1 << 31), high=(1 << 31) - 1, scale=(1,)),
    }
    transform = Hadamard(name="h", output="h", output_scale="h.scale", input="x", size=8)
    codes = QuantiseByDeviation(
        name="q", output="q", output_scale="q.scale", input="h", input_scale="h.scale", levels=4, ratio=(1 << 15, -14)
    )
    if "size" in changes:
        transform = replace(transform, **changes)
    elif changes:
        codes = replace(codes, **changes)
    given = InputSpec(name="x", shape=("N", 32), dtype="float32", tensor="x", prologue=())
    output = OutputSpec(name="q", shape=("N", 32), dtype="float32", tensor="q", epilogue=())
    return Program(name="p", tensors=tensors, operations=(transform, codes), inputs=(given,), outputs=(output,))


def test_scales_go_with_the_values():
    """A block whose scale is 2**7 larger has the same codes and a scale 2**7 larger; every pixel has its own."""
    values = np.random.default_rng(0).integers(-128, 128, (1, 16, 2, 1)).astype(np.int8)
    values[:, :, 1] >>= 4
    first, second = program().operations
    found = []
    for shift in (0, 7):
        scale = np.array([1 << 15, shift - 15]).reshape(1, 2, 1, 1).repeat(2, axis=2).astype(np.int32)
        tensors = {"x": values, "x.scale": scale}
        tensors |= run_block(replace(first, input_scale="x.scale"), tensors)
        tensors |= run_block(second, tensors, 3)
        found.append(tensors)
    expected = np.concatenate([quest.hadamard(8) @ values[0, part : part + 8, :, 0].astype(np.int64) for part in (0, 8)])
    values_of = found[0]["h"][0, :, :, 0] * real((found[0]["h.scale"][:, 0], found[0]["h.scale"][:, 1]))[0, :, 0]
    np.testing.assert_array_equal(values_of, expected)
    np.testing.assert_array_equal(found[0]["q"], found[1]["q"])
    np.testing.assert_array_equal(found[0]["q.scale"] + np.array([0, 7]).reshape(1, 2, 1, 1), found[1]["q.scale"])
    assert found[0]["q.scale"][0, 1, 0] > found[0]["q.scale"][0, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"), [({"size": 6}, "blocks that do not fit"), ({"size": 32}, "blocks that do not fit"), ({"levels": 6}, "levels beyond its tensor"), ({"levels": 9}, "levels beyond its tensor")]
)  # fmt: skip
def test_impossible_operations_are_malformed(change, words):
    for wanted in ({}, change):
        made = program(**wanted)
        with pytest.raises(Malformed, match=words) if wanted else nullcontext():
            for operation in made.operations:
                check_block(operation, made, made.tensors[operation.output], "it")


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 127, 128, 254, 255])
def test_cores_say_which_levels_they_lack(levels):
    """A core limits codes to powers of two less 1; for others there is a sentence, and no other operation lacks anything."""
    made = program(levels=levels)
    outermost = (levels // 2 if levels % 2 else levels - 1) + 1
    if outermost & (outermost - 1):
        (sentence,) = obstacles(made)
        assert sentence.startswith("layer 'q' (QuantiseByDeviation) cannot run on a core yet: its vector unit limits codes")
    else:
        assert obstacles(made) == ()
        schedule(made, sim_parameters(made))


def test_what_a_hadamard_matrix_is():
    matrix = np.kron(np.eye(3), quest.hadamard(16)).astype(np.float32)
    assert rotation_of(matrix) == (16, 1)
    assert rotation_of(matrix / 4) == (16, 0.25)
    assert rotation_of(quest.hadamard(2)) == (2, 1)
    swapped, one_wrong = matrix[:, [1, 0, *range(2, 48)]], matrix.copy()
    one_wrong[-1, -1] *= -1
    for other in (swapped, one_wrong, -matrix, matrix[:32], np.eye(4), np.zeros((4, 4)), matrix[:0, :0]):
        assert rotation_of(other) is None
