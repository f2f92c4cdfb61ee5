"""Loops, and operations on integers of a fixed grid, on a core: the twin and the gateware in Verilator against golden, in every trip, and the clocks."""

import json
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import counting, recursive, ring
from twin import Twin

import tritloom
from tritloom.cli.main import main
from tritloom.compiler import golden
from tritloom.compiler.image.validate import validate_program
from tritloom.compiler.ir.grid import Align, ClampedSum, Magnitude, Prepend, Reduce
from tritloom.compiler.ir.loop import Carried, Loop
from tritloom.compiler.ir.program import InputSpec, Operation, OutputSpec, Program, Tensor
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.errors import ModelError
from tritloom.estimation import estimate
from tritloom.models import zoo
from tritloom.models.nets.recursion import Preset, RecursiveShape
from tritloom.solving import PuzzleSolver

BITS = np.array(list(product([-1, 1], repeat=6)), np.int8)
INT32 = -(1 << 31), (1 << 31) - 1


def assert_equal(program: Program, codes: dict[str, np.ndarray]) -> None:
    """Every tensor of every trip of each sample, and the clocks of a run that nothing stops."""
    made = schedule(program, sim_parameters(program))
    twin = Twin(program, made)
    for sample in range(len(next(iter(codes.values())))):
        one = {name: values[sample : sample + 1] for name, values in codes.items()}
        expected = golden.trace(program, one)
        found = twin.trace({name: values[0] for name, values in one.items()})
        assert set(found) == {name for operation in program.walk() for name in operation.outputs}
        for name, values in found.items():
            assert np.array_equal(values, expected[name]), f"sample {sample}: tensor {name} differs"
        outer = {operation.name: expected[operation.output] for operation in program.operations if isinstance(operation, Loop)}
        trips = {name: int(counts[-1].item()) for name, counts in outer.items()}
        assert twin.cycles({name: values[0] for name, values in one.items()}) == made.cycles_of(trips)


# ---- single operations ----


def tensor(name: str, shape: tuple[int, int, int], ends: tuple[int, int]) -> Tensor:
    bits = next(bits for bits in (8, 16, 32) if -(1 << bits - 1) <= ends[0] and ends[1] < 1 << bits - 1)
    return Tensor(name=name, shape=shape, bits=bits, low=ends[0], high=ends[1], scale=(Fraction(1),))


def program_of(tensors: list[Tensor], operations: tuple[Operation, ...], inputs: tuple[str, ...]) -> Program:
    """Inputs are given as they are; the outputs are what the last operation writes."""
    named = {entry.name: entry for entry in tensors}
    program = Program(
        name="made", tensors=named, operations=operations,
        inputs=tuple(InputSpec(name=name, shape=(1, *named[name].shape), dtype="int32", tensor=name, prologue=()) for name in inputs),
        outputs=(OutputSpec(name="y", shape=(1, *named["y"].shape), dtype="int32", tensor="y", epilogue=()),),
    )  # fmt: skip
    validate_program(program)
    return program


def drawn(ends: tuple[int, int], shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Two samples: random elements, and the ends and what lies around 0."""
    rng = np.random.default_rng(seed)
    special = np.array([value for value in (*ends, 0, 1, -1) if ends[0] <= value <= ends[1]])
    return np.stack([rng.integers(ends[0], ends[1] + 1, shape), rng.choice(special, shape)])


GRIDS = st.sampled_from([(-1, 1), (-128, 127), (0, 255), (-(1 << 15), (1 << 15) - 1), (-(1 << 16), 1 << 16), (-(1 << 28), 1 << 28)])
LIMITS = st.sampled_from([(0, 1), (-1, 1), (-128, 127), (-127, 127), (0, 255), (-(1 << 15), (1 << 15) - 1), INT32])
SHAPES = st.sampled_from([(1, 1, 1), (3, 1, 2), (5, 2, 3), (2, 1, 17)])


@given(
    left=GRIDS, right=st.one_of(st.none(), GRIDS), factors=st.tuples(st.sampled_from([1, -1, 3, -64]), st.sampled_from([1, -1, 2, -64])),
    constant=st.sampled_from([0, 1, -1, 100, -70000]), limits=LIMITS, shape=SHAPES, seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_sums_with_factors_and_limits(left, right, factors, constant, limits, shape, seed):
    wide = 1 << 16
    factors = [
        factor if abs(factor) == 1 or max(map(abs, ends)) <= wide else 1
        for factor, ends in zip(factors, (left, right or left), strict=True)
    ]
    both = {"right": "b", "right_factor": factors[1]} if right else {}
    operation = ClampedSum(
        name="op", output="y", left="a", left_factor=factors[0], constant=constant, low=limits[0], high=limits[1], **both
    )
    tensors = [tensor("a", shape, left), tensor("b", shape, right or left), tensor("y", shape, limits)]
    program = program_of(tensors, (operation,), ("a", "b") if right else ("a",))
    codes = {
        spec.tensor: drawn((program.tensors[spec.tensor].low, program.tensors[spec.tensor].high), shape, seed) for spec in program.inputs
    }
    assert_equal(program, codes)


@given(ends=GRIDS, shape=SHAPES, seed=st.integers(0, 99), smallest=st.booleans())
@settings(deadline=None, max_examples=15)
def test_magnitudes_extremes_and_columns_in_front(ends, shape, seed, smallest):
    columns = drawn(ends, (shape[0], 1, 2), seed)[0, :, 0].clip(-(1 << 15), (1 << 15) - 1).astype(np.int16)
    shape = (shape[0], 1, shape[2])
    most = max(map(abs, ends))
    operations: list[Operation] = [Prepend(name="front", output="p", input="a", columns=columns)]
    operations += [Magnitude(name="size", output="m", input="p")] if most < 1 << 17 else []
    smallest = smallest and most < 1 << 17
    operations += [Reduce(name="most", output="y", input="m" if most < 1 << 17 else "p", smallest=smallest)]
    longer = (shape[0], 1, shape[2] + 2)
    both = min(ends[0], int(columns.min())), max(ends[1], int(columns.max()))
    whole = min(both[0], 0), max(most, *both)
    tensors = [tensor("a", shape, ends), tensor("p", longer, both), tensor("m", longer, whole), tensor("y", (1, 1, 1), whole)]
    program = program_of(tensors if most < 1 << 17 else [entry for entry in tensors if entry.name != "m"], tuple(operations), ("a",))
    assert_equal(program, {"a": drawn(ends, shape, seed)})


@given(
    constant=st.tuples(st.integers(1 << 15, (1 << 16) - 1), st.integers(-60, 20)), seed=st.integers(0, 99),
    shape=st.sampled_from([(3, 1, 2), (4, 1, 6)]),
)  # fmt: skip
@settings(deadline=None, max_examples=20)
def test_alignment(constant, seed, shape):
    """Also where nothing is left of the block, and where all of it lies beyond 16 bits."""
    operation = Align(name="op", output="y", input="a", constant=constant)
    program = program_of([tensor("a", shape, INT32), tensor("y", shape, (-(1 << 15), (1 << 15) - 1))], (operation,), ("a",))
    assert_equal(program, {"a": drawn(INT32, shape, seed)})


@pytest.mark.parametrize(("operation", "low", "words"), [
    (ClampedSum(name="op", output="y", left="a", low=-5, high=5), -128, "limits to powers of two"),
    (ClampedSum(name="op", output="y", left="a", left_factor=-1, right="a", right_factor=-1, low=INT32[0], high=INT32[1]), -(1 << 30), "more than 18 bits"),
    (Magnitude(name="op", output="y", input="a"), -(1 << 30), "magnitude of more than 18 bits"),
])  # fmt: skip
def test_what_the_core_cannot_do_is_said(operation, low, words):
    ends = (low, -low - 1)
    program = program_of([tensor("a", (2, 1, 1), ends), tensor("y", (2, 1, 1), INT32)], (operation,), ("a",))
    with pytest.raises(ModelError, match=words):
        schedule(program, sim_parameters(program))


# ---- loops ----


def exchanging(limit: int, inner: int, ends: bool) -> Program:
    """Two states of unlike widths that change places in every trip, around a loop that counts; the outer one ends when a state is 0."""
    shape, state, narrow = (3, 1, 5), (-(1 << 15), (1 << 15) - 1), (-100, 100)
    count = Loop(
        name="inner", output="counted", limit=inner,
        carried=(Carried(before="from", after="more", initial="first"),),
        body=(ClampedSum(name="add", output="more", left="from", right="first", right_factor=-1, constant=1, low=state[0], high=state[1]),),
    )  # fmt: skip
    body = (
        ClampedSum(name="less", output="less", left="first", right="second", right_factor=-1, low=state[0], high=state[1]),
        count,
        Magnitude(name="size", output="size", input="less"),
        Reduce(name="most", output="most", input="size"),
        ClampedSum(name="left", output="goes_on", left="most", low=0, high=1),
        ClampedSum(name="result", output="y", left="more", right="less", low=INT32[0], high=INT32[1]),
    )
    loop = Loop(
        name="outer", output="trips", limit=limit, condition="goes_on" if ends else "", body=body,
        carried=(
            Carried(before="first", after="second", initial="x"), Carried(before="second", after="first", values=np.arange(15, dtype=np.int16).reshape(shape)),
            Carried(before="third", after="less", initial="x"),
        ),
    )  # fmt: skip
    names = {
        "x": narrow,
        **dict.fromkeys(("first", "second", "third", "less", "from", "more"), state),
        "size": (-(1 << 15), 1 << 15),
        "y": INT32,
    }
    tensors = [tensor(name, shape, ends) for name, ends in names.items()]
    tensors += [tensor("most", (1, 1, 1), (-(1 << 15), 1 << 15)), tensor("goes_on", (1, 1, 1), (0, 1))]
    tensors += [tensor(name, (1, 1, 1), (0, 1 << 20)) for name in ("trips", "counted")]
    return program_of(tensors, (loop,), ("x",))


@pytest.mark.parametrize(("limit", "inner", "ends"), [(1, 1, False), (4, 3, False), (5, 2, True)])
def test_states_that_change_places_around_a_loop(limit, inner, ends):
    program = exchanging(limit, inner, ends)
    codes = drawn((-100, 100), (3, 1, 5), limit)
    codes[1] = np.arange(15).reshape(3, 1, 5)
    assert_equal(program, {"x": codes})


@pytest.mark.parametrize("seed", range(3))
def test_random_rings(seed):
    model = tritloom.compile(ring(seed, ticks=5))
    assert not model.golden_only and not model.boards
    codes = np.concatenate([np.random.default_rng(seed).integers(-128, 128, (6, 3)), [[-128] * 3, [127] * 3, [0] * 3]])
    assert_equal(model.program, {model.program.inputs[0].tensor: codes[:, :, None, None]})


@pytest.mark.parametrize(("limit", "start"), [(1, -1), (9, -3)])
def test_trips_until_a_state_is_low_enough(limit, start):
    program = tritloom.compile(counting(limit, start).SerializeToString()).program
    codes = np.array([[5, 2, 1], [0, 0, 0], [-1, -5, -128], [127, -128, 0]])
    shape = program.tensors[program.inputs[0].tensor].shape
    assert_equal(program, {program.inputs[0].tensor: codes.reshape(4, *shape)})


TINY = RecursiveShape.of(Preset(8, prefix=1, heads=0, multiple=4, n=2, cycles=1, supervision=2), 4, 3)


@pytest.mark.parametrize("halt_bias", [-4.0, 4.0])
def test_a_recursive_network(halt_bias):
    """Blocks with a scale for each token, token and channel mixing, three loops in one another, and a head that halts."""
    program = tritloom.compile(recursive(1, TINY, halt_bias=halt_bias)).program
    rng = np.random.default_rng(3)
    assert_equal(program, {"puzzle": rng.integers(0, 3, (1, *program.tensors["puzzle"].shape))})


def test_gateware_stops_at_the_same_tick():
    """Verilator's core on some inputs of the packaged ring: every tensor in every tick, and its clock counter."""
    model = tritloom.compile(zoo.path("ring"))
    found = tritloom.verify(model, feeds={"bits": BITS[5:13]})
    assert found.exact and {comparison.candidate for comparison in found.comparisons} == {"verilator", "golden"}
    assert all(comparison.mismatches == 0 for comparison in found.comparisons)
    session = tritloom.InferenceSession(model, providers=["verilator"])
    answer, ticks = session.run(None, {"bits": BITS})
    expected = tritloom.InferenceSession(model).run(None, {"bits": BITS})
    assert np.array_equal(answer, expected[0]) and np.array_equal(ticks, expected[1]) and len(set(ticks.tolist())) > 4
    plan = model.schedule()
    assert session.last_cycles == sum(plan.cycles_of({"tick": int(count)}) for count in ticks)
    said = estimate(model)
    assert (said.first_trip, said.further_trip) == (plan.cycles_of({"tick": 1}), plan.cycles_of({"tick": 2}) - plan.cycles_of({"tick": 1}))


def test_puzzles_on_a_core(tmp_path, capsys):
    """Verilator's core, supervision step by supervision step, as golden takes them."""
    source = recursive(2, TINY)
    puzzle = np.array([[1, 0], [0, 2]])
    expected = list(PuzzleSolver(tritloom.compile(source)).steps(puzzle))
    (tmp_path / "m.onnx").write_bytes(source)
    words = ["solve", tmp_path / "m.onnx", "--on", "verilator", "--puzzle", "1002", "-o", tmp_path / "p.npz", "--json"]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code
    found = json.loads(capsys.readouterr().out)
    (entry,) = found["puzzles"]
    assert entry["grids"] == ["".join(map(str, step.grid.ravel())) for step in expected] and len(expected) == 2
    assert found["cycles"] == entry["cycles"] == tritloom.compile(source).schedule().cycles_of({"step": 2})
    assert np.load(tmp_path / "p.npz")["puzzle"].tolist() == [puzzle.ravel().tolist()]
