"""Clocks of a program whose instructions repeat: what :mod:`tritloom.hw.arch.timing` says of each, as often as it runs."""

from collections.abc import Collection, Sequence

from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.scalar import Scalar
from tritloom.hw.arch.timing import instruction_cycles

__all__ = ["executions", "run_cycles"]


def _loops(instructions: Sequence[Instruction | Scalar], first_word: int) -> list[tuple[int, int, int]]:
    """Index of the first and of the last instruction of each whole loop, and its trips."""
    starts, word = {}, first_word
    for index, instruction in enumerate(instructions):
        starts[word] = index
        word += instruction.words
    return [
        (starts[instruction.immediate], index, instruction.trips)
        for index, instruction in enumerate(instructions)
        if isinstance(instruction, Scalar) and instruction.trips and instruction.immediate in starts
    ]


def executions(instructions: Sequence[Instruction | Scalar], *, first_word: int = 0) -> list[int]:
    """How often each instruction runs where ``instructions``, from program word ``first_word`` on, run once; loops that begin before them do not count."""
    times = [1] * len(instructions)
    for first, last, trips in _loops(instructions, first_word):
        for index in range(first, last + 1):
            times[index] *= trips
    return times


def run_cycles(
    instructions: Sequence[Instruction | Scalar], parameters: CoreParameters, *, first_word: int = 0, stops: Collection[int] = ()
) -> list[int]:
    """Clocks of each instruction, of all times that it runs, when the core starts with the first one and goes on to the last.

    The numbers of ``stops`` are instructions in front of which the core stops and is started again, so that their fetch is not hidden. Loops have the trips of their
    BRANCH, see :class:`~tritloom.hw.arch.scalar.Scalar`; those over register COUNT must have their number in the instruction.
    """
    times = executions(instructions, first_word=first_word)
    loops = _loops(instructions, first_word)
    again: dict[int, list[tuple[int, int]]] = {}
    for loop in loops:
        first, last, trips = loop
        outer = 1
        for other in loops:
            if other != loop and other[0] <= first and last <= other[1]:
                outer *= other[2]
        again.setdefault(first, []).append((last, outer * (trips - 1)))
    clocks = []
    for index, instruction in enumerate(instructions):
        previous = instructions[index - 1] if index and index not in stops else None
        total, entered = 0, times[index]
        for last, count in again.get(index, ()):
            before = None if index in stops else instructions[last]
            total += count * instruction_cycles(instruction, parameters, before)
            entered -= count
        clocks.append(total + entered * instruction_cycles(instruction, parameters, previous))
    return clocks
