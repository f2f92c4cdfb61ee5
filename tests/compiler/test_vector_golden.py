"""The rules of Softmax and normalisation in golden: plain Python integers of the stated widths, extremes, and their error against float64."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.frontend.vector import powers_of
from tritloom.compiler.golden.vector import normalise_rows, run_vector, softmax_rows
from tritloom.compiler.ir.vector import MatrixProduct, Normalise, Product, Softmax
from tritloom.errors import ModelError


def fits(value: int, bits: int) -> int:
    """The value, which must be an unsigned number of so many bits, or in magnitude one bit fewer than a signed number of them."""
    assert abs(value).bit_length() <= bits
    return value


def softmax_reference(codes: list[int], powers: list[int], taking: list[bool]) -> list[int]:
    largest = max(code for code, takes in zip(codes, taking, strict=True) if takes)
    exponentials = [fits(powers[fits(largest - code, 8)], 24) if takes else 0 for code, takes in zip(codes, taking, strict=True)]
    total = fits(sum(exponentials), 24 + (len(codes) - 1).bit_length())
    length = total.bit_length()
    reciprocal = fits((1 << (length + 24)) // total, 26)
    return [fits((fits(entry * reciprocal, 50) + (1 << (length - 1))) >> length, 25) for entry in exponentials]


def normalise_reference(codes: list[int], centre: bool, epsilon: int, fraction: int) -> list[int]:
    count, total = len(codes), fits(sum(codes), 25) if centre else 0
    variance = fits(count * fits(sum(code * code for code in codes), 32) - total * total, 48)
    scaled = fits((variance << fraction) + epsilon, 62)
    length = scaled.bit_length() + scaled.bit_length() % 2
    radicand = scaled << (48 - length) if length < 48 else scaled >> (length - 48)
    root = fits(isqrt(radicand), 24) or 1
    reciprocal = fits((1 << 47) // root, 48 if root == 1 else 25)
    shift = max(7 + (length - fraction) // 2, 1)
    return [(fits((count * code - total) * reciprocal, 49) + (1 << (shift - 1))) >> shift for code in codes]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=20), st.integers(1, 2000), st.data())
def test_softmax_is_the_stated_rule(codes: list[int], thousandths: int, data: st.DataObject) -> None:
    powers = powers_of(Fraction(thousandths, 1000), 256)
    taking = data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes)))
    taking[data.draw(st.integers(0, len(codes) - 1))] = True
    column = np.array(codes, np.int8)[None, :, None, None]
    found = softmax_rows(column, powers, np.array(taking, np.uint8)[:, None, None])
    assert found.ravel().tolist() == softmax_reference(codes, powers.tolist(), taking)
    assert softmax_rows(column, powers, None).ravel().tolist() == softmax_reference(codes, powers.tolist(), [True] * len(codes))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-255, 255), min_size=1, max_size=20), st.booleans(), st.integers(0, 15), st.integers(0, 1 << 50))
def test_normalisation_is_the_stated_rule(codes: list[int], centre: bool, half: int, epsilon: int) -> None:
    found = normalise_rows(np.array([codes, codes[::-1]], np.int64), centre=centre, epsilon=epsilon, fraction=2 * half)
    assert found[0].tolist() == found[1, ::-1].tolist() == normalise_reference(codes, centre, epsilon, 2 * half)


@pytest.mark.parametrize("count", [1, 2, 1 << 16])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (-255, 255), (255, 255), (-255, -255)])
def test_widest_and_narrowest_normalisation(count: int, codes: tuple[int, int]) -> None:
    row = ([codes[0]] * (count - count // 2) + [codes[1]] * (count // 2))[:count]
    for fraction in (0, 12):
        for epsilon in (0, 1, 1 << 59):
            for centre in (False, True):
                expected = normalise_reference(row, centre, epsilon, fraction)
                assert normalise_rows(np.array([row], np.int64), centre=centre, epsilon=epsilon, fraction=fraction)[0].tolist() == expected


def test_extremes_of_softmax() -> None:
    powers = powers_of(Fraction(1, 16), 256)
    assert softmax_rows(np.full((1, 1, 1, 1), -128), powers, None).item() == 1 << 24
    assert softmax_rows(np.full((1, 4, 1, 1), 127), powers, None).ravel().tolist() == [1 << 22] * 4
    alone = np.array([[[0]], [[1]], [[0]]], np.uint8)
    assert softmax_rows(np.array([127, -128, 127]).reshape(1, 3, 1, 1), powers, alone).ravel().tolist() == [0, 1 << 24, 0]
    steep = powers_of(Fraction(10**30), 3)
    assert steep.tolist() == [(1 << 24) - 1, 0, 0]
    flat = powers_of(Fraction(1, 10**30), 256)
    assert set(flat.tolist()) == {(1 << 24) - 1}


def test_powers_are_rounded_correctly() -> None:
    powers = powers_of(Fraction(1, 8), 256)
    exact = (2**24 - 1) * np.exp(-np.arange(256) / 8)
    assert np.abs(powers - exact).max() <= 0.5 + 1e-6
    assert (np.diff(powers) <= 0).all() and powers[0] == 2**24 - 1


def test_error_of_softmax_against_float64() -> None:
    """The figures of docs/numerics.md: at most ``2 + n / 32`` units of ``2**-24``."""
    rng = np.random.default_rng(7)
    for count in (2, 64, 1024):
        for gain in (Fraction(1, 256), Fraction(1, 16), Fraction(1)):
            codes = rng.integers(-128, 128, (8192 // count, count, 1, 1))
            exponentials = np.exp((codes - codes.max(axis=1, keepdims=True)) * float(gain))
            error = softmax_rows(codes, powers_of(gain, 256), None) - 2**24 * exponentials / exponentials.sum(axis=1, keepdims=True)
            assert np.abs(error).max() <= 2 + count / 32, (count, gain)


def test_error_of_normalisation_against_float64() -> None:
    """The figure of docs/numerics.md: at most one unit of ``2**-16`` where the result is below 32."""
    rng = np.random.default_rng(8)
    for count in (2, 3, 64, 1000):
        for epsilon in (0, Fraction(1, 100000), 5):
            codes = np.clip(np.rint(rng.normal(0, rng.choice([0.3, 5, 60]), (20000 // count, count))), -128, 127).astype(np.int64)
            centred = codes - codes.mean(axis=1, keepdims=True)
            variance = (centred**2).mean(axis=1, keepdims=True) + float(epsilon)
            exact = np.divide(centred, np.sqrt(variance), where=variance > 0, out=np.zeros(codes.shape))
            error = normalise_rows(codes, centre=True, epsilon=round(epsilon * count**2 * 2**20), fraction=20) - 2**16 * exact
            assert np.abs(error).max() <= 1, (count, epsilon)


def test_products_and_groups_by_plain_loops() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.integers(-128, 128, (2, 5, 2, 3)).astype(np.int8), rng.integers(-128, 128, (2, 5, 2, 4)).astype(np.int8)
    limits = {"step": None, "acc_low": -(1 << 30), "acc_high": 1 << 30}
    matrices = MatrixProduct(name="m", output="y", left="a", right="b", left_zero=-7, right_zero=200, **limits)
    found = run_vector(matrices, [left, right])
    assert found.shape == (2, 4, 2, 3) and found.dtype == np.int32
    for sample, column, head, row in np.ndindex(*found.shape):
        total = sum((int(left[sample, k, head, row]) + 7) * (int(right[sample, k, head, column]) - 200) for k in range(5))
        assert found[sample, column, head, row] == total
    single = Product(name="p", output="y", left="a", right="a", left_zero=255, right_zero=-255, **limits)
    np.testing.assert_array_equal(run_vector(single, [left, left]), (left.astype(int) - 255) * (left.astype(int) + 255))
    codes = rng.integers(-128, 128, (2, 6, 2, 3)).astype(np.int8)
    for groups, pixels in ((1, False), (3, False), (3, True), (6, True)):
        operation = Normalise(name="n", output="y", input="x", groups=groups, pixels=pixels, epsilon=9, fraction=4, **limits)
        found = run_vector(operation, [codes])
        share = 6 // groups
        for sample, group in np.ndindex(2, groups):
            part = codes[sample, group * share : (group + 1) * share].astype(int)
            mine = found[sample, group * share : (group + 1) * share]
            if pixels:
                assert mine.ravel().tolist() == normalise_reference(part.ravel().tolist(), True, 9, 4)
            else:
                for y, x in np.ndindex(2, 3):
                    assert mine[:, y, x].tolist() == normalise_reference(part[:, y, x].tolist(), True, 9, 4)


def test_inconsistent_operations_are_refused() -> None:
    codes = np.array([0, 100], np.int8).reshape(1, 2, 1, 1)
    with pytest.raises(ModelError, match="codes beyond the range"):
        run_vector(
            Softmax(name="s", output="y", input="x", powers=powers_of(Fraction(1), 100), step=None, acc_low=0, acc_high=1 << 24), [codes]
        )
    with pytest.raises(ModelError, match="outside its bounds"):
        run_vector(Product(name="p", output="y", left="a", right="b", step=None, acc_low=0, acc_high=9999), [codes, codes])
