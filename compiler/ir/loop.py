"""The loop of a program: operations that are repeated until a tensor says that it is enough, or as often as allowed.

All names belong to the program: a tensor that the body writes holds, behind the loop, what the last trip wrote. What a trip hands to the next one is
a loop-carried tensor. Loops may stand in the bodies of loops.
"""

from dataclasses import dataclass, field

import numpy as np

from tritloom.compiler.ir.program import Operation, Program
from tritloom.compiler.ir.vector import GoldenOperation

__all__ = ["MOST_TRIPS", "Carried", "Loop", "has_loops"]

MOST_TRIPS = 1 << 20
"""Trips of the innermost body of nested loops, all together."""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A tensor ``before`` that the body reads: in the first trip it holds the tensor ``initial``, or ``values``, int16 (C, H, W), where that name is
    empty; in every other trip what ``after`` held when the trip before ended. It is written between trips, not behind the last one."""

    before: str
    after: str
    initial: str = ""
    values: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Loop(GoldenOperation):
    """``body``, one operation after the other, up to ``limit`` times, at least once; ``output`` int32 (1, 1, 1) is the number of trips.

    ``condition`` names a tensor (1, 1, 1) that the body knows: a trip behind which it is 0 is the last one of this sample. With an empty name there are ``limit`` trips.
    """

    limit: int
    condition: str = ""
    carried: tuple[Carried, ...]
    body: tuple[Operation, ...]

    @property
    def parts(self) -> tuple[Operation, ...]:
        return self.body

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tensors from outside: those that carried ones begin with, and those that the body reads."""
        inside = {carried.before for carried in self.carried} | {name for operation in self.body for name in operation.outputs}
        read = [carried.initial for carried in self.carried if carried.initial]
        read += [name for operation in self.body for name in operation.inputs if name not in inside]
        read += [name for name in (self.condition, *(carried.after for carried in self.carried)) if name and name not in inside]
        return tuple(dict.fromkeys(read))

    @property
    def outputs(self) -> tuple[str, ...]:
        inside = [name for operation in self.body for name in operation.outputs]
        return (self.output, *(carried.before for carried in self.carried), *dict.fromkeys(inside))


def has_loops(program: Program) -> bool:
    """Whether any operation of a program is a loop."""
    return any(isinstance(operation, Loop) for operation in program.operations)
