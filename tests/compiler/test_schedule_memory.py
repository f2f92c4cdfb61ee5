"""Where tensors lie in the activation memory, and their bytes there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder, random_program
from schedule_cases import run, tight

from tritloom.compiler.schedule import Placement, memory_needs, schedule, sim_parameters, tensor_from_bytes, tensor_to_bytes
from tritloom.compiler.schedule.layout import busiest_layer, lifetimes, place
from tritloom.errors import ModelError
from tritloom.hw.arch.parameters import CoreParameters


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
