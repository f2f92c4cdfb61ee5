"""Comparisons count, name the user's layer, and say how to replay the first difference."""

import numpy as np

from tritloom.sim.compare import compare_tensors, first_difference, top1_agreement


def copied(tensors):
    return {name: values.copy() for name, values in tensors.items()}


def test_equal_tensors_have_no_difference(program, expected):
    comparisons = compare_tensors(program, expected, copied(expected), candidate="x")
    assert [comparison.mismatches for comparison in comparisons] == [0] * len(expected)
    assert sum(comparison.values for comparison in comparisons) == sum(values.size for values in expected.values())
    assert all(comparison.top1_agreement == 1.0 for comparison in comparisons)
    assert first_difference(comparisons) is None


def test_tensors_come_in_execution_order(program, expected):
    shuffled = dict(sorted(expected.items(), reverse=True))
    names = [comparison.tensor for comparison in compare_tensors(program, shuffled, expected, candidate="x")]
    assert names == list(dict.fromkeys([program.inputs[0].tensor, *(operation.output for operation in program.operations)]))


def test_the_first_difference_is_the_earliest_layer_of_the_earliest_sample(program, expected):
    got = copied(expected)
    early, late = program.operations[0], program.operations[-1]
    got[early.output][2, 1, 2, 3] += 1
    got[late.output][1, 2, 0, 0] -= 5
    got[late.output][2] += 1
    comparisons = {comparison.tensor: comparison for comparison in compare_tensors(program, expected, got, candidate="x")}
    assert comparisons[early.output].mismatches == 1
    assert comparisons[late.output].mismatches == 4
    found = first_difference(list(comparisons.values()))
    assert (found.layer, found.sample, found.index) == (late.name, 1, (2, 0, 0))
    assert found.got == found.expected - 5
    got[early.output][1, 4, 4, 0] += 1
    found = first_difference(compare_tensors(program, expected, got, candidate="x"))
    assert (found.layer, found.sample, found.index) == (early.name, 1, (4, 4, 0))


def test_a_channel_of_a_concatenation_belongs_to_the_operation_that_writes_it(program, expected):
    parts = [operation for operation in program.operations if getattr(operation, "channel_offset", 0)]
    assert parts, "the model has a concatenation"
    tensor = parts[0].output
    first, second = program.producer(tensor)
    for operation, channel in ((first, second.channel_offset - 1), (second, second.channel_offset)):
        got = copied(expected)
        got[tensor][0, channel, 0, 0] += 1
        assert first_difference(compare_tensors(program, expected, got, candidate="x")).layer == operation.name


def test_missing_and_misshapen_tensors_differ_everywhere(program, expected):
    got = copied(expected)
    name = program.operations[0].output
    del got[name]
    comparisons = {comparison.tensor: comparison for comparison in compare_tensors(program, expected, got, candidate="x")}
    assert comparisons[name].mismatches == comparisons[name].values > 0
    got[name] = expected[name][:, :-1]
    comparisons = {comparison.tensor: comparison for comparison in compare_tensors(program, expected, got, candidate="x")}
    assert comparisons[name].mismatches == comparisons[name].values


def test_a_difference_tells_where_and_how_to_replay(program, expected):
    got = copied(expected)
    operation = program.operations[0]
    got[operation.output][2, 1, 2, 3] = 77
    found = first_difference(compare_tensors(program, expected, got, candidate="x"))
    assert str(found) == (
        f"layer {operation.name!r}, tensor {operation.output!r}, sample 2, channel 1, row 2, column 3: "
        f"expected {expected[operation.output][2, 1, 2, 3]}, got 77"
    )
    command = found.replay_command("m.loom", board="sim", seed=9)
    assert command == "tritloom sim m.loom --board sim --seed 9 --first-sample 2 --samples 1 --waves always"


def test_top1_agreement_takes_the_first_of_equals():
    left = np.array([[1, 5, 5], [0, 0, 0], [3, 2, 1], [1, 2, 3]])
    right = np.array([[1, 9, 5], [0, 0, 1], [9, 2, 1], [3, 2, 1]])
    assert top1_agreement(left, right) == 0.5
