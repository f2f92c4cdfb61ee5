# amaranth: UnusedElaboratable=no
"""Post unit: requantisation, maximum and the writes, against their formulas."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import START_MIN, Record, shift_round
from tritloom.hw.arch.timing import REQUANTISE_LATENCY
from tritloom.hw.post import LaneMaximum, PostUnit, RecordLayout, Requantiser, maximum_formula, requantise_formula

BIG = (1 << 55) - 1


def pieces_of(value: int, records: list[Record], *, two: list[int] | None = None) -> list[dict]:
    """The clocks in which the pieces of a value enter the requantiser."""
    values = [value] * len(records) if two is None else [value, *two]
    return [
        {
            "value": values[index],
            "record": int.from_bytes(record.to_bytes(), "little"),
            "first": index == 0,
            "last": index == len(records) - 1,
        }
        for index, record in enumerate(records)
    ]


def run_requantiser(
    simulate, bits: int, clocks: list[dict | None], low: int, high: int, *, two_operands: bool = False, scaled: int = 58
) -> list[int]:
    """Codes in order; every one must come exactly the latency after its last piece."""
    unit = Requantiser(accumulator_bits=bits, scaled_bits=scaled)
    codes = []

    async def bench(ctx) -> None:
        ctx.set(unit.low, low)
        ctx.set(unit.high, high)
        ctx.set(unit.two_operands, two_operands)
        due = [index + REQUANTISE_LATENCY for index, clock in enumerate(clocks) if clock and clock["last"]]
        for clock in range(len(clocks) + REQUANTISE_LATENCY):
            assert ctx.get(unit.done) == (clock in due), clock
            if clock in due:
                codes.append(ctx.get(unit.code))
            entry = clocks[clock] if clock < len(clocks) else None
            ctx.set(unit.valid, entry is not None)
            if entry:
                ctx.set(unit.value, entry["value"])
                ctx.set(unit.record.as_value(), entry["record"] % (1 << RecordLayout().size))
                ctx.set(unit.first, entry["first"])
                ctx.set(unit.last, entry["last"])
            await ctx.tick()

    simulate(unit, bench)
    return codes


def corner_records() -> list[Record]:
    multipliers = [0, 1, -1, (1 << 24) - 1, -(1 << 24), 0x555555, 4096, -4096]
    records = [
        Record(START_MIN, multiplier, bias, shift, half)
        for multiplier in multipliers
        for bias in (0, -1, BIG, -BIG - 1, 1 << 20)
        for shift in (0, 1, 7, 8, 15, 16, 24, 31, 40, 48, 55)
        for half in (False, True)
    ]
    return records


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_requantiser_at_the_corners(simulate, bits):
    rng = np.random.default_rng(bits)
    values = [0, 1, -1, (1 << (bits - 1)) - 1, -(1 << (bits - 1)), 32767, -32768]
    records = [record for record in corner_records() if rng.random() < 0.3]
    cases = [(values[rng.integers(len(values))], record) for record in records]
    clocks = [clock for value, record in cases for clock in pieces_of(value, [record])]
    want = [int(requantise_formula([value], [record], -128, 127)[0]) for value, record in cases]
    assert run_requantiser(simulate, bits, clocks, -128, 127) == want


@pytest.mark.parametrize("scaled", [34, 39, 40, 41, 47, 48, 57])
def test_requantiser_with_sums_that_are_just_wide_enough(simulate, scaled):
    """Results at the ends of what the sums hold, and at every shift below their width."""
    rng = np.random.default_rng(scaled)
    largest = (1 << (scaled - 1)) - 1
    cases = []
    for shift in range(scaled):
        for total in (largest, -largest - 1, *(int(entry) << max(0, shift - 1) for entry in rng.integers(-300, 300, 3))):
            multiplier, value = int(rng.integers(-(1 << 24), 1 << 24)), int(rng.integers(-(1 << 15), 1 << 15))
            bias = max(-BIG - 1, min(BIG, total - multiplier * value))
            if -largest - 1 <= multiplier * value + bias <= largest and shift <= 55:
                cases.append((value, Record(START_MIN, multiplier, bias, shift, bool(rng.integers(2)))))
    assert len(cases) > 3 * scaled
    clocks = [clock for value, record in cases for clock in pieces_of(value, [record])]
    want = [int(requantise_formula([value], [record], -128, 127)[0]) for value, record in cases]
    assert run_requantiser(simulate, 16, clocks, -128, 127, scaled=scaled) == want


def test_requantiser_rounds_ties_to_even_around_every_shift(simulate):
    """Values one below, at and one above each half, for results of both parities and signs."""
    cases = []
    for shift in range(1, 56):
        half = 1 << (shift - 1)
        for quotient in (-4, -3, -1, 0, 1, 2, 5):
            for offset in (-1, 0, 1):
                bias = (quotient << shift) + half + offset
                if -BIG - 1 <= bias <= BIG:
                    cases.append(Record(START_MIN, 0, bias, shift, True))
    want = [shift_round(record.bias, record.shift, True) for record in cases]
    clocks = [clock for record in cases for clock in pieces_of(5, [record])]
    assert run_requantiser(simulate, 16, clocks, -128, 127) == want


def test_requantiser_sums_two_operands(simulate):
    rng = np.random.default_rng(11)
    cases = []
    for _ in range(60):
        shift, half = int(rng.integers(0, 30)), bool(rng.integers(2))
        first = Record(0, int(rng.integers(-(1 << 24), 1 << 24)), int(rng.integers(-(1 << 40), 1 << 40)), shift, half)
        second = Record(int(rng.integers(-200, 200)), int(rng.integers(-(1 << 24), 1 << 24)), BIG, 55, not half)
        cases.append((int(rng.integers(-128, 128)), int(rng.integers(-128, 128)), first, second))
    clocks = [clock for a, b, *records in cases for clock in pieces_of(a, records, two=[b])]
    want = [
        min(max(shift_round(first.multiplier * a + first.bias + second.multiplier * b, first.shift, first.half_even), -100), 90)
        for a, b, first, second in cases
    ]
    assert run_requantiser(simulate, 24, clocks, -100, 90, two_operands=True) == want


@st.composite
def step_functions(draw):
    shift = draw(st.integers(0, 55))
    limit = min(BIG, 200 << shift)
    pieces = draw(st.integers(1, 6))
    starts = draw(st.lists(st.integers(-3000, 3000), min_size=pieces, max_size=pieces))
    return [
        Record(
            start=start,
            multiplier=draw(st.integers(-(1 << 24), (1 << 24) - 1)),
            bias=draw(st.integers(-limit, limit)),
            shift=shift,
            half_even=draw(st.booleans()),
        )
        for start in starts
    ]


@given(
    functions=st.lists(step_functions(), min_size=1, max_size=12),
    values=st.lists(st.integers(-4000, 4000), min_size=12, max_size=12),
    gaps=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    bounds=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
)
@settings(deadline=None, max_examples=20)
def test_requantiser_takes_the_last_piece_that_has_started(simulate, functions, values, gaps, bounds):
    low, high = sorted(bounds)
    clocks: list[dict | None] = []
    want = []
    for records, value, gap in zip(functions, values, gaps, strict=False):
        if records[-1].start % 2:
            value = records[-1].start - (records[0].start % 3 == 0)  # at the edge of a piece, and just below
        clocks += [*pieces_of(value, records), *[None] * gap]
        want.append(int(requantise_formula([value], records, low, high)[0]))
    assert run_requantiser(simulate, 20, clocks, low, high) == want


def test_requantiser_flush_drops_what_is_under_way(simulate):
    unit = Requantiser(accumulator_bits=16)

    async def bench(ctx) -> None:
        ctx.set(unit.valid, 1)
        ctx.set(unit.first, 1)
        ctx.set(unit.last, 1)
        await ctx.tick().repeat(3)
        ctx.set(unit.valid, 0)
        ctx.set(unit.flush, 1)
        await ctx.tick()
        ctx.set(unit.flush, 0)
        for _ in range(2 * REQUANTISE_LATENCY):
            assert not ctx.get(unit.done)
            await ctx.tick()

    simulate(unit, bench)


@pytest.mark.parametrize("rows", [1, 4])
def test_maximum_of_each_lane(simulate, rows):
    unit = LaneMaximum(rows=rows)
    rng = np.random.default_rng(rows)
    reductions = [
        np.full((1, rows), -128),
        np.array([[-128] * rows, [127] * rows, [-128] * rows]),
        *(rng.integers(-128, 128, (n, rows)) for n in (1, 4, 9)),
    ]

    async def bench(ctx) -> None:
        for words in reductions:
            for index, word in enumerate(words):
                ctx.set(unit.word, word.tolist())
                ctx.set(unit.valid, 1)
                ctx.set(unit.clear, index == 0)
                await ctx.tick()
                ctx.set(unit.valid, 0)
                ctx.set(unit.word, [127] * rows)
                if index % 2:
                    await ctx.tick()
            assert [ctx.get(unit.maximum[lane]) for lane in range(rows)] == maximum_formula(words).tolist()

    simulate(unit, bench)


@pytest.mark.parametrize("component", [Requantiser(accumulator_bits=24), LaneMaximum(rows=4), PostUnit(CoreParameters(rows=8, columns=2))])
def test_exports(exports, component):
    exports(component)


def test_refused_width():
    with pytest.raises(ValueError, match=f"^{re.escape('Accumulator must have from 16 to 32 bits, not 33')}$"):
        Requantiser(accumulator_bits=33)
