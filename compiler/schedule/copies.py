"""Copies: an index map from element to element becomes a few affine nests of loops."""

from collections.abc import Iterator

import numpy as np

from tritloom.compiler.ir.program import Copy
from tritloom.compiler.schedule.contents import MemoryContents
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis, affine_prefix, build, separable_nests
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Instruction, Opcode
from tritloom.hw.arch.record import START_MIN, Record

__all__ = ["lower_copy"]

MAX_COPY_INSTRUCTIONS = 1000
"""Of one copy: more would fill the program memory for what is no regular pattern."""


def lower_copy(contents: MemoryContents, operation: Copy, source: Placement, target: Placement) -> Iterator[Instruction]:
    """Decompose the index map into affine nests, in whichever order of elements needs the fewest instructions.

    Raises :class:`ModelError` for a map that needs more than :data:`MAX_COPY_INSTRUCTIONS`.
    """
    points = np.stack([_addresses(source)[np.asarray(operation.index).ravel()], _addresses(target)], axis=1)
    best: list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]] | None = None
    nests = separable_nests(points[:, 0].reshape(target.shape), points[:, 1].reshape(target.shape))
    if 0 < len(nests) <= MAX_COPY_INSTRUCTIONS:
        best = nests
    for order in (np.argsort(points[:, 1], kind="stable"), np.arange(len(points)), np.argsort(points[:, 0], kind="stable")):
        rest, nests = points[order], []
        while len(rest) and len(nests) < (MAX_COPY_INSTRUCTIONS if best is None else len(best)):
            loops, covered = affine_prefix(rest)
            nests.append((rest[0], loops))
            rest = rest[covered:]
        if not len(rest) and (best is None or len(nests) < len(best)):
            best = nests
    if best is None:
        raise ModelError(
            f"layer {operation.name!r} moves its elements in more than {MAX_COPY_INSTRUCTIONS} separate runs; use a regular transpose or reshape"
        )
    for start, loops in best:
        loops, lanes = _in_lanes(contents.lanes, start, loops)
        record = contents.store_records(((Record(START_MIN, 1, 0, 0),),) * lanes, wide=lanes > 1)
        axes = [Axis(count=count, strides={"a": int(stride[0]), "o": int(stride[1])}) for count, stride in loops]
        yield build(Opcode.ELEMENTWISE, axes, f"layer {operation.name!r}", a=int(start[0]), o=int(start[1]), p=record, wide=lanes > 1)


def _in_lanes(lanes: int, start: np.ndarray, loops: list[tuple[int, np.ndarray]]) -> tuple[list[tuple[int, np.ndarray]], int]:
    """Loops of a copy that take the bytes of all lanes at once, and the lanes; the same loops and 1 where that is not possible."""
    if lanes > 1 and loops:
        (count, stride), *outer = loops
        addresses = [start, *(step for _, step in outer)]
        if (stride == 1).all() and count % lanes == 0 and all((address % lanes == 0).all() for address in addresses):
            return [(count // lanes, stride * lanes), *outer], lanes
    return loops, 1


def _addresses(placement: Placement) -> np.ndarray:
    """Byte address of every element in (C, H, W) order, int64."""
    channels, height, width = placement.shape
    pixels = np.arange(height * width) * placement.pixel_bytes
    return (placement.address + pixels + np.arange(channels)[:, None]).ravel()
