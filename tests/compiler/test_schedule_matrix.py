"""Schedules of convolutions, dense layers and pools: geometry, shared weight words, records of tiles."""

from dataclasses import replace

import numpy as np
import pytest
from program_cases import ProgramBuilder
from schedule_cases import run, tight

from tritloom.compiler.schedule import memory_needs

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


def test_record_steps_wrap_back_over_more_than_32767_records():
    builder = ProgramBuilder(4)
    source = builder.input((2, 2, 2))
    builder.output(builder.convolution(source, 1100, step=builder.step(1100, pieces=31, shared=False)))
    result = run(builder.program(), tight(builder.program(), 4, 16))
    assert len(result.records) // 16 == 1100 * 31
