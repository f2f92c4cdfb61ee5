"""A program for one core: instructions, memory images, placements, cycle and multiply-accumulate counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tritloom.compiler.ir.block import BlockOperation, Position
from tritloom.compiler.ir.program import Add, Convolution, Program, Rescale, SumPool
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.schedule.block_operations import lower_block
from tritloom.compiler.schedule.blocks import BlockLowering, Generation, Memory
from tritloom.compiler.schedule.lanes import widened
from tritloom.compiler.schedule.layout import Placement, busiest_layer, place, written
from tritloom.compiler.schedule.lower import Lowering, count_macs
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import COUNTED, Instruction, Opcode, assemble
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import RECORD_BYTES
from tritloom.hw.arch.scalar import Scalar
from tritloom.hw.arch.timing import program_cycles

__all__ = [
    "SMALLER_INPUTS", "Needs", "Schedule", "ScheduledLayer", "accumulator_bits", "activation_shortage", "check_core", "complete", "has_blocks", "memory_needs",
    "scaled_bits", "schedule", "sim_parameters",
]  # fmt: skip

LARGEST_MEMORY = 1 << 22
LARGEST_REGISTER = 1 << 16
"""Reach of the 16-bit program counter and record register."""

SIM_LANES = 4
SIM_VECTOR_LANES = 4
SIM_SMALLEST = {"weight_words": 1024, "activation_words": 1024, "record_words": 256, "program_words": 1024}


@dataclass(frozen=True, kw_only=True)
class ScheduledLayer:
    """The instructions of one operation and what they cost.

    ``operation`` is its index in the program, ``pc`` its first program word, ``words`` their length, ``instructions`` their number.
    ``outputs`` names the tensors that are complete when the last one has run, and readable until another layer reuses their bytes.
    ``utilisation`` is ``macs / (rows * columns * cycles)``.
    """

    name: str
    operation: int
    pc: int
    words: int
    instructions: int
    macs: int
    cycles: int
    utilisation: float
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the memories of one core hold for a program.

    ``weights`` is uint8 (words, bytes of a weight word), ``records`` the bytes of the record memory; ``cycles`` counts a whole run,
    HALT included, and equals the core's counter; ``macs`` counts each multiply-accumulate once. ``tables`` are address and bytes of what the activation memory
    holds from the start. Of a program with states ``cycles`` are those of the last token that fits its caches, see :meth:`cycles_at`;
    ``generation`` says where a language model's tokens are.
    """

    parameters: CoreParameters
    instructions: tuple[Instruction | Scalar, ...]
    layers: tuple[ScheduledLayer, ...]
    placements: dict[str, Placement]
    program_words: list[int]
    weights: np.ndarray
    records: bytes
    cycles: int
    macs: int
    tables: tuple[tuple[int, bytes], ...] = ()
    generation: Generation | None = None

    def cycles_at(self, position: int) -> int:
        """Clocks of a run behind ``position`` earlier tokens."""
        return sum(program_cycles(_counted(self.instructions, position), self.parameters))

    @property
    def stopped_cycles(self) -> int:
        """Clocks of a run that stops after every layer: the fetch of a layer's first instruction is not hidden then."""
        ends = [0]
        for layer in self.layers:
            ends.append(ends[-1] + layer.instructions)
        parts = [self.instructions[begin:end] for begin, end in zip(ends, [*ends[1:], len(self.instructions)], strict=True)]
        return sum(sum(program_cycles(part, self.parameters)) for part in parts)


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
    for operation in program.operations:
        if isinstance(operation, (Convolution, SumPool)):
            bits = max(bits, _signed_bits(operation.acc_low), _signed_bits(operation.acc_high))
    return bits


def scaled_bits(program: Program) -> int:
    """Width of ``multiplier * accumulator + bias`` that the records of every layer need on the accumulators that reach them, at least 34."""
    bits = 34
    for operation in program.operations:
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
    check_core(program)
    placements, activation_bytes = place(program, rows)
    lowering = Lowering(program=program, placements=placements, rows=rows, columns=columns, encoding=weight_encoding, post_lanes=post_lanes)
    memory = Memory(activation_bytes)
    blocks = BlockLowering(program=program, placements=placements, memory=memory)
    instructions = _instructions(program, lowering, blocks)
    weights, records = lowering.weights, lowering.records
    needs = Needs(
        weight_words=len(weights),
        activation_words=-(-memory.end // rows),
        record_words=len(records) // (RECORD_BYTES * post_lanes),
        program_words=sum(instruction.words for group in instructions for instruction in group) + 1,
        accumulator_bits=accumulator_bits(program),
        scaled_bits=scaled_bits(program),
    )
    return _Lowered(
        instructions=instructions,
        tables=tuple(memory.contents),
        generation=blocks.generation,
        placements=placements,
        weights=weights,
        records=records,
        needs=needs,
    )


def has_blocks(program: Program) -> bool:
    """Whether a program needs the vector unit."""
    return any(isinstance(operation, BlockOperation) for operation in program.operations)


def _instructions(program: Program, lowering: Lowering, blocks: BlockLowering) -> list[list[Instruction | Scalar]]:
    """Instructions of each operation. What begins and ends a program with blocks belongs to its first and last one."""
    groups: list[list[Instruction | Scalar]] = []
    for operation in program.operations:
        if isinstance(operation, BlockOperation):
            groups.append(lower_block(blocks, operation))
        else:
            groups.append([*lowering.lower(operation), *blocks.measured(operation)])
    if has_blocks(program):
        groups[0] = [*blocks.begin(), *groups[0]]
        groups[-1] = [*groups[-1], *blocks.go_on(), *blocks.advance(), *blocks.repeat()]
    return groups


def _counted(instructions: Sequence[Instruction | Scalar], last: int) -> list[Instruction | Scalar]:
    """The instructions with ``last`` for the loops that take their count from a register."""
    return [
        replace(instruction, loops=tuple(replace(loop, last=last) if loop.last == COUNTED else loop for loop in instruction.loops))
        if isinstance(instruction, Instruction) and instruction.counted
        else instruction
        for instruction in instructions
    ]


def memory_needs(program: Program, *, rows: int, columns: int, weight_encoding: str, post_lanes: int = 1) -> Needs:
    """Memories and accumulator width that ``program`` needs on an array of this shape; nothing is checked against a core."""
    return _lower(program, rows=rows, columns=columns, weight_encoding=weight_encoding, post_lanes=post_lanes).needs


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
    layer, most = busiest_layer(program, rows)
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
    for operation in program.operations:
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
        program, parameters, groups=groups, placements=lowered.placements, weights=lowered.weights, records=lowered.records, tables=lowered.tables, generation=lowered.generation,
    )  # fmt: skip


def complete(
    program: Program,
    parameters: CoreParameters,
    *,
    groups: Sequence[Sequence[Instruction | Scalar]],
    placements: dict[str, Placement],
    weights: np.ndarray,
    records: bytes,
    tables: tuple[tuple[int, bytes], ...] = (),
    generation: Generation | None = None,
) -> Schedule:
    """Schedule from the instructions of each operation: program words, layers and counts follow from them."""
    last_writer = {name: index for index, operation in enumerate(program.operations) for name in written(operation)}
    halt = Instruction(opcode=Opcode.HALT)
    instructions = (*(instruction for group in groups for instruction in group), halt)
    longest = max((operation.capacity - 1 for operation in program.operations if isinstance(operation, Position)), default=0)
    clocks = program_cycles(_counted(instructions, longest), parameters)
    layers, pc, position = [], 0, 0
    for index, (operation, group) in enumerate(zip(program.operations, groups, strict=True)):
        cycles = sum(clocks[position : position + len(group)])
        position += len(group)
        macs = count_macs(program, operation)
        words = sum(instruction.words for instruction in group)
        layers.append(
            ScheduledLayer(
                name=operation.name,
                operation=index,
                pc=pc,
                words=words,
                instructions=len(group),
                macs=macs,
                cycles=cycles,
                utilisation=macs / (parameters.macs_per_cycle * cycles) if cycles else 0.0,
                outputs=tuple(name for name in written(operation) if last_writer[name] == index),
            )
        )
        pc += words
    return Schedule(
        parameters=parameters,
        instructions=instructions,
        layers=tuple(layers),
        placements=placements,
        program_words=assemble(list(instructions)),
        weights=weights,
        records=records,
        cycles=sum(clocks),
        macs=sum(layer.macs for layer in layers),
        tables=tables,
        generation=generation,
    )
