"""Random networks on the gateware itself: every tensor against plain loops, and the clocks of every layer against the schedule."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import random_codes, random_program, reference

from tritloom.boards.host import Host
from tritloom.compiler.schedule import memory_needs, schedule
from tritloom.hw.arch.link import State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.sim.amaranth import AmaranthCore, contents_of


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([4, 8]), lanes_columns=st.sampled_from([(1, 1), (1, 5), (2, 6), (4, 4), (4, 8)]),
    encoding=st.sampled_from(["trit2", "trit5"]), reduction=st.sampled_from(["tree", "chain"]),
)  # fmt: skip
def test_tensors_and_clocks_of_random_networks(seed, rows, lanes_columns, encoding, reduction):
    program = random_program(seed, 3)
    lanes, columns = lanes_columns
    needs = memory_needs(program, rows=rows, columns=columns, weight_encoding=encoding, post_lanes=lanes)
    parameters = CoreParameters(
        rows=rows, columns=columns, accumulator_bits=needs.accumulator_bits, scaled_bits=needs.scaled_bits, reduction=reduction, post_lanes=lanes, weight_encoding=encoding,
        weight_words=max(1, needs.weight_words), activation_words=max(1, needs.activation_words), record_words=max(1, needs.record_words),
        program_words=needs.program_words,
    )  # fmt: skip
    plan = schedule(program, parameters)
    codes = random_codes(program, np.random.default_rng(seed))
    host = Host(AmaranthCore(parameters, contents=contents_of(plan)))

    tensors, cycles = host.trace(plan, program, codes)
    expected = reference(program, codes)
    assert set(tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name], values, err_msg=name)
    assert cycles == plan.stopped_cycles

    spec = program.outputs[-1]
    outputs, cycles = host.infer(plan, codes, [spec.tensor])
    np.testing.assert_array_equal(outputs[spec.tensor], expected[spec.tensor])
    assert cycles == plan.cycles

    # A layer's clocks are what it adds to a run from the start.
    last = random.Random(seed).randrange(len(plan.layers))
    instructions = sum(layer.instructions for layer in plan.layers[: last + 1])
    if instructions:
        host.start(0, instructions)
        clocks = sum(layer.cycles for layer in plan.layers[: last + 1])
        status = host.status()
        while status.state == State.RUNNING:
            status = host.status()
        assert (status.state, status.cycles) == (State.STOPPED, clocks)
