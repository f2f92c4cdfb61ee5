# amaranth: UnusedElaboratable=no
"""The vector and scalar units inside a core, against the NumPy twin: every byte, every register and every clock; and the twin against plain numbers."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core import Bench, check, model_of, random_memories, strided

from tritloom.compiler.schedule.clocks import run_cycles
from tritloom.hw.arch import scalar
from tritloom.hw.arch.isa import COUNTED, Instruction, Loop, Opcode, assemble, disassemble
from tritloom.hw.arch.link import Fault, LinkOpcode, Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.scalar import Condition, Scalar, ScalarOpcode, arithmetic
from tritloom.hw.arch.vector import Factor, Lanes, Low, Second, Statistic, VectorFunction
from tritloom.hw.model import CoreModel
from tritloom.hw.vector import ScalarUnit, VectorUnit
from tritloom.hw.vector.model import vector_results

CORE = CoreParameters(
    rows=8, columns=3, accumulator_bits=18, weight_words=8, activation_words=256, record_words=8, program_words=600, vector_lanes=1
)
WIDE_CORES = [
    CoreParameters(
        rows=rows, columns=3, accumulator_bits=18, weight_words=8, activation_words=4096 // rows, record_words=8, program_words=600, vector_lanes=lanes
    )
    for rows, lanes in ((8, 2), (16, 4))
]  # fmt: skip
HALF = CORE.activation_bytes // 2
REGISTERS_AT = CORE.activation_bytes - 128
HALT = Instruction(opcode=Opcode.HALT)
SIMPLE = [kind for kind in ScalarOpcode if kind not in (ScalarOpcode.BRANCH, ScalarOpcode.LOAD, ScalarOpcode.STORE)]


def put(target: int, value: int) -> Scalar:
    return Scalar(opcode=ScalarOpcode.SET, target=target, immediate=value)


def dump() -> list[Scalar]:
    """Writes registers 1 to 21 to memory."""
    stores = [
        Scalar(opcode=ScalarOpcode.STORE, target=register, left=0, immediate=REGISTERS_AT + 4 * register) for register in range(1, 22)
    ]
    return [put(0, 0), *stores]


def vector(function: VectorFunction, loops: tuple[Loop, ...], **fields) -> Instruction:
    return Instruction(opcode=Opcode.VECTOR, loops=loops, function=function.encode(), **fields)


def random_scalars(rng: random.Random, count: int) -> list[Scalar]:
    values = [0, 1, -1, 31, -31, 32, -32, 33, 0x7FFFFFFF, -0x80000000]
    program = [put(register, rng.choice([*values, rng.getrandbits(32), rng.getrandbits(16)])) for register in range(20)]
    for _ in range(count):
        opcode = rng.choice([*SIMPLE, ScalarOpcode.LOAD, ScalarOpcode.STORE])
        if opcode in (ScalarOpcode.LOAD, ScalarOpcode.STORE):
            base = 0 if opcode == ScalarOpcode.LOAD else HALF
            program.append(put(3, 4 * rng.randrange(HALF // 8)))
            program.append(Scalar(opcode=opcode, target=rng.choice([*range(20), scalar.INDEX_A]), left=3, immediate=base))
            continue
        by_register = rng.random() < 0.5
        value = rng.choice([*values, rng.randint(-40, 40), rng.getrandbits(32)])
        program.append(
            Scalar(opcode=opcode, target=rng.choice([*range(20), scalar.INDEX_A]), left=rng.randrange(22), right=rng.randrange(22) if by_register else None, immediate=0 if by_register else value)
        )  # fmt: skip
    return program


def random_function(rng: random.Random, lanes: Lanes) -> VectorFunction:
    choices = list(Second) if lanes == Lanes.ONE else [Second.NONE, Second.FACTOR, Second.ADDEND, Second.SUBTRAHEND]
    second = rng.choice(choices[:2] if lanes == Lanes.JOINED else choices)
    sums = (Second.ADDEND, Second.SUBTRAHEND)
    factor = Factor.OPERAND if second == Second.FACTOR else rng.choice([Factor.ONE, Factor.REGISTER, Factor.ITSELF])
    return VectorFunction(
        a_size=rng.randrange(3), b_size=rng.randrange(3), o_size=rng.randrange(4), second=second, shifted=rng.random() < 0.5, factor=factor,
        addend=second not in sums and rng.random() < 0.3, rounded=second != Second.SUBTRAHEND and rng.random() < 0.5, out_shift=rng.choice([0, 1, 5, 16, 31, 47, 63]),
        bits=rng.choice([1, 2, 7, 9, 15, 30, 31]), low=rng.choice(list(Low)), statistic=rng.choice(list(Statistic)), lanes=lanes,
    )  # fmt: skip


def random_vector(rng: random.Random, lanes: Lanes = Lanes.ONE, count: int = 1) -> list[Instruction | Scalar]:
    """The registers that a vector instruction uses, and one that reads the first half of the memory and writes the second one, on a core of ``count`` lanes."""
    function = random_function(rng, lanes)
    program: list[Instruction | Scalar] = [
        put(scalar.SHIFT, rng.choice([-16, 0, 47, rng.randint(-20, 50)])), put(scalar.FACTOR, rng.choice([-(1 << 17), (1 << 17) - 1, rng.getrandbits(18)])),
        put(scalar.OUT_SHIFT, rng.randint(0, 47)), put(scalar.ADDEND, rng.getrandbits(32)),
    ]  # fmt: skip
    width, target = 1 << function.a_size, HALF + 64 * rng.randrange(1, 5)  # behind the largest table
    if function.second in (Second.TABLE, Second.POWER):
        # Indices that stay inside the memory: small ones, and for POWER those of several octaves below 0 too.
        small = VectorFunction(a_size=0, o_size=function.a_size, bits=6, low=Low.ZERO)
        if function.second == Second.POWER:
            small = VectorFunction(a_size=0, o_size=function.a_size, bits=7 if function.a_size == 0 else 12, factor=Factor.REGISTER)
        program.append(vector(small, (Loop(last=15, a_step=1, o_step=width),), a=rng.randrange(64), o=HALF // 2))
        loops = (Loop(last=15, a_step=width, o_step=1 << function.o_size % 3),)
        return [*program, vector(function, loops, a=HALF // 2, b=rng.randrange(4) << function.b_size, o=target)]
    at_once = 1 if lanes == Lanes.ONE else count
    step_a, step_b, step_o = (
        (1 if lanes == Lanes.SAME else at_once) << function.a_size,
        at_once << function.b_size,
        1 << function.o_size % 3,
    )
    step_o *= 1 if lanes == Lanes.JOINED else at_once
    counts = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    reduces = 0 if function.second in (Second.ADDEND, Second.SUBTRAHEND) else rng.randint(0, len(counts))
    strides = {
        "a": [rng.randint(0, 5) * step_a for _ in counts], "b": [rng.randint(0, 5) * step_b for _ in counts],
        "o": [0] * reduces + [step_o * int(np.prod(counts[reduces : reduces + index])) for index in range(len(counts) - reduces)],
    }  # fmt: skip
    a, b = rng.randrange(10) * step_a, rng.randrange(10) * step_b
    return [*program, vector(function, strided(strides, counts), reduce_loops=reduces, a=a, b=b, o=target)]


@pytest.mark.parametrize("seed", range(1))
def test_scalar_instructions(seed) -> None:
    rng = random.Random(seed)
    program = [*random_scalars(rng, 25), *dump()]
    check(CORE, random_memories(CORE, np.random.default_rng(seed)), program)


@pytest.mark.parametrize("seed", range(4))
def test_vector_instructions(seed) -> None:
    rng = random.Random(seed)
    program: list[Instruction | Scalar] = []
    for _ in range(4):
        program += random_vector(rng)
        program.append(Scalar(opcode=ScalarOpcode.ADD, target=5, left=scalar.STATISTIC, right=scalar.ARGUMENT))
        if rng.random() < 0.3:
            program.append(Instruction(opcode=Opcode.ELEMENTWISE, loops=(Loop(last=3, a_step=1, o_step=1),), o=HALF + 700))
    check(CORE, random_memories(CORE, np.random.default_rng(seed)), [*program, *dump()])


@pytest.mark.parametrize("core", WIDE_CORES, ids=lambda core: f"{core.vector_lanes} lanes")
def test_several_lanes(core) -> None:
    """Elements of all lanes at once beside those of one, with what the scalar unit reads and stores between them."""
    rng = random.Random(core.vector_lanes)
    program: list[Instruction | Scalar] = [put(19, 0)]
    for lanes in (Lanes.EACH, Lanes.JOINED, Lanes.SAME, Lanes.ONE) * 3:
        program += random_vector(rng, lanes, core.vector_lanes)
        program.append(Scalar(opcode=ScalarOpcode.ADD, target=len(program) % 19, left=scalar.STATISTIC, right=scalar.ARGUMENT))
        program.append(Scalar(opcode=ScalarOpcode.LOAD, target=len(program) % 19, left=19, immediate=4 * rng.randrange(100)))
    check(core, random_memories(core, np.random.default_rng(0)), [*program, *dump()])


@pytest.mark.parametrize("count", [1, 7])
def test_fields_from_registers(count) -> None:
    """Addresses, counts and steps: a sum over rows whose number is known at run time, and a copy of as many."""
    sums = VectorFunction(a_size=0, b_size=0, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE)
    loops = (Loop(last=COUNTED, a_step=1, b_step=8), Loop(last=4, a_step=0, b_step=1, o_step=4))
    copied = vector(VectorFunction(), (Loop(last=COUNTED, a_step=4, o_step=8),), a=64, o=HALF, index_a=True, index_o=True, counted=True)
    # A loop of 65536 iterations is one of an instruction that is not counted; here it is the next test's business.
    times = Scalar(opcode=ScalarOpcode.MULTIPLY, target=scalar.INDEX_A, left=0, immediate=2)
    added = Scalar(opcode=ScalarOpcode.ADD, target=scalar.INDEX_A, left=0, immediate=4)
    # The register of the first word, and that of the second one, come right before the instruction that takes them.
    program = [
        put(0, 4), put(scalar.COUNT, count - 1), put(scalar.STEP_A, -(count - 1)), put(scalar.STEP_B, -8 * (count - 1)), put(scalar.INDEX_O, 128),
        put(scalar.INDEX_A, 100), times if count == 1 else added, copied, put(scalar.INDEX_B, 16),
        vector(sums, loops, reduce_loops=1, a=2, b=32, o=HALF, counted=True, index_b=True), *dump(),
    ]  # fmt: skip
    memories = random_memories(CORE, np.random.default_rng(count))
    words = assemble([*program, HALT])
    model = model_of(CORE, {**memories, Space.PROGRAM: np.array(words, "<u8").tobytes()})
    model.run()
    before = np.frombuffer(memories[Space.ACTIVATIONS], np.int8).astype(np.int64)
    rows = before[48 : 48 + 8 * count].reshape(count, 8)[:, :5]
    assert np.array_equal(np.frombuffer(model.read(HALF, 20), "<i4"), before[2 : 2 + count] @ rows)
    results = {}

    async def body(bench: Bench) -> None:
        await bench.start()
        results["status"] = await bench.wait()
        results["bytes"] = await bench.read(0, CORE.activation_bytes)

    Bench(CORE, {**memories, Space.PROGRAM: np.array(words, "<u8").tobytes()}).run(body)
    assert results["bytes"] == model.read(0, CORE.activation_bytes)
    assert results["status"] == (State.IDLE, Fault.NONE, len(words) - 1, model.cycles)


def loop_program() -> list[Instruction | Scalar]:
    """Adds 3 to a word of memory five times, then leaves by a branch that is not taken and one that is."""
    return [
        put(0, 0), put(1, 5), put(2, 0),
        Scalar(opcode=ScalarOpcode.ADD, target=2, left=2, immediate=3),
        Scalar(opcode=ScalarOpcode.ADD, target=1, left=1, immediate=-1),
        Scalar(opcode=ScalarOpcode.STORE, target=2, left=0, immediate=HALF),
        Scalar(opcode=ScalarOpcode.BRANCH, target=Condition.NOT_ZERO, left=1, immediate=3),
        Scalar(opcode=ScalarOpcode.BRANCH, target=Condition.NEGATIVE, left=2, immediate=3),
        Scalar(opcode=ScalarOpcode.BRANCH, target=Condition.NOT_NEGATIVE, left=2, immediate=10),
        put(2, -1), *dump(),
    ]  # fmt: skip


def run_on_core(program, *, limit: int = 0) -> tuple[tuple, bytes, CoreModel]:
    words = np.array(assemble([*program, HALT]), "<u8").tobytes()
    memories = {**random_memories(CORE, np.random.default_rng(0)), Space.PROGRAM: words}
    model = model_of(CORE, memories)
    model.run(limit=limit)
    results = {}

    async def body(bench: Bench) -> None:
        await bench.start(limit=limit)
        results["status"] = await bench.wait()
        results["bytes"] = await bench.read(0, CORE.activation_bytes)

    Bench(CORE, memories).run(body)
    return results["status"], results["bytes"], model


def test_branches() -> None:
    status, data, model = run_on_core(loop_program())
    assert int.from_bytes(data[HALF : HALF + 4], "little") == 15
    assert data == model.read(0, CORE.activation_bytes)
    assert status == (State.IDLE, Fault.NONE, model.pc, model.cycles)


@pytest.mark.parametrize("limit", [7])
def test_stops_after_scalar_instructions(limit) -> None:
    status, data, model = run_on_core(loop_program(), limit=limit)
    assert status == (State.STOPPED, Fault.NONE, model.pc, model.cycles)
    assert data == model.read(0, CORE.activation_bytes)


def test_abort_in_the_middle() -> None:
    """A division, a load and a vector instruction are given up, and the core does the next program."""
    long = vector(VectorFunction(a_size=0), (Loop(last=300, a_step=1),), o=HALF)
    for first in ([put(1, 3), *[Scalar(opcode=ScalarOpcode.DIVIDE, target=2, left=1, immediate=-1)] * 60], [long]):
        program = [*first, HALT, *dump()]
        words = np.array(assemble([*program, HALT]), "<u8").tobytes()
        results = {}

        async def body(bench: Bench, program=program, results=results) -> None:
            await bench.start()
            await bench.ctx.tick().repeat(40)
            await bench.exchange(LinkOpcode.ABORT)
            assert (await bench.status())[0] == State.IDLE
            before = await bench.read(HALF, 400)
            assert await bench.read(HALF, 400) == before
            await bench.start(pc=sum(instruction.words for instruction in program[: program.index(HALT) + 1]))
            results["status"] = await bench.wait()

        Bench(CORE, {Space.PROGRAM: words}).run(body)
        assert results["status"][:2] == (State.IDLE, Fault.NONE)
        assert results["status"][3] == sum(run_cycles([*dump(), HALT], CORE))


def test_a_core_without_the_unit_refuses() -> None:
    plain = CoreParameters(rows=8, columns=3, weight_words=8, activation_words=256, record_words=8, program_words=100)
    for instruction in (put(1, 2), vector(VectorFunction(), (Loop(last=0),))):
        words = np.array(assemble([instruction, HALT]), "<u8").tobytes()
        model = model_of(plain, {Space.PROGRAM: words})
        model.run()
        results = {}

        async def body(bench: Bench, results=results) -> None:
            await bench.start()
            results["status"] = await bench.wait()

        Bench(plain, {Space.PROGRAM: words}).run(body)
        assert results["status"][:3] == (State.FAULT, Fault.BAD_INSTRUCTION, 0)
        assert (model.state, model.fault, model.pc) == (State.FAULT, Fault.BAD_INSTRUCTION, 0)


WORDS = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]), st.integers(0, (1 << 32) - 1))


@settings(deadline=None, max_examples=200)
@given(left=WORDS, second=WORDS)
def test_arithmetic_in_plain_numbers(left, second) -> None:
    assert arithmetic(ScalarOpcode.SUBTRACT, left, second) == (second - left) % (1 << 32)
    assert arithmetic(ScalarOpcode.DIVIDE, left, second) == (second // left if left else (1 << 32) - 1)
    root = arithmetic(ScalarOpcode.ROOT, left, second)
    assert root * root <= left < (root + 1) ** 2
    places = scalar.as_signed(second)
    if abs(places) < 32:
        assert arithmetic(ScalarOpcode.SHIFT_RIGHT, left, second) == int(left * 2.0**-places) % (1 << 32)
    else:
        assert arithmetic(ScalarOpcode.SHIFT_RIGHT, left, second) == 0


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=5), shift=st.integers(0, 30), out_shift=st.integers(0, 40),
    factor=st.integers(-(1 << 17), (1 << 17) - 1),
)  # fmt: skip
def test_results_in_plain_numbers(values, shift, out_shift, factor) -> None:
    """Shift, product, rounded shift, limit: against Python's integers."""
    function = VectorFunction(
        shifted=True, factor=Factor.REGISTER, rounded=True, out_shift=63, bits=7, low=Low.SYMMETRIC, statistic=Statistic.LARGEST
    )
    results, statistic, argument = vector_results(
        function, np.array(values, np.int64)[:, None], None, shift=shift, factor=factor & 0x3FFFF, out_shift=out_shift, addend=0
    )
    expected = []
    for value in values:
        x = value >> shift
        x = (x + (1 << 17)) % (1 << 18) - (1 << 17)
        product = x * factor
        rounded = (product + (1 << out_shift >> 1)) >> out_shift
        expected.append(max(-127, min(127, rounded)))
    assert results.tolist() == expected
    assert statistic == max(expected) and argument == expected.index(max(expected))


def test_words_are_inverse() -> None:
    rng = random.Random(5)
    program = [*random_scalars(rng, 60), *(part for _ in range(20) for part in random_vector(rng)), HALT]
    words = assemble(program)
    assert assemble(disassemble(words)) == words


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VectorFunction(bits=0), lambda: VectorFunction(factor=Factor.OPERAND), lambda: VectorFunction(second=Second.ADDEND, addend=True),
        lambda: VectorFunction.decode(1 << 31), lambda: VectorFunction.decode(7 << 6 | 7 << 20), lambda: VectorFunction(out_shift=64).encode(),
        lambda: Scalar(opcode=ScalarOpcode.ADD, target=32).encode(), lambda: Scalar(opcode=ScalarOpcode.ADD, right=1, immediate=1).encode(),
        lambda: VectorFunction(second=Second.TABLE, lanes=Lanes.EACH), lambda: VectorFunction(second=Second.ADDEND, lanes=Lanes.JOINED),
        lambda: Scalar(opcode=ScalarOpcode.SET, immediate=1 << 32).encode(), lambda: Scalar.decode(0x8F),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(wrong) -> None:
    with pytest.raises(ValueError):
        wrong()


@pytest.mark.parametrize("unit", [VectorUnit, ScalarUnit])
def test_exports(unit, exports) -> None:
    exports(unit(CORE))
