"""Models with ONNX ``Loop`` nodes, compiled: golden against ONNX Runtime, what the front end refuses, the files, and the command line."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import onnx
import pytest
from loop_cases import SHAPE, counting, in_onnx_runtime, recursive, ring
from onnx import TensorProto, helper, numpy_helper

import tritloom
from tritloom.cli.main import main
from tritloom.compiled import CompiledModel
from tritloom.compiler.frontend import check
from tritloom.compiler.image import decode_artefact, encode_artefact
from tritloom.compiler.image.artefact import Artefact
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Program
from tritloom.errors import ModelError, UserError
from tritloom.models import zoo
from tritloom.models.data.puzzles import load_puzzles
from tritloom.models.nets.recursion import PRESETS, RecursiveShape
from tritloom.solving import PuzzleSolver

BITS = np.array(list(product([-1, 1], repeat=6)), np.int8)


def golden(model: CompiledModel | bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    return tritloom.InferenceSession(model).run(None, feeds)


def loops(program: Program) -> list[Loop]:
    return [operation for operation in program.walk() if isinstance(operation, Loop)]


# ---- rings ----


def test_the_packaged_ring_stops_at_the_same_tick():
    source = zoo.path("ring").read_bytes()
    answers, ticks = golden(source, bits=BITS)
    expected = in_onnx_runtime(source, {"bits": BITS})
    np.testing.assert_array_equal(answers, expected[0])
    np.testing.assert_array_equal(ticks, expected[1])
    assert answers.dtype == np.int8 and ticks.dtype == np.int64 and ticks.shape == (64,) and len(set(ticks.tolist())) > 4


@pytest.mark.parametrize("seed", range(4))
def test_random_rings_with_any_int8_input(seed):
    """Inputs that no training has seen: extremes, zeros, and rings that never settle."""
    source = ring(seed, ticks=5)
    bits = np.concatenate([np.random.default_rng(seed).integers(-128, 128, (12, 3)), [[-128] * 3, [127] * 3, [0] * 3]]).astype(np.int8)
    for found, expected in zip(golden(source, bits=bits), in_onnx_runtime(source, {"bits": bits}), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_ring_is_verified_sample_by_sample():
    result = tritloom.verify(ring(1), on=["golden"], samples=12)
    assert [comparison.mismatches for comparison in result.comparisons] == [0, 0] and result.samples == 12
    assert {comparison.tensor for comparison in result.comparisons} == {"answer", "ticks"}


def test_a_wrong_tick_would_be_seen():
    model = tritloom.compile(zoo.path("ring"))
    (loop,) = model.program.operations[1:]
    endless = replace(model.artefact, program=replace(model.program, operations=(model.program.operations[0], replace(loop, condition=""))))
    result = tritloom.verify(CompiledModel(endless), on=["golden"], feeds={"bits": BITS[:8]})
    assert next(comparison for comparison in result.comparisons if comparison.tensor == "ticks").mismatches == 8


# ---- loops written by hand ----

STARTS = np.array([[5, 2, 1], [1, 1, 1], [0, 0, 0], [-1, -5, -128], [127, -128, 0]], np.int8)


@pytest.mark.parametrize(("limit", "start"), [(1, -1), (3, -1), (9, -1), (9, -3), (4, 300)])
def test_trips_until_a_state_is_low_enough(limit, start):
    source = counting(limit, start).SerializeToString()
    for found, expected in zip(golden(source, x=STARTS), in_onnx_runtime(source, {"x": STARTS}), strict=True):
        np.testing.assert_array_equal(found, expected)


def changed(change) -> onnx.ModelProto:
    model = counting(4, -1)
    change(model, next(node for node in model.graph.node if node.op_type == "Loop"))
    return model


def body_of(loop: onnx.NodeProto) -> onnx.GraphProto:
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


def renamed(place: str, op: str):
    def change(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
        next(node for node in body_of(loop).node if node.output[0] == place).op_type = op

    return change


@pytest.mark.parametrize("op", ["Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
def test_comparisons_that_end_a_loop(op):
    source = changed(renamed("more", op)).SerializeToString()
    for found, expected in zip(golden(source, x=STARTS), in_onnx_runtime(source, {"x": STARTS}), strict=True):
        np.testing.assert_array_equal(found, expected)


def constant_condition(value: bool):
    def change(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.bool_(value), "fixed"))
        again = next(node for node in body_of(loop).node if node.op_type == "Identity")
        again.input[0] = "fixed"

    return change


@pytest.mark.parametrize(("value", "trips"), [(True, 4), (False, 1)])
def test_conditions_that_are_constants(value, trips):
    source = changed(constant_condition(value)).SerializeToString()
    found = golden(source, x=STARTS)
    assert found[1].tolist() == [trips] * 5
    np.testing.assert_array_equal(found[0], in_onnx_runtime(source, {"x": STARTS})[0])
    assert loops(tritloom.compile(source).program)[0].condition == ""


def test_the_number_of_the_trip_with_another_offset():
    def change(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
        next(tensor for tensor in model.graph.initializer if tensor.name == "step").CopyFrom(numpy_helper.from_array(np.int64(-7), "step"))

    source = changed(change).SerializeToString()
    np.testing.assert_array_equal(golden(source, x=STARTS)[1], in_onnx_runtime(source, {"x": STARTS})[1])


# ---- recursive networks ----


def test_the_packaged_network_solves_like_the_float_model():
    """Puzzles of one step and those that take several."""
    source = zoo.path("trm_sudoku4").read_bytes()
    puzzles = load_puzzles("sudoku4", count=1, seed=0)
    session = tritloom.InferenceSession(source)
    rows = puzzles.test[:24]
    logits, halt, steps = session.run(None, {"puzzle": rows})
    expected = in_onnx_runtime(source, {"puzzle": rows})
    assert logits.shape == (24, 16, 5) and halt.shape == steps.shape == (24,) and steps.dtype == np.int64
    np.testing.assert_array_equal(logits.argmax(-1), expected[0].argmax(-1))
    np.testing.assert_array_equal(steps, expected[2])
    assert np.sqrt(((logits - expected[0]) ** 2).mean()) < 0.03 * expected[0].std()
    assert (logits.argmax(-1) == puzzles.test_answers[:24]).all(-1).sum() >= 22


@pytest.mark.parametrize("seed", range(2))
def test_one_application_with_random_weights(seed):
    """Random trits amplify every rounding, so one update and one answer are all that can be compared."""
    source = recursive(seed, replace(SHAPE, n=1, cycles=1, supervision=1))
    puzzles = np.random.default_rng(seed).integers(0, 4, (10, 9))
    logits, halt, steps = golden(source, puzzle=puzzles)
    expected = in_onnx_runtime(source, {"puzzle": puzzles})
    assert np.sqrt(((logits - expected[0]) ** 2).mean()) < 0.12 * expected[0].std()
    assert np.abs(halt - expected[1]).max() < 0.5 and steps.tolist() == [1] * 10


def test_states_that_begin_as_zeros_take_the_grid_of_those_that_follow():
    """Zeros lie on every grid; that of the states is found behind the inner loops."""
    source = recursive(0, replace(SHAPE, n=1, cycles=1, supervision=1), spread=0)
    puzzles = np.random.default_rng(2).integers(0, 4, (6, 9))
    logits, expected = golden(source, puzzle=puzzles)[0], in_onnx_runtime(source, {"puzzle": puzzles})[0]
    assert np.sqrt(((logits - expected) ** 2).mean()) < 0.12 * expected.std()
    program = tritloom.compile(source).program
    assert all(program.tensors[carried.before].scale == (Fraction(1, 2048),) for loop in loops(program) for carried in loop.carried)
    assert len({operation.output for operation in program.walk()}) == len(list(program.walk()))


def test_samples_that_halt_early_do_not_touch_the_others():
    model = tritloom.compile(recursive(1, replace(SHAPE, n=1, cycles=1), halt_bias=-0.5))
    puzzles = np.random.default_rng(5).integers(0, 4, (5, 9))
    logits, halt, steps = golden(model, puzzle=puzzles)
    assert len(set(steps.tolist())) > 1
    # A loop ends behind the first step whose halt is above 0, or behind the last.
    np.testing.assert_array_equal(halt > 0, (steps < 4) | (halt > 0))
    for sample in range(5):
        alone = golden(model, puzzle=puzzles[sample : sample + 1])
        np.testing.assert_array_equal(alone[0][0], logits[sample])
        assert alone[2][0] == steps[sample]


def test_nested_loops_carry_what_is_needed():
    program = tritloom.compile(recursive()).program
    outer, middle, inner = loops(program)
    assert (outer.limit, middle.limit, inner.limit) == (4, 2, 2)
    assert [len(loop.carried) for loop in (outer, middle, inner)] == [2, 2, 1]  # logits, halt and steps are only results
    assert outer.condition and not middle.condition and not inner.condition
    assert all(carried.values is not None and carried.values.dtype == np.int16 for carried in outer.carried)


def test_a_row_that_the_table_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"input 'puzzle' must lie in 0\.\.3, not 0\.\.4"):
        golden(recursive(), puzzle=np.array([[0, 1, 2, 3, 4, 0, 0, 0, 0]]))


def test_a_network_with_scales_of_its_own_agrees_with_floats_mostly():
    """Golden rounds to 8 bits what the witness computes in floats, so codes are not compared."""
    found = tritloom.verify(recursive(), on=["golden"], samples=3)
    assert not found.comparisons and found.exact
    assert "'logits' has the same largest element at" in found.details["onnx"] and "'steps' has the same number at" in found.details["onnx"]


def test_the_preset_of_the_paper_compiles():
    """5.0 million parameters; 16 steps of 21 applications are 205 GMAC."""
    source = recursive(0, RecursiveShape.of(PRESETS["trm-mlp"], 81, 11))
    report = check(source)
    assert report.supported and round(report.facts["macs"] / 1e9) == 205
    assert 4.95e6 <= report.facts["parameters"] <= 5.1e6


# ---- what is refused ----


def many_trips(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "turn.trips").CopyFrom(
        numpy_helper.from_array(np.int64(1 << 40), "turn.trips")
    )


def no_limit(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    loop.input[0] = ""


def late_start(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "always").CopyFrom(
        numpy_helper.from_array(np.bool_(False), "always")
    )


def collected(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    body_of(loop).output.append(helper.make_tensor_value_info("wide", TensorProto.INT32, (1, 3)))
    loop.output.append("all")


def wide_state(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    body = body_of(loop)
    body.node.remove(next(node for node in body.node if node.output[0] == "next"))
    body.output[1].name = "less"
    body.output[1].type.tensor_type.elem_type = TensorProto.INT32


def two_samples(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def floats(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def wide_output(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    """Zeros behind integers that no vector of 8 bits holds."""
    model.graph.input.append(helper.make_tensor_value_info("wide_input", TensorProto.INT32, (1, 2)))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int32), "nothing"))
    model.graph.node.append(helper.make_node("Concat", ["wide_input", "nothing"], ["padded"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("padded", TensorProto.INT32, (1, 3)))


def other_sizes(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    """ONNX Runtime computes it all the same, with a warning."""
    (trips,) = (value for value in model.graph.output if value.name == "trips")
    trips.type.tensor_type.shape.dim.add().dim_value = 6


def nameless(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    model.graph.node.insert(0, helper.make_node("Softplus", ["x"], ["soft"]))


def added_trip(model: onnx.ModelProto, loop: onnx.NodeProto) -> None:
    next(node for node in body_of(loop).node if node.output[0] == "count").op_type = "Mul"


@pytest.mark.parametrize(("change", "words"), [
    (many_trips, "constant largest number of trips"),
    (no_limit, "constant largest number of trips"),
    (late_start, "whether it begins is computed"),
    (collected, "collects a value of every trip"),
    (wide_state, r"may leave -128..127: it ends a trip in -129..126"),
    (two_samples, "a batch of 1"),
    (floats, "must have integers"),
    (wide_output, "output 'padded': only vectors of 8-bit integers are joined with zeros"),
    (other_sizes, r"output 'trips' is declared with the shape \(6\) and computed with \(\)"),
    (nameless, "node 'soft': no rule lowers it"),
    (added_trip, "no rule lowers it in a model with loops"),
    (renamed("sign", "Softplus"), "no rule lowers it in a model with loops"),
])  # fmt: skip
def test_what_is_refused_is_said_in_one_sentence(change, words):
    model = changed(change).SerializeToString()
    with pytest.raises(ModelError, match=words) as caught:
        tritloom.compile(model)
    assert "\n" not in str(caught.value)
    try:
        report = check(model)
    except ModelError as error:
        assert str(error)
    else:
        assert not report.supported and report.problems[0].reason in str(caught.value)


def test_a_state_with_a_scale_of_its_own_is_refused():
    model = onnx.load_from_string(recursive())
    graph = model.graph
    for _ in range(2):
        graph = body_of(next(node for node in graph.node if node.op_type == "Loop"))
    last = next(node for node in graph.node if node.output[0] == "answer.block2.out")
    last.op_type, last.input[:] = "Identity", ["answer.block2.out.norm"]
    with pytest.raises(ModelError, match="bring it to a fixed grid with QuantizeLinear to int16"):
        tritloom.compile(model.SerializeToString())


def test_float_networks_are_refused():
    model = onnx.load_from_string(recursive())
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    node = next(node for node in body_of(loop).node if node.op_type == "MatMul")
    node.input[0] = "step.cells"
    with pytest.raises(ModelError, match="its activations are not quantised"):
        tritloom.compile(model.SerializeToString())


# ---- files ----


@pytest.mark.parametrize("source", [ring(2), recursive()], ids=["ring", "recursive"])
def test_artefacts_hold_loops(source, tmp_path):
    model = tritloom.compile(source)
    data = encode_artefact(model.artefact)
    assert data == encode_artefact(tritloom.compile(source).artefact)
    model.save(tmp_path / "m.loom")
    again = CompiledModel.load(tmp_path / "m.loom")
    assert encode_artefact(again.artefact) == data
    (given,) = again.program.inputs
    feeds = {given.name: np.ones((3, *given.shape[1:]), given.dtype)}
    for left, right in zip(golden(model, **feeds), golden(again, **feeds), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not model.golden_only and not model.boards


def test_artefacts_with_damaged_loops_are_refused():
    model = tritloom.compile(ring(2))
    *before, loop = model.program.operations
    wrong = replace(model.artefact, program=replace(model.program, operations=(*before, replace(loop, limit=loop.limit + 1))))
    with pytest.raises(ModelError, match="counts in another tensor"):
        decode_artefact(encode_artefact(wrong), "m.loom")
    nothing = replace(loop, body=(loop.body[0], replace(loop.body[1], left=""), *loop.body[2:]))
    with pytest.raises(ModelError, match="reads nothing"):
        decode_artefact(encode_artefact(replace(model.artefact, program=replace(model.program, operations=(*before, nothing)))), "m.loom")
    deep = loop
    tensors = dict(model.program.tensors)
    for depth in range(300):
        tensors[f"t{depth}"] = replace(tensors[loop.output], name=f"t{depth}", high=1)
        deep = Loop(name="deep", output=f"t{depth}", limit=1, carried=(), body=(deep,))
    nested = Artefact(
        source=model.source, program=replace(model.program, operations=(*before, deep), tensors=tensors), schedules={}, settings=model.artefact.settings
    )  # fmt: skip
    with pytest.raises(ModelError, match="nested too deeply"):
        decode_artefact(encode_artefact(nested), "m.loom")


# ---- command line ----


def called(capsys, *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_check_run_and_verify(tmp_path, capsys):
    source = zoo.path("ring")
    code, out, _ = called(capsys, "check", source, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["supported"] and facts["facts"]["dialect"] == ["QOperator"]
    code, out, _ = called(capsys, "verify", source, "--on", "golden", "--samples", 5, "--json")
    assert code == 0 and json.loads(out)["exact"]
    np.savez(tmp_path / "in.npz", bits=BITS)
    assert called(capsys, "run", source, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")[0] == 0
    assert np.load(tmp_path / "out.npz")["ticks"].shape == (64,)
    code, out, err = called(capsys, "estimate", source, "--json")
    assert code == 0 and "the loop may end sooner" in err and json.loads(out)["first_trip"] < json.loads(out)["cycles"]


PUZZLE = "1.....3..2.....4"


def test_solve_draws_each_step_and_prints_json(capsys, tmp_path):
    model = tritloom.compile(zoo.path("trm_sudoku4"))
    model.save(tmp_path / "trm.loom")
    code, out, err = called(capsys, "solve", tmp_path / "trm.loom", "--puzzle", PUZZLE, "--json")
    found = json.loads(out)
    (entry,) = found["puzzles"]
    assert code == 0 and found["solved"] == 1
    assert entry == {
        "puzzle": PUZZLE.replace(".", "0"), "answer": "1342243142133124", "steps": 1, "halted": True, "solved": True, "grids": ["1342243142133124"],
    }  # fmt: skip
    assert "│ 1 . │ . . │" in err and "│ 1 3 │ 4 2 │" in err and "solved after 1 step" in err
    code, out, err = called(capsys, "solve", tmp_path / "trm.loom", "--count", 2, "--seed", 5, "-q", "--json")
    given = [entry["puzzle"] for entry in json.loads(out)["puzzles"]]
    assert len(set(given)) == 2 and all(4 <= 16 - text.count("0") <= 7 for text in given) and not err
    assert given == [
        entry["puzzle"]
        for entry in json.loads(called(capsys, "solve", tmp_path / "trm.loom", "--count", 2, "--seed", 5, "--json")[1])["puzzles"]
    ]


def test_the_solver_goes_on_until_the_network_halts():
    """Its last step is what a whole run gives; the steps before are those of shorter runs."""
    shape = replace(SHAPE, cells=16, symbols=5, n=1, cycles=1, supervision=3)
    model = tritloom.compile(recursive(3, shape, halt_bias=-0.5))
    solver = PuzzleSolver(model)
    assert (solver.size, solver.most_steps) == (4, 3)
    taken = set()
    for seed in range(6):
        puzzle = np.random.default_rng(seed).integers(0, 5, (4, 4))
        steps = list(solver.steps(puzzle))
        logits, halt, count = golden(model, puzzle=puzzle.reshape(1, 16))
        assert [step.number for step in steps] == list(range(1, int(count[0]) + 1))
        np.testing.assert_array_equal(steps[-1].grid.ravel(), logits[0].argmax(-1))
        assert steps[-1].halt == float(halt[0]) and all(step.halt <= 0 for step in steps[:-1])
        taken.add(len(steps))
    assert len(taken) > 1


@pytest.mark.parametrize(("words", "said"), [
    (["--puzzle", "12"], "a puzzle has 16 digits from 0 to 4"),
    (["--puzzle", "5" + "0" * 15], "a puzzle has 16 digits from 0 to 4"),
    (["--on", "verilators"], "there is no provider 'verilators': did you mean 'verilator'?"),
])  # fmt: skip
def test_solve_refuses_in_one_sentence(capsys, words, said):
    code, _, err = called(capsys, "solve", zoo.path("trm_sudoku4"), *words)
    assert code == 1 and said in err and err.count("\n") == 1


def test_other_models_solve_nothing():
    for source in (ring(), counting(2, 0).SerializeToString()):
        with pytest.raises(UserError, match="the model solves no puzzles"):
            PuzzleSolver(tritloom.compile(source))
    with pytest.raises(UserError, match="no Sudoku: 9 cells, logits of shape"):
        PuzzleSolver(tritloom.compile(recursive(0, replace(SHAPE, symbols=5))))
