# amaranth: UnusedElaboratable=no
"""Cell, tile and mesh against their NumPy formulas."""

import re

import numpy as np
import pytest

from tritloom.hw.array import TernaryMesh, TernaryTile, mesh_latency, tile_formula, tile_latency
from tritloom.hw.cell import TernaryCell, cell_formula

CODES = {0: 0b00, 1: 0b01, -1: 0b11}


def codes(trits: np.ndarray) -> list[int]:
    return [CODES[int(trit)] for trit in np.ravel(trits)]


def test_cell_equals_formula_for_every_activation(simulate):
    cell = TernaryCell()

    async def bench(ctx) -> None:
        for trit in (-1, 0, 1):
            for activation in range(-128, 128):
                ctx.set(cell.activation, activation)
                ctx.set(cell.trit, CODES[trit])
                addend, carry = cell_formula(np.array(activation), np.array(trit))
                assert (ctx.get(cell.addend), ctx.get(cell.carry)) == (addend, carry), (activation, trit)
                assert addend + carry == trit * activation

    simulate(cell, bench, clocked=False)


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
def test_tile_equals_formula(simulate, rows):
    bits = 16
    tile = TernaryTile(rows=rows, accumulator_bits=bits)
    rng = np.random.default_rng(rows)
    extremes = [(np.full(rows, -128), np.full(rows, -1)), (np.full(rows, -128), np.full(rows, 1)), (np.full(rows, 127), np.full(rows, -1))]
    random = [(rng.integers(-128, 128, rows), rng.integers(-1, 2, rows)) for _ in range(60)]
    operands = [*extremes, *random]
    commands = [(True, True, False), (True, False, False), (False, False, True), *((True, bool(rng.random() < 0.1), False) for _ in random)]
    for index in rng.choice(len(commands), 12, replace=False):  # clocks in which nothing happens, or a tripling
        commands[index] = (False, False, bool(index % 2))

    async def bench(ctx) -> None:
        expected = 0
        latency = tile_latency(rows)
        for clock in range(len(operands) + latency):
            if clock < len(operands):
                ctx.set(tile.activations, operands[clock][0].tolist())
                ctx.set(tile.trits, codes(operands[clock][1]))
            if clock >= latency:
                add, clear, triple = commands[clock - latency]
                ctx.set(tile.add, add)
                ctx.set(tile.clear, clear)
                ctx.set(tile.triple, triple)
                if add or triple:
                    expected = tile_formula(expected, *operands[clock - latency], clear=clear, triple=triple, bits=bits)
            await ctx.tick()
            assert ctx.get(tile.accumulator) == expected, clock

    simulate(tile, bench)


def test_tile_sums_do_not_overflow_before_the_accumulator(simulate):
    """Every subset of negative weights at the extreme activations: the partial sums hold one carry less than terms."""
    rows = 4
    tile = TernaryTile(rows=rows, accumulator_bits=16)

    async def bench(ctx) -> None:
        ctx.set(tile.add, 1)
        ctx.set(tile.clear, 1)
        for activation in (-128, 127):
            for pattern in range(3**rows):
                trits = np.array([pattern // 3**row % 3 - 1 for row in range(rows)])
                ctx.set(tile.activations, [activation] * rows)
                ctx.set(tile.trits, codes(trits))
                await ctx.tick().repeat(tile_latency(rows) + 1)
                assert ctx.get(tile.accumulator) == activation * int(trits.sum()), trits

    simulate(tile, bench)


@pytest.mark.parametrize("rows,columns", [(4, 1), (4, 3), (8, 2)])
def test_mesh_hands_on_one_reduction_while_the_next_runs(simulate, rows, columns):
    mesh = TernaryMesh(rows=rows, columns=columns, accumulator_bits=20)
    rng = np.random.default_rng(columns)
    lengths = [columns, columns + 2, columns, 3 * columns]
    clocks = []  # operands, command, reduction
    expected = []
    for length in lengths:
        accumulators = np.zeros(columns, np.int64)
        for element in range(length):
            activations, trits = rng.integers(-128, 128, rows), rng.integers(-1, 2, (columns, rows))
            if element == length - 1 and element:
                clocks.append((activations, trits, {"add": 0, "clear": 0, "triple": 1, "last": 0}))
                accumulators = 3 * accumulators
            clocks.append((activations, trits, {"add": 1, "clear": int(element == 0), "triple": 0, "last": int(element == length - 1)}))
            accumulators = trits @ activations + (accumulators if element else 0)
        expected.append((len(clocks) - 1 + mesh_latency(rows), accumulators))

    async def bench(ctx) -> None:
        due = {start + column: int(value) for start, values in expected for column, value in enumerate(values)}
        nothing = (np.zeros(rows), np.zeros((columns, rows)), {"add": 0, "clear": 0, "triple": 0, "last": 0})
        ctx.set(mesh.shift, 1)
        for clock in range(len(clocks) + mesh_latency(rows) + columns):
            if clock in due:
                assert ctx.get(mesh.drained) == due[clock], clock
            activations, trits, command = clocks[clock] if clock < len(clocks) else nothing
            ctx.set(mesh.activations, [int(value) for value in activations])
            ctx.set(mesh.trits, codes(trits))
            ctx.set(mesh.command, command)
            await ctx.tick()

    simulate(mesh, bench)


def test_mesh_flush_drops_what_is_under_way(simulate):
    mesh = TernaryMesh(rows=4, columns=1, accumulator_bits=16)

    async def bench(ctx) -> None:
        ctx.set(mesh.activations, [1, 2, 3, 4])
        ctx.set(mesh.trits, [1] * 4)
        ctx.set(mesh.command, {"add": 1, "clear": 1, "triple": 0, "last": 1})
        await ctx.tick()
        ctx.set(mesh.command, {"add": 0, "clear": 0, "triple": 0, "last": 0})
        ctx.set(mesh.flush, 1)
        await ctx.tick()
        ctx.set(mesh.flush, 0)
        await ctx.tick().repeat(10)
        assert ctx.get(mesh.drained) == 0

    simulate(mesh, bench)


@pytest.mark.parametrize(
    "component", [TernaryCell(), TernaryTile(rows=4, accumulator_bits=16), TernaryMesh(rows=8, columns=3, accumulator_bits=24)]
)
def test_exports(exports, component):
    exports(component)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: TernaryTile(rows=6, accumulator_bits=16), "Rows must be a power of two from 2, not 6"),
        (lambda: TernaryTile(rows=16, accumulator_bits=11), "Accumulator must have at least 12 bits, not 11"),
        (lambda: TernaryMesh(rows=4, columns=0, accumulator_bits=16), "Columns must be at least 1, not 0"),
    ],
)
def test_refused_sizes(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
