"""What the front end refuses, and how: every offending node, calibration, damaged files."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph, run_both
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tritloom.compiler.frontend import check, lower, supported_operators
from tritloom.errors import ModelError, TritloomError, UserError


def _mixed() -> bytes:
    """Three operators that are never supported, two of them behind the first, and an attribute that is not."""
    g = Graph()
    x = g.qdq("x")
    a = g.add("LRN", g.add("Conv", x, g.weights(4, 3, 3, 3)), size=3)
    b = g.add("Hardmax", g.qdq(g.add("Conv", a, g.weights(4, 4, 3, 3))))
    c = g.add("AveragePool", x, kernel_shape=[2, 2], dilations=[2, 2])
    d = g.add("CumSum", x, g.constant(1, np.int64))
    return g.model({"x": ("N", 3, 9, 9)}, {b: None, c: None, d: None})


def test_check_lists_every_offending_node() -> None:
    report = check(_mixed())
    assert not report.supported
    assert {problem.op for problem in report.problems} == {"LRN", "Hardmax", "AveragePool", "CumSum"}
    assert len(report.problems) == 4
    assert all(problem.node.startswith("node_") and problem.reason and problem.hint for problem in report.problems)
    assert report.layers == []


def test_lower_names_the_first_node_and_counts_the_others() -> None:
    with pytest.raises(
        ModelError, match=r"^net: node 'node_lrn_\d+': operator LRN is not supported \(3 more found by check\); use BatchNorm"
    ):
        lower(_mixed(), name="net")


def test_check_describes_the_layers_of_a_good_model() -> None:
    g = Graph()
    y = g.qdq(g.add("Conv", g.qdq("x"), g.weights(4, 3, 3, 3)))
    report = check(g.model({"x": ("N", 3, 9, 9)}, {y: None}))
    assert report.supported and not report.problems
    assert report.layers == [
        {"name": "node_conv_3", "op": "Convolution", "input": [3, 9, 9], "output": [4, 7, 7], "macs": 4 * 27 * 49, "runs": "core"}
    ]
    assert report.facts["calibration_needed_for"] == []
    assert report.facts["opsets"] == {"ai.onnx": 21}


@pytest.mark.parametrize(("build", "words"), [
    (lambda g, x: g.add("Mul", x, g.add("Transpose", x, perm=[3, 1, 2, 0])), "cannot be multiplied"),
    (lambda g, x: g.add("Mul", x, g.add("Flatten", x)), "cannot be multiplied"),
    (lambda g, x: g.add("Div", x, g.constant(0.0)), "divides by zero"),
    (lambda g, x: g.add("Add", x, g.constant(np.inf)), "infinite or not a number"),
    (lambda g, x: g.add("Concat", x, x, axis=0), "batch axis"),
    (lambda g, x: g.add("Concat", x, g.constant(np.zeros((1, 3, 5, 5))), axis=1), "with a constant"),
    (lambda g, x: g.add("Softmax", x, axis=0), "batch axis"),
    (lambda g, x: g.add("MaxPool", x, kernel_shape=[9, 9]), "larger than the padded input"),
    (lambda g, x: g.add("MaxPool", x, kernel_shape=[1, 1], pads=[1, 1, 1, 1]), "as large as its window"),
    (lambda g, x: g.add("Conv", x, x), "weight is computed"),
    (lambda g, x: g.add("Conv", x, g.weights(2, 5, 1, 1)), "do not fit 3 input channels"),
    (lambda g, x: g.add("Reshape", x, g.constant([2, -1, 7], np.int64)), "cannot be reshaped"),
    (lambda g, x: g.add("Conv", g.add("Unsqueeze", x, g.constant([4], np.int64)), g.weights(2, 3, 1, 1, 1)), "windows over an input of shape [1, 3, 5, 5, 1]"),
])  # fmt: skip
def test_refusals_in_words(build: object, words: str) -> None:
    g = Graph()
    y = build(g, g.qdq("x"))  # type: ignore[operator]
    report = check(g.model({"x": (1, 3, 5, 5)}, {y: None}))
    assert [words in problem.reason for problem in report.problems] == [True], report.problems


def _float_model() -> bytes:
    g = Graph()
    h = g.add("Relu", g.add("Gemm", "x", g.constant(g.rng.normal(size=(6, 8))), g.constant(g.rng.normal(size=8))))
    y = g.add("Softmax", g.add("Gemm", h, g.constant(g.rng.normal(size=(8, 4)))))
    return g.model({"x": ("N", 6)}, {y: None})


def test_missing_calibration_says_how_to_make_it() -> None:
    message = (
        r"^net states no quantiser for 'x', so it needs calibration samples: save a few hundred typical inputs with "
        r'numpy\.savez\("calibration\.npz", x=array of shape \(samples, 6\)\) and give --calibration calibration\.npz$'
    )
    with pytest.raises(ModelError, match=message):
        lower(_float_model(), name="net")
    assert check(_float_model()).supported
    assert len(check(_float_model()).facts["calibration_needed_for"]) == 2


@pytest.mark.parametrize(("samples", "words"), [
    ({}, "must be named x; given are none"),
    ({"y": np.zeros((5, 6))}, "given are y"),
    ({"x": np.zeros((5, 7))}, r"of shape \(samples, 6\), not float64 \(5, 7\)"),
    ({"x": np.zeros((0, 6))}, "must be numbers of shape"),
    ({"x": np.full((5, 6), np.nan)}, "must be finite"),
    ({"x": np.full((5, 6), "a")}, "must be numbers"),
])  # fmt: skip
def test_wrong_calibration_samples(samples: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        lower(_float_model(), name="net", calibration=samples)


def test_calibrated_grids_and_float_weights() -> None:
    samples = {"x": np.random.default_rng(0).normal(size=(50, 6))}
    lowered = lower(_float_model(), name="net", calibration=samples)
    hidden = lowered.program.tensors[lowered.program.operations[0].output]
    assert (hidden.source, hidden.zero_point, hidden.low >= -128, hidden.high <= 127) == ("calibration", (-128,), True, True)
    assert lowered.program.tensors["x"].zero_point == (0,)
    assert sum("float weights became" in note for note in lowered.notes) == 2
    narrow = lower(_float_model(), name="net", calibration=samples, activation_bits=4).program
    assert {tensor.bits for tensor in narrow.tensors.values()} == {4, 32}
    planes = lower(_float_model(), name="net", calibration=samples, method="planes", planes=3).program
    assert {operation.planes for operation in planes.operations} == {3}  # type: ignore[attr-defined]


def test_weights_of_an_input_that_is_read_twice_are_added() -> None:
    """Two weights at the limit of six planes make one that is beyond it."""
    g = Graph()
    half = g.rng.normal(size=(3, 4))
    y = g.add("MatMul", g.add("Tile", g.qdq("x"), g.constant([1, 2], np.int64)), g.constant(np.concatenate([half, half])))
    data = g.model({"x": (1, 3)}, {y: None})
    with pytest.raises(
        ModelError, match=r"its weights reach 7[0-9][0-9], more than 6 digit planes hold; use fewer digit planes for this layer"
    ):
        lower(data, name="net", planes=6, method="planes")
    assert lower(data, name="net", planes=5, method="planes").program.operations[0].planes == 6  # type: ignore[attr-defined]


def test_calibration_of_a_model_that_repeats_its_batch_in_a_shape() -> None:
    def build(batch: int, as_node: bool) -> bytes:
        g = Graph()
        shape = g.add("Constant", output="shape", value_ints=[batch, -1]) if as_node else g.constant([batch, -1], np.int64)
        hidden = g.add("Relu", g.add("MatMul", g.add("Reshape", "x", shape), g.constant(g.rng.normal(size=(6, 5)))))
        y = g.add("MatMul", hidden, g.constant(g.rng.normal(size=(5, 4))))
        return g.model({"x": (batch, 2, 3)}, {y: (batch, 4)})

    samples = {"x": np.random.default_rng(0).normal(size=(20, 2, 3))}
    for as_node in (False, True):
        many, one = (lower(build(batch, as_node), name="net", calibration=samples).program for batch in (32, 1))
        assert [tensor.scale for tensor in many.tensors.values()] == [tensor.scale for tensor in one.tensors.values()]


def test_wrong_options() -> None:
    samples = {"x": np.zeros((5, 6))}
    for options in ({"activation_bits": 9}, {"method": "magic"}, {"planes": 0}):
        with pytest.raises(TritloomError):
            lower(_float_model(), name="net", calibration=samples, **options)
    with pytest.raises(UserError, match=r"^method twn makes one plane, not 2; use method planes$"):
        lower(_float_model(), name="net", calibration=samples, method="twn", planes=2)


def test_samples_that_overflow_inside_the_network_are_blamed_on_the_samples() -> None:
    g = Graph()
    hidden = g.add("Relu", g.add("Mul", g.add("MatMul", "x", g.constant(np.eye(6))), g.constant(1e30)))
    y = g.add("MatMul", hidden, g.constant(np.eye(6)))
    with pytest.raises(UserError, match=r"^calibration values of 'relu_\d+' must be finite, but value \d+ is inf$"):
        lower(g.model({"x": ("N", 6)}, {y: None}), name="net", calibration={"x": np.full((5, 6), 1e30)})


def _raises(data: bytes, words: str) -> None:
    for call in (lambda: check(data, name="net"), lambda: lower(data, name="net")):
        with pytest.raises(ModelError, match=words):
            call()


def test_files_that_are_no_model() -> None:
    _raises(b"", "^net is empty")
    _raises(b"\x00" * 100, "^net is not an ONNX model")
    _raises(b"PK\x03\x04" + bytes(50), "^net is not an ONNX model")
    _raises(_float_model()[:200], "^net is not an ONNX model")


def _changed(change: object) -> bytes:
    model = onnx.load_from_string(_float_model())
    change(model)  # type: ignore[operator]
    return model.SerializeToString()


def test_models_that_are_not_self_contained_or_too_old() -> None:
    def external(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "weights.bin"

    def old(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 5

    def shape(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "K"

    def large(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40

    def text(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING

    _raises(_changed(external), "keeps tensor 'constant_0' in another file")
    _raises(_changed(old), "has opset 5; export it with opset 6 or later")
    _raises(_changed(shape), "every axis but the first")
    _raises(_changed(large), "more than")
    _raises(_changed(text), "STRING")


def test_constants_cannot_ask_for_all_memory() -> None:
    g = Graph()
    huge = g.add("Expand", g.constant([1.0]), g.constant([1 << 20, 1 << 20], np.int64))
    doubled = g.qdq("x")
    for _ in range(40):
        doubled = g.add("Concat", doubled, doubled, axis=1)
    report = check(g.model({"x": (1, 1 << 18)}, {g.add("Add", g.qdq("x"), huge): None, doubled: None}))
    assert [problem.op for problem in report.problems] == ["Expand", "Concat"]


def test_functions_are_inlined_and_recursion_is_refused() -> None:
    body = [helper.make_node("Relu", ["a"], ["b"], name="inner")]
    function = helper.make_function("own", "Step", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    g = Graph()
    y = g.qdq(g.add("Step", g.add("MatMul", g.qdq("x"), g.weights(6, 4)), domain="own"))
    model = onnx.load_from_string(g.model({"x": (1, 6)}, {y: None}))
    model.functions.append(function)
    assert check(model.SerializeToString()).supported
    doubling = [
        helper.make_function("own", f"Step{i}", ["a"], ["b"], [
            helper.make_node(f"Step{i + 1}", ["a"], ["m"], domain="own"), helper.make_node(f"Step{i + 1}", ["m"], ["b"], domain="own"),
        ], [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)])
        for i in range(60)
    ]  # fmt: skip
    doubling.append(helper.make_function("own", "Step60", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))
    model.functions.extend(doubling)
    model.graph.node[-3].op_type = "Step0"
    _raises(model.SerializeToString(), "once its functions are expanded|not a valid")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_models_raise_model_errors_only(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([_float_model(), _mixed()]))
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["cut", "flip", "byte"]))
    position = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        damaged = damaged[:position]
    elif kind == "flip":
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        damaged[position] = data.draw(st.integers(0, 255))
    for call in (lambda: check(bytes(damaged)), lambda: lower(bytes(damaged), name="net")):
        try:
            call()
        except ModelError as error:
            assert "\n" not in str(error)


def test_operator_table_names_forms() -> None:
    table = supported_operators()
    names = {entry.name for entry in table}
    assert {"Conv", "Gemm", "MatMul", "Quant", "BipolarQuant", "QuantizeLinear", "Concat", "Softmax"} <= names
    assert all(entry.forms for entry in table)
    assert [(entry.domain, entry.name) for entry in table] == sorted((entry.domain, entry.name) for entry in table)


def test_a_value_without_a_quantiser_is_named_with_its_node() -> None:
    g = Graph()
    x = g.qdq("x")
    joined = g.add("Concat", x, g.qdq(g.add("Conv", x, g.weights(2, 3, 1, 1)), 0.5), axis=1)
    data = g.model({"x": ("N", 3, 5, 5)}, {g.qdq(g.add("Conv", joined, g.weights(2, 5, 1, 1))): None})
    with pytest.raises(
        ModelError, match=rf"^net states no quantiser for '{joined}' \(the output of node 'node_{joined}', Concat\), so it needs"
    ):
        lower(data, name="net")
    samples = {"x": np.random.default_rng(0).normal(size=(20, 3, 5, 5))}
    assert lower(data, name="net", calibration=samples).notes[0].endswith(f"calibration samples: {joined}")


def _prelu_behind_a_pool(g: Graph, x: str) -> tuple[str, str]:
    pooled = g.add("MaxPool", g.add("Conv", x, g.weights(3, 3, 1, 1)), kernel_shape=[2, 2])
    return pooled, g.add("PRelu", pooled, g.constant(-0.5))


def _leaky_sum(g: Graph, x: str) -> tuple[str, str]:
    total = g.add("Add", x, g.qdq(g.add("Conv", x, g.weights(3, 3, 1, 1)), 0.5))
    return total, g.add("LeakyRelu", total, alpha=0.125)


def _frame_of_unlike_codes(g: Graph, x: str) -> tuple[str, str]:
    framed = g.add("Pad", g.add("Conv", x, g.weights(3, 3, 1, 1)), g.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return framed, g.add("Add", framed, g.constant(np.array([1.0, 2, 3]).reshape(3, 1, 1)))


def _pixels_of_their_own(g: Graph, x: str) -> tuple[str, str]:
    inner = g.add("Conv", x, g.weights(3, 3, 1, 1))
    return inner, g.add("Add", inner, g.constant(np.arange(25.0).reshape(5, 5)))


@pytest.mark.parametrize(("build", "operations"), [
    (_prelu_behind_a_pool, ["Convolution", "MaxPool", "Rescale"]),
    (_leaky_sum, ["Convolution", "Add", "Rescale"]),
    (_frame_of_unlike_codes, ["Convolution", "SumPool", "Rescale"]),
    (_pixels_of_their_own, ["Convolution", "Copy", "Rescale"]),
])  # fmt: skip
def test_steps_that_the_operation_before_them_cannot_take_need_a_grid(build: object, operations: list[str]) -> None:
    g = Graph()
    wanted, y = build(g, g.qdq("x"))  # type: ignore[operator]
    data = g.model({"x": ("N", 3, 5, 5)}, {g.qdq(y, 2.0): None})
    assert check(data).facts["calibration_needed_for"] == [wanted]
    feeds = {"x": np.random.default_rng(0).normal(size=(40, 3, 5, 5)).astype(np.float32) * 9}
    lowered, ours, theirs, _ = run_both(data, calibration=feeds, feeds=feeds)
    assert [type(operation).__name__ for operation in lowered.program.operations] == operations
    # The grid in between is much finer than the last one: at most one step apart, and seldom.
    (ours,), (theirs,) = ours.values(), theirs.values()
    assert np.abs(ours - theirs).max() <= 2.0 and np.mean(ours != theirs) < 0.2


def test_an_input_read_whole_and_in_part_has_a_grid_for_each() -> None:
    g = Graph()
    part = g.add("Slice", g.add("Flatten", "x"), g.constant([2], np.int64), g.constant([14], np.int64), g.constant([1], np.int64))
    total = g.add("Add", g.add("Clip", part, g.constant(-1.0), g.constant(3.0)), part)
    data = g.model({"x": ("N", 3, 5)}, {g.add("Gemm", total, g.weights(12, 2)): None})
    feeds = {"x": np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float32)}
    _, ours, theirs, _ = run_both(data, calibration=feeds, feeds=feeds)
    (ours,), (theirs,) = ours.values(), theirs.values()
    assert np.abs(ours - theirs).max() < 0.1


def test_random_inputs_of_a_quantiser_that_cuts_off_behind_rounded_steps() -> None:
    g = Graph()
    x = g.add("Mul", g.add("Sub", "x", g.constant(0.5)), g.constant(0.5))
    y = g.quant(g.add("MatMul", g.quant(x, 0.449178010225296, bits=7, mode="FLOOR"), g.constant(np.eye(6))), 0.449178010225296, bits=7)
    _, ours, theirs, _ = run_both(g.model({"x": ("N", 6)}, {y: ("N", 6)}))
    np.testing.assert_array_equal(ours[y], theirs[y])
