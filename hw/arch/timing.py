"""Clocks of the core: the latencies that the gateware is built with, and the exact duration of every instruction.

A compute instruction is fetched while the results of the one before are finished, issues its elements once the last of those is
written, and ends with its own last write; nothing in it depends on data. With the element
of stage 0 as clock 0, its activation and weight words are in the operand registers' inputs at stage
:data:`OPERAND_STAGE`. The post unit's commands begin one clock after the *start stage* of the reduction's last element:
:func:`start_stage`. There are as many as results (with ``wide``: groups of ``post_lanes`` results)
times pieces, one a clock, and the next reduction may end only when those of this one have been issued.
"""

from math import prod

from tritloom.hw.arch.isa import FIELDS, Instruction, Opcode
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.reduction import reduction_latency
from tritloom.hw.arch.scalar import INDEX_A, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import Second, VectorFunction

__all__ = [
    "DIVIDE_CLOCKS", "FETCH_LATENCY", "LOAD_CLOCKS", "NEST_LATENCY", "OPERAND_STAGE", "REQUANTISE_LATENCY", "ROOT_CLOCKS", "VALUE_LATENCY", "VECTOR_STAGES",
    "WRITE_LATENCY", "fetch_delay", "instruction_cycles", "scalar_clocks", "start_stage", "vector_delay", "vector_pipeline",
]  # fmt: skip

FETCH_LATENCY = 2
"""Clocks from a program address to the word in the decoder."""

NEST_LATENCY = 1
"""Clocks from the loop counters to the registers that say where in its nest an element is."""

OPERAND_STAGE = 3
"""Clocks from the issue of an element to its operands: one for the address registers, two for the memories."""

VALUE_LATENCY = 2
"""Clocks from a command of the post unit to its value and record."""

REQUANTISE_LATENCY = 10
"""Clocks from the last piece of a value to its code."""

WRITE_LATENCY = 1
"""Clocks from a code, maximum or raw accumulator to the write port."""

VECTOR_STAGES = {
    second: OPERAND_STAGE + 2 + (0 if second == Second.NONE else 5 if second in (Second.TABLE, Second.POWER) else 1) for second in Second
}
"""Stage in which the operands of the vector unit meet. An element is taken from its word in two clocks; a second one comes a clock later, or,
when its address is a table's, another two clocks for the address, two for the memory and one for the element."""

_VECTOR_PIPELINE = 9
"""Clocks from the meeting of a vector element's operands to the limited result, in one lane."""

DIVIDE_CLOCKS, ROOT_CLOCKS, LOAD_CLOCKS = 32, 16, 4
"""Bits of a quotient and of a root, one a clock; clocks from the address of a LOAD to its value."""


def scalar_clocks(instruction: Scalar) -> int:
    """Clock of a scalar instruction, its first being 0, with which it ends: its result goes to the register. The first word of the next instruction, fetched meanwhile, takes
    INDEX_A, the second one the register that is needed next: behind a result for INDEX_A one more goes by."""
    longer = {
        ScalarOpcode.MULTIPLY: 1,
        ScalarOpcode.DIVIDE: DIVIDE_CLOCKS + 1,
        ScalarOpcode.ROOT: ROOT_CLOCKS + 1,
        ScalarOpcode.LOAD: LOAD_CLOCKS,
    }
    return 2 + longer.get(instruction.opcode, 0) + (instruction.target == INDEX_A)


def vector_pipeline(parameters: CoreParameters) -> int:
    """Clocks from the meeting of a vector element's operands to the limited result. Several lanes take one more to join their products."""
    return _VECTOR_PIPELINE + (parameters.vector_lanes > 1)


def vector_delay(second: Second, parameters: CoreParameters) -> int:
    """What :func:`fetch_delay` is for the other instructions: when the last address ``o`` of a VECTOR has been used."""
    return VECTOR_STAGES[second] + vector_pipeline(parameters) - 1 - 1 - FETCH_LATENCY - FIELDS["o"].word


def start_stage(opcode: Opcode, parameters: CoreParameters) -> int:
    """Stage of a reduction's last element in which the post unit's commands for it are started.

    MATRIX: the sum is accumulated ``reduction_latency`` clocks after the operands, drained one clock later, and its value used
    ``VALUE_LATENCY - 1`` clocks after the first command. A maximum and a byte are there after the operands have been registered once.
    """
    if opcode == Opcode.MATRIX:
        return OPERAND_STAGE + reduction_latency(parameters.rows, parameters.reduction) - 1
    return OPERAND_STAGE - 1


def _spacing(instruction: Instruction, parameters: CoreParameters) -> tuple[int, int, int]:
    """Commands of a reduction in a full and in the last tile, and the number of reductions in full tiles for each one in the last."""
    lanes = parameters.post_lanes if instruction.wide else 1
    if instruction.opcode != Opcode.MATRIX:
        commands = 1 if instruction.opcode == Opcode.POOL else max(1, instruction.records)
        return commands, commands, 0
    pieces = 1 if instruction.raw else max(1, instruction.records)
    tiles = instruction.loops[instruction.tile_loop].last if instruction.tile_loop < len(instruction.loops) else 0
    full, tail = (-(-columns // lanes) * pieces for columns in (parameters.columns, instruction.last_columns))
    return full, tail, tiles if instruction.tile_loop >= instruction.reduce_loops else 0


def fetch_delay(parameters: CoreParameters) -> int:
    """Clocks by which the fetch of the next instruction waits after the last element, beside the one clock that it takes to notice it.

    Without them the header words with ``p`` and ``o`` could come before the last reduction has used these registers.
    """
    earliest = min(FIELDS["p"].word, FIELDS["o"].word)
    return max(0, start_stage(Opcode.MATRIX, parameters) - 1 - FETCH_LATENCY - earliest)


def _issue(instruction: Instruction, parameters: CoreParameters) -> int:
    """Clocks from the first to the last element, both included.

    A reduction of ``n`` elements in which the accumulators are tripled ``t`` times issues in ``n + t`` clocks, but ends no sooner than
    the commands of the reduction before it allow.
    """
    counts = [loop.last + 1 for loop in instruction.loops]
    if instruction.opcode == Opcode.VECTOR:
        reads = VectorFunction.decode(instruction.function).reads
        return (prod(counts) - 1) * reads + 1
    inner, outer = counts[: instruction.reduce_loops], counts[instruction.reduce_loops :]
    length = prod(inner)
    if instruction.opcode == Opcode.MATRIX and instruction.plane_loop < len(inner):
        planes = instruction.plane_loop
        length += (inner[planes] - 1) * prod(inner[planes + 1 :])
    full, tail, tiles = _spacing(instruction, parameters)
    tail_reductions = prod(outer) // (tiles + 1)
    return length + tiles * tail_reductions * max(length, full) + (tail_reductions - 1) * max(length, tail)


def _finish(instruction: Instruction, parameters: CoreParameters) -> int:
    """Clocks from the last element to the last write."""
    if instruction.opcode == Opcode.VECTOR:
        return VECTOR_STAGES[VectorFunction.decode(instruction.function).second] + vector_pipeline(parameters) + 2
    _, tail, _ = _spacing(instruction, parameters)
    direct = instruction.opcode == Opcode.POOL or (instruction.opcode == Opcode.MATRIX and instruction.raw)
    latency = VALUE_LATENCY + WRITE_LATENCY + (0 if direct else REQUANTISE_LATENCY)
    return start_stage(instruction.opcode, parameters) + tail + latency


def _hidden(previous: Instruction | Scalar | None, parameters: CoreParameters) -> int:
    """Clocks of the next instruction's fetch that are over when ``previous`` ends."""
    if previous is None:
        return 0
    if isinstance(previous, Scalar):
        return -1 if previous.opcode == ScalarOpcode.BRANCH else 2
    delay = fetch_delay(parameters)
    if previous.opcode == Opcode.VECTOR:
        delay = vector_delay(VectorFunction.decode(previous.function).second, parameters)
    return _finish(previous, parameters) - 1 - delay


def instruction_cycles(instruction: Instruction | Scalar, parameters: CoreParameters, previous: Instruction | Scalar | None = None) -> int:
    """Clocks from the end of the ``previous`` instruction to that of ``instruction``; from START where it is the first one. A compute instruction ends
    with its last write, a scalar one with its result.

    Their sum is what the core's counter shows when it stops. Loops that take register COUNT must have their number in ``instruction``.
    """
    hidden = _hidden(previous, parameters)
    if isinstance(instruction, Scalar):
        return max(0, FETCH_LATENCY + 1 - hidden) + scalar_clocks(instruction)
    if instruction.opcode == Opcode.HALT:
        return max(0, FETCH_LATENCY + 2 - hidden)
    fetching = max(0, FETCH_LATENCY + instruction.words + NEST_LATENCY - hidden)
    return fetching + _issue(instruction, parameters) - 1 + _finish(instruction, parameters)
