"""What a program needs of a core, and the refusals where the core has less."""

from dataclasses import replace

import pytest
from program_cases import ProgramBuilder, random_program
from schedule_cases import small, tight

from tritloom.compiler.ir.program import Add, Convolution, SumPool
from tritloom.compiler.schedule import memory_needs, scaled_bits, schedule
from tritloom.errors import ModelError
from tritloom.hw.arch.record import START_MIN, Record


@pytest.mark.parametrize(
    "field,message",
    [
        (
            "weight_words",
            r"model 'case' needs 90 weight words on a 8x6 array, but the core has 89; use a larger part, fewer digit planes or a smaller model",
        ),
        (
            "activation_words",
            r"model 'case' needs 1144 bytes of activation memory \(layer 'conv_t1' has 1144 in use at once\), 8 more than the 1136 that the core with its "
            r"8x6 array has; declare smaller inputs with --shape where the model allows it, or use a larger part",
        ),
        (
            "record_words",
            r"model 'case' needs 24 words of requantisation records on a 8x6 array, but the core has 23; use a larger part or fewer channels",
        ),
        ("program_words", r"model 'case' needs \d+ program words on a 8x6 array, but the core has \d+; use a larger part or fewer layers"),
    ],
)
def test_a_memory_that_is_too_small_is_named(field, message):
    program = small()
    parameters = tight(program, 8, 6)
    schedule(program, parameters)
    with pytest.raises(ModelError, match=f"^{message}$"):
        schedule(program, replace(parameters, **{field: getattr(parameters, field) - 1}))


@pytest.mark.parametrize("low,high,bits", [(-(1 << 16), 0, 17), (0, 1 << 16, 18), (0, (1 << 16) - 1, 17), (-(1 << 16) - 1, 0, 18)])
def test_accumulator_width_is_exact(low, high, bits):
    program = small()
    program = replace(program, operations=(replace(program.operations[0], acc_low=low, acc_high=high),))
    assert memory_needs(program, rows=8, columns=6, weight_encoding="trit2").accumulator_bits == bits
    schedule(program, tight(program, 8, 6))
    with pytest.raises(
        ModelError,
        match=rf"^layer 'conv_t1' reaches accumulator values from {low} to {high} and needs {bits} bits, but the core's .* have {bits - 1}",
    ):
        schedule(program, replace(tight(program, 8, 6), accumulator_bits=bits - 1))


@pytest.mark.parametrize("seed", range(12))
def test_scaled_width_is_that_of_the_largest_value(seed):
    """The width by formula against every accumulator of every channel, each through the piece that evaluates it."""
    program = random_program(seed, 4)
    bits = 34
    for operation in program.operations:
        steps = [step for _, step in operation.regions] if isinstance(operation, SumPool) else [getattr(operation, "step", None)]
        ranges = [(program.tensors[name].low, program.tensors[name].high) for name in operation.inputs]
        if isinstance(operation, (Convolution, SumPool)):
            ranges = [(operation.acc_low, operation.acc_high)]
        for pieces in (pieces for step in steps if step is not None for pieces in set(step.records)):
            low, high = ranges[0]
            if isinstance(operation, Add):
                values = [pieces[0].multiplier * a + pieces[1].multiplier * b + pieces[0].bias for a in ranges[0] for b in ranges[1]]
            else:
                values = []
                for acc in range(low, high + 1):
                    chosen = [pieces[0], *(piece for piece in pieces[1:] if acc >= piece.start)][-1]
                    values.append(chosen.multiplier * acc + chosen.bias)
            widths = [(value if value >= 0 else ~value).bit_length() + 1 for value in (min(values), max(values))]
            bits = max(bits, *widths, *(piece.shift + 1 for piece in pieces))
    assert scaled_bits(program) == bits


def test_scaled_values_that_do_not_fit_are_refused():
    program = small()
    step = replace(program.operations[0].step, records=((Record(START_MIN, 1 << 23, 0, 38),),) * len(program.operations[0].step.records))
    program = replace(program, operations=(replace(program.operations[0], step=step),))
    parameters = tight(program, 8, 6)
    assert parameters.scaled_bits == 39
    schedule(program, parameters)
    with pytest.raises(
        ModelError, match=r"needs 39 bits for its scaled accumulators, but the core's post unit has 38; use a core with scaled_bits of 39"
    ):
        schedule(program, replace(parameters, scaled_bits=38))


def test_raw_accumulators_and_operations_without_instruction_are_refused():
    program = small(raw=True)
    builder = ProgramBuilder()
    builder.input((40, 5, 5))
    builder.tensors, builder.operations = dict(program.tensors), list(program.operations)
    builder.output(builder.convolution("t1", 3))
    with pytest.raises(ModelError, match=r"^layer 'conv_t2' reads the raw accumulators 't1'; only a graph output may be raw$"):
        memory_needs(builder.program(), rows=8, columns=6, weight_encoding="trit2")
    builder = ProgramBuilder()
    builder.output(builder.max_pool(builder.input((1, 1, 20000)), (1, 2)))
    with pytest.raises(ModelError, match=r"tensor 't0' is 1x20000; the core addresses at most 16384 rows and columns$"):
        memory_needs(builder.program(), rows=8, columns=6, weight_encoding="trit2")
