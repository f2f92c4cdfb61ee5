"""Proof by interval arithmetic that an instruction stays inside a core's memories."""

from collections.abc import Callable, Iterable

import numpy as np

from tritloom.errors import ModelError
from tritloom.hw.arch.isa import NO_LOOP, Instruction, Opcode
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["check_instruction"]

_LARGEST_WALK = 1 << 20


def check_instruction(instruction: Instruction, parameters: CoreParameters, where: str, *, weight_words: int, record_words: int) -> None:
    """Raise :class:`ModelError` unless every access of a compute instruction is inside its memory and aligned as it must be.

    ``where`` names the instruction in the message, ``weight_words`` and ``record_words`` say how much of those memories is loaded. The bounds are exact, and the time is that of walking the coordinates of one axis.
    """
    rows, columns = parameters.rows, parameters.columns
    opcode, reduce_loops, count = instruction.opcode, instruction.reduce_loops, len(instruction.loops)
    lasts = [loop.last for loop in instruction.loops]
    strides = {register: _strides(instruction, register) for register in "abopyx"}

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise ModelError(f"{where} {what}; the artefact is damaged or was made by another program")

    def inside(what: str, low: int, high: int, depth: int) -> None:
        need(0 <= low and high < depth, f"uses {what} {low if low < 0 else high}, but there are {depth}")

    def span(register: str, first: int, loops: Iterable[int]) -> tuple[int, int]:
        offsets = [strides[register][index] * lasts[index] for index in loops]
        return first + sum(min(0, offset) for offset in offsets), first + sum(max(0, offset) for offset in offsets)

    every, lanes = range(count), parameters.post_lanes if instruction.wide else 1
    need(reduce_loops <= count and not (opcode == Opcode.ELEMENTWISE and reduce_loops), "has a reduction of more loops than it has")
    need(all(strides[register][index] == 0 for register in "op" for index in range(reduce_loops)), "moves its result inside a reduction")
    need(instruction.low <= instruction.high, "has no code between its bounds")
    need(opcode == Opcode.POOL or instruction.raw or instruction.records >= 1 + instruction.two_operands, "has too few records")
    if instruction.wide:
        need(opcode != Opcode.POOL and not instruction.raw, "uses the lanes of the post unit for results that do not go through them")
        for register in {Opcode.MATRIX: "o", Opcode.ELEMENTWISE: "abo"}[opcode]:
            aligned = all(value % lanes == 0 for value in (getattr(instruction, register), *strides[register]))
            need(aligned, "writes or reads several bytes at addresses that are no multiple of their number")
    if opcode == Opcode.ELEMENTWISE:
        for register in "abo" if instruction.two_operands else "ao":
            low, high = span(register, getattr(instruction, register), every)
            inside("activation byte", low, high + lanes - 1, parameters.activation_bytes)
        low, high = span("p", instruction.p, every)
        inside("record", low, high + instruction.records - 1, record_words)
        return

    need(
        all(value % rows == 0 for value in (instruction.a, *strides["a"])),
        "reads activation words at addresses that are no multiple of the word",
    )
    reach = _padded_reach(instruction, strides, need) if instruction.padded else span("a", instruction.a, every)
    if reach is not None:
        inside("activation byte", *reach, parameters.activation_bytes)
    if opcode == Opcode.POOL:
        need(
            all(value % rows == 0 for value in (instruction.o, *strides["o"])),
            "writes activation words at addresses that are no multiple of the word",
        )
        inside("activation byte", *span("o", instruction.o, every), parameters.activation_bytes)
        return

    tile = instruction.tile_loop
    need(instruction.plane_loop == NO_LOOP or instruction.plane_loop < reduce_loops, "has its plane loop outside the reduction")
    need(tile == NO_LOOP or reduce_loops <= tile < count, "has its tile loop inside the reduction")
    need(1 <= instruction.last_columns <= columns, f"writes {instruction.last_columns} columns of {columns}")
    inside("weight word", *span("b", instruction.b, every), weight_words)
    size = 4 if instruction.raw else 1
    need(
        size == 1 or all(value % 4 == 0 for value in (instruction.o, *strides["o"])),
        "writes accumulators at addresses that are no multiple of 4",
    )
    others = range(count) if tile == NO_LOOP else [index for index in range(count) if index != tile]
    # The last tile may be narrower than the others, so both are looked at on their own.
    groups = [(0, 0, instruction.last_columns)] if tile == NO_LOOP else [(lasts[tile], lasts[tile], instruction.last_columns)]
    if tile != NO_LOOP and lasts[tile] > 0:
        groups.append((0, lasts[tile] - 1, columns))
    for first, last, used in groups:
        for register, what, depth, extent in (
            ("o", "activation byte", parameters.activation_bytes, used * size),
            ("p", "record", record_words, -(-used // lanes) * instruction.records),
        ):
            if register == "p" and instruction.raw:
                continue
            start = getattr(instruction, register)
            low, high = span(register, start, others)
            ends = [0] if tile == NO_LOOP else [strides[register][tile] * first, strides[register][tile] * last]
            inside(what, low + min(ends), high + max(ends) + extent - 1, depth)


def _strides(instruction: Instruction, register: str) -> list[int]:
    """Strides from net steps; record strides modulo 2**16, as their register wraps."""
    strides, walked = [], 0
    for loop in instruction.loops:
        stride = getattr(loop, register + "_step") + walked
        strides.append(stride & 0xFFFF if register == "p" else stride)
        walked += strides[-1] * loop.last
    return strides


def _padded_reach(instruction: Instruction, strides: dict[str, list[int]], need: Callable[[bool, str], None]) -> tuple[int, int] | None:
    """Least and greatest byte address that is read inside the input; ``None`` when all is padding."""
    start = instruction.a - (1 << 32) if instruction.a >> 31 else instruction.a
    low = high = start
    moving: dict[str, list[int]] = {"y": [], "x": []}
    for index, loop in enumerate(instruction.loops):
        axes = [register for register in "yx" if strides[register][index]]
        need(len(axes) <= 1, "moves both coordinates in one loop")
        if axes:
            moving[axes[0]].append(index)
        else:
            offset = strides["a"][index] * loop.last
            low, high = low + min(0, offset), high + max(0, offset)
    for register, size in (("y", instruction.height), ("x", instruction.width)):
        walks = 1
        for index in moving[register]:
            walks *= instruction.loops[index].last + 1
        need(walks <= _LARGEST_WALK, "walks more coordinates than any layer has")
        positions, offsets = np.full(1, getattr(instruction, register), np.int64), np.zeros(1, np.int64)
        for index in moving[register]:
            steps = np.arange(instruction.loops[index].last + 1)
            positions = (positions[:, None] + strides[register][index] * steps).ravel()
            offsets = (offsets[:, None] + strides["a"][index] * steps).ravel()
        need(bool(positions.min() >= -(1 << 15) and positions.max() < 1 << 15), "walks beyond the coordinates that the core counts")
        used = offsets[(positions >= 0) & (positions < size)]
        if not len(used):
            return None
        low, high = low + int(used.min()), high + int(used.max())
    return low, high
