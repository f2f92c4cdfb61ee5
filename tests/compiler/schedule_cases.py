"""What the tests of the scheduler share: the smallest core of a program, a run on the twin of the core, a small program."""

import numpy as np
from program_cases import ProgramBuilder, random_codes, reference

from tritloom.compiler import golden
from tritloom.compiler.schedule import memory_needs, schedule, tensor_from_bytes, tensor_to_bytes
from tritloom.compiler.schedule.bounds import check_instruction
from tritloom.hw.arch.isa import disassemble
from tritloom.hw.arch.link import Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.model import CoreModel


def tight(program, rows=4, columns=3, encoding="trit2", lanes=1):
    """The smallest core of a shape that holds the program, so that any access out of place is found."""
    needs = memory_needs(program, rows=rows, columns=columns, weight_encoding=encoding, post_lanes=lanes)
    return CoreParameters(
        rows=rows, columns=columns, accumulator_bits=needs.accumulator_bits, scaled_bits=needs.scaled_bits, post_lanes=lanes, weight_encoding=encoding, weight_words=max(1, needs.weight_words),
        activation_words=max(1, needs.activation_words), record_words=max(1, needs.record_words), program_words=needs.program_words,
    )  # fmt: skip


def run(program, parameters, seed=0):
    """Schedule, load on dirty memory, run layer by layer, compare every tensor when it is complete; returns the schedule."""
    rng = np.random.default_rng(seed)
    result = schedule(program, parameters)
    model = CoreModel(parameters)
    model.write(Space.ACTIVATIONS, 0, rng.integers(0, 256, parameters.activation_bytes).astype(np.uint8).tobytes())
    model.write(Space.PROGRAM, 0, np.array(result.program_words, "<u8").tobytes())
    model.write(Space.WEIGHTS, 0, result.weights.tobytes())
    model.write(Space.RECORDS, 0, result.records)
    codes = random_codes(program, rng)
    expected = reference(program, codes)
    for name, values in golden.run(program, {name: values[None] for name, values in codes.items()}).items():
        np.testing.assert_array_equal(values[0], expected[name], err_msg=f"golden {name}")

    def compare(name):
        place = result.placements[name]
        got = tensor_from_bytes(place, model.read(place.address, place.bytes), parameters)
        np.testing.assert_array_equal(got, expected[name], err_msg=name)

    for name, values in codes.items():
        model.write(Space.ACTIVATIONS, result.placements[name].address, tensor_to_bytes(result.placements[name], values, parameters))
    model.cycles = 0
    for layer in result.layers:
        model.run(layer.pc, layer.instructions, clear=False)
        for name in layer.outputs:
            compare(name)
    model.run(model.pc, clear=False)
    assert (model.state, model.cycles) == (State.IDLE, result.stopped_cycles)
    for spec in program.outputs:
        compare(spec.tensor)
    for index, instruction in enumerate(result.instructions[:-1]):
        check_instruction(
            instruction,
            parameters,
            f"instruction {index}",
            weight_words=len(result.weights),
            record_words=len(result.records) // parameters.record_word_bytes,
        )
    assert disassemble(result.program_words) == list(result.instructions)
    clocks, instructions = 0, 0
    for layer in result.layers:  # a layer's clocks are what it adds to a run from the start
        clocks, instructions = clocks + layer.cycles, instructions + layer.instructions
        if layer.instructions:
            model.run(limit=instructions)
            assert model.cycles == clocks, layer.name
    model.run()
    assert model.cycles == result.cycles
    return result


def small(raw=False):
    builder = ProgramBuilder()
    builder.output(
        builder.convolution(
            builder.input((40, 5, 5)), 12, kernel=(3, 3), raw=raw, step=None if raw else builder.step(12, pieces=2, shared=False)
        )
    )
    return builder.program()
