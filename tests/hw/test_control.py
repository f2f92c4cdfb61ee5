# amaranth: UnusedElaboratable=no
"""Fetch unit, loop nest, operand addresses and result walk, each against plain Python loops."""

import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.hw.arch.isa import HEADER_WORDS, LOOP_WORDS, MAX_LOOPS, Instruction, Loop, Opcode, assemble
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.timing import FETCH_LATENCY
from tritloom.hw.control import Fetch, LoopNest, OperandAddresses, ResultWalker, Sequencer
from tritloom.hw.memory import READ_LATENCY

PARAMETERS = CoreParameters(rows=4, columns=3, weight_words=100, activation_words=50, record_words=60)


async def load(ctx, unit, instruction: Instruction, *, never=None) -> None:
    """Put an instruction on a unit's bus, as the fetch unit does; after its first word signal ``never`` is not high meanwhile."""
    for index, word in enumerate(assemble([instruction])):
        ctx.set(unit.bus.word, word)
        loop, place = divmod(index - HEADER_WORDS, LOOP_WORDS)
        ctx.set(unit.bus.header, 1 << index if index < HEADER_WORDS else 0)
        ctx.set(unit.bus.loop, 1 << place if index >= HEADER_WORDS else 0)
        ctx.set(unit.bus.index, max(0, loop))
        assert never is None or index == 0 or not ctx.get(never)
        await ctx.tick()
    ctx.set(unit.bus.header, 0)
    ctx.set(unit.bus.loop, 0)


def iterations(instruction: Instruction) -> list[tuple[int, ...]]:
    """Loop counters of every element, innermost first."""
    ranges = [range(loop.last + 1) for loop in reversed(instruction.loops)]
    return [counters[::-1] for counters in product(*ranges)]


def advanced(instruction: Instruction, counters: tuple[int, ...]) -> int:
    """The loop that goes on after an element; 0 after the last one."""
    return next((index for index, loop in enumerate(instruction.loops) if counters[index] < loop.last), 0)


def matrix(counts, **fields) -> Instruction:
    return Instruction(opcode=Opcode.MATRIX, loops=tuple(Loop(last=count - 1) for count in counts), **fields)


@given(
    counts=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=MAX_LOOPS), reduce_loops=st.integers(0, 7),
    plane_loop=st.integers(0, 15), tile_loop=st.integers(0, 15), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=15)
def test_loop_nest(simulate, counts, reduce_loops, plane_loop, tile_loop, seed):
    nest = LoopNest()
    reduce_loops = min(reduce_loops, len(counts))
    instruction = matrix(counts, reduce_loops=reduce_loops, plane_loop=plane_loop, tile_loop=tile_loop)
    rng = random.Random(seed)

    async def bench(ctx) -> None:
        for _ in range(2):  # the second time over what the first one left behind
            await load(ctx, nest, matrix([4] * MAX_LOOPS))
            await load(ctx, nest, instruction, never=nest.ready)
            assert ctx.get(nest.ready)
            await ctx.tick()
            first, triple = True, False
            for counters in iterations(instruction):
                ended = [count == loop.last for count, loop in zip(counters, instruction.loops, strict=True)] + [True] * MAX_LOOPS
                last = all(ended[:reduce_loops])
                index = advanced(instruction, counters)
                got = [ctx.get(member) for member in (nest.index, nest.first, nest.last, nest.final, nest.tail, nest.triple)]
                assert got == [index, first, last, all(ended), tile_loop >= MAX_LOOPS or ended[tile_loop], triple], counters
                if rng.random() < 0.3:
                    await ctx.tick()
                ctx.set(nest.step, 1)
                await ctx.tick()
                ctx.set(nest.step, 0)
                first, triple = last, index == plane_loop and not last

    simulate(nest, bench)


@pytest.mark.parametrize("loops", range(1, MAX_LOOPS + 1))
def test_fetch_puts_every_word_on_the_bus(simulate, loops):
    fetch = Fetch(address_bits=7)
    rng = random.Random(loops)
    words = assemble([matrix([1] * loops, a=rng.getrandbits(31), y=-3)])
    words[HEADER_WORDS:] = [rng.getrandbits(32) for _ in words[HEADER_WORDS:]]
    pc = 100  # the address wraps inside the instruction
    memory = {(pc + index) % 128: word for index, word in enumerate([*words, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF])}

    async def bench(ctx) -> None:
        for _ in range(2):
            addresses = [0] * READ_LATENCY
            ctx.set(fetch.pc, pc)
            for clock in range(FETCH_LATENCY + len(words) + 4):
                ctx.set(fetch.go, clock == 0)
                ctx.set(fetch.data, memory.get(addresses[-READ_LATENCY], 0))
                addresses.append(ctx.get(fetch.address))
                index = clock - FETCH_LATENCY
                present = 0 <= index < len(words)
                assert ctx.get(fetch.word) == present, clock
                if present:
                    loop, place = divmod(index - HEADER_WORDS, LOOP_WORDS)
                    assert ctx.get(fetch.bus.word) == words[index]
                    assert ctx.get(fetch.bus.header) == (1 << index if index < HEADER_WORDS else 0)
                    assert ctx.get(fetch.bus.loop) == (1 << place if index >= HEADER_WORDS else 0)
                    assert index < HEADER_WORDS or ctx.get(fetch.bus.index) == loop
                    assert ctx.get(fetch.ending) == (index == len(words) - 2)
                    assert not ctx.get(fetch.halt) and not ctx.get(fetch.bad)
                await ctx.tick()

    simulate(fetch, bench)


@pytest.mark.parametrize(
    "word,halt,bad",
    [(0, 1, 0), (0xFFFFFF00, 1, 0), (0x001, 0, 1), (0x801, 0, 1), (0x104, 0, 1), (0x140, 0, 1), (0x181, 0, 1), (0x1FF, 0, 1)],
)
def test_fetch_stops_at_halt_and_bad_words(simulate, word, halt, bad):
    fetch = Fetch(address_bits=4)

    async def bench(ctx) -> None:
        ctx.set(fetch.data, word)
        for clock in range(12):
            ctx.set(fetch.go, clock == 0)
            here = clock == FETCH_LATENCY
            assert (ctx.get(fetch.word), ctx.get(fetch.halt), ctx.get(fetch.bad)) == (here, here and halt, here and bad)
            assert not ctx.get(fetch.ending)
            await ctx.tick()

    simulate(fetch, bench)


def random_loops(rng: random.Random, counts: list[int]) -> tuple[Loop, ...]:
    return tuple(
        Loop(
            last=count - 1, p_step=rng.randint(-9, 9), a_step=rng.randint(-99, 99), b_step=rng.randint(-99, 99), o_step=rng.randint(-99, 99),
            y_step=rng.randint(-9, 9), x_step=rng.randint(-9, 9),
        )
        for count in counts
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_operand_addresses(simulate, seed):
    rng = random.Random(seed)
    unit = OperandAddresses(PARAMETERS)
    two = seed == 3
    instruction = Instruction(
        opcode=Opcode.MATRIX, loops=random_loops(rng, [2, 1, 3, 2]), a=77, b=33, y=-1, x=2, height=4, width=5, padded=seed % 2 == 0
    )
    value = {"a": 77, "b": 33, "y": -1, "x": 2}
    bits = {"a": len(unit.activation), "b": max(len(unit.weight), len(unit.activation))}

    async def bench(ctx) -> None:
        ctx.set(unit.two_operands, two)
        await load(ctx, unit, instruction)
        for counters in iterations(instruction):
            index = advanced(instruction, counters)
            ctx.set(unit.step, 1)
            ctx.set(unit.index, index)
            await ctx.tick()
            ctx.set(unit.step, 0)
            assert ctx.get(unit.activation) == value["a"] % (1 << bits["a"])
            assert ctx.get(unit.weight) == value["b"] % (1 << len(unit.weight))
            assert not ctx.get(unit.second)
            assert ctx.get(unit.inside) == (not instruction.padded or (0 <= value["y"] < 4 and 0 <= value["x"] < 5))
            if two or rng.random() < 0.3:
                ctx.set(unit.index, 5)  # only looked at in the clock of a step
                await ctx.tick()
                assert ctx.get(unit.second) == two
                if two:
                    assert ctx.get(unit.activation) == value["b"] % (1 << bits["a"])
            value.update((name, value[name] + getattr(instruction.loops[index], f"{name}_step")) for name in value)

    simulate(unit, bench)


@pytest.mark.parametrize("mode", ["narrow", "raw", "wide"])
@pytest.mark.parametrize("results,pieces", [(1, 1), (6, 1), (1, 4), (3, 2)])
def test_result_walk(simulate, results, pieces, mode):
    """``results`` counts groups of four results where the mode is wide; the last one of a reduction has three."""
    rng = random.Random(results)
    unit = ResultWalker(replace(PARAMETERS, columns=8, post_lanes=4))
    bytes_ahead = {"narrow": 1, "raw": 4, "wide": 4}[mode]
    counts = [2, 3]
    instruction = Instruction(opcode=Opcode.MATRIX, loops=random_loops(rng, counts), o=100, p=20, records=pieces)
    elements = iterations(instruction)
    expected, starts, o, p = {}, {}, 100, 20
    clock = 1
    for counters in elements:
        index = advanced(instruction, counters)
        starts[clock] = (index, counters == elements[-1])
        for column in range(results):
            for piece in range(pieces):
                final = counters == elements[-1] and column == results - 1 and piece == pieces - 1
                address, record = (o + bytes_ahead * column) % 256, (p + column * pieces + piece) % 64
                lane = column % 4 if mode != "wide" else 2 if column == results - 1 else 3
                expected[clock + 1 + column * pieces + piece] = (piece == 0, piece == pieces - 1, final, lane, address, record)
        o, p = o + instruction.loops[index].o_step, p + instruction.loops[index].p_step
        clock += results * pieces + rng.randint(0, 2)

    async def bench(ctx) -> None:
        await load(ctx, unit, instruction)
        ctx.set(unit.last_piece, pieces - 1)
        ctx.set(unit.raw, mode == "raw")
        ctx.set(unit.wide, mode == "wide")
        for clock in range(max(expected) + 3):
            assert ctx.get(unit.command.valid) == (clock in expected), clock
            if clock in expected:
                command = unit.command
                got = [
                    ctx.get(member) for member in (command.first, command.last, command.final, command.lane, command.address, unit.record)
                ]
                assert got == list(expected[clock]), clock
            ctx.set(unit.start, clock in starts)
            ctx.set(unit.last_column, results - 1 if clock in starts else 77)
            ctx.set(unit.last_lane, 2 if clock in starts else 1)
            ctx.set(unit.final, clock in starts and starts[clock][1])
            ctx.set(unit.prepare, clock + 1 in starts)
            ctx.set(unit.index, starts.get(clock + 1, (6, 0))[0])
            await ctx.tick()

    simulate(unit, bench)


@pytest.mark.parametrize("component", [
    Fetch(address_bits=9), LoopNest(), OperandAddresses(PARAMETERS), ResultWalker(PARAMETERS), Sequencer(PARAMETERS),
])  # fmt: skip
def test_exports(exports, component):
    exports(component)


@pytest.mark.parametrize(
    "y,height,inside", [(-1, 65535, False), (-2, 65535, False), (-32768, 65535, False), (32767, 65535, True), (3, 3, False)]
)
def test_coordinates_are_signed_and_sizes_are_not(simulate, y, height, inside):
    unit = OperandAddresses(PARAMETERS)

    async def bench(ctx) -> None:
        await load(ctx, unit, matrix([1], padded=True, y=y, height=height, width=1))
        assert ctx.get(unit.inside) == inside

    simulate(unit, bench)
