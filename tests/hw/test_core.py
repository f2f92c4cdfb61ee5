# amaranth: UnusedElaboratable=no
"""Whole instructions and programs on the core, through its link, against the NumPy twin: every byte and every clock."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.schedule.clocks import run_cycles
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES, Instruction, Loop, Opcode, assemble, loop_steps
from tritloom.hw.arch.link import Fault, Frame, FrameReader, LinkOpcode, Space, State, encode
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import START_MIN, Record
from tritloom.hw.arch.reduction import REDUCTIONS
from tritloom.hw.arch.trits import digit_planes, encode_trits
from tritloom.hw.core import Core
from tritloom.hw.model import CoreModel
from tritloom.hw.top import UartCore

HALT = Instruction(opcode=Opcode.HALT)
Memories = dict[Space, bytes]


class Bench:
    """A core with filled memories in the Amaranth simulator, driven by link frames; ``stalls`` is the probability of a pause of each stream."""

    def __init__(self, parameters: CoreParameters, memories: Mapping[Space, bytes], *, stalls: float = 0.0) -> None:
        sizes = {
            Space.PROGRAM: PROGRAM_WORD_BYTES,
            Space.WEIGHTS: parameters.weight_word_bytes,
            Space.RECORDS: parameters.record_word_bytes,
            Space.ACTIVATIONS: parameters.rows,
        }
        contents = {
            space: [int.from_bytes(data[start : start + sizes[space]], "little") for start in range(0, len(data), sizes[space])]
            for space, data in memories.items()
        }
        self.parameters = parameters
        self.core = Core(parameters, contents=contents)
        self.reset = Signal()
        self._stalls, self._rng = stalls, random.Random(1)

    def run(self, body) -> None:
        async def bench(ctx) -> None:
            self.ctx, self.reader = ctx, FrameReader()
            await body(self)

        simulator = Simulator(ResetInserter(self.reset)(self.core))
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()

    async def exchange(self, opcode: LinkOpcode, data: bytes = b"") -> bytes:
        """Send a frame and return the data of its reply."""
        ctx, rx, tx = self.ctx, self.core.rx, self.core.tx
        pending = list(encode(Frame(1, opcode, data)))
        for _ in range(4000):
            ctx.set(rx.valid, bool(pending) and self._rng.random() >= self._stalls)
            ctx.set(tx.ready, self._rng.random() >= self._stalls)
            ctx.set(rx.payload, pending[0] if pending else 0)
            _, _, taken, given, byte = await ctx.tick().sample(rx.valid & rx.ready, tx.valid & tx.ready, tx.payload)
            if taken:
                pending.pop(0)
            if given:
                for frame in self.reader.feed(bytes([byte])):
                    assert frame.opcode == opcode | 0x80, f"{opcode.name} was answered {frame}"
                    return frame.data
        raise AssertionError(f"the core did not answer {opcode.name}")

    async def start(self, pc: int = 0, limit: int = 0, clear: bool = True) -> None:
        await self.exchange(LinkOpcode.START, pc.to_bytes(2, "little") + limit.to_bytes(2, "little") + bytes([clear]))

    async def status(self) -> tuple[State, Fault, int, int]:
        data = await self.exchange(LinkOpcode.STATUS)
        return State(data[0]), Fault(data[1]), int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:12], "little")

    async def wait(self) -> tuple[State, Fault, int, int]:
        for _ in range(400):
            status = await self.status()
            if status[0] != State.RUNNING:
                return status
        raise AssertionError("the core runs for ever")

    async def write(self, space: Space, address: int, data: bytes) -> None:
        await self.exchange(LinkOpcode.WRITE, bytes([space]) + address.to_bytes(4, "little") + data)

    async def read(self, address: int, count: int) -> bytes:
        data = b""
        while count:
            part = min(count, 1000)
            data += await self.exchange(
                LinkOpcode.READ, bytes([Space.ACTIVATIONS]) + address.to_bytes(4, "little") + part.to_bytes(2, "little")
            )
            address, count = address + part, count - part
        return data


def model_of(parameters: CoreParameters, memories: Mapping[Space, bytes]) -> CoreModel:
    model = CoreModel(parameters)
    for space, data in memories.items():
        model.write(space, 0, data)
    return model


def total_cycles(program: Sequence[Instruction], parameters: CoreParameters) -> int:
    return sum(run_cycles(program, parameters))


def check(parameters: CoreParameters, memories: Memories, program: Sequence[Instruction]) -> bytes:
    """Run ``program`` on core and model, compare all activations and the clocks; return the activations."""
    words = assemble([*program, HALT])
    memories = {**memories, Space.PROGRAM: np.array(words, "<u8").tobytes()}
    model = model_of(parameters, memories)
    model.run()
    expected = model.read(0, parameters.activation_bytes)
    results = {}

    async def body(bench: Bench) -> None:
        await bench.start()
        results["status"] = await bench.wait()
        results["bytes"] = await bench.read(0, parameters.activation_bytes)

    Bench(parameters, memories).run(body)
    cycles = total_cycles([*program, HALT], parameters)
    got, want = np.frombuffer(results["bytes"], np.int8), np.frombuffer(expected, np.int8)
    different = np.flatnonzero(got != want)
    assert not different.size, (
        f"byte {different[0]} of {different.size} different ones: got {got[different[0]]}, expected {want[different[0]]}; {program}"
    )
    assert results["status"] == (State.IDLE, Fault.NONE, len(words) - 1, cycles), program
    return expected


def random_memories(parameters: CoreParameters, rng: np.random.Generator, *, sparsity: float = 0.3) -> Memories:
    trits = rng.choice(
        [0, 1, -1], size=(parameters.weight_words, parameters.rows * parameters.columns), p=[sparsity, *[(1 - sparsity) / 2] * 2]
    )
    records = b"".join(random_record(rng).to_bytes() for _ in range(parameters.record_words * parameters.post_lanes))
    return {
        Space.WEIGHTS: encode_trits(trits, parameters.weight_encoding).tobytes(),
        Space.RECORDS: records,
        Space.ACTIVATIONS: rng.integers(0, 256, parameters.activation_bytes, dtype=np.uint8).tobytes(),
    }


def random_record(rng: np.random.Generator) -> Record:
    shift = int(rng.integers(0, 30))
    multiplier = (
        int(rng.integers(-(1 << 24), 1 << 24))
        if rng.random() < 0.3
        else int(rng.integers(-4 << max(0, shift - 6), 1 + (4 << max(0, shift - 6))))
    )
    return Record(
        start=int(rng.integers(-2000, 2000)),
        multiplier=max(-(1 << 24), min((1 << 24) - 1, multiplier)),
        bias=int(rng.integers(-100 << shift, 101 << shift)),
        shift=shift,
        half_even=bool(rng.integers(2)),
    )


def strided(strides: Mapping[str, Sequence[int]], counts: Sequence[int]) -> tuple[Loop, ...]:
    """Loops from plain strides, innermost first."""
    steps = {name: loop_steps(list(values), list(counts)) for name, values in strides.items()}
    return tuple(
        Loop(last=count - 1, **{f"{name}_step": values[index] for name, values in steps.items()}) for index, count in enumerate(counts)
    )


SMALL = CoreParameters(rows=4, columns=3, accumulator_bits=18, weight_words=40, activation_words=64, record_words=48, program_words=200)


def random_instruction(parameters: CoreParameters, rng: random.Random) -> Instruction:
    """A legal instruction that reads the first half of the activations and writes the second half."""
    p = parameters
    opcode = rng.choice([Opcode.MATRIX, Opcode.MATRIX, Opcode.MATRIX, Opcode.POOL, Opcode.ELEMENTWISE])
    counts = [rng.choice([1, 1, 2, 3, 4]) for _ in range(rng.randint(1, 7))]
    while np.prod(counts) > 60:
        counts[counts.index(max(counts))] -= 1
    reduce_loops = 0 if opcode == Opcode.ELEMENTWISE else rng.randint(0, len(counts))
    outer = range(reduce_loops, len(counts))
    raw = opcode == Opcode.MATRIX and rng.random() < 0.2
    two_operands = opcode == Opcode.ELEMENTWISE and rng.random() < 0.5
    pieces = 2 if two_operands else rng.choice([1, 1, 2, 3, 5])
    half = p.activation_bytes // 2
    wide = opcode != Opcode.POOL and not raw and rng.random() < 0.7
    lanes = p.post_lanes if wide else 1
    unit = lanes if opcode == Opcode.ELEMENTWISE else p.rows

    def walk(limit: int, unit: int, loops, need: int = 1) -> tuple[int, list[int]]:
        """A first address and strides that stay inside ``limit``; some strides are negative."""
        room = limit // unit - need
        strides, low, high = [0] * len(counts), 0, 0
        for loop in rng.sample(list(loops), len(list(loops))):
            spare = (room - (high - low)) // max(1, counts[loop] - 1)
            stride = rng.randint(-min(spare, 4), min(spare, 4))
            strides[loop] = stride * unit
            low, high = low + min(0, stride * (counts[loop] - 1)), high + max(0, stride * (counts[loop] - 1))
        return rng.randint(-low, room - high) * unit, strides

    all_loops = range(len(counts))
    a, a_strides = walk(half, unit, all_loops)
    b, b_strides = walk(half, lanes, all_loops) if opcode == Opcode.ELEMENTWISE else walk(p.weight_words, 1, all_loops)
    results = p.columns // lanes if opcode == Opcode.MATRIX else 1
    o_unit = {Opcode.MATRIX: 4 if raw else lanes, Opcode.POOL: p.rows, Opcode.ELEMENTWISE: lanes}[opcode]
    o, o_strides = walk(half, o_unit, outer, need=results)
    record, p_strides = walk(p.record_words, 1, outer, need=results * pieces)
    size = 8
    y_strides, x_strides = ([rng.randint(-2, 2) for _ in counts] for _ in range(2))
    low = rng.randint(-128, 127)
    return Instruction(
        opcode=opcode, reduce_loops=reduce_loops, raw=raw, two_operands=two_operands, wide=wide, padded=rng.random() < 0.5 and opcode != Opcode.ELEMENTWISE,
        loops=strided({"a": a_strides, "b": b_strides, "o": o_strides, "p": p_strides, "y": y_strides, "x": x_strides}, counts),
        plane_loop=rng.choice([15, *range(reduce_loops)]), tile_loop=rng.choice([15, *outer]),
        a=a, b=b, o=half + o, p=record, records=pieces, y=rng.randint(-2, size), x=rng.randint(-2, size), height=rng.randint(1, size), width=rng.randint(1, size),
        last_columns=rng.randint(1, p.columns), pad_value=rng.randint(-128, 127), low=low, high=rng.randint(low, 127),
    )  # fmt: skip


@given(
    seed=st.integers(0, 1 << 32), rows=st.sampled_from([4, 8, 16]),
    lanes_columns=st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 2), (2, 6), (4, 4), (4, 8)]), encoding=st.sampled_from(["trit2", "trit5"]),
    bits=st.sampled_from([16, 19, 32]), reduction=st.sampled_from(REDUCTIONS),
)  # fmt: skip
@settings(deadline=None, max_examples=15)
def test_random_programs(seed, rows, lanes_columns, encoding, bits, reduction):
    lanes, columns = lanes_columns
    parameters = CoreParameters(
        rows=rows, columns=columns, accumulator_bits=bits, reduction=reduction, post_lanes=lanes, weight_encoding=encoding, weight_words=37, activation_words=40, record_words=45, program_words=256
    )  # fmt: skip
    rng = random.Random(seed)
    program = [random_instruction(parameters, rng) for _ in range(5)]
    check(parameters, random_memories(parameters, np.random.default_rng(seed)), program)


@pytest.mark.parametrize("lanes,wide", [(1, False), (2, False), (2, True)])
def test_every_length_of_reduction_against_every_number_of_commands(lanes, wide):
    """Reductions shorter, as long as and longer than the results before them need, in full and in last tiles."""
    parameters = SMALL if lanes == 1 else replace(SMALL, columns=4, post_lanes=lanes)
    counts_of_reduction = [1, 2, 3, 5, 6, 7, 9]
    program = []
    for index, elements in enumerate(counts_of_reduction):
        counts = [elements, 2, 3]
        loops = strided({"a": [4, 0, 0], "b": [1, 0, 9], "o": [0, 8, 4], "p": [0, 0, 3]}, counts)
        program.append(
            Instruction(
                opcode=Opcode.MATRIX, loops=loops, reduce_loops=1, tile_loop=2, wide=wide, last_columns=1 + index % 3, records=1 + index % 3, o=128, p=index % 5
            )
        )  # fmt: skip
    check(parameters, random_memories(parameters, np.random.default_rng(1)), program)


def test_digit_planes_reach_eight_bit_weights():
    """Six planes of digits are the dot product with integers of magnitude up to 364."""
    rng = np.random.default_rng(8)
    weights = rng.integers(-364, 365, (3, 8))
    weights[0, :2] = 364, -364
    planes = digit_planes(weights, 6)[::-1]  # the most significant first
    trits = planes.reshape(6, 3, 2, 4).transpose(0, 2, 1, 3).reshape(12, 12)
    memories = random_memories(SMALL, rng)
    memories[Space.WEIGHTS] = encode_trits(trits, "trit2").tobytes()
    activations = rng.integers(-128, 128, 8)
    memories[Space.ACTIVATIONS] = activations.astype(np.int8).tobytes().ljust(SMALL.activation_bytes, b"\0")
    loops = strided({"a": [4, 0], "b": [1, 2]}, [2, 6])
    result = check(
        SMALL, memories, [Instruction(opcode=Opcode.MATRIX, loops=loops, reduce_loops=2, plane_loop=1, raw=True, last_columns=3, o=128)]
    )
    assert np.frombuffer(result, "<i4")[32:35].tolist() == (weights @ activations).tolist()


def test_padding_takes_the_pad_value_and_the_smallest_code_in_pools():
    strides = {"a": [4, 8, 4, 8], "b": [1, 3, 0, 0], "o": [0, 0, 4, 16], "y": [0, 1, 0, 1], "x": [1, 0, 1, 0]}
    geometry = {"reduce_loops": 2, "padded": True, "y": -1, "x": -1, "height": 3, "width": 2, "o": 128, "a": 8}
    loops = strided(strides, [3, 3, 3, 4])
    memories = random_memories(SMALL, np.random.default_rng(2), sparsity=0.0)
    check(SMALL, memories, [Instruction(opcode=Opcode.MATRIX, loops=loops, pad_value=-77, last_columns=3, **geometry)])
    check(SMALL, memories, [Instruction(opcode=Opcode.POOL, loops=loops, pad_value=-77, **geometry)])
    outside = {**geometry, "y": -30}
    result = check(SMALL, memories, [Instruction(opcode=Opcode.POOL, loops=loops, **outside)])
    assert set(result[128:140]) == {0x80}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("encoding", ["trit2", "trit5"])
def test_single_port_weights_and_the_largest_array_the_simulator_bears(encoding, reduction):
    parameters = CoreParameters(
        rows=16, columns=2, accumulator_bits=24, weight_encoding=encoding, weight_storage="spram", reduction=reduction, weight_words=8, activation_words=16,
        record_words=20, program_words=128,
    )  # fmt: skip
    rng = random.Random(3)
    check(parameters, random_memories(parameters, np.random.default_rng(3)), [random_instruction(parameters, rng) for _ in range(2)])


def add_one(address: int) -> Instruction:
    """Byte ``address`` becomes byte ``address - 1`` plus one, by record 0."""
    return Instruction(opcode=Opcode.ELEMENTWISE, loops=(Loop(last=0),), a=address - 1, o=address)


CHAIN = [add_one(address) for address in range(1, 5)]
CHAIN_MEMORIES = {
    Space.PROGRAM: np.array(assemble([*CHAIN, HALT]), "<u8").tobytes(),
    Space.RECORDS: Record(START_MIN, 1, 1, 0).to_bytes(),
    Space.ACTIVATIONS: bytes([10]),
}
STEP = CHAIN[0].words


def test_steps_stop_after_each_instruction_and_the_counter_goes_on():
    first, second = (total_cycles(CHAIN[:count], SMALL) for count in (1, 2))

    async def body(bench: Bench) -> None:
        assert await bench.status() == (State.IDLE, Fault.NONE, 0, 0)
        await bench.start(limit=1)
        assert await bench.wait() == (State.STOPPED, Fault.NONE, STEP, first)
        assert await bench.read(0, 6) == bytes([10, 11, 0, 0, 0, 0])
        await bench.start(pc=STEP, limit=2, clear=False)
        assert await bench.wait() == (State.STOPPED, Fault.NONE, 3 * STEP, first + second)
        assert await bench.read(0, 6) == bytes([10, 11, 12, 13, 0, 0])
        await bench.start(pc=3 * STEP, limit=2)
        assert await bench.wait() == (State.IDLE, Fault.NONE, 4 * STEP, total_cycles([CHAIN[3], HALT], SMALL))
        assert await bench.read(0, 6) == bytes([10, 11, 12, 13, 14, 0])

    Bench(SMALL, CHAIN_MEMORIES).run(body)


def test_memories_loaded_over_the_link():
    async def body(bench: Bench) -> None:
        for space, data in CHAIN_MEMORIES.items():
            await bench.write(space, 0, data)
        await bench.write(Space.ACTIVATIONS, 3, b"\x63\x64\x65")
        await bench.write(Space.WEIGHTS, 39, bytes(range(SMALL.weight_word_bytes)))
        assert await bench.read(0, 7) == bytes([10, 0, 0, 0x63, 0x64, 0x65, 0])
        await bench.start()
        assert (await bench.wait())[0] == State.IDLE
        assert await bench.read(0, 7) == bytes([10, 11, 12, 13, 14, 0x65, 0])

    Bench(SMALL, {}, stalls=0.3).run(body)


@pytest.mark.parametrize("pause", [3, 45, 60])
def test_reset_in_the_middle_of_an_instruction(pause):
    """The memories keep what they hold; everything else begins again."""

    async def body(bench: Bench) -> None:
        await bench.start()
        await bench.ctx.tick().repeat(pause)
        bench.ctx.set(bench.reset, 1)
        await bench.ctx.tick()
        bench.ctx.set(bench.reset, 0)
        assert await bench.status() == (State.IDLE, Fault.NONE, 0, 0)
        await bench.start()
        cycles = total_cycles([*CHAIN, HALT], SMALL)
        assert await bench.wait() == (State.IDLE, Fault.NONE, len(CHAIN) * STEP, cycles)
        assert await bench.read(0, 6) == bytes([10, 11, 12, 13, 14, 0])

    Bench(SMALL, CHAIN_MEMORIES).run(body)


@pytest.mark.parametrize("word", [0x00000104, 0x00000001, 0x00000801, 0x00000140, 0x000001FF])
def test_bad_instruction_is_a_fault_that_the_next_start_clears(word):
    program = np.array([*assemble(CHAIN[:1]), word, *assemble([HALT])], "<u8").tobytes()

    async def body(bench: Bench) -> None:
        await bench.start()
        state, fault, pc, _ = await bench.wait()
        assert (state, fault, pc) == (State.FAULT, Fault.BAD_INSTRUCTION, STEP)
        assert await bench.read(0, 3) == bytes([10, 11, 0])
        await bench.start(pc=0, limit=1)
        assert (await bench.wait())[:3] == (State.STOPPED, Fault.NONE, STEP)

    Bench(SMALL, {**CHAIN_MEMORIES, Space.PROGRAM: program}).run(body)


@pytest.mark.parametrize("pause", [1, 40, 47, 77])
def test_abort_in_the_middle_leaves_nothing_behind(pause):
    """A long instruction is aborted at some clock of it; then nothing is written any more, and a program runs as ever."""
    loops = strided({"a": [4, 0], "b": [1, 0], "o": [0, 4]}, [4, 20])
    endless = Instruction(opcode=Opcode.MATRIX, loops=loops, reduce_loops=1, last_columns=3, records=3, o=128)
    program = [endless, *CHAIN]
    words = np.array(assemble([*program, HALT]), "<u8").tobytes()
    memories = {**random_memories(SMALL, np.random.default_rng(4)), **CHAIN_MEMORIES, Space.PROGRAM: words}
    model = model_of(SMALL, memories)
    model.run()

    async def body(bench: Bench) -> None:
        await bench.start()
        await bench.ctx.tick().repeat(pause)
        await bench.exchange(LinkOpcode.ABORT)
        state, fault, _, cycles = await bench.status()
        assert (state, fault) == (State.IDLE, Fault.NONE)
        written = await bench.read(128, 96)
        await bench.ctx.tick().repeat(100)
        assert await bench.read(128, 96) == written
        assert (await bench.status())[3] == cycles
        await bench.start()
        assert (await bench.wait())[3] == model.cycles
        assert await bench.read(0, SMALL.activation_bytes) == model.read(0, SMALL.activation_bytes)

    Bench(SMALL, memories).run(body)


@pytest.mark.parametrize("pause", [20, 60, 100])
def test_abort_does_not_hold_up_the_next_program(pause):
    """The results of an aborted reduction would have taken 120 clocks; the next program does not wait for them."""
    parameters = replace(SMALL, record_words=128)
    loops = strided({"a": [4, 0], "b": [1, 0], "o": [0, 4]}, [2, 20])
    slow = Instruction(opcode=Opcode.MATRIX, loops=loops, reduce_loops=1, last_columns=3, records=40, o=128)
    words = np.array(assemble([*CHAIN, HALT, slow]), "<u8").tobytes()
    cycles = total_cycles([*CHAIN, HALT], parameters)

    async def body(bench: Bench) -> None:
        await bench.start(pc=len(CHAIN) * STEP + 1)
        await bench.ctx.tick().repeat(pause)
        await bench.exchange(LinkOpcode.ABORT)
        await bench.start()
        assert await bench.wait() == (State.IDLE, Fault.NONE, len(CHAIN) * STEP, cycles)
        assert await bench.read(0, 6) == bytes([10, 11, 12, 13, 14, 0])

    Bench(parameters, {**CHAIN_MEMORIES, Space.PROGRAM: words}).run(body)


@pytest.mark.parametrize("pause", [20, 60, 100])
def test_abort_stops_the_results_of_a_reduction(pause):
    """Three results of 40 pieces each: those finished when the abort comes are written, and no other."""
    parameters = replace(SMALL, record_words=128)
    slow = Instruction(opcode=Opcode.MATRIX, loops=(Loop(last=0),), reduce_loops=1, last_columns=3, records=40, o=128)
    finished = [total_cycles([replace(slow, last_columns=results)], parameters) for results in (1, 2, 3)]
    memories = {
        Space.PROGRAM: np.array(assemble([slow, HALT]), "<u8").tobytes(),
        Space.RECORDS: Record(START_MIN, 0, 77, 0).to_bytes() * 128,
    }

    async def body(bench: Bench) -> None:
        await bench.start()
        await bench.ctx.tick().repeat(pause)
        await bench.exchange(LinkOpcode.ABORT)
        state, _, _, cycles = await bench.status()
        assert state == State.IDLE and cycles < finished[2]
        await bench.ctx.tick().repeat(150)
        written = sum(clocks <= cycles for clocks in finished)
        assert await bench.read(128, 4) == bytes([77] * written).ljust(4, b"\0")

    Bench(parameters, memories).run(body)


def test_abort_while_the_next_instruction_is_fetched():
    """Aborts from the first element to the last result, during which the next instruction comes in; each program after that is whole."""
    program = [replace(add_one(1), loops=(Loop(last=7),), records=3), *CHAIN]
    words = np.array(assemble([*program, HALT]), "<u8").tobytes()
    memories = {**CHAIN_MEMORIES, Space.PROGRAM: words, Space.RECORDS: Record(START_MIN, 1, 1, 0).to_bytes() * 3}
    finished = total_cycles(program[:1], SMALL)

    async def body(bench: Bench) -> None:
        await bench.start()
        assert (await bench.wait())[3] == total_cycles([*program, HALT], SMALL)
        for pause in range(1, 46, 4):
            await bench.write(Space.ACTIVATIONS, 1, bytes(4))
            await bench.start()
            await bench.ctx.tick().repeat(pause)
            await bench.exchange(LinkOpcode.ABORT)
            state, fault, _, cycles = await bench.status()
            assert (state, fault) == (State.IDLE, Fault.NONE)
            reached.append(cycles)
            written = await bench.read(0, 6)
            await bench.ctx.tick().repeat(60)
            assert await bench.read(0, 6) == written
            await bench.start()
            assert (await bench.wait())[3] == total_cycles([*program, HALT], SMALL)
            assert await bench.read(0, 6) == bytes([10, 11, 12, 13, 14, 0])

    reached: list[int] = []
    Bench(SMALL, memories).run(body)
    assert sum(finished - 15 < cycles < finished for cycles in reached) >= 3, (reached, finished)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_short_reductions_before_the_next_instruction_is_fetched(reduction):
    """Many reductions are in the pipeline when the next header comes; it must not change where their results go."""
    parameters = replace(SMALL, rows=64, columns=1, reduction=reduction, activation_words=32, program_words=400)
    counts = [9]
    program = [
        Instruction(
            opcode=Opcode.MATRIX, loops=strided({"a": [64], "b": [1], "o": [step], "p": [record]}, counts), last_columns=1, o=1024 + 40 * index, p=index
        )
        for index, (step, record) in enumerate([(1, 1), (3, 0), (2, 4), (4, 3)])
    ]  # fmt: skip
    check(parameters, random_memories(parameters, np.random.default_rng(5)), program)


def test_contents_of_other_spaces_are_refused():
    with pytest.raises(ValueError, match=r"^Contents must be of the program, weights, records or activations, not <Space\.TABLES: 5>$"):
        Core(SMALL, contents={Space.TABLES: [1]})


@pytest.mark.parametrize("component", [Core(SMALL), UartCore(SMALL, divisor=4)])
def test_exports(exports, component):
    exports(component)


def test_program_of_one_word():
    check(SMALL, {}, [])


def test_cycles_of_millions_of_elements_are_immediate():
    loops = tuple(Loop(last=last) for last in (8, 8, 63, 3, 223, 223, 15))
    instruction = Instruction(opcode=Opcode.MATRIX, loops=loops, reduce_loops=4, plane_loop=3, tile_loop=6, last_columns=16)
    elements = 9 * 9 * 64 * 4
    reductions = 224 * 224 * 16
    cycles = total_cycles([instruction], CoreParameters())
    assert 0 < cycles - reductions * (elements + 3) < 100
