"""Core parameters, instruction encoding, link frames, records and trit codecs: round trips and refusals."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritloom.errors import LinkError, UserError
from tritloom.hw.arch import isa, link, record, trits
from tritloom.hw.arch.parameters import CoreParameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 12}, r"^rows must be a power of two from 4 to 64, not 12$"),
        ({"rows": 2}, r"^rows must be"),
        ({"columns": 0}, r"^columns must be from 1 to 64, not 0$"),
        ({"post_lanes": 3, "columns": 6}, r"^post_lanes must be one of \(1, 2, 4, 8, 16\), a divisor of columns and at most rows, not 3$"),
        ({"post_lanes": 4, "columns": 6}, r"^post_lanes must be one of \(1, 2, 4, 8, 16\), a divisor of columns and at most rows, not 4$"),
        ({"post_lanes": 8, "rows": 4}, r"^post_lanes must be one of \(1, 2, 4, 8, 16\), a divisor of columns and at most rows, not 8$"),
        ({"accumulator_bits": 33}, r"^accumulator_bits must be from 16 to 32, not 33$"),
        ({"weight_encoding": "trit3"}, r"^weight_encoding must be one of"),
        ({"weight_storage": "disk"}, r"^weight_storage must be one of"),
        ({"weight_words": 0}, r"^weight_words must be"),
        ({"rows": True}, r"^core parameter rows must be an integer, not True$"),
        ({"weight_storage": "spram"}, r"^the weight word of spram storage must be at most 64 bits wide, not 512$"),
    ],
)
def test_illegal_parameters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        CoreParameters(**change)


def test_parameters_round_trip_and_digest():
    small = CoreParameters(rows=8, columns=5, weight_encoding="trit5", weight_storage="spram")
    assert small.weight_word_bits == 64
    assert CoreParameters.from_json(small.to_json()) == small
    assert small.digest != CoreParameters().digest
    assert len(small.digest) == 8
    with pytest.raises(UserError, match="no field 'lanes'"):
        CoreParameters.from_json({"lanes": 3})


def test_weight_word_width_follows_the_encoding():
    assert CoreParameters(rows=4, columns=1).weight_word_bits == 8
    assert CoreParameters(rows=4, columns=1, weight_encoding="trit5").weight_word_bits == 8
    assert CoreParameters(rows=16, columns=16, weight_encoding="trit5").weight_word_bits == 416


def _loops(draw):
    def bounded(place):
        return draw(
            st.integers(-(1 << (place.width - 1)), (1 << (place.width - 1)) - 1) if place.signed else st.integers(0, (1 << place.width) - 1)
        )

    return isa.Loop(**{name: bounded(place) for name, place in isa.LOOP_FIELDS.items()})


@st.composite
def instructions(draw):
    opcode = draw(st.sampled_from([o for o in isa.Opcode if o != isa.Opcode.HALT]))
    fields = {}
    absent = ("height", "width") if opcode == isa.Opcode.VECTOR else ("function",)
    for name, place in isa.FIELDS.items():
        if name in ("opcode", "loops", *absent):
            continue
        low, high = (-(1 << (place.width - 1)), (1 << (place.width - 1)) - 1) if place.signed else (0, (1 << place.width) - 1)
        fields[name] = draw(st.integers(low, high))
        if place.width == 1:
            fields[name] = bool(fields[name])
    loops = tuple(_loops(draw) for _ in range(draw(st.integers(1, isa.MAX_LOOPS))))
    return isa.Instruction(opcode=opcode, loops=loops, **fields)


@given(st.lists(instructions(), max_size=4))
def test_assemble_and_disassemble_are_inverse(program):
    program = [*program, isa.Instruction(opcode=isa.Opcode.HALT)]
    words = isa.assemble(program)
    assert len(words) == sum(instruction.words for instruction in program)
    assert all(0 <= word < 1 << 64 for word in words)
    assert isa.disassemble(words) == program


@pytest.mark.parametrize("table", [(isa.FIELDS, isa.HEADER_WORDS), (isa.LOOP_FIELDS, isa.LOOP_WORDS)])
def test_instruction_fields_do_not_overlap(table):
    fields, words = table
    taken = set()
    for name, place in fields.items():
        if name == "function":
            # A VECTOR has it in place of these two.
            assert (place.word, place.bit, place.width) == (fields["height"].word, fields["height"].bit, 32)
            continue
        bits = {(place.word, bit) for bit in range(place.bit, place.bit + place.width)}
        assert place.word < words and place.bit + place.width <= 8 * isa.PROGRAM_WORD_BYTES
        assert not bits & taken
        taken |= bits


def test_assemble_names_the_field_that_does_not_fit():
    with pytest.raises(ValueError, match=r"^instruction 0 \(MATRIX\): field p must be from 0 to 65535, not 65536$"):
        isa.assemble([isa.Instruction(opcode=isa.Opcode.MATRIX, loops=(isa.Loop(last=0),), p=65536)])
    with pytest.raises(ValueError, match="loops must be from 1 to 7, not 0"):
        isa.assemble([isa.Instruction(opcode=isa.Opcode.POOL)])


def test_disassemble_refuses_damage():
    with pytest.raises(ValueError, match="unknown opcode 0x3f"):
        isa.disassemble([0x3F])
    with pytest.raises(ValueError, match="cut"):
        isa.disassemble(isa.assemble([isa.Instruction(opcode=isa.Opcode.MATRIX, loops=(isa.Loop(last=0),))])[:-1])


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 4)), min_size=1, max_size=5))
def test_loop_steps_walk_like_nested_strides(loops):
    strides, counts = [s for s, _ in loops], [c for _, c in loops]
    steps = isa.loop_steps(strides, counts)
    address, index = 0, [0] * len(counts)
    while True:
        assert address == sum(s * i for s, i in zip(strides, index, strict=True))
        level = next((j for j, (i, c) in enumerate(zip(index, counts, strict=True)) if i < c - 1), None)
        if level is None:
            break
        index = [0] * level + [index[level] + 1] + index[level + 1 :]
        address += steps[level]


def test_crc_known_answer():
    assert link.crc16(b"123456789") == 0x29B1


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=80), st.binary(max_size=40))
def test_frames_survive_the_wire_behind_garbage(sequence, opcode, data, garbage):
    frame = link.Frame(sequence, opcode, data)
    wire = link.encode(frame)
    assert wire[0] == wire[-1] == link.END and link.END not in wire[1:-1]
    assert list(link.FrameReader().feed(wire)) == [frame]
    assert list(link.FrameReader().feed(garbage + wire))[-1] == frame


def test_a_changed_bit_is_noticed():
    wire = link.encode(link.Frame(7, 3, b"\x03\x00\x00\x00\x00abc"))
    for position in range(1, len(wire) - 1):
        for bit in range(8):
            damaged = bytearray(wire)
            damaged[position] ^= 1 << bit
            assert list(link.FrameReader().feed(bytes(damaged))) == []


def test_too_long_frames_are_refused_and_do_not_fill_memory():
    with pytest.raises(LinkError, match="at most 1016 bytes, not 1017"):
        link.encode(link.Frame(0, 3, bytes(1017)))
    reader = link.FrameReader()
    assert list(reader.feed(b"x" * 100_000)) == []
    assert reader.damaged > 0
    assert list(reader.feed(link.encode(link.Frame(1, 2)))) == [link.Frame(1, 2)]


def _fits(width):
    return st.integers(-(1 << (width - 1)), (1 << (width - 1)) - 1)


records = st.builds(
    record.Record, _fits(record.START_BITS), _fits(record.MULTIPLIER_BITS), _fits(record.BIAS_BITS), st.integers(0, 55), st.booleans()
)


@given(records)
def test_record_round_trip(value):
    data = value.to_bytes()
    assert len(data) == record.RECORD_BYTES
    assert record.Record.from_bytes(data) == value


@pytest.mark.parametrize("change", [{"start": 1 << 31}, {"multiplier": 1 << 24}, {"bias": -(1 << 55) - 1}, {"shift": 56}, {"shift": -1}])
def test_records_out_of_range_are_refused(change):
    good = record.Record(0, 1, 0, 0)
    with pytest.raises(ValueError, match=r"^record "):
        dataclasses.replace(good, **change)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 30))
def test_shift_round_is_floor_or_half_even(value, shift):
    exact = Fraction(value, 1 << shift)
    assert record.shift_round(value, shift, False) == exact.__floor__()
    assert record.shift_round(value, shift, True) == round(exact)


def test_evaluate_takes_the_last_piece_that_started_and_clamps():
    pieces = [record.Record(record.START_MIN, 0, -5, 0), record.Record(0, 1, 0, 1), record.Record(10, 0, 100, 0)]
    assert [record.evaluate(pieces, acc, -3, 7) for acc in (-1000, -1, 0, 1, 2, 9, 10, 1000)] == [-3, -3, 0, 0, 1, 4, 7, 7]


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=40), st.sampled_from(["trit2", "trit5"]))
def test_trit_codecs_round_trip(values, encoding):
    words = np.array([values, values[::-1]])
    data = trits.encode_trits(words, encoding)
    decode = trits.decode_trit2 if encoding == "trit2" else trits.decode_trit5
    assert data.shape[1] == (-(-len(values) // 4) if encoding == "trit2" else -(-len(values) // 5))
    assert np.array_equal(decode(data, len(values)), words)


def test_trit5_holds_every_five_trits_and_pads_with_zeros():
    every = np.array(list(itertools.product((-1, 0, 1), repeat=5)))
    data = trits.encode_trits(every, "trit5")
    assert len(np.unique(data)) == 243
    assert (trits.decode_trit5(data, 5) == every).all()
    assert trits.encode_trits(np.zeros((1, 7), int), "trit5").tolist() == [[trits.TRIT5_ZERO] * 2]


def test_trit5_writes_the_smallest_of_the_bytes_that_mean_the_same():
    every = np.arange(256, dtype=np.uint8)[:, None]
    again = trits.encode_trits(trits.decode_trit5(every, 5), "trit5")
    assert (again <= every).all() and np.count_nonzero(again < every) == 13


@pytest.mark.parametrize(
    ("largest", "planes"), [(0, 1), (1, 1), (2, 2), (4, 2), (5, 3), (7, 3), (13, 3), (14, 4), (31, 4), (121, 5), (122, 6), (128, 6)]
)
def test_plane_count_matches_the_design_table(largest, planes):
    assert trits.plane_count(largest) == planes


@given(st.lists(st.integers(-364, 364), min_size=1, max_size=20))
def test_digit_planes_reconstruct_the_integers(values):
    weights = np.array(values)
    planes = trits.digit_planes(weights, 6)
    assert set(np.unique(planes)) <= {-1, 0, 1}
    assert np.array_equal(np.tensordot(3 ** np.arange(6), planes.astype(int), 1), weights)
    with pytest.raises(ValueError, match="do not fit in 5 digit planes"):
        trits.digit_planes(np.array([122]), 5)
