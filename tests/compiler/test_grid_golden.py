"""Operations on integers of a fixed grid against plain Python; loops of programs made by hand."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler import golden
from tritloom.compiler.golden.grid import align_block, run_grid
from tritloom.compiler.image.validate import validate_program
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.grid import Align, ClampedSum, Magnitude, Prepend, Reduce
from tritloom.compiler.ir.loop import Carried, Loop
from tritloom.compiler.ir.program import InputSpec, OutputSpec, Program, Tensor
from tritloom.errors import ModelError, UserError


def column(*values: int) -> np.ndarray:
    return np.array(values)[None, :, None, None]


def ran(operation, *operands: np.ndarray) -> list[int]:
    return run_grid(operation, list(operands)).ravel().tolist()


def clamped(**fields) -> ClampedSum:
    return ClampedSum(**{"name": "op", "output": "y", "left": "a", "low": -(1 << 31), "high": (1 << 31) - 1, **fields})


def test_sums_comparisons_and_logic():
    a, b = column(-3, 0, 7, 127), column(-3, 1, -128, 127)
    assert ran(clamped(right="b"), a, b) == [-6, 1, -121, 254]
    assert ran(clamped(right="b", left_factor=64, right_factor=-1, constant=5), a, b) == [-184, 4, 581, 8006]
    assert ran(clamped(right="b", right_factor=-1, low=0, high=1), a, b) == [0, 0, 1, 0]
    assert ran(clamped(left_factor=-1, constant=1, low=0, high=1), column(0, 1)) == [1, 0]
    assert ran(clamped(low=-1, high=1), a) == [-1, 0, 1, 1]
    assert ran(clamped(left_factor=(1 << 16) - 1), column(-(1 << 15))) == [-(1 << 31) + (1 << 15)]


def test_magnitudes_and_extremes():
    values = column(-(1 << 15), 3, 0, -1)
    assert ran(Magnitude(name="op", output="y", input="a"), values) == [1 << 15, 3, 0, 1]
    assert ran(Reduce(name="op", output="y", input="a"), values) == [3]
    assert ran(Reduce(name="op", output="y", input="a", smallest=True), values) == [-(1 << 15)]
    # Of each sample alone, whatever the axes of its tensor.
    wide = np.arange(12).reshape(2, 2, 1, 3)
    assert run_grid(Reduce(name="op", output="y", input="a"), [wide]).tolist() == [[[[5]]], [[[11]]]]


def test_columns_stand_in_front():
    operation = Prepend(name="op", output="y", input="a", columns=np.array([[1, 2], [3, 4]], np.int16))
    found = run_grid(operation, [np.array([[[[5, 6, 7]], [[8, 9, 10]]]])])
    assert found.tolist() == [[[[1, 2, 5, 6, 7]], [[3, 4, 8, 9, 10]]]]


def scaled(mantissa: int, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(mantissa).reshape(1, 1, 1, 1), np.array(exponent).reshape(1, 1, 1, 1)


@given(
    values=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=5),
    mantissa=st.integers(1 << 15, (1 << 16) - 1),
    exponent=st.integers(-60, 8),
    constant=st.tuples(st.integers(1 << 15, (1 << 16) - 1), st.integers(-40, 8)),
)
@settings(deadline=None, max_examples=80)
def test_alignment_is_the_nearest_step_of_16_bits(values, mantissa, exponent, constant):
    """Against rationals: off by what 15 bits of the block and 16 of the scale leave open, and half a step."""
    found = align_block(np.array(values)[None, :, None, None], scaled(mantissa, exponent), constant).ravel().tolist()
    factor = mantissa * Fraction(2) ** exponent * constant[0] * Fraction(2) ** constant[1]
    largest = max(abs(value) for value in values) * factor
    for value, code in zip(values, found, strict=True):
        exact = min(max(value * factor, Fraction(-(1 << 15))), Fraction((1 << 15) - 1))
        limit = Fraction(1, 2) + min(largest, 1 << 17) / (1 << 13) if largest < 1 << 17 else 1 << 17
        assert abs(code - exact) <= limit
        assert -(1 << 15) <= code < 1 << 15


def test_alignment_at_ties_and_ends():
    one, half = (1 << 15, -15), (1 << 15, -16)
    values = column(-16383, -3, -1, 0, 1, 3, 16383)
    assert align_block(values, scaled(*one), half).ravel().tolist() == [-8191, -1, 0, 0, 1, 2, 8192]  # half up
    assert align_block(values, scaled(*one), one).ravel().tolist() == values.ravel().tolist()
    assert align_block(values, scaled(*one), (1 << 15, 40)).ravel().tolist() == [-(1 << 15)] * 3 + [0] + [(1 << 15) - 1] * 3
    assert align_block(values, scaled(*one), (1 << 15, -4000)).ravel().tolist() == [0] * 7
    assert not align_block(values, scaled(0, 0), one).any()  # a block of zeros has no scale
    found = run_grid(Align(name="op", output="y", input="a", constant=one), [values])
    assert found.ravel().tolist() == values.ravel().tolist()


# ---- loops ----


def tensor(name: str, low: int, high: int, bits: int = 8, channels: int = 1) -> Tensor:
    return Tensor(name=name, shape=(channels, 1, 1), bits=bits, low=low, high=high, scale=(Fraction(1),))


def doubling(limit: int = 5, ends: bool = True) -> Program:
    """``x`` is doubled in up to ``limit`` trips, the last of which begins with 8 or more; ``state`` begins as ``x``, ``sum`` counts from 3."""
    body = (
        clamped(name="double", output="twice", left="state", left_factor=2, low=-128, high=127),
        clamped(name="more", output="more", left="state", left_factor=-1, constant=8, low=0, high=1),
        clamped(name="count", output="next", left="sum", constant=1, low=-128, high=127),
    )
    loop = Loop(
        name="loop", output="trips", limit=limit, condition="more" if ends else "", body=body,
        carried=(Carried(before="state", after="twice", initial="x"), Carried(before="sum", after="next", values=np.full((1, 1, 1), 3, np.int16))),
    )  # fmt: skip
    codes = [tensor(name, -128, 127) for name in ("x", "state", "twice", "sum", "next")]
    tensors = [*codes, tensor("more", 0, 1), tensor("trips", 1, limit, 32)]
    outputs = tuple(
        OutputSpec(name=name, shape=(1, 1, 1, 1), dtype="int64", tensor=name, epilogue=()) for name in ("twice", "next", "trips")
    )
    return Program(
        name="doubling", tensors={entry.name: entry for entry in tensors}, operations=(loop,),
        inputs=(InputSpec(name="x", shape=(1, 1), dtype="int8", tensor="x", prologue=()),), outputs=outputs,
    )  # fmt: skip


def test_every_sample_ends_by_itself():
    program = doubling()
    validate_program(program)
    found = golden.run(program, {"x": np.array([1, 8, 0, 3, 100, -1], np.int8).reshape(-1, 1, 1, 1)})
    assert found["trips"].ravel().tolist() == [4, 1, 5, 3, 1, 5]
    assert found["twice"].ravel().tolist() == [16, 16, 0, 24, 127, -32]
    assert found["next"].ravel().tolist() == [7, 4, 8, 6, 4, 8]
    # What a trip began with is written between trips only.
    assert found["state"].ravel().tolist() == [8, 8, 0, 12, 100, -16]
    assert found["trips"].dtype == np.int32 and found["twice"].dtype == np.int8


def test_loops_without_a_condition_and_of_one_trip():
    codes = {"x": np.array([1, 100], np.int8).reshape(-1, 1, 1, 1)}
    assert golden.run(doubling(3, ends=False), codes)["twice"].ravel().tolist() == [8, 127]
    assert golden.run(doubling(1), codes)["trips"].ravel().tolist() == [1, 1]
    assert golden.run(doubling(), {"x": np.zeros((0, 1, 1, 1), np.int8)})["twice"].shape == (0, 1, 1, 1)


def test_a_narrow_tensor_begins_a_wide_state():
    program = doubling(12, ends=False)
    (loop,) = program.operations
    wide = {name: tensor(name, -(1 << 15), (1 << 15) - 1, 16) for name in ("state", "twice")}
    body = (replace(loop.body[0], low=-(1 << 15), high=(1 << 15) - 1), *loop.body[1:])
    program = replace(program, tensors={**program.tensors, **wide}, operations=(replace(loop, body=body, condition="more"),))
    validate_program(program)
    found = golden.run(program, {"x": np.array([-3, 1, 100], np.int8).reshape(-1, 1, 1, 1)})
    assert found["twice"].ravel().tolist() == [-12288, 16, 200] and found["state"].ravel().tolist() == [-6144, 8, 100]


def test_samples_of_several_chunks_and_kept_tensors(monkeypatch):
    monkeypatch.setattr("tritloom.compiler.golden.integer._CHUNK_ELEMENTS", 16)
    found = golden.run(doubling(), {"x": np.arange(20, dtype=np.int8).reshape(-1, 1, 1, 1)}, keep=["trips"])
    assert list(found) == ["trips"]
    assert found["trips"].ravel().tolist() == [5, 4, 3, 3, 2, 2, 2, 2] + [1] * 12


def test_a_value_beyond_its_tensor_is_an_error():
    program = doubling()
    loop = program.operations[0]
    narrow = {**program.tensors, "twice": tensor("twice", -4, 4)}
    with pytest.raises(ModelError, match=r"'double' leaves the range -4\.\.4"):
        golden.run(replace(program, tensors=narrow, operations=(loop,)), {"x": np.full((1, 1, 1, 1), 3, np.int8)})


def test_integers_are_taken_as_they_are():
    program = doubling()
    assert golden.quantise_inputs(program, {"x": np.array([[5]], np.int64)})["x"].ravel().tolist() == [5]
    with pytest.raises(UserError, match=r"input 'x' must lie in -128..127, not 200..200"):
        golden.quantise_inputs(program, {"x": np.array([[200]], np.int64)})


def damaged(**changes) -> Program:
    program = doubling()
    (loop,) = program.operations
    return replace(program, operations=(replace(loop, **changes),))


STATE, SUM = doubling().operations[0].carried


@pytest.mark.parametrize(("program", "words"), [
    (damaged(body=()), "repeats nothing"),
    (damaged(limit=6), "counts in another tensor"),
    (damaged(output="x"), "writes a tensor that exists already"),
    (damaged(condition="nowhere"), "ends by a tensor"),
    (damaged(carried=(STATE, replace(SUM, before="state"))), "two values in one tensor"),
    (damaged(carried=(replace(STATE, before="x"), SUM)), "two values in one tensor"),
    (damaged(carried=(replace(STATE, after="nowhere"), SUM)), "a tensor that does not exist"),
    (damaged(carried=(replace(STATE, after="trips"), SUM)), "never made"),
    (damaged(carried=(replace(STATE, initial="twice"), SUM)), "with a tensor that does not exist"),
    (damaged(carried=(replace(STATE, initial=""), SUM)), "two values or none"),
    (damaged(carried=(STATE, replace(SUM, values=np.full((1, 1, 1), 300, np.int16)))), "values that do not fit"),
    (damaged(carried=(STATE, replace(SUM, values=np.zeros((2, 1, 1), np.int16)))), "values that do not fit"),
    (damaged(carried=(STATE,)), "reads a tensor before it is made"),
    (damaged(body=(clamped(name="double", output="twice", left="state", low=-200, high=127), *doubling().operations[0].body[1:])), "limits beyond"),
    (damaged(body=(clamped(name="double", output="twice", left="trips", low=-1, high=1), *doubling().operations[0].body[1:])), "before it is made"),
])  # fmt: skip
def test_damaged_loops_are_refused(program, words):
    with pytest.raises(Malformed, match=words):
        validate_program(program)


def test_too_many_trips_of_nested_loops_are_refused():
    program = doubling()
    (inner,) = program.operations
    inner = replace(inner, limit=1 << 11)
    tensors = {**program.tensors, "trips": tensor("trips", 1, 1 << 11, 32), "outer": tensor("outer", 1, 1 << 11, 32)}
    outer = Loop(name="outer", output="outer", limit=1 << 9, carried=(), body=(inner,))
    validate_program(replace(program, tensors=tensors, operations=(outer,)))
    with pytest.raises(Malformed, match="more than 1048576 trips"):
        validate_program(replace(program, tensors=tensors, operations=(replace(outer, limit=1 << 10),)))
