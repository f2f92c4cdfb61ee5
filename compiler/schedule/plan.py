"""An integer program on one core: what it needs, whether that fits, and its schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.block import BlockOperation
from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Add, Convolution, Program, Rescale, SumPool
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.schedule.block_operations import lower_block
from tritloom.compiler.schedule.blocks import BlockLowering, Memory
from tritloom.compiler.schedule.flat import LoopPart, flattened
from tritloom.compiler.schedule.generation import Generation, GenerationLowering
from tritloom.compiler.schedule.lanes import widened
from tritloom.compiler.schedule.layout import Placement, busiest_layer, place
from tritloom.compiler.schedule.loops import LoopLowering
from tritloom.compiler.schedule.lower import Lowering
from tritloom.compiler.schedule.result import Schedule, complete
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import RECORD_BYTES
from tritloom.hw.arch.scalar import Scalar

__all__ = [
    "SMALLER_INPUTS", "Needs", "accumulator_bits", "activation_shortage", "check_core", "has_blocks", "memory_needs", "scaled_bits", "schedule", "sim_parameters",
]  # fmt: skip

LARGEST_MEMORY = 1 << 22
LARGEST_REGISTER = 1 << 16
"""Reach of the 16-bit program counter and record register."""

SIM_LANES = 4
SIM_VECTOR_LANES = 4
SIM_SMALLEST = {"weight_words": 1024, "activation_words": 1024, "record_words": 256, "program_words": 1024}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Smallest memories (in words), accumulator and sums of the post unit that hold a program on an array of some shape."""

    weight_words: int
    activation_words: int
    record_words: int
    program_words: int
    accumulator_bits: int
    scaled_bits: int


@dataclass(frozen=True, kw_only=True)
class _Lowered:
    instructions: list[list[Instruction | Scalar]]
    routine: list[Instruction | Scalar]
    tables: tuple[tuple[int, bytes], ...]
    generation: Generation | None
    placements: dict[str, Placement]
    weights: np.ndarray
    records: bytes
    needs: Needs


def check_core(program: Program) -> None:
    """Raise :class:`ModelError`, naming the first layer, for a program with operations that only golden can do."""
    no_core = obstacles(program)
    if no_core:
        raise ModelError(f"{no_core[0]}; run the model in golden (--on golden)")


def accumulator_bits(program: Program) -> int:
    """Width of the signed accumulator that every layer's proven bounds need, at least 16."""
    bits = 16
    for operation in program.walk():
        if isinstance(operation, (Convolution, SumPool)):
            bits = max(bits, _signed_bits(operation.acc_low), _signed_bits(operation.acc_high))
    return bits


def scaled_bits(program: Program) -> int:
    """Width of ``multiplier * accumulator + bias`` that the records of every layer need on the accumulators that reach them, at least 34."""
    bits = 34
    for operation in program.walk():
        tensors = [program.tensors[name] for name in operation.inputs]
        if isinstance(operation, Convolution):
            steps, low, high = [operation.step] if operation.step is not None else [], operation.acc_low, operation.acc_high
        elif isinstance(operation, SumPool):
            steps, low, high = [step for _, step in operation.regions], operation.acc_low, operation.acc_high
        elif isinstance(operation, (Rescale, Add)):
            steps, low, high = [operation.step], tensors[0].low, tensors[0].high
        else:
            continue
        for step in steps:
            tables = np.array(
                [[(r.start, r.multiplier, r.bias, r.shift) for r in pieces] for pieces in dict.fromkeys(step.records)], np.int64
            )
            start, multiplier, bias, shift = np.moveaxis(tables, 2, 0)
            if isinstance(operation, Add):
                ends = [multiplier[:, 0] * left + multiplier[:, 1] * right + bias[:, 0]
                        for left in (low, high) for right in (tensors[1].low, tensors[1].high)]  # fmt: skip
            else:
                # A piece counts from its start to the smallest start behind it; the first one begins at the smallest accumulator.
                later = np.minimum.accumulate(np.pad(start[:, 1:], ((0, 0), (0, 1)), constant_values=high + 1)[:, ::-1], axis=1)[:, ::-1]
                first, last = np.maximum(start, low), np.minimum(later - 1, high)
                first[:, 0] = low
                used = first <= last
                ends = [(multiplier * end + bias)[used] for end in (first, last)]
            values = np.concatenate(ends)
            bits = max(bits, int(shift.max()) + 1, _signed_bits(int(values.min())), _signed_bits(int(values.max())))
    return bits


def _signed_bits(value: int) -> int:
    return (value if value >= 0 else ~value).bit_length() + 1


def _lower(program: Program, *, rows: int, columns: int, weight_encoding: str, post_lanes: int) -> _Lowered:
    """Of a flattened program."""
    check_core(program)
    placements, activation_bytes = place(program, rows)
    lowering = Lowering(program=program, placements=placements, rows=rows, columns=columns, encoding=weight_encoding, post_lanes=post_lanes)
    memory = Memory(activation_bytes)
    blocks = BlockLowering(program=program, placements=placements, memory=memory)
    generation = GenerationLowering(blocks, program)
    instructions, routine = _instructions(program, lowering, blocks, generation)
    weights, records = lowering.weights, lowering.records
    needs = Needs(
        weight_words=len(weights),
        activation_words=-(-memory.end // rows),
        record_words=len(records) // (RECORD_BYTES * post_lanes),
        program_words=sum(instruction.words for group in [*instructions, routine] for instruction in group) + 1,
        accumulator_bits=accumulator_bits(program),
        scaled_bits=scaled_bits(program),
    )
    return _Lowered(
        instructions=instructions,
        tables=tuple(memory.contents),
        generation=generation.generation,
        routine=routine,
        placements=placements,
        weights=weights,
        records=records,
        needs=needs,
    )


def has_blocks(program: Program) -> bool:
    """Whether a program needs the vector unit."""
    return any(isinstance(operation, BlockOperation | GridOperation | Loop) for operation in program.walk())


def _instructions(
    program: Program, lowering: Lowering, blocks: BlockLowering, generation: GenerationLowering
) -> tuple[list[list[Instruction | Scalar]], list[Instruction | Scalar]]:
    """Instructions of each operation, and those behind the HALT. What begins and ends a program with blocks belongs to its first and last operation."""
    groups: list[list[Instruction | Scalar]] = []
    loops = LoopLowering(blocks)

    def put(instructions: Sequence[Instruction | Scalar]) -> None:
        """At the end of the last group."""
        groups[-1] += instructions
        blocks.word += sum(instruction.words for instruction in instructions)

    for operation in program.operations:
        groups.append([])
        if has_blocks(program) and len(groups) == 1:
            put(generation.begin())
        if isinstance(operation, LoopPart):
            put(loops.lower(operation))
        elif isinstance(operation, BlockOperation | GridOperation):
            put(lower_block(blocks, operation))
        else:
            put(lowering.lower(operation))
            put(blocks.measured(operation))
    if has_blocks(program):
        put(generation.end())
    blocks.word += 1
    return groups, generation.drawing()


def memory_needs(program: Program, *, rows: int, columns: int, weight_encoding: str, post_lanes: int = 1) -> Needs:
    """Memories and accumulator width that ``program`` needs on an array of this shape; nothing is checked against a core."""
    return _lower(flattened(program), rows=rows, columns=columns, weight_encoding=weight_encoding, post_lanes=post_lanes).needs


def sim_parameters(program: Program) -> CoreParameters:
    """Core of the board ``sim``: a fixed 16x16 array with memories of a few sizes (powers of four), so that simulators are shared.

    Raises :class:`ModelError` for a program that no core can address.
    """
    needs = memory_needs(program, rows=16, columns=16, weight_encoding="trit2", post_lanes=SIM_LANES)
    depths = {}
    for field, depth in SIM_SMALLEST.items():
        needed = getattr(needs, field)
        limit = _limit(field)
        while depth < needed:
            depth *= 4
        if needed > limit:
            if field == "activation_words":
                raise ModelError(activation_shortage(program, 16, needed * 16, limit * 16, "a core can address") + f"; {SMALLER_INPUTS}")
            raise ModelError(
                f"model {program.name!r} needs {needed} {_NOUNS[field]}, more than the {limit} that a core can address; use a smaller model"
            )
        depths[field] = min(depth, limit)
    return CoreParameters(
        rows=16, columns=16, accumulator_bits=32, post_lanes=SIM_LANES, vector_lanes=SIM_VECTOR_LANES if has_blocks(program) else 0, weight_encoding="trit2",
        weight_storage="block", **depths,
    )  # fmt: skip


SMALLER_INPUTS = "declare smaller inputs with --shape where the model allows it"


def activation_shortage(program: Program, rows: int, needed: int, available: int, where: str) -> str:
    """A clause about an activation memory that is too small: bytes needed and there, and the layer that asks for most."""
    layer, most = busiest_layer(flattened(program), rows)
    return (
        f"model {program.name!r} needs {needed} bytes of activation memory (layer {layer!r} has {most} in use at once), "
        f"{needed - available} more than the {available} that {where}"
    )


_NOUNS = {
    "weight_words": "weight words",
    "activation_words": "activation words",
    "record_words": "words of requantisation records",
    "program_words": "program words",
}


def _limit(field: str) -> int:
    return LARGEST_REGISTER if field in ("record_words", "program_words") else LARGEST_MEMORY


def _check_fit(program: Program, needs: Needs, parameters: CoreParameters) -> None:
    """Raise :class:`ModelError` with one sentence when a memory or the accumulator is too small, or the core lacks a vector unit that is needed."""
    if has_blocks(program) and not parameters.vector_lanes:
        raise ModelError(
            f"model {program.name!r} computes scales at run time, but the core has no vector unit; use a core with vector_lanes of 1"
        )
    for operation in program.walk():
        if isinstance(operation, (Convolution, SumPool)):
            bits = max(_signed_bits(operation.acc_low), _signed_bits(operation.acc_high))
            if bits > parameters.accumulator_bits:
                raise ModelError(
                    f"layer {operation.name!r} reaches accumulator values from {operation.acc_low} to {operation.acc_high} and needs {bits} bits, "
                    f"but the core's accumulators have {parameters.accumulator_bits}; use a core with accumulator_bits of {bits} or more"
                )
    bits = scaled_bits(program)
    if bits > parameters.scaled_bits:
        raise ModelError(
            f"model {program.name!r} needs {bits} bits for its scaled accumulators, but the core's post unit has {parameters.scaled_bits}; "
            f"use a core with scaled_bits of {bits} or more"
        )
    advice = {
        "weight_words": "a larger part, fewer digit planes or a smaller model",
        "activation_words": "",
        "record_words": "a larger part or fewer channels",
        "program_words": "a larger part or fewer layers",
    }
    for field, hint in advice.items():
        needed, available = getattr(needs, field), min(getattr(parameters, field), _limit(field))
        if needed > available and field == "activation_words":
            where = f"the core with its {parameters.rows}x{parameters.columns} array has"
            short = activation_shortage(program, parameters.rows, needed * parameters.rows, available * parameters.rows, where)
            raise ModelError(f"{short}; {SMALLER_INPUTS}, or use a larger part")
        if needed > available:
            raise ModelError(
                f"model {program.name!r} needs {needed} {_NOUNS[field]} on a {parameters.rows}x{parameters.columns} array, but the core has {available}; use {hint}"
            )


def schedule(program: Program, parameters: CoreParameters) -> Schedule:
    """Schedule an integer program on a core.

    Raises :class:`ModelError` with one sentence when a memory or the accumulator is too small (which, needed, available, what to do), or an
    operation does not fit the instruction set or runs in golden only. The result depends on the arguments only.
    """
    program = flattened(program)
    lowered = _lower(
        program,
        rows=parameters.rows,
        columns=parameters.columns,
        weight_encoding=parameters.weight_encoding,
        post_lanes=parameters.post_lanes,
    )
    _check_fit(program, lowered.needs, parameters)
    groups = [widened(group, parameters.vector_lanes) for group in lowered.instructions]
    return complete(
        program, parameters, groups=groups, placements=lowered.placements, weights=lowered.weights, records=lowered.records, tables=lowered.tables, generation=lowered.generation, routine=widened(lowered.routine, parameters.vector_lanes),
    )  # fmt: skip
