"""Whole programs, scheduled and run on the NumPy twin of the core, compared with plain loops on every tensor."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder, random_program
from schedule_cases import run, small, tight

from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.hw.arch.isa import Opcode
from tritloom.hw.arch.parameters import CoreParameters


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 16]), st.sampled_from([(1, 1), (1, 3), (1, 16), (2, 8), (4, 4), (4, 16)]),
    st.sampled_from(["trit2", "trit5"]), st.integers(1, 9),
)  # fmt: skip
def test_random_programs(seed, rows, lanes_columns, encoding, operations):
    program = random_program(seed, operations)
    lanes, columns = lanes_columns
    run(program, tight(program, rows, columns, encoding, lanes), seed)


def test_a_program_without_operations_is_a_halt():
    builder = ProgramBuilder()
    builder.output(builder.input((3, 2, 2)))
    result = run(builder.program(), tight(builder.program()))
    assert (result.program_words, result.layers, result.macs) == ([0], (), 0)


def test_layers_add_up():
    program = random_program(5, 9)
    parameters = tight(program, 8, 8)
    result = run(program, parameters)
    assert [layer.name for layer in result.layers] == [operation.name for operation in program.operations]
    assert sum(layer.words for layer in result.layers) + 1 == len(result.program_words) == parameters.program_words
    assert sum(layer.instructions for layer in result.layers) + 1 == len(result.instructions)
    assert result.instructions[-1].opcode == Opcode.HALT
    assert result.macs == sum(layer.macs for layer in result.layers)
    for layer in result.layers:
        assert layer.utilisation == layer.macs / (64 * layer.cycles) <= 1


def test_schedules_are_deterministic():
    program = random_program(11, 10)
    one, two = (schedule(program, tight(program, 8, 3)) for _ in range(2))
    assert one.program_words == two.program_words
    assert one.records == two.records
    assert np.array_equal(one.weights, two.weights)


def test_host_steps_do_not_matter_to_the_schedule():
    program = small()
    changed = replace(program, outputs=(replace(program.outputs[0], epilogue=(HostOp(kind="Dequantize"), HostOp(kind="Softmax"))),))
    assert schedule(program, tight(program)).program_words == schedule(changed, tight(program)).program_words


def test_sim_parameters_come_in_a_few_sizes():
    program = small()
    parameters = sim_parameters(program)
    assert parameters == CoreParameters(
        rows=16, columns=16, accumulator_bits=32, post_lanes=4, weight_encoding="trit2", weight_words=1024, activation_words=1024,
        record_words=256, program_words=1024,
    )  # fmt: skip
    run(program, parameters)
    builder = ProgramBuilder()
    builder.output(builder.convolution(builder.input((16, 40, 40)), 300, step=builder.step(300, pieces=1, shared=False)))
    larger = sim_parameters(builder.program())
    assert (larger.activation_words, larger.record_words) == (1 << 16, 256)
