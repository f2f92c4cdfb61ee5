"""Instructions of the vector unit in all its lanes, where what they do is the same.

A loop whose elements follow each other in memory is done in as many lanes as the core has, when its count and all addresses are multiples of them: sums over the loop are exact,
so their order is free. The number of words, and with it every address of the program, stays.
"""

from collections.abc import Sequence
from dataclasses import replace

from tritloom.compiler.schedule.emit import ZERO
from tritloom.hw.arch.isa import COUNTED, Instruction, Loop, Opcode, loop_steps
from tritloom.hw.arch.scalar import INDEX_A, INDEX_B, INDEX_O, REGISTERS, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, Lanes, Second, Statistic, VectorFunction

__all__ = ["widened"]

_ENOUGH = 64
"""A power of two beyond the bytes of all lanes."""

_SECONDS = (Second.NONE, Second.FACTOR, Second.ADDEND, Second.SUBTRAHEND)


def widened(instructions: Sequence[Instruction | Scalar], lanes: int) -> list[Instruction | Scalar]:
    """The instructions of a layer for a core with so many lanes. What they take from index registers must have been computed in the same layer."""
    if lanes < 2:
        return list(instructions)
    multiples = _multiples(instructions)
    return [
        _in_lanes(instruction, lanes, multiples) if isinstance(instruction, Instruction) and instruction.opcode == Opcode.VECTOR else instruction
        for instruction in instructions
    ]  # fmt: skip


def _in_lanes(instruction: Instruction, lanes: int, multiples: list[int]) -> Instruction:
    function = VectorFunction.decode(instruction.function)
    if function.lanes != Lanes.ONE or function.second not in _SECONDS:
        return instruction
    counts = [1 if instruction.counted and loop.last == COUNTED else loop.last + 1 for loop in instruction.loops]
    strides = {register: _strides([getattr(loop, f"{register}_step") for loop in instruction.loops], counts) for register in "abo"}
    sizes = {"a": function.a_size, "b": function.b_size, "o": function.o_size}
    unused = {register for register, missing in (("b", function.second == Second.NONE), ("o", function.o_size == NOT_WRITTEN)) if missing}
    used = [register for register in "abo" if register not in unused]
    starts = {
        register: min(_power(getattr(instruction, register)), multiples[index] if indexed else _ENOUGH)
        for register, indexed, index in (
            ("a", instruction.index_a, INDEX_A), ("b", instruction.index_b, INDEX_B), ("o", instruction.index_o, INDEX_O),
        )
    }  # fmt: skip
    for number, count in enumerate(counts):
        joined = number < instruction.reduce_loops
        if count % lanes or (joined and function.second not in (Second.NONE, Second.FACTOR)):
            continue
        if function.statistic == Statistic.LARGEST and number > instruction.reduce_loops:
            continue  # the results would be counted in another order
        together = [register for register in used if not (joined and register == "o")]
        same = not joined and strides["a"][number] == 0
        if same:
            together.remove("a")
        if any(
            strides[register][number] != 1 << sizes[register]
            or any(step % (lanes << sizes[register]) for other, step in enumerate(strides[register]) if other != number)
            or starts[register] % (lanes << sizes[register])
            for register in together
        ):
            continue
        for register in "abo":
            strides[register][number] *= lanes
        counts[number] //= lanes
        steps = {register: loop_steps(strides[register], counts) for register in "abo"}
        loops = tuple(
            Loop(
                last=loop.last if loop.last == COUNTED and instruction.counted else counts[index] - 1,
                **{f"{register}_step": steps[register][index] for register in "abo"},
            )
            for index, loop in enumerate(instruction.loops)
        )
        kind = Lanes.JOINED if joined else Lanes.SAME if same else Lanes.EACH
        return replace(instruction, loops=loops, function=replace(function, lanes=kind).encode())
    return instruction


def _strides(steps: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Inverse of :func:`tritloom.hw.arch.isa.loop_steps`."""
    strides, walked = [], 0
    for step, count in zip(steps, counts, strict=True):
        strides.append(step + walked)
        walked += strides[-1] * (count - 1)
    return strides


def _power(value: int) -> int:
    """The largest power of two that divides ``value``, at most :data:`_ENOUGH`."""
    return min(value & -value, _ENOUGH) if value else _ENOUGH


def _multiples(instructions: Sequence[Instruction | Scalar]) -> list[int]:
    """A power of two for each register that divides all values which the instructions give it; 1 for those that come from elsewhere."""
    scalars = [instruction for instruction in instructions if isinstance(instruction, Scalar)]
    multiples, read = [1] * REGISTERS, {ZERO}
    multiples[ZERO] = _ENOUGH
    for instruction in instructions:
        if isinstance(instruction, Scalar):
            read |= {instruction.left} if instruction.right is None else {instruction.left, instruction.right}
            if _writes(instruction) and instruction.target not in read:
                multiples[instruction.target] = _ENOUGH
        else:
            flags = ((instruction.index_a, INDEX_A), (instruction.index_b, INDEX_B), (instruction.index_o, INDEX_O))
            read |= {register for indexed, register in flags if indexed}
    # From the largest ones down, until no instruction asks for less: branches may lead from any to any other.
    while True:
        before = list(multiples)
        for scalar in filter(_writes, scalars):
            multiples[scalar.target] = min(multiples[scalar.target], _result(scalar, multiples))
        if multiples == before:
            return multiples


def _writes(scalar: Scalar) -> bool:
    return scalar.opcode not in (ScalarOpcode.STORE, ScalarOpcode.BRANCH)


def _result(scalar: Scalar, multiples: list[int]) -> int:
    left, second = multiples[scalar.left], _power(scalar.immediate) if scalar.right is None else multiples[scalar.right]
    match scalar.opcode:
        case ScalarOpcode.SET | ScalarOpcode.KEEP:
            return second
        case ScalarOpcode.ADD | ScalarOpcode.SUBTRACT | ScalarOpcode.MINIMUM | ScalarOpcode.MAXIMUM:
            return min(left, second)
        case ScalarOpcode.MULTIPLY:
            return min(left * second, _ENOUGH)
        case _:
            return 1
