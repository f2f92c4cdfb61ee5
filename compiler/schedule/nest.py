"""Loop nests by stride: what the lowering writes down, and its shortest form as an instruction."""

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from tritloom.errors import ModelError
from tritloom.hw.arch.isa import MAX_LOOPS, NO_LOOP, Instruction, Loop, Opcode, loop_steps

__all__ = ["Axis", "affine_prefix", "build", "separable_nests"]

MAX_ITERATIONS = 1 << 16
_LONGEST_PERIOD = 64
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


def _in_reach(axis: Axis) -> list[Axis]:
    """The loop, or two nested ones that do the same where it has too many iterations and they have a divisor that is not too large."""
    if axis.count <= MAX_ITERATIONS or axis.role:
        return [axis]
    inner = next((count for count in range(MAX_ITERATIONS, 1, -1) if axis.count % count == 0), 1)
    if inner == 1:
        return [axis]
    strides = {register: stride * inner for register, stride in axis.strides.items()}
    outer = Axis(count=axis.count // inner, reduces=axis.reduces, strides=strides)
    return [Axis(count=inner, reduces=axis.reduces, strides=axis.strides), *_in_reach(outer)]


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
    kept = [part for axis in kept for part in _in_reach(axis)] or [Axis(count=1)]
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
        count, looked = 1, 8
        while count == min(looked // 8, len(blocks)) < len(blocks):
            # More and more at a time: most stretches are short, and what lies behind them is looked at again.
            differs = (np.diff(blocks[count - 1 : looked], axis=0) != stride).any(axis=(1, 2))
            count += int(np.argmax(differs)) if differs.any() else len(differs)
            looked *= 8
        if count == 1:
            break
        loops.append((count, stride))
        block *= count
    return loops, block


def _progressions(values: np.ndarray) -> list[tuple[int, int, int]]:
    """``(first index, step, count)`` of few stretches of every ``step``-th entry in which the values are an arithmetic progression."""
    best: list[tuple[int, int, int]] = []
    for step in range(1, min(len(values), _LONGEST_PERIOD) + 1):
        found: list[tuple[int, int, int]] = []
        for phase in range(step):
            part = values[phase::step]
            changes = (np.flatnonzero(np.diff(part, 2)) + 2).tolist()
            first = 0
            for change in (*changes, len(part)):
                # A stretch of one entry takes the next one with it, whatever the difference.
                if change < len(part) and change - first < 2:
                    continue
                found += [
                    (phase + begin * step, step, min(change - begin, MAX_ITERATIONS)) for begin in range(first, change, MAX_ITERATIONS)
                ]
                first = change
        if not best or len(found) < len(best):
            best = found
        if len(best) <= step:
            break
    return best


def separable_nests(source: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    """Nests of a copy whose addresses are sums of a part for each of the axes (C, H, W); none where they are not.

    ``source`` and ``target`` are int64 (C, H, W), the address of every element. A nest is its first pair of addresses and the loops
    (iterations, strides), channels innermost: resizing by 3 / 2 takes every third row and every third column together.
    """
    both = np.stack([source, target])
    origin = both[:, 0, 0, 0]
    parts = [both[:, :, 0, 0], both[:, 0, 0, :], both[:, 0, :, 0]]
    sums = parts[0][:, :, None, None] + parts[2][:, None, :, None] + parts[1][:, None, None, :] - 2 * origin[:, None, None, None]
    if not np.array_equal(sums, both):
        return []
    axes = [_progressions(part[0]) for part in parts]
    nests = []
    for stretches in product(*axes[::-1]):
        start, loops = -2 * origin, []
        for (first, step, count), part in zip(stretches[::-1], parts, strict=True):
            start = start + part[:, first]
            if count > 1:
                loops.append((count, part[:, first + step] - part[:, first]))
        nests.append((start, loops))
    return nests
