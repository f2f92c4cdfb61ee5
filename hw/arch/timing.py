"""Clocks of the core: the latencies that the gateware is built with, and the exact duration of every instruction.

An instruction is fetched while the results of the one before are finished, issues its elements once the last of those is
written, and ends with its own last write; nothing in it depends on data. With the element
of stage 0 as clock 0, its activation and weight words are in the operand registers' inputs at stage
:data:`OPERAND_STAGE`. The post unit's commands begin one clock after the *start stage* of the reduction's last element:
:func:`start_stage`. There are as many as results (with ``wide``: groups of ``post_lanes`` results)
times pieces, one a clock, and the next reduction may end only when those of this one have been issued.
"""

from collections.abc import Sequence
from math import prod

from tritloom.hw.arch.isa import FIELDS, Instruction, Opcode
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.reduction import reduction_latency

__all__ = [
    "FETCH_LATENCY", "NEST_LATENCY", "OPERAND_STAGE", "REQUANTISE_LATENCY", "VALUE_LATENCY", "WRITE_LATENCY", "fetch_delay", "instruction_cycles",
    "program_cycles", "start_stage",
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
    _, tail, _ = _spacing(instruction, parameters)
    direct = instruction.opcode == Opcode.POOL or (instruction.opcode == Opcode.MATRIX and instruction.raw)
    latency = VALUE_LATENCY + WRITE_LATENCY + (0 if direct else REQUANTISE_LATENCY)
    return start_stage(instruction.opcode, parameters) + tail + latency


def instruction_cycles(instruction: Instruction, parameters: CoreParameters, previous: Instruction | None = None) -> int:
    """Clocks from the last write of the ``previous`` instruction to that of ``instruction``; from START where it is the first one.

    Their sum is what the core's counter shows when it stops.
    """
    hidden = 0 if previous is None else _finish(previous, parameters) - 1 - fetch_delay(parameters)
    if instruction.opcode == Opcode.HALT:
        return max(0, FETCH_LATENCY + 2 - hidden)
    fetching = max(0, FETCH_LATENCY + instruction.words + NEST_LATENCY - hidden)
    return fetching + _issue(instruction, parameters) - 1 + _finish(instruction, parameters)


def program_cycles(instructions: Sequence[Instruction], parameters: CoreParameters) -> list[int]:
    """Clocks of each instruction when the core starts with the first one and goes on to the last; see :func:`instruction_cycles`."""
    pairs = zip([None, *instructions], instructions, strict=False)
    return [instruction_cycles(instruction, parameters, previous) for previous, instruction in pairs]
