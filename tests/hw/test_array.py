# amaranth: UnusedElaboratable=no
"""Cell, sums and mesh against their NumPy formulas."""

import re

import numpy as np
import pytest

from tritloom.hw.arch.reduction import REDUCTIONS, reduction_latency, row_delay, rows_of_stage
from tritloom.hw.array import ColumnSums, TernaryMesh, accumulator_formula, mesh_latency, sums_formula
from tritloom.hw.cell import AccumulatorAdder, PairAdder, ProductAdder, TernaryCell, cell_formula
from tritloom.hw.measured import AccumulateCell, Enclosed

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


def delayed_codes(history: list[np.ndarray], clock: int, rows: int, columns: int, reduction: str) -> list[int]:
    """Trit codes of a clock: those of each row are of the word that came ``row_delay`` clocks before."""
    trits = np.zeros((columns, rows), int)
    for row in range(rows):
        index = clock - row_delay(row, rows, reduction)
        if 0 <= index < len(history):
            trits[:, row] = history[index][:, row]
    return codes(trits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows,columns", [(4, 1), (4, 5), (8, 4), (12, 2), (16, 3), (32, 2), (48, 1), (64, 1), (80, 1)])
def test_sums_equal_formula(simulate, rows, columns, reduction):
    """Extremes of every sign, where a sum one bit too narrow would overflow, then random words, one a clock."""
    sums = ColumnSums(rows=rows, columns=columns, reduction=reduction)
    rng = np.random.default_rng(rows)
    words = [(np.full(rows, value), np.full((columns, rows), trit)) for value in (-128, 127) for trit in (-1, 0, 1)]
    words += [(rng.integers(-128, 128, rows), rng.integers(-1, 2, (columns, rows))) for _ in range(30)]
    words += [(rng.choice([-128, 127], rows), rng.choice([-1, 1], (columns, rows))) for _ in range(10)]
    history = [trits for _, trits in words]
    latency = reduction_latency(rows, reduction)

    async def bench(ctx) -> None:
        for clock in range(len(words) + latency):
            ctx.set(sums.activations, words[clock][0].tolist() if clock < len(words) else [0] * rows)
            ctx.set(sums.trits, delayed_codes(history, clock, rows, columns, reduction))
            if clock >= latency:
                expected = sums_formula(*words[clock - latency])
                carries = ctx.get(sums.carries)
                assert [ctx.get(sums.sums[c]) + (carries >> c & 1) for c in range(columns)] == expected.tolist(), clock - latency
            await ctx.tick()

    simulate(sums, bench)


def test_every_row_is_in_one_stage_of_its_byte():
    """The weight memory of a stage holds whole bytes, so four neighbouring rows must share one."""
    for rows in (4, 8, 12, 16, 32, 64, 80):
        delays = [row_delay(row, rows, "chain") for row in range(rows)]
        assert [delays[row - row % 4] for row in range(rows)] == delays
        members = sorted(row for stage in range(max(delays)) for pair in rows_of_stage(stage, rows) for row in pair)
        assert members == list(range(rows))


@pytest.mark.parametrize("triple", [False, True])
def test_accumulator_formula_wraps(triple):
    values = accumulator_formula(np.array([32767, -32768, 11000]), np.array([1, -1, 5]), triple=triple, bits=16)
    assert values.tolist() == ([32765, -32768, -32536] if triple else [-32768, 32767, 11005])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows,columns,lanes", [(4, 1, 1), (4, 3, 1), (8, 6, 2), (16, 4, 4)])
def test_mesh_hands_on_one_reduction_while_the_next_runs(simulate, rows, columns, lanes, reduction):
    bits = 16  # wraps
    mesh = TernaryMesh(rows=rows, columns=columns, accumulator_bits=bits, reduction=reduction, lanes=lanes)
    rng = np.random.default_rng(columns)
    groups = columns // lanes
    lengths = [groups, groups + 2, 1 if groups == 1 else groups, 3 * groups, 40]
    clocks = []  # operands, command
    expected = []
    latency = mesh_latency(rows, reduction)
    for length in lengths:
        accumulators = np.zeros(columns, np.int64)
        for element in range(length):
            extreme = length == 40
            activations = np.full(rows, -128) if extreme else rng.integers(-128, 128, rows)
            trits = np.full((columns, rows), -1) if extreme else rng.integers(-1, 2, (columns, rows))
            if element == length - 1 and element:
                clocks.append((activations, trits, {"add": 0, "triple": 1, "last": 0}))
                accumulators = accumulator_formula(accumulators, accumulators, triple=True, bits=bits)
            if element == 1 and length > 3:  # a clock in which nothing happens
                clocks.append((activations, trits, {"add": 0, "triple": 0, "last": 0}))
            clocks.append((activations, trits, {"add": 1, "triple": 0, "last": int(element == length - 1)}))
            accumulators = accumulator_formula(accumulators, sums_formula(activations, trits), triple=False, bits=bits)
        expected.append((len(clocks) - 1 + latency, accumulators))

    async def bench(ctx) -> None:
        due = {start + group: values[group * lanes :][:lanes].tolist() for start, values in expected for group in range(groups)}
        assert len(due) == len(expected) * groups
        history = [trits for _, trits, _ in clocks]
        nothing = {"add": 0, "triple": 0, "last": 0}
        ctx.set(mesh.shift, 1)
        for clock in range(len(clocks) + latency + groups):
            if clock in due:
                assert [ctx.get(mesh.drained[lane]) for lane in range(lanes)] == due[clock], clock
            ctx.set(mesh.activations, clocks[clock][0].tolist() if clock < len(clocks) else [0] * rows)
            ctx.set(mesh.trits, delayed_codes(history, clock, rows, columns, reduction))
            ctx.set(mesh.command, clocks[clock][2] if clock < len(clocks) else nothing)
            await ctx.tick()

    simulate(mesh, bench)


def test_mesh_flush_drops_what_is_under_way(simulate):
    """Neither a finished reduction that is still under way nor what an unfinished one has accumulated survives."""
    mesh = TernaryMesh(rows=4, columns=1, accumulator_bits=16)

    async def bench(ctx) -> None:
        ctx.set(mesh.activations, [1, 2, 3, 4])
        ctx.set(mesh.trits, [1] * 4)
        ctx.set(mesh.command, {"add": 1, "triple": 0, "last": 0})
        await ctx.tick().repeat(10)
        ctx.set(mesh.command, {"add": 1, "triple": 0, "last": 1})
        await ctx.tick()
        ctx.set(mesh.command, {"add": 0, "triple": 0, "last": 0})
        ctx.set(mesh.flush, 1)
        await ctx.tick()
        ctx.set(mesh.flush, 0)
        await ctx.tick().repeat(10)
        assert ctx.get(mesh.drained[0]) == 0
        ctx.set(mesh.command, {"add": 1, "triple": 0, "last": 1})
        await ctx.tick()
        ctx.set(mesh.command, {"add": 0, "triple": 0, "last": 0})
        await ctx.tick().repeat(mesh_latency(4, "tree") - 1)
        assert ctx.get(mesh.drained[0]) == 10

    simulate(mesh, bench)


def test_accumulate_cell_adds_and_wraps(simulate):
    cell = AccumulateCell(bits=9)
    rng = np.random.default_rng(1)

    async def bench(ctx) -> None:
        total = 0
        for _ in range(60):
            activation, trit = int(rng.choice([-128, 127, *rng.integers(-128, 128, 2)])), int(rng.integers(-1, 2))
            ctx.set(cell.activation, activation)
            ctx.set(cell.trit, CODES[trit])
            total = int(accumulator_formula(np.array(total), np.array(trit * activation), triple=False, bits=9))
            await ctx.tick()
            assert ctx.get(cell.sum) == total

    simulate(cell, bench)


@pytest.mark.parametrize(
    "component",
    [
        TernaryCell(),
        AccumulateCell(bits=16),
        Enclosed(TernaryCell()),
        ProductAdder(columns=2, partial_bits=9, sum_bits=10),
        PairAdder(columns=2, bits=10),
        AccumulatorAdder(columns=2, accumulator_bits=16, sum_bits=12),
        ColumnSums(rows=4, columns=2, reduction="chain"),
        TernaryMesh(rows=8, columns=3, accumulator_bits=24),
    ],
)
def test_exports(exports, component):
    exports(component)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: ColumnSums(rows=6, columns=1, reduction="tree"), "Rows must be 4, 8, 12 or a multiple of 16, not 6"),
        (lambda: ColumnSums(rows=4, columns=0, reduction="tree"), "Columns must be at least 1, not 0"),
        (lambda: ColumnSums(rows=4, columns=1, reduction="list"), "Reduction must be one of ('tree', 'chain'), not 'list'"),
        (lambda: ProductAdder(columns=0, partial_bits=8, sum_bits=9), "Columns must be at least 1, not 0"),
        (lambda: TernaryMesh(rows=16, columns=1, accumulator_bits=11), "Accumulator must have at least 12 bits, not 11"),
        (lambda: TernaryMesh(rows=4, columns=6, accumulator_bits=16, lanes=4), "Lanes must divide the 6 columns, not 4"),
    ],
)
def test_refused_sizes(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
