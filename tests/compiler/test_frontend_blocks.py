"""Weights with a scale for each block: DequantizeLinear of few bits and MatMulNBits, against ONNX Runtime."""

import numpy as np
import pytest
from frontend_models import Graph, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tritloom.compiler.frontend import check
from tritloom.compiler.frontend.operators_packed import unpacked
from tritloom.compiler.ir.program import Convolution

KINDS = [
    (TensorProto.INT4, -8, 7, 21),
    (TensorProto.UINT4, 0, 15, 21),
    (TensorProto.INT2, -2, 1, 25),
    (TensorProto.UINT2, 0, 3, 25),
    (TensorProto.INT8, -9, 9, 21),
]
VECTOR = {"x": ("N", 7)}


def exact(data: bytes) -> Convolution:
    lowered = assert_equal(data)
    layer = lowered.program.operations[0]
    assert isinstance(layer, Convolution) and layer.weight_method == "exact" and not lowered.notes
    return layer


@pytest.mark.parametrize(("kind", "low", "high", "opset"), KINDS)
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks_along_the_inputs_on_multiples_of_one_scale(kind: int, low: int, high: int, opset: int, zeros: bool) -> None:
    g = Graph(1)
    # 7 inputs in blocks of 3: the last block is cut.
    scales = g.constant(0.125 * g.rng.integers(1, 4, (3, 4)))
    parts = [g.constant(g.rng.integers(low, high + 1, (3, 4)), kind)] if zeros else []
    w = g.add("DequantizeLinear", g.constant(g.rng.integers(low, high + 1, (7, 4)), kind), scales, *parts, axis=0, block_size=3)
    exact(g.model(VECTOR, {g.qdq(g.add("MatMul", g.qdq("x"), w), 2.0): None}, opset=opset))


@pytest.mark.parametrize(("axis", "size"), [(0, 1), (1, 7), (-1, 9), (1, 2)])
def test_blocks_of_other_shapes(axis: int, size: int) -> None:
    g = Graph(2)
    shape = (4, 7) if axis == 0 else (4, -(-7 // size))
    scales = g.rng.choice([0.25, 0.5, 0.75], shape)
    w = g.add(
        "DequantizeLinear", g.constant(g.rng.integers(-8, 8, (4, 7)), TensorProto.INT4), g.constant(scales), axis=axis, block_size=size
    )
    layer = exact(g.model(VECTOR, {g.add("Gemm", g.qdq("x"), w, transB=1): None}))
    assert layer.weights.shape[0] == 4


def test_one_block_for_each_output_may_have_any_scale() -> None:
    g = Graph(3)
    scales = g.constant(g.rng.uniform(0.1, 1, (4, 1)))
    w = g.add("DequantizeLinear", g.constant(g.rng.integers(-1, 2, (4, 7)), np.int8), scales, axis=1, block_size=7)
    assert exact(g.model(VECTOR, {g.add("Gemm", g.qdq("x"), w, transB=1): None})).planes == 1


def test_scales_of_blocks_of_zeros_do_not_matter() -> None:
    g = Graph(4)
    codes = np.array([[1, -1, 0, 1, 0, 0, 0]] * 2)
    w = g.add("DequantizeLinear", g.constant(codes, np.int8), g.constant([[0.25, 0.1], [0.3, 0.7]]), axis=1, block_size=4)
    assert exact(g.model(VECTOR, {g.add("Gemm", g.qdq("x"), w, transB=1): None})).planes == 1


def test_scales_of_inputs_that_are_multiples_of_one_need_no_blocks() -> None:
    g = Graph(5)
    w = g.add(
        "DequantizeLinear",
        g.constant(g.rng.integers(-3, 4, (7, 4)), np.int8),
        g.constant([0.125, 0.25, 0.375, 0.5, 0.125, 1, 0.25]),
        axis=0,
    )
    exact(g.model(VECTOR, {g.qdq(g.add("MatMul", g.qdq("x"), w), 0.5): None}))


def test_blocks_without_a_common_grid_are_refused_with_the_output() -> None:
    g = Graph(6)
    scales = np.full((4, 2), 0.25)
    scales[2] = 0.1, 0.17
    w = g.add("DequantizeLinear", g.constant(np.ones((4, 7)), np.int8), g.constant(scales), axis=1, block_size=4)
    report = check(g.model(VECTOR, {g.add("Gemm", g.qdq("x"), w, transB=1, output="y"): None}))
    assert [problem.reason for problem in report.problems] == [
        "the scales of the blocks of output 2 of 'node_y' have no common grid of 6 digit planes"
    ]
    assert "multiples of one another" in report.problems[0].hint


def test_blocks_of_activations_and_impossible_blocks_are_refused() -> None:
    g = Graph()
    x = g.add(
        "DequantizeLinear",
        g.add("QuantizeLinear", "x", g.constant(0.25), g.constant(0, np.int8)),
        g.constant(np.ones((1, 2))),
        axis=1,
        block_size=4,
    )
    report = check(g.model({"x": (1, 7)}, {g.add("MatMul", x, g.weights(7, 4)): None}))
    assert [problem.reason for problem in report.problems] == ["activations have a scale for each block"]
    g = Graph()
    w = g.add("DequantizeLinear", g.constant(np.ones((7, 4)), np.int8), g.constant(np.ones((2, 4))), axis=0, block_size=3)
    report = check(g.model(VECTOR, {g.add("MatMul", g.qdq("x"), w): None}))
    assert "does not have one entry for each block of 3" in report.problems[0].reason


def packed(g: Graph, x: str, features: int, outputs: int, bits: int, *, scales: np.ndarray, size: int = 16, zeros: bool = False, bias: bool = False,
           **attributes: object) -> str:  # fmt: skip
    blocks = -(-features // size)
    inputs = [x, g.constant(g.rng.integers(0, 256, (outputs, blocks, size * bits // 8)), np.uint8), g.constant(scales)]
    inputs.append(g.constant(g.rng.integers(0, 256, outputs * -(-blocks * bits // 8)), np.uint8) if zeros else "")
    inputs += ["", g.constant(g.rng.integers(-9, 9, outputs) / 4)] if bias else []
    return g.add(
        "MatMulNBits", *inputs, domain="com.microsoft", K=features, N=outputs, bits=bits, block_size=size, output="y", **attributes
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("features", [16, 40])
def test_packed_weights(bits: int, zeros: bool, features: int) -> None:
    g = Graph(bits + features)
    factors = [0.5] if bits == 8 else [0.25, 0.5, -0.5, 0.0]
    scales = g.rng.choice(factors, (3, -(-features // 16)))
    y = packed(g, g.qdq("x", 0.25), features, 3, bits, scales=scales, zeros=zeros)
    exact(g.model({"x": ("N", features)}, {y: None, g.qdq(y, 4.0): None}))


def test_packed_weights_with_bias_behind_a_sequence() -> None:
    g = Graph(1)
    y = packed(g, g.qdq("x", 0.25), 32, 5, 4, scales=np.full((5, 2), 0.5), bias=True)
    exact(g.model({"x": (1, 3, 32)}, {y: None}))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([2, 4, 8]), st.lists(st.integers(0, 255), min_size=1, max_size=5), st.data())
def test_unpacking_is_the_inverse_of_packing(bits: int, row: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(row) * 8 // bits))
    numbers = unpacked(np.array([row], np.uint8), bits, count)
    whole = int.from_bytes(bytes(row), "little")
    assert numbers.tolist() == [[whole >> bits * index & (1 << bits) - 1 for index in range(count)]]


@pytest.mark.parametrize(("change", "words"), [
    ({"bits": 3}, "weights of 3 bits are not supported"), ({"K": 70}, "do not fit 3 rows"), ({"N": -1}, "are impossible"),
    ({"scales": np.array([[0.1, 0.17]] * 3)}, "no common grid"), ({"scales": np.full((3, 2), np.nan)}, "infinite or not a number"),
])  # fmt: skip
def test_impossible_packed_weights_are_refused_in_words(change: dict, words: str) -> None:
    g = Graph(1)
    y = packed(g, g.qdq("x"), 32, 3, 4, scales=change.get("scales", np.ones((3, 2))))
    node = g.nodes[-1]
    for attribute in node.attribute:
        attribute.i = change.get(attribute.name, attribute.i)
    report = check(g.model({"x": (1, 32)}, {y: None}))
    assert [words in problem.reason for problem in report.problems] == [True], report.problems
