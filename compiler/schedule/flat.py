"""Programs without nesting: a loop becomes an operation before its body, one where each trip begins, and one that branches back.

:class:`LoopStart` counts no trips yet, :class:`LoopTop` hands on what is carried, and :class:`LoopEnd` counts a trip and goes back to the top while there is
another one. What a trip reads from outside, or from the trip before, must outlive the end of the body (:func:`regions`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Operation, Program

__all__ = ["LoopEnd", "LoopPart", "LoopStart", "LoopTop", "flattened", "regions"]


@dataclass(frozen=True, kw_only=True)
class LoopPart(GridOperation):
    """Base. ``output`` counts the trips."""

    loop: Loop


@dataclass(frozen=True, kw_only=True)
class LoopStart(LoopPart):
    """What runs once, however many trips follow."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(carried.initial for carried in self.loop.carried if carried.initial))


@dataclass(frozen=True, kw_only=True)
class LoopTop(LoopPart):
    """Where each trip begins."""

    @property
    def inputs(self) -> tuple[str, ...]:
        carried = self.loop.carried
        return tuple(dict.fromkeys([*(part.initial for part in carried if part.initial), *(part.after for part in carried)]))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(carried.before for carried in self.loop.carried)


@dataclass(frozen=True, kw_only=True)
class LoopEnd(LoopPart):
    """Where each trip ends."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.loop.condition,) if self.loop.condition else ()


def flattened(program: Program) -> Program:
    """The program with three operations and a body in place of each loop."""

    def parts(operations: tuple[Operation, ...]) -> Iterator[Operation]:
        for operation in operations:
            if isinstance(operation, Loop):
                yield LoopStart(name=operation.name, output=operation.output, loop=operation)
                yield LoopTop(name=operation.name, output=operation.output, loop=operation)
                yield from parts(operation.body)
                yield LoopEnd(name=operation.name, output=operation.output, loop=operation)
            else:
                yield operation

    return replace(program, operations=tuple(parts(program.operations)))


def regions(program: Program) -> list[tuple[int, int]]:
    """Numbers of the first and the last operation of each loop of a flattened program, inner loops first."""
    waiting, found = [], []
    for number, operation in enumerate(program.operations):
        if isinstance(operation, LoopTop):
            waiting.append(number)
        elif isinstance(operation, LoopEnd):
            found.append((waiting.pop(), number))
    return found
