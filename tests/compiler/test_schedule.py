"""Scheduled programs run on the NumPy twin of the core, compared with plain loops on every tensor."""

from dataclasses import replace
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder, random_codes, random_program, reference

from tritloom.compiler import golden
from tritloom.compiler.ir.program import Add, Convolution, HostOp, Rescale, SumPool
from tritloom.compiler.schedule import Placement, memory_needs, scaled_bits, schedule, sim_parameters, tensor_from_bytes, tensor_to_bytes
from tritloom.compiler.schedule.bounds import check_instruction
from tritloom.compiler.schedule.layout import busiest_layer, lifetimes, place
from tritloom.compiler.schedule.nest import MAX_ITERATIONS, Axis, build, separable_nests
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Opcode, disassemble
from tritloom.hw.arch.link import Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import START_MIN, Record
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


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 16]), st.sampled_from([(1, 1), (1, 3), (1, 16), (2, 8), (4, 4), (4, 16)]),
    st.sampled_from(["trit2", "trit5"]), st.integers(1, 9),
)  # fmt: skip
def test_random_programs(seed, rows, lanes_columns, encoding, operations):
    program = random_program(seed, operations)
    lanes, columns = lanes_columns
    run(program, tight(program, rows, columns, encoding, lanes), seed)


CONVOLUTIONS = {
    "one_by_one": ((5, 3, 3), 7, {}),
    "odd_sizes": ((5, 7, 5), 11, {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "asymmetric_pads": ((3, 5, 6), 4, {"kernel": (3, 2), "pads": (2, 0, 1, 1)}),
    "stride_beyond_kernel": ((3, 9, 9), 2, {"kernel": (2, 2), "strides": (4, 3)}),
    "dilation": ((6, 9, 8), 5, {"kernel": (3, 2), "dilations": (2, 3), "pads": (2, 1, 2, 3)}),
    "one_dimension": ((9, 1, 13), 6, {"kernel": (1, 5), "strides": (1, 2), "pads": (0, 2, 0, 2)}),
    "only_padding": ((2, 1, 1), 3, {"kernel": (3, 3), "pads": (3, 3, 3, 3), "strides": (2, 2)}),
    "dense": ((5, 3, 2), 13, {"kernel": (3, 2)}),
    "dense_with_padding": ((5, 2, 2), 4, {"kernel": (2, 2), "pads": (1, 1, 1, 1)}),
    "planes": ((5, 4, 3), 7, {"kernel": (2, 2), "planes": 5, "pads": (1, 0, 0, 1)}),
    "two_groups": ((6, 4, 4), 10, {"kernel": (3, 3), "groups": 2, "pads": (1, 1, 1, 1)}),
    "groups_that_divide_nothing": ((15, 3, 3), 35, {"kernel": (2, 2), "groups": 5, "planes": 2}),
    "depthwise": ((19, 5, 5), 19, {"kernel": (3, 3), "groups": 19, "pads": (1, 1, 1, 1)}),
    "depthwise_with_multiplier": ((7, 4, 4), 21, {"kernel": (3, 3), "groups": 7}),
    "one_channel": ((1, 6, 6), 1, {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    "raw": ((5, 3, 3), 7, {"kernel": (2, 2), "raw": True, "planes": 3}),
}


@pytest.mark.parametrize("rows,columns,encoding", [(4, 1, "trit2"), (4, 3, "trit5"), (8, 8, "trit2"), (16, 16, "trit5"), (16, 5, "trit2")])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_geometry(case, rows, columns, encoding):
    shape, outputs, options = CONVOLUTIONS[case]
    builder = ProgramBuilder(len(case) + rows + columns)
    builder.output(builder.convolution(builder.input(shape), outputs, **options))
    program = builder.program()
    result = run(program, tight(program, rows, columns, encoding))
    assert result.macs == program.operations[0].weights.size * np.prod(program.tensors["t1"].shape[1:])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows,columns", [(4, 1), (4, 3), (8, 16), (16, 16)])
def test_pools(rows, columns, split):
    builder = ProgramBuilder(rows)
    source = builder.input((11, 7, 6))
    one = builder.max_pool(source, (3, 2), (2, 2), (1, 2), (1, 0, 1, 1))
    two = builder.sum_pool(source, (3, 2), (2, 1), (1, 1, 0, 1), split=split)
    three = builder.sum_pool(source, (7, 6), split=False)
    for name in (one, two, three):
        builder.output(name)
    result = run(builder.program(), tight(builder.program(), rows, columns))
    assert result.macs == 0


def test_sum_pool_stores_one_word_for_all_taps_tiles_and_layers():
    builder = ProgramBuilder()
    source = builder.input((64, 4, 4))
    builder.output(builder.sum_pool(builder.sum_pool(source, (2, 2)), (3, 3), split=False))
    needs = memory_needs(builder.program(), rows=16, columns=16, weight_encoding="trit2")
    assert needs.weight_words == 1


def test_depthwise_layers_read_only_their_own_words():
    builder = ProgramBuilder()
    builder.output(builder.convolution(builder.input((64, 3, 3)), 64, kernel=(3, 3), groups=64))
    result = run(builder.program(), tight(builder.program(), 16, 16))
    assert len(result.instructions) == 2
    assert len(result.weights) == 4 * 9
    result = run(builder.program(), tight(builder.program(), 16, 8))
    assert len(result.instructions) == 3, "tiles that share an input word are taken alternately"


def test_dense_layer_is_one_reduction_over_a_packed_input():
    builder = ProgramBuilder()
    source = builder.input((1, 28, 28))
    builder.output(builder.convolution(source, 16, kernel=(28, 28)))
    result = run(builder.program(), tight(builder.program(), 16, 16))
    assert len(result.weights) == 784 // 16
    assert [loop.last + 1 for loop in result.instructions[0].loops] == [49]
    assert result.placements[source].bytes == 784


def test_an_input_read_by_a_dense_and_by_a_windowed_layer_keeps_whole_words():
    builder = ProgramBuilder()
    source = builder.input((3, 4, 4))
    builder.output(builder.convolution(source, 5, kernel=(4, 4)))
    builder.output(builder.convolution(source, 5, kernel=(2, 2)))
    result = run(builder.program(), tight(builder.program(), 8, 4))
    assert result.placements[source].pixel_bytes == 8


def test_weight_words_are_shared_between_equal_layers():
    builder = ProgramBuilder()
    source = builder.input((8, 3, 3))
    builder.output(builder.convolution(source, 8, kernel=(2, 2)))
    again = replace(builder.operations[0], name="again", output=builder.tensor((8, 2, 2)))
    builder.operations.append(again)
    builder.output(again.output)
    program = builder.program()
    one = memory_needs(replace(program, operations=program.operations[:1]), rows=8, columns=8, weight_encoding="trit2")
    both = memory_needs(program, rows=8, columns=8, weight_encoding="trit2")
    assert (both.weight_words, both.record_words) == (one.weight_words, one.record_words)
    run(program, tight(program, 8, 8))


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


def test_tiles_share_records_only_when_all_channels_agree():
    builder = ProgramBuilder(2)
    source = builder.input((3, 2, 2))
    table = builder.step(4, pieces=2, shared=False)
    agreeing = replace(table, records=(table.records * 3)[:10])
    builder.output(builder.convolution(source, 10, step=agreeing))
    result = run(builder.program(), tight(builder.program(), 4, 4))
    assert len(result.records) == 16 * 2 * 4
    differing = replace(table, records=(*agreeing.records[:9], table.records[0]))
    builder.output(builder.convolution(source, 10, step=differing))
    result = run(builder.program(), tight(builder.program(), 4, 4))
    assert len(result.records) == 16 * 2 * (4 + 10)


def test_loops_longer_than_their_counter_stay_apart():
    builder = ProgramBuilder(6)
    source = builder.input((16, 65, 65))
    step = builder.step(16, pieces=1, shared=True)
    builder.operations.append(Rescale(name="large", output=builder.tensor((16, 65, 65)), input=source, step=step))
    builder.output("t1")
    result = run(builder.program(), tight(builder.program(), 16, 16))
    assert [loop.last + 1 for loop in result.instructions[0].loops] == [16, 65 * 65]


def test_record_steps_wrap_back_over_more_than_32767_records():
    builder = ProgramBuilder(4)
    source = builder.input((2, 2, 2))
    builder.output(builder.convolution(source, 1100, step=builder.step(1100, pieces=31, shared=False)))
    result = run(builder.program(), tight(builder.program(), 4, 16))
    assert len(result.records) // 16 == 1100 * 31


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


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 16]))
def test_tensors_that_live_at_one_time_never_overlap(seed, rows):
    program = random_program(seed, 12)
    parameters = tight(program, rows)
    placements, alive = schedule(program, parameters).placements, lifetimes(program)
    spans = {name: (place.address, place.address + place.bytes) for name, place in placements.items()}
    for one in alive:
        for two in alive:
            if one < two and alive[one][0] <= alive[two][1] and alive[two][0] <= alive[one][1]:
                assert spans[one][1] <= spans[two][0] or spans[two][1] <= spans[one][0], (one, two)


def test_memory_is_reused():
    builder = ProgramBuilder()
    name = builder.input((16, 8, 8))
    for _ in range(6):
        name = builder.convolution(name, 16)
    builder.output(name)
    needs = memory_needs(builder.program(), rows=16, columns=16, weight_encoding="trit2")
    assert needs.activation_words == 2 * 64
    run(builder.program(), tight(builder.program(), 16, 16))


def test_the_smallest_gap_is_taken():
    builder = ProgramBuilder()
    one, two = builder.input((4, 1, 2)), builder.input((4, 1, 2))
    third = builder.convolution(one, 5, kernel=(1, 2))
    builder.convolution(third, 10)
    builder.convolution(two, 2, kernel=(1, 2))
    fifth = builder.add(third, third)
    sixth = builder.add(fifth, fifth)
    seventh = builder.sum_pool(fifth, (1, 1))
    eighth = builder.convolution(fifth, 1)
    ninth = builder.sum_pool(eighth, (1, 1))
    tenth = builder.sum_pool(seventh, (1, 1))
    builder.convolution(eighth, 8)
    builder.add(ninth, ninth)
    joined = builder.concat(tenth, sixth)
    builder.output(joined)
    builder.output(builder.convolution(joined, 2))
    needs = memory_needs(builder.program(), rows=4, columns=4, weight_encoding="trit2")
    assert needs.activation_words == 9, "the first or the largest gap would give 10"
    run(builder.program(), tight(builder.program()))


def test_inputs_that_are_outputs_stay():
    builder = ProgramBuilder()
    source = builder.input((5, 3, 3))
    builder.output(source)
    builder.output(builder.convolution(builder.convolution(source, 5), 5))
    result = run(builder.program(), tight(builder.program(), 4, 4))
    assert len({place.address for place in result.placements.values()}) == 3


def test_a_tensor_written_in_parts_is_complete_after_the_last():
    builder = ProgramBuilder()
    source = builder.input((5, 3, 3))
    builder.output(builder.concat(source, source))
    result = run(builder.program(), tight(builder.program()))
    assert [layer.outputs for layer in result.layers] == [(), ("t1",)]


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


def small(raw=False):
    builder = ProgramBuilder()
    builder.output(
        builder.convolution(
            builder.input((40, 5, 5)), 12, kernel=(3, 3), raw=raw, step=None if raw else builder.step(12, pieces=2, shared=False)
        )
    )
    return builder.program()


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


def test_the_busiest_layer_holds_all_that_lives_at_the_time():
    """Three layers on 8 rows: 2 words in and 1 out; then 1 in and 5 out while the first output waits for the sum at the end."""
    builder = ProgramBuilder(0)
    first = builder.convolution(builder.input((16, 1, 1)), 8)
    middle = builder.convolution(first, 40)
    builder.output(builder.add(first, builder.convolution(middle, 8)))
    program = builder.program()
    name, most = busiest_layer(program, 8)
    assert (name, most) == (program.operations[2].name, 8 * (1 + 5 + 1))
    assert place(program, 8)[1] >= most
    with pytest.raises(ModelError, match=r"^model 'case' needs \d+ bytes of activation memory \(layer '.*' has \d+ in use at once\), \d+ more than the "
                       r"67108864 that a core can address; declare smaller inputs with --shape where the model allows it$"):  # fmt: skip
        large = ProgramBuilder(0)
        large.output(large.max_pool(large.input((16, 2100, 2100)), (1, 1)))
        sim_parameters(large.program())


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


def test_schedules_are_deterministic():
    program = random_program(11, 10)
    one, two = (schedule(program, tight(program, 8, 3)) for _ in range(2))
    assert one.program_words == two.program_words
    assert one.records == two.records
    assert np.array_equal(one.weights, two.weights)


def test_tensor_bytes_are_checked():
    place = Placement(address=0, pixel_bytes=8, element_bytes=1, shape=(3, 2, 2))
    parameters = CoreParameters(rows=8)
    codes = np.arange(-6, 6).reshape(3, 2, 2)
    data = tensor_to_bytes(place, codes, parameters)
    assert len(data) == 32
    assert data[:4] == bytes([256 - 6, 256 - 2, 2, 0])
    np.testing.assert_array_equal(tensor_from_bytes(place, data, parameters), codes)
    with pytest.raises(ValueError, match=r"^codes must be from -128 to 127$"):
        tensor_to_bytes(place, codes + 200, parameters)
    with pytest.raises(ValueError, match=r"^tensor must have shape \(3, 2, 2\), not \(12,\)$"):
        tensor_to_bytes(place, codes.ravel(), parameters)
    with pytest.raises(ValueError, match=r"^data must be at least 32 bytes, not 31$"):
        tensor_from_bytes(place, data[:31], parameters)
    raw = Placement(address=0, pixel_bytes=16, element_bytes=4, shape=(3, 1, 2))
    values = np.array([[[-(1 << 31), 1]], [[(1 << 31) - 1, -1]], [[0, 256]]])
    np.testing.assert_array_equal(tensor_from_bytes(raw, tensor_to_bytes(raw, values, parameters), parameters), values)
    packed = Placement(address=0, pixel_bytes=3, element_bytes=1, shape=(3, 1, 3))
    assert len(tensor_to_bytes(packed, np.zeros((3, 1, 3)), parameters)) == 16


def test_host_steps_do_not_matter_to_the_schedule():
    program = small()
    changed = replace(program, outputs=(replace(program.outputs[0], epilogue=(HostOp(kind="Dequantize"), HostOp(kind="Softmax"))),))
    assert schedule(program, tight(program)).program_words == schedule(changed, tight(program)).program_words


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
