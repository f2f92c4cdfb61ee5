"""Vector instructions in all lanes against the same ones in one: every byte and the registers, on the twin; and which of them get faster."""

import random
from math import prod

import numpy as np
import pytest

from tritloom.compiler.schedule.clocks import run_cycles
from tritloom.compiler.schedule.lanes import widened
from tritloom.hw.arch.isa import COUNTED, Instruction, Loop, Opcode, loop_steps
from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.scalar import COUNT, FACTOR, INDEX_A, INDEX_O, SHIFT, STEP_A, STEP_B, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import Factor, Lanes, Second, Statistic, VectorFunction
from tritloom.hw.model import CoreModel

CORE = CoreParameters(rows=32, columns=4, weight_words=1, activation_words=512, record_words=1, program_words=1, vector_lanes=4)
HALF = CORE.activation_bytes // 2


def put(target: int, value: int) -> Scalar:
    return Scalar(opcode=ScalarOpcode.SET, target=target, immediate=value)


def nest(strides: dict[str, list[int]], counts: list[int]) -> tuple[Loop, ...]:
    steps = {register: loop_steps(strides[register], counts) for register in "abo"}
    return tuple(Loop(last=count - 1, **{f"{name}_step": steps[name][index] for name in "abo"}) for index, count in enumerate(counts))


def elements(count: int, size: int = 2, **fields) -> Instruction:
    """One pass over ``count`` elements that follow each other."""
    function = VectorFunction(a_size=size, o_size=size, statistic=Statistic.SUM)
    return Instruction(
        opcode=Opcode.VECTOR, loops=nest({"a": [1 << size], "b": [0], "o": [1 << size]}, [count]), function=function.encode(), **fields
    )


def outcome(program: list[Scalar | Instruction], core: CoreParameters = CORE) -> tuple[bytes, list[int]]:
    model = CoreModel(core)
    model.write(Space.ACTIVATIONS, 0, np.random.default_rng(1).integers(0, 256, core.activation_bytes, np.uint8).tobytes())
    for instruction in program:
        model.execute(model.with_registers(instruction) if isinstance(instruction, Instruction) else instruction)
    return model.read(0, core.activation_bytes), model.registers


def random_instruction(rng: random.Random) -> Instruction:
    """Loops whose strides are often those of neighbouring elements; the second half of the memory is written, each byte once."""
    sizes = {register: rng.randrange(3) for register in "abo"}
    second = rng.choice([Second.NONE, Second.FACTOR, Second.ADDEND, Second.SHIFT])
    counts = [rng.choice([1, 2, 4, 4, 8, 12]) for _ in range(rng.randint(1, 3))]
    reduces = rng.randint(0, len(counts)) if second in (Second.NONE, Second.FACTOR) else 0
    fast = rng.randrange(len(counts))
    strides = {register: [rng.choice([0, 4, 8, 8, 1]) << sizes[register] for _ in counts] for register in "ab"}
    for register in "ab":
        strides[register][fast] = rng.choice([0, 1, 1]) << sizes[register]
    order = sorted(rng.sample(range(reduces, len(counts)), len(counts) - reduces), key=lambda loop: loop != fast)
    dense = dict(zip(order, (prod(counts[other] for other in order[:index]) for index in range(len(order))), strict=True))
    strides["o"] = [dense.get(index, 0) << sizes["o"] for index in range(len(counts))]
    function = VectorFunction(
        a_size=sizes["a"], b_size=sizes["b"], o_size=sizes["o"], second=second, shifted=True, factor=Factor.OPERAND if second == Second.FACTOR else Factor.REGISTER,
        out_shift=rng.randrange(12), bits=rng.choice([7, 15, 31]), statistic=rng.choice(list(Statistic)),
    )  # fmt: skip
    return Instruction(
        opcode=Opcode.VECTOR, loops=nest(strides, counts), reduce_loops=reduces, function=function.encode(),
        a=rng.choice([0, 16, 64, 4]), b=HALF // 2 + rng.choice([0, 16, 16, 8]), o=HALF + rng.choice([0, 0, 32, 8]),
    )  # fmt: skip


def test_random_instructions_do_the_same() -> None:
    rng = random.Random(3)
    found = dict.fromkeys(Lanes, 0)
    for _ in range(400):
        program = [put(SHIFT, rng.randint(-3, 9)), put(FACTOR, rng.randint(-99, 99)), random_instruction(rng)]
        wide = widened(program, CORE.vector_lanes)
        assert outcome(wide) == outcome(program), program
        assert sum(run_cycles(wide, CORE)) <= sum(run_cycles(program, CORE))
        found[VectorFunction.decode(wide[-1].function).lanes] += 1
    assert min(found.values()) > 10, found


def test_counts_from_registers() -> None:
    """A sum over as many rows as a register says, of all columns at once; the loop over rows itself stays in one lane."""
    function = VectorFunction(b_size=0, second=Second.FACTOR, factor=Factor.OPERAND)
    loops = (Loop(last=COUNTED, a_step=4, b_step=32), Loop(last=15, b_step=1, o_step=4))
    instruction = Instruction(opcode=Opcode.VECTOR, loops=loops, reduce_loops=1, counted=True, function=function.encode(), b=1024, o=HALF)
    program = [put(COUNT, 4), put(STEP_A, -16), put(STEP_B, -128), instruction]
    wide = widened(program, CORE.vector_lanes)
    assert [loop.last for loop in wide[-1].loops] == [COUNTED, 3] and VectorFunction.decode(wide[-1].function).lanes == Lanes.SAME
    assert outcome(wide) == outcome(program)


ROW = 5
INDEXED = {
    "rows of 16 bytes": ([put(ROW, 3), Scalar(opcode=ScalarOpcode.MULTIPLY, target=INDEX_A, left=ROW, immediate=48)], True),
    "rows of 8 bytes": ([put(ROW, 3), Scalar(opcode=ScalarOpcode.MULTIPLY, target=INDEX_A, left=ROW, immediate=8)], False),
    "a register of another layer": ([], False),
    "a walk by 16 bytes": (
        [put(ROW, 32), Scalar(opcode=ScalarOpcode.ADD, target=ROW, left=ROW, immediate=16), Scalar(opcode=ScalarOpcode.SET, target=INDEX_A, right=ROW)], True
    ),
    "a walk by 4 bytes behind its use": (
        [put(ROW, 32), Scalar(opcode=ScalarOpcode.SET, target=INDEX_A, right=ROW), Scalar(opcode=ScalarOpcode.ADD, target=ROW, left=ROW, immediate=4)], False
    ),
    "a value that is read before it is written": (
        [Scalar(opcode=ScalarOpcode.ADD, target=ROW, left=ROW, immediate=16), Scalar(opcode=ScalarOpcode.SET, target=INDEX_A, right=ROW)], False
    ),
    "a register of another layer that is set afterwards": ([elements(8, index_a=True, o=HALF), put(INDEX_A, 32)], False),
    "a value from memory": ([Scalar(opcode=ScalarOpcode.LOAD, target=INDEX_A, left=0, immediate=64)], False),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEXED)
def test_addresses_from_registers(case) -> None:
    """Lanes need multiples of their bytes, whatever a register adds."""
    before, aligned = INDEXED[case]
    instruction = elements(8, index_a=True, o=HALF)
    wide = widened([*before, instruction], CORE.vector_lanes)[-1]
    assert (VectorFunction.decode(wide.function).lanes == Lanes.EACH) == aligned
    other = widened([*before, elements(8, index_o=True, o=HALF)], CORE.vector_lanes)[-1]
    assert other == elements(8, index_o=True, o=HALF), f"register {INDEX_O} was not written"


@pytest.mark.parametrize(("count", "lanes", "issued"), [(8, 4, 2), (8, 8, 1), (12, 8, 12), (7, 2, 7), (16, 1, 16)])
def test_counts_are_multiples(count, lanes, issued) -> None:
    (wide,) = widened([elements(count)], lanes)
    assert wide.loops[0].last + 1 == issued
    assert wide.words == elements(count).words
