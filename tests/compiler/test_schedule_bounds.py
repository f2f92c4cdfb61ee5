"""Interval arithmetic on instructions: exact at every edge, and never kinder than the core."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import random_program

from tritloom.compiler.schedule import memory_needs, schedule
from tritloom.compiler.schedule.bounds import check_instruction
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Instruction, Loop, Opcode
from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.model import CoreModel

CORE = CoreParameters(rows=4, columns=3, weight_words=8, activation_words=8, record_words=8, program_words=64)
"""32 bytes of activations, 8 weight words, 8 records."""


ONCE = (Loop(last=0),)


def verdict(instruction, core=CORE, **loaded):
    """What is wrong with an instruction, or nothing."""
    try:
        check_instruction(instruction, core, "it", **{"weight_words": 8, "record_words": 8, **loaded})
    except ModelError as error:
        return str(error).removeprefix("it ").partition(";")[0]
    return ""


def matrix(loops=ONCE, **fields):
    return Instruction(opcode=Opcode.MATRIX, loops=loops, **{"last_columns": 3, **fields})


def pool(loops=ONCE, **fields):
    return Instruction(opcode=Opcode.POOL, loops=loops, **fields)


def elementwise(loops=ONCE, **fields):
    return Instruction(opcode=Opcode.ELEMENTWISE, loops=loops, **fields)


TILES = (Loop(last=2, o_step=3, p_step=1, b_step=1),)

CASES = [
    (matrix(a=28, b=7, o=29, p=5), ""),
    (matrix(a=32), "uses activation byte 32, but there are 32"),
    (matrix(a=2), "reads activation words at addresses that are no multiple of the word"),
    (matrix((Loop(last=1, a_step=2),), reduce_loops=1), "reads activation words at addresses that are no multiple of the word"),
    (matrix((Loop(last=1, a_step=-4),)), "uses activation byte -4, but there are 32"),
    (matrix(b=8), "uses weight word 8, but there are 8"),
    (matrix((Loop(last=1, b_step=-1),), reduce_loops=1), "uses weight word -1, but there are 8"),
    (matrix(o=30), "uses activation byte 32, but there are 32"),
    (matrix(o=30, last_columns=2), ""),
    (matrix(p=6), "uses record 8, but there are 8"),
    (matrix(p=2, records=2), ""),
    (matrix(p=3, records=2), "uses record 8, but there are 8"),
    (matrix(p=3, records=2, last_columns=2), ""),
    (matrix(p=60000, raw=True, o=20), ""),
    (matrix(raw=True, o=24), "uses activation byte 35, but there are 32"),
    (matrix(raw=True, o=2), "writes accumulators at addresses that are no multiple of 4"),
    (matrix((Loop(last=1, o_step=2),), raw=True), "writes accumulators at addresses that are no multiple of 4"),
    (matrix(last_columns=0), "writes 0 columns of 3"),
    (matrix(last_columns=4), "writes 4 columns of 3"),
    (matrix(records=0), "has too few records"),
    (matrix(low=1, high=0), "has no code between its bounds"),
    (matrix(reduce_loops=2), "has a reduction of more loops than it has"),
    (matrix((Loop(last=1, o_step=1),), reduce_loops=1), "moves its result inside a reduction"),
    (matrix((Loop(last=1, p_step=1),), reduce_loops=1), "moves its result inside a reduction"),
    (matrix(plane_loop=0), "has its plane loop outside the reduction"),
    (matrix(plane_loop=0, reduce_loops=1), ""),
    (matrix(tile_loop=0, reduce_loops=1), "has its tile loop inside the reduction"),
    (matrix(tile_loop=1), "has its tile loop inside the reduction"),
    # Three tiles, the last of one column: bytes o .. o + 6.
    (matrix(TILES, tile_loop=0, last_columns=1, o=25, p=3), ""),
    (matrix(TILES, tile_loop=0, last_columns=1, o=26), "uses activation byte 32, but there are 32"),
    (matrix(TILES, tile_loop=0, last_columns=2, o=25), "uses activation byte 32, but there are 32"),
    # The tiles before the last write all columns, also where they are the ones that reach furthest.
    (matrix((Loop(last=1),), tile_loop=0, last_columns=1, o=29), ""),
    (matrix((Loop(last=1),), tile_loop=0, last_columns=1, o=30), "uses activation byte 32, but there are 32"),
    (matrix((Loop(last=1, p_step=-1),), tile_loop=0, last_columns=1, p=6), "uses record 65541, but there are 8"),
    (matrix((Loop(last=0),), tile_loop=0, last_columns=1, o=31), ""),
    (pool(a=28, o=28), ""),
    (pool(o=32), "uses activation byte 32, but there are 32"),
    (pool(o=1), "writes activation words at addresses that are no multiple of the word"),
    (pool((Loop(last=1, o_step=6),)), "writes activation words at addresses that are no multiple of the word"),
    (pool(a=32), "uses activation byte 32, but there are 32"),
    (elementwise(a=31, o=31, p=7), ""),
    (elementwise(a=32), "uses activation byte 32, but there are 32"),
    (elementwise(o=32), "uses activation byte 32, but there are 32"),
    (elementwise(b=32), ""),
    (elementwise(b=32, records=2, two_operands=True), "uses activation byte 32, but there are 32"),
    (elementwise(b=31, p=6, records=2, two_operands=True), ""),
    (elementwise(records=1, two_operands=True), "has too few records"),
    (elementwise(p=7, records=2), "uses record 8, but there are 8"),
    (elementwise(reduce_loops=1), "has a reduction of more loops than it has"),
    (elementwise((Loop(last=3, a_step=8), Loop(last=7, a_step=-23))), ""),
    (elementwise((Loop(last=3, a_step=8), Loop(last=8, a_step=-23))), "uses activation byte 32, but there are 32"),
]


LANES = CoreParameters(rows=4, columns=6, post_lanes=2, weight_words=8, activation_words=8, record_words=8, program_words=64)
UNALIGNED = "writes or reads several bytes at addresses that are no multiple of their number"
WIDE = [
    (matrix(wide=True, o=26, last_columns=6, p=5), ""),
    (matrix(wide=True, o=26, last_columns=5, p=6), "uses record 8, but there are 8"),
    (matrix(wide=True, o=26, last_columns=4, p=6), ""),
    (matrix(wide=True, o=28, last_columns=5), "uses activation byte 32, but there are 32"),
    (matrix(wide=True, o=28, last_columns=3), ""),
    (matrix(wide=True, o=1), UNALIGNED),
    (matrix((Loop(last=1, o_step=3),), wide=True), UNALIGNED),
    (matrix(wide=True, raw=True), "uses the lanes of the post unit for results that do not go through them"),
    (pool(wide=True), "uses the lanes of the post unit for results that do not go through them"),
    (elementwise(wide=True, a=30, o=30, p=7), ""),
    (elementwise(wide=True, a=32), "uses activation byte 33, but there are 32"),
    (elementwise(wide=True, a=1), UNALIGNED),
    (elementwise(wide=True, b=1, records=2, two_operands=True), UNALIGNED),
    (elementwise((Loop(last=1, a_step=1),), wide=True), UNALIGNED),
    (elementwise((Loop(last=1, o_step=-2),), wide=True), "uses activation byte -2, but there are 32"),
]


@pytest.mark.parametrize("instruction,problem", WIDE)
def test_edges_with_several_lanes(instruction, problem):
    assert verdict(instruction, LANES) == problem


@pytest.mark.parametrize("instruction,problem", CASES)
def test_edges_of_every_memory(instruction, problem):
    assert verdict(instruction) == problem


def padded(last=2, **fields):
    """A window of ``last + 1`` words along x over an input of 2 words that begins one word before it."""
    loops = (Loop(last=last, a_step=4, x_step=1),)
    return pool(loops, reduce_loops=1, padded=True, **{"a": (1 << 32) - 4, "x": -1, "height": 1, "width": 2, **fields})


PADDED = [
    (padded(), ""),
    (padded(last=9), ""),
    (padded(width=8, last=8), ""),
    (padded(width=9, last=9), "uses activation byte 32, but there are 32"),
    (padded(x=0), "uses activation byte -4, but there are 32"),
    (padded(height=0), ""),
    (padded(x=-30000, last=60000), "uses activation byte 120000, but there are 32"),
    (padded(x=1, last=40000), "walks beyond the coordinates that the core counts"),
    (pool((Loop(last=1, x_step=1, y_step=1),), padded=True, height=1, width=1), "moves both coordinates in one loop"),
    (
        pool((Loop(last=65535, x_step=1), Loop(last=65535, x_step=-65534)), padded=True, height=1),
        "walks more coordinates than any layer has",
    ),
]


@pytest.mark.parametrize("instruction,problem", PADDED)
def test_padding_is_not_read(instruction, problem):
    assert verdict(instruction) == problem


def test_only_what_is_loaded_counts():
    assert verdict(matrix(b=3), weight_words=3) == "uses weight word 3, but there are 3"
    assert verdict(matrix(p=3), record_words=5) == "uses record 5, but there are 5"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 3), (8, 16), (16, 1)]))
def test_one_word_less_is_noticed(seed, shape):
    program = random_program(seed, 5)
    needs = memory_needs(program, rows=shape[0], columns=shape[1], weight_encoding="trit2")
    if min(needs.weight_words, needs.record_words, needs.activation_words) < 2:
        return
    sizes = {"weight_words": needs.weight_words, "record_words": needs.record_words}
    core = CoreParameters(
        rows=shape[0], columns=shape[1], accumulator_bits=32, activation_words=needs.activation_words, program_words=needs.program_words, **sizes
    )  # fmt: skip
    body = schedule(program, core).instructions[:-1]
    for instruction in body:
        check_instruction(instruction, core, "it", **sizes)
    for field in sizes:
        with pytest.raises(ModelError):
            for instruction in body:
                check_instruction(instruction, core, "it", **{**sizes, field: sizes[field] - 1})


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_what_is_accepted_runs_and_what_runs_out_is_refused(data):
    opcode = data.draw(st.sampled_from([Opcode.MATRIX, Opcode.POOL, Opcode.ELEMENTWISE]))
    count = data.draw(st.integers(1, 3))
    reduce_loops = 0 if opcode == Opcode.ELEMENTWISE else data.draw(st.integers(0, count))
    core = data.draw(st.sampled_from([CORE, LANES]))
    raw = opcode == Opcode.MATRIX and data.draw(st.booleans())
    wide = opcode != Opcode.POOL and not raw and data.draw(st.booleans())
    unit = 4 if opcode != Opcode.ELEMENTWISE else core.post_lanes if wide else 1
    near = unit if opcode == Opcode.ELEMENTWISE else 1
    small = st.integers(-2, 2)
    loops = tuple(
        Loop(
            last=data.draw(st.integers(0, 2)), a_step=unit * data.draw(small), b_step=near * data.draw(small), y_step=0,
            o_step=0 if index < reduce_loops else 4 * data.draw(small), p_step=0 if index < reduce_loops else data.draw(small),
            x_step=data.draw(small),
        )
        for index in range(count)
    )  # fmt: skip
    two = opcode == Opcode.ELEMENTWISE and data.draw(st.booleans())
    instruction = Instruction(
        opcode=opcode, loops=loops, reduce_loops=reduce_loops, two_operands=two, records=2 if two else data.draw(st.integers(1, 2)),
        raw=raw, wide=wide, padded=opcode != Opcode.ELEMENTWISE and data.draw(st.booleans()),
        tile_loop=data.draw(st.sampled_from([15, *range(reduce_loops, count)])) if opcode == Opcode.MATRIX else 15,
        last_columns=data.draw(st.integers(1, 3)), a=unit * data.draw(st.integers(0, 8)), b=near * data.draw(st.integers(0, 7)), o=4 * data.draw(st.integers(0, 7)),
        p=data.draw(st.integers(0, 7)), x=data.draw(small), height=1, width=data.draw(st.integers(1, 4)),
    )  # fmt: skip
    model = CoreModel(core)
    model.write(Space.RECORDS, 0, bytes(core.record_word_bytes * 8))
    try:
        model.execute(instruction)
        runs = True
    except ValueError:
        runs = False
    # Record registers wrap, which the bounds refuse and the core allows.
    if not any(np.array([loop.p_step for loop in loops]) < 0):
        assert runs == (verdict(instruction, core) == "")
    elif verdict(instruction, core) == "":
        assert runs
