"""A schedule: the instructions of each layer, memory images, placements, and the clocks that all of it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from tritloom.compiler.ir.block import Position
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule.clocks import executions, run_cycles
from tritloom.compiler.schedule.flat import LoopEnd, LoopTop
from tritloom.compiler.schedule.generation import Generation
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.lower import count_macs
from tritloom.hw.arch.isa import COUNTED, Instruction, Opcode, assemble
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.scalar import Scalar

__all__ = ["Schedule", "ScheduledLayer", "complete"]


@dataclass(frozen=True, kw_only=True)
class ScheduledLayer:
    """The instructions of one operation and what they cost.

    ``operation`` is its index in the program, a loop being three operations around its body; ``pc`` is its first program word, ``words`` their length, ``instructions`` their
    number, ``steps`` how many run, with those that repeat. It runs ``times`` times at most, and ``cycles`` are those of all of them. Behind it the core goes on with the next
    layer, or with number ``back``, the top of a loop. ``outputs`` names the tensors that are complete when the last one has run, and readable until another layer reuses their bytes.
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
    steps: int
    times: int = 1
    back: int | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the memories of one core hold for a program.

    ``weights`` is uint8 (words, bytes of a weight word), ``records`` the bytes of the record memory; ``cycles`` counts a whole run,
    HALT included, and equals the core's counter; ``macs`` counts each multiply-accumulate once. ``tables`` are address and bytes of what the activation memory
    holds from the start. Of a program with loops ``cycles`` are those of as many trips as there may be, see :meth:`cycles_of`; of a program with states ``cycles`` are those of the last token that fits its caches, see :meth:`cycles_at`;
    ``generation`` says where a language model's tokens are; ``routine`` stands behind the HALT, where only the drawing of a token branches to.
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
    routine: tuple[Instruction | Scalar, ...] = ()

    @property
    def halt_word(self) -> int:
        """Program word of the HALT."""
        return sum(instruction.words for instruction in self.instructions) - 1

    def cycles_at(self, position: int) -> int:
        """Clocks of a run behind ``position`` earlier tokens."""
        return sum(run_cycles(_counted(self.instructions, position), self.parameters))

    def cycles_of(self, trips: Mapping[str, int], *, stopped: bool = False) -> int:
        """Clocks of a run in which the loops with these names make so many trips each time; with ``stopped`` of one that stops after every layer."""
        instructions = list(self.instructions)
        for name, count in trips.items():
            layer = next(layer for layer in self.layers if layer.name == name and layer.back is not None)
            number = self._stops[self.layers.index(layer) + 1] - 1
            branch = instructions[number]
            assert isinstance(branch, Scalar)
            instructions[number] = replace(branch, trips=count)
        return sum(run_cycles(instructions, self.parameters, stops=self._stops if stopped else ()))

    def layer_cycles_at(self, position: int) -> list[int]:
        """Clocks of each layer behind ``position`` earlier tokens, the core stopping after each."""
        clocks = run_cycles(_counted(self.instructions, position), self.parameters, stops=self._stops)
        return [sum(clocks[begin:end]) for begin, end in pairwise(self._stops)]

    @property
    def stopped_cycles(self) -> int:
        """Clocks of a run that stops after every layer: the fetch of a layer's first instruction is not hidden then."""
        return sum(run_cycles(self.instructions, self.parameters, stops=self._stops))

    @property
    def _stops(self) -> list[int]:
        """Number of the first instruction of each layer, and of the HALT."""
        return list(accumulate((layer.instructions for layer in self.layers), initial=0))


def _counted(instructions: Sequence[Instruction | Scalar], last: int) -> list[Instruction | Scalar]:
    """The instructions with ``last`` for the loops that take their count from a register."""
    return [
        replace(instruction, loops=tuple(replace(loop, last=last) if loop.last == COUNTED else loop for loop in instruction.loops))
        if isinstance(instruction, Instruction) and instruction.counted
        else instruction
        for instruction in instructions
    ]


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
    routine: Sequence[Instruction | Scalar] = (),
) -> Schedule:
    """Schedule of a flattened program from the instructions of each operation: program words, layers and counts follow from them."""
    last_writer = {name: index for index, operation in enumerate(program.operations) for name in operation.outputs}
    halt = Instruction(opcode=Opcode.HALT)
    instructions = (*(instruction for group in groups for instruction in group), halt)
    longest = max((operation.capacity - 1 for operation in program.operations if isinstance(operation, Position)), default=0)
    clocks = run_cycles(_counted(instructions, longest), parameters)
    times = executions(instructions)
    layers, pc, position = [], 0, 0
    tops = {operation.name: index for index, operation in enumerate(program.operations) if isinstance(operation, LoopTop)}
    for index, (operation, group) in enumerate(zip(program.operations, groups, strict=True)):
        cycles = sum(clocks[position : position + len(group)])
        repeated = times[position] if group else 1
        position += len(group)
        macs = repeated * count_macs(program, operation)
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
                outputs=tuple(name for name in operation.outputs if last_writer[name] == index),
                steps=sum(executions(group, first_word=pc)),
                times=repeated,
                back=tops[operation.name] if isinstance(operation, LoopEnd) else None,
            )
        )
        pc += words
    return Schedule(
        parameters=parameters,
        instructions=instructions,
        layers=tuple(layers),
        placements=placements,
        program_words=assemble([*instructions, *routine]),
        weights=weights,
        records=records,
        cycles=sum(clocks),
        macs=sum(layer.macs for layer in layers),
        tables=tables,
        generation=generation,
        routine=tuple(routine),
    )
