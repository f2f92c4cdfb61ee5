"""Schedules of element by element operations: records, loops, lanes of the post unit."""

import numpy as np
import pytest
from program_cases import ProgramBuilder
from schedule_cases import run, tight

from tritloom.compiler.ir.program import Rescale
from tritloom.compiler.schedule.nest import MAX_ITERATIONS, Axis, build
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Opcode


def test_elementwise_operations_with_many_channels_and_records():
    builder = ProgramBuilder(3)
    source = builder.input((37, 3, 2))
    other = builder.convolution(source, 37, step=builder.step(37, pieces=7, shared=False))
    builder.output(builder.concat(builder.add(source, other), source, other))
    builder.output(builder.add(source, source))
    run(builder.program(), tight(builder.program(), 8, 3))


def test_elementwise_operations_on_more_pixels_than_a_loop_counts():
    builder = ProgramBuilder(8)
    source = builder.input((1, 241, 283))
    step = builder.step(1, pieces=1, shared=True)
    builder.operations.append(Rescale(name="large", output=builder.tensor((1, 241, 283)), input=source, step=step))
    builder.output("t1")
    program = builder.program()
    plan = run(program, tight(program))
    (instruction,) = (entry for entry in plan.instructions if entry.opcode == Opcode.ELEMENTWISE)
    assert [loop.last + 1 for loop in instruction.loops] == [283, 241]


def test_equal_channels_share_their_records():
    for shared, records in ((True, 3), (False, 3 * 9)):
        builder = ProgramBuilder(1)
        source = builder.input((9, 2, 2))
        step = builder.step(9, pieces=3, shared=shared)
        builder.operations.append(Rescale(name="same", output=builder.tensor((9, 2, 2)), input=source, step=step))
        builder.output("t1")
        assert len(run(builder.program(), tight(builder.program())).records) == 16 * records


def test_loops_longer_than_their_counter_stay_apart():
    builder = ProgramBuilder(6)
    source = builder.input((16, 65, 65))
    step = builder.step(16, pieces=1, shared=True)
    builder.operations.append(Rescale(name="large", output=builder.tensor((16, 65, 65)), input=source, step=step))
    builder.output("t1")
    result = run(builder.program(), tight(builder.program(), 16, 16))
    assert [loop.last + 1 for loop in result.instructions[0].loops] == [16, 65 * 65]


def test_lanes_are_used_where_every_address_is_a_multiple_of_their_number():
    """Parts of 5, 8 and 3 channels side by side: the first begins on a multiple of 4 but is not whole, the second one does not begin there."""
    builder = ProgramBuilder(3)
    parts = [builder.convolution(builder.input((4, 3, 3)), channels) for channels in (5, 8, 3)]
    joined = builder.concat(*parts)
    whole = builder.concat(*(builder.convolution(joined, channels) for channels in (8, 4)))
    total = builder.add(whole, builder.convolution(whole, 12))
    turned = builder.copy(total, np.arange(12 * 9).reshape(12, 3, 3).transpose(0, 2, 1).ravel(), (12, 3, 3))
    reversed_channels = builder.copy(turned, np.arange(12 * 9).reshape(12, 3, 3)[::-1].ravel(), (12, 3, 3))
    builder.output(reversed_channels)
    builder.output(builder.convolution(total, 5, raw=True))
    program = builder.program()
    result = run(program, tight(program, 8, 8, lanes=4))
    position, wide = 0, []
    for layer in result.layers:
        group = result.instructions[position : position + layer.instructions]
        position += layer.instructions
        wide.append((layer.name.split("_")[0], *sorted({instruction.wide for instruction in group})))
    assert wide == [
        ("conv", True), ("conv", True), ("conv", True), ("part", False), ("part", False), ("part", False), ("conv", True), ("conv", True),
        ("part", True), ("part", True), ("conv", True), ("add", True), ("copy", True), ("copy", False), ("conv", False),
    ]  # fmt: skip


def test_an_addition_takes_all_lanes_at_once():
    builder = ProgramBuilder(4)
    source = builder.input((16, 5, 5))
    builder.output(builder.add(source, source))
    program = builder.program()
    narrow, wide = (run(program, tight(program, 16, 4, lanes=lanes)) for lanes in (1, 4))
    assert narrow.cycles - wide.cycles == 2 * 25 * (16 - 4)


@pytest.mark.parametrize("count", [MAX_ITERATIONS, MAX_ITERATIONS + 2, 1 << 18, 3 * 5 * 7 * 11 * 13 * 17])
def test_a_loop_of_too_many_iterations_becomes_two(count):
    instruction = build(Opcode.ELEMENTWISE, [Axis(count=count, strides={"a": 3, "o": 1})], "layer 'x'", a=7)
    counts = [loop.last + 1 for loop in instruction.loops]
    assert max(counts) <= MAX_ITERATIONS and np.prod(counts) == count
    assert (len(counts) == 1) == (count <= MAX_ITERATIONS)
    address, seen = 7, []
    for index in range(count):
        seen.append(address)
        step, rest = 0, index + 1
        while step < len(counts) - 1 and rest % counts[step] == 0:
            rest //= counts[step]
            step += 1
        address += instruction.loops[step].a_step
    np.testing.assert_array_equal(seen, 7 + 3 * np.arange(count))


def test_a_loop_of_too_many_iterations_without_a_divisor_is_refused():
    with pytest.raises(ModelError, match=r"layer 'x' needs 1 loops of up to 65539 iterations; the core has 7 of 65536"):
        build(Opcode.ELEMENTWISE, [Axis(count=65539, strides={"a": 1})], "layer 'x'")
