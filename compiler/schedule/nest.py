"""Loop nests by stride: what the lowering writes down, and its shortest form as an instruction."""

from dataclasses import dataclass, field

import numpy as np

from tritloom.errors import ModelError
from tritloom.hw.arch.isa import MAX_LOOPS, NO_LOOP, Instruction, Loop, Opcode, loop_steps

__all__ = ["Axis", "affine_prefix", "build"]

MAX_ITERATIONS = 1 << 16
_REGISTERS = ("a", "b", "o", "p", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One loop before it is packed: iterations and the stride of each register that it moves.

    ``role`` is ``plane`` for the loop over digit planes, ``tile`` for the loop over tiles of columns, else empty.
    """

    count: int
    reduces: bool = False
    role: str = ""
    strides: dict[str, int] = field(default_factory=dict)

    def stride(self, register: str) -> int:
        return self.strides.get(register, 0)


def _continues(inner: Axis, outer: Axis) -> bool:
    """Whether both loops are one: the outer one goes on where the inner one ends, in every register."""
    return (
        not inner.role
        and not outer.role
        and inner.reduces == outer.reduces
        and inner.count * outer.count <= MAX_ITERATIONS
        and all(outer.stride(register) == inner.count * inner.stride(register) for register in _REGISTERS)
    )


def build(opcode: Opcode, axes: list[Axis], where: str, **fields: int | bool) -> Instruction:
    """Instruction of a nest, innermost axis first, with loops of one iteration dropped and loops that continue each other merged.

    ``a`` and ``o`` may be negative when padded (they wrap at 32 bits). Raises :class:`ModelError` for a nest that the
    instruction set cannot hold; ``where`` names the layer.
    """
    kept: list[Axis] = []
    for axis in axes:
        if not fields.get("padded"):
            axis = Axis(count=axis.count, reduces=axis.reduces, role=axis.role, strides={**axis.strides, "y": 0, "x": 0})
        if axis.count == 1:
            continue
        if kept and _continues(kept[-1], axis):
            inner = kept.pop()
            axis = Axis(count=inner.count * axis.count, reduces=inner.reduces, strides=inner.strides)
        kept.append(axis)
    kept = kept or [Axis(count=1)]
    largest = max(axis.count for axis in kept)
    if len(kept) > MAX_LOOPS or largest > MAX_ITERATIONS:
        raise ModelError(f"{where} needs {len(kept)} loops of up to {largest} iterations; the core has {MAX_LOOPS} of {MAX_ITERATIONS}")
    counts = [axis.count for axis in kept]
    steps = {register: loop_steps([axis.stride(register) for axis in kept], counts) for register in _REGISTERS}
    # The 16-bit record register wraps, so a step back over many records is taken modulo its width.
    steps["p"] = [(step + 0x8000 & 0xFFFF) - 0x8000 for step in steps["p"]]
    loops = tuple(
        Loop(last=axis.count - 1, **{register + "_step": steps[register][index] for register in _REGISTERS})
        for index, axis in enumerate(kept)
    )
    roles = {axis.role: index for index, axis in enumerate(kept) if axis.role}
    values = {**fields, "a": fields.get("a", 0) & 0xFFFFFFFF}
    return Instruction(
        opcode=opcode,
        loops=loops,
        reduce_loops=sum(axis.reduces for axis in kept),
        plane_loop=roles.get("plane", NO_LOOP),
        tile_loop=roles.get("tile", NO_LOOP),
        **values,  # type: ignore[arg-type]
    )


def affine_prefix(points: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], int]:
    """Longest start of a sequence that greedy nesting makes affine.

    ``points`` is int64 (n, registers). Returns the loops as (iterations, strides), innermost first, and the number of points
    that they cover.
    """
    loops: list[tuple[int, np.ndarray]] = []
    block = 1
    while len(loops) < MAX_LOOPS and len(points) >= 2 * block:
        stride = points[block] - points[0]
        blocks = points[: len(points) // block * block].reshape(-1, block, points.shape[1])[:MAX_ITERATIONS]
        differs = (np.diff(blocks, axis=0) != stride).any(axis=(1, 2))
        count = 1 + (int(np.argmax(differs)) if differs.any() else len(differs))
        if count == 1:
            break
        loops.append((count, stride))
        block *= count
    return loops, block
