"""The NumPy twin against a literal interpreter of the instruction set, element by element in Python integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.hw.arch.isa import NO_LOOP, Instruction, Loop, Opcode, assemble, loop_steps
from tritloom.hw.arch.link import Fault, Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import Record, evaluate, shift_round
from tritloom.hw.arch.timing import instruction_cycles
from tritloom.hw.arch.trits import encode_trits
from tritloom.hw.model import CoreModel


def signed(value, bits):
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


class Literal:
    """One instruction, step by step as the text of the instruction set says it."""

    def __init__(self, parameters, activations, trits, records):
        self.parameters, self.trits, self.records = parameters, trits, records
        self.before, self.after = activations, activations.copy()

    def code(self, instruction, p, lane, acc, second=None):
        low, high = instruction.low, instruction.high
        records = self.records[p * self.parameters.post_lanes + lane :: self.parameters.post_lanes]
        if second is None:
            return evaluate(records[: instruction.records], acc, low, high)
        m0, m1 = records[:2]
        value = m0.multiplier * acc + m0.bias + m1.multiplier * second
        return min(max(shift_round(value, m0.shift, m0.half_even), low), high)

    def word(self, instruction, a):
        rows = self.parameters.rows
        return [int(v) for v in self.before[a // rows * rows :][:rows]]

    def run(self, instruction):
        rows, columns, bits = self.parameters.rows, self.parameters.columns, self.parameters.accumulator_bits
        lanes = self.parameters.post_lanes if instruction.wide else 1
        loops, reduce_loops = instruction.loops, instruction.reduce_loops
        register = {name: getattr(instruction, name) for name in "aboyxp"}
        iteration, accumulators, fresh = [0] * len(loops), [0] * columns, True
        best = [-128] * rows
        while True:
            inside = not instruction.padded or (0 <= register["y"] < instruction.height and 0 <= register["x"] < instruction.width)
            if instruction.opcode == Opcode.MATRIX:
                word = self.word(instruction, register["a"]) if inside else [instruction.pad_value] * rows
                if fresh:
                    accumulators = [0] * columns
                for column in range(columns):
                    weights = self.trits[register["b"]][column * rows : (column + 1) * rows]
                    accumulators[column] = signed(accumulators[column] + sum(int(w) * v for w, v in zip(weights, word, strict=True)), bits)
            elif instruction.opcode == Opcode.POOL:
                if fresh:
                    best = [-128] * rows
                if inside:
                    best = [max(pair) for pair in zip(best, self.word(instruction, register["a"]), strict=True)]
            else:
                for lane in range(lanes):
                    second = int(self.before[register["b"] + lane]) if instruction.two_operands else None
                    self.after[register["o"] + lane] = self.code(
                        instruction, register["p"], lane, int(self.before[register["a"] + lane]), second
                    )
            fresh = all(i == loop.last for i, loop in zip(iteration[:reduce_loops], loops[:reduce_loops], strict=True))
            if fresh and instruction.opcode == Opcode.MATRIX:
                tile = instruction.tile_loop
                used = instruction.last_columns if tile == NO_LOOP or iteration[tile] == loops[tile].last else columns
                for column, acc in enumerate(accumulators[:used]):
                    if instruction.raw:
                        for byte, value in enumerate(acc.to_bytes(4, "little", signed=True)):
                            self.after[register["o"] + 4 * column + byte] = signed(value, 8)
                    else:
                        p = register["p"] + column // lanes * instruction.records
                        self.after[register["o"] + column] = self.code(instruction, p, column % lanes, acc)
            if fresh and instruction.opcode == Opcode.POOL:
                base = register["o"] // rows * rows
                self.after[base : base + rows] = best
            moving = next((j for j, loop in enumerate(loops) if iteration[j] < loop.last), None)
            if moving is None:
                return
            iteration = [0] * moving + [iteration[moving] + 1] + iteration[moving + 1 :]
            if moving == instruction.plane_loop:
                accumulators = [signed(3 * acc, bits) for acc in accumulators]
            for name in "ab" if moving < reduce_loops else "abop":
                register[name] += getattr(loops[moving], name + "_step")
            for name in "yx":
                register[name] = signed(register[name] + getattr(loops[moving], name + "_step"), 16)


def lowest(loops, strides):
    """Least offset that a register with these strides reaches."""
    return sum(min(0, stride * loop.last) for stride, loop in zip(strides, loops, strict=True))


@st.composite
def cases(draw):
    opcode = draw(st.sampled_from([Opcode.MATRIX, Opcode.POOL, Opcode.ELEMENTWISE]))
    rows = draw(st.sampled_from([4, 8]))
    post_lanes, columns = draw(st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 6), (4, 4), (4, 8)]))
    count = draw(st.integers(1, 5))
    reduce_loops = 0 if opcode == Opcode.ELEMENTWISE else draw(st.integers(0, count))
    raw = opcode == Opcode.MATRIX and draw(st.booleans())
    wide = opcode != Opcode.POOL and not raw and draw(st.booleans())
    lanes = post_lanes if wide else 1
    word, unit = (lanes, lanes) if opcode == Opcode.ELEMENTWISE else (rows, 1)
    counts = [draw(st.integers(1, 4)) for _ in range(count)]

    def strides(scale, reach, first):
        return [0 if index < first else scale * draw(st.integers(-reach, reach)) for index in range(count)]

    walks = {
        "a": strides(word, 4, 0), "b": strides(unit, 6, 0), "o": strides(4 if raw else lanes, 30 // lanes, reduce_loops), "p": strides(1, 4, reduce_loops),
        "y": strides(1, 3, 0), "x": strides(1, 3, 0),
    }  # fmt: skip
    steps = {name: loop_steps(walk, counts) for name, walk in walks.items()}
    loops = tuple(
        Loop(
            last=counts[index] - 1,
            **{name + "_step": 0 if name in "op" and index < reduce_loops else steps[name][index] for name in steps},
        )
        for index in range(count)
    )
    outer = list(range(reduce_loops, count))
    two = opcode == Opcode.ELEMENTWISE and draw(st.booleans())
    low = draw(st.integers(-128, 127))
    records = 2 if two else draw(st.integers(1, 3))
    # Operands are read from the lower half of memory, results go to the upper half.
    fields = {name: -lowest(loops, walks[name]) for name in "abop"}
    return (
        CoreParameters(
            rows=rows, columns=columns, post_lanes=post_lanes, accumulator_bits=draw(st.sampled_from([16, 19, 32])),
            weight_encoding=draw(st.sampled_from(["trit2", "trit5"])),
            weight_words=256, activation_words=2048, record_words=128, program_words=64,
        ),
        Instruction(
            opcode=opcode, loops=loops, reduce_loops=reduce_loops, raw=raw, wide=wide, two_operands=two, records=records,
            plane_loop=draw(st.sampled_from([NO_LOOP, *range(reduce_loops)])) if opcode == Opcode.MATRIX else NO_LOOP,
            tile_loop=draw(st.sampled_from([NO_LOOP, *outer])) if opcode == Opcode.MATRIX else NO_LOOP,
            padded=opcode != Opcode.ELEMENTWISE and draw(st.booleans()),
            y=draw(st.integers(-3, 3)), x=draw(st.integers(-3, 3)), height=draw(st.integers(0, 5)), width=draw(st.integers(1, 5)),
            last_columns=draw(st.integers(1, columns)), pad_value=draw(st.integers(-128, 127)), low=low, high=draw(st.integers(low, 127)),
            **{**fields, "o": fields["o"] + 4096},
        ),
        draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


def load(parameters, instruction, seed):
    rng = np.random.default_rng(seed)
    activations = (
        rng.choice([-128, 127, 0, 1], parameters.activation_bytes) if seed % 2 else rng.integers(-128, 128, parameters.activation_bytes)
    )
    trits = rng.integers(-1, 2, (parameters.weight_words, parameters.rows * parameters.columns))
    records = []
    for _ in range(parameters.record_words * parameters.post_lanes):
        if rng.integers(0, 2):
            # Small numbers: values that equal a start and quotients that end in one half are common.
            start, multiplier, bias, shift = (int(rng.integers(low, high)) for low, high in ((-3, 4), (-3, 4), (-9, 10), (0, 5)))
            records.append(Record(start, multiplier, bias, shift, bool(rng.integers(0, 2))))
            continue
        shift = int(rng.integers(0, 56))
        extreme = rng.integers(0, 4) == 0
        multiplier = (
            int(rng.choice([-(1 << 24), (1 << 24) - 1])) if extreme else int(rng.integers(-(1 << min(24, shift)), 1 << min(24, shift)))
        )
        bias = int(rng.choice([-(1 << 55), (1 << 55) - 1])) if extreme else int(rng.integers(-(1 << shift), 1 << shift))
        records.append(Record(int(rng.integers(-(1 << 12), 1 << 12)), multiplier, bias, shift, bool(rng.integers(0, 2))))
    model = CoreModel(parameters)
    model.write(Space.ACTIVATIONS, 0, activations.astype(np.int8).tobytes())
    model.write(Space.WEIGHTS, 0, encode_trits(trits, parameters.weight_encoding).tobytes())
    model.write(Space.RECORDS, 0, b"".join(record.to_bytes() for record in records))
    words = assemble([instruction, Instruction(opcode=Opcode.HALT)])
    model.write(Space.PROGRAM, 0, np.array(words, "<u8").tobytes())
    return model, Literal(parameters, activations.astype(np.int64), trits, records)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_every_instruction_means_what_the_instruction_set_says(case):
    parameters, instruction, seed = case
    model, literal = load(parameters, instruction, seed)
    literal.run(instruction)
    model.run()
    assert (model.state, model.fault, model.pc) == (State.IDLE, Fault.NONE, instruction.words)
    got = np.frombuffer(model.read(0, parameters.activation_bytes), np.int8)
    np.testing.assert_array_equal(got, literal.after)


TINY = CoreParameters(rows=4, columns=2, weight_words=4, activation_words=8, record_words=2, program_words=64)


def copy(**fields):
    return Instruction(opcode=Opcode.ELEMENTWISE, loops=(Loop(last=1, a_step=1, o_step=1),), **{"a": 0, "o": 16, **fields})


def boot(program):
    model = CoreModel(TINY)
    words = program if isinstance(program[0], int) else assemble(program)
    model.write(Space.PROGRAM, 0, np.array(words, "<u8").tobytes())
    model.write(Space.RECORDS, 0, Record(-(1 << 31), 1, 0, 0).to_bytes())
    model.write(Space.ACTIVATIONS, 0, bytes([1, 2, 3, 4]))
    return model


@pytest.mark.parametrize("half_even", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_every_byte_through_pieces(shift, half_even):
    parameters = CoreParameters(rows=4, columns=2, weight_words=1, activation_words=128, record_words=3, program_words=64)
    model = CoreModel(parameters)
    records = [Record(start, multiplier, 3 - start, shift, half_even) for start, multiplier in ((0, 1), (-7, -3), (100, 2))]
    model.write(Space.RECORDS, 0, b"".join(record.to_bytes() for record in records))
    model.write(Space.ACTIVATIONS, 0, np.arange(-128, 128).astype(np.int8).tobytes())
    model.execute(Instruction(opcode=Opcode.ELEMENTWISE, loops=(Loop(last=255, a_step=1, o_step=1),), o=256, records=3, low=-120, high=119))
    got = np.frombuffer(model.read(256, 256), np.int8)
    np.testing.assert_array_equal(got, [evaluate(records, value, -120, 119) for value in range(-128, 128)])


def test_steps_stop_after_the_given_number_of_instructions():
    program = [copy(), copy(a=2, o=20), Instruction(opcode=Opcode.HALT)]
    model = boot(program)
    model.run(limit=1)
    assert (model.state, model.pc, model.read(16, 6)) == (State.STOPPED, 7, bytes([1, 2, 0, 0, 0, 0]))
    model.run(7, 5, clear=False)
    assert (model.state, model.pc, model.read(16, 6)) == (State.IDLE, 14, bytes([1, 2, 0, 0, 3, 4]))
    assert model.cycles == 2 * instruction_cycles(program[0], TINY) + instruction_cycles(program[2], TINY, program[1])


@pytest.mark.parametrize("words", [[0x40], [0x0001], [0x0801, *[0] * 27], [0xFF]])
def test_unknown_opcodes_and_loop_counts_are_faults(words):
    model = boot([0x03 | 1 << 8, *[0] * 6, *words])
    model.run()
    assert (model.state, model.fault, model.pc) == (State.FAULT, Fault.BAD_INSTRUCTION, 7)
    model.run(63)
    assert (model.state, model.fault) == (State.IDLE, Fault.NONE)


@pytest.mark.parametrize("fields", [{"a": 31}, {"o": 31}, {"a": 2**32 - 1}, {"p": 2}, {"p": 1, "records": 2}])
def test_addresses_beyond_a_memory_are_refused(fields):
    with pytest.raises(ValueError, match=r"address must be from 0 to \d+, not \d+$"):
        boot([copy(**fields), Instruction(opcode=Opcode.HALT)]).run()


def test_padding_may_start_before_address_0():
    padded = Instruction(
        opcode=Opcode.POOL, loops=(Loop(last=1, a_step=4, x_step=1), Loop(last=1, a_step=4, x_step=1, o_step=4)), reduce_loops=1,
        padded=True, a=2**32 - 4, o=16, x=-1, height=1, width=1,
    )  # fmt: skip
    model = boot([padded, Instruction(opcode=Opcode.HALT)])
    model.run()
    assert model.read(16, 4) == bytes([1, 2, 3, 4])


def test_writes_are_whole_words_inside_the_memory():
    model = CoreModel(TINY)
    with pytest.raises(ValueError, match=r"^data for RECORDS must be whole words of 16 bytes, not 15 bytes$"):
        model.write(Space.RECORDS, 0, bytes(15))
    with pytest.raises(ValueError, match=r"^ACTIVATIONS address 31 with 2 words must stay within 32 words$"):
        model.write(Space.ACTIVATIONS, 31, bytes(2))
    with pytest.raises(ValueError, match="memory space 5 must be one that the core has"):
        model.write(Space.TABLES, 0, b"")
    with pytest.raises(ValueError, match="within 32 words"):
        model.read(-1, 1)
