"""Fake quantisation written out as Round, Clip and arithmetic, of activations and of weights, against ONNX Runtime."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from frontend_models import Graph, assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tritloom.compiler.frontend import check
from tritloom.compiler.frontend.rounding import chain_range
from tritloom.compiler.ir.program import Convolution
from tritloom.compiler.quantize.chain import Affine, Clip, LeakyRelu, compose

VECTOR = {"x": ("N", 6)}
MODELS: dict[str, Callable[[Graph], bytes]] = {}


def case(build: Callable[[Graph], bytes]) -> Callable[[Graph], bytes]:
    MODELS[build.__name__] = build
    return build


def steps(g: Graph, x: str, *operators: tuple) -> str:
    """A chain of operators with constants, ``("Mul", 2.0)`` or ``("Clip", -1, 1)`` or ``("Round",)``."""
    for op, *numbers in operators:
        x = g.add(op, x, *(g.constant(number) for number in numbers))
    return x


def dense(g: Graph, x: str) -> str:
    return g.add("MatMul", x, g.weights(6, 4))


def model(g: Graph, y: str) -> bytes:
    """The chain behind a graph input, and behind a layer."""
    return g.model(VECTOR, {y: None})


@case
def div_round_clip_mul(g: Graph) -> bytes:
    fake = [("Div", 0.25), ("Round",), ("Clip", -8, 7), ("Mul", 0.25)]
    return model(g, steps(g, dense(g, steps(g, "x", *fake)), ("Div", 0.5), *fake[1:3], ("Mul", 0.5)))


@case
def div_clip_round_mul(g: Graph) -> bytes:
    return model(g, steps(g, dense(g, steps(g, "x", ("Div", 0.25), ("Clip", -8.5, 7.5), ("Round",), ("Mul", 0.25))),
                          ("Mul", 2.0), ("Add", 0.5), ("Clip", 0, 15), ("Round",), ("Div", 4.0)))  # fmt: skip


@case
def real_bounds_behind_the_scale(g: Graph) -> bytes:
    return model(g, steps(g, dense(g, steps(g, "x", ("Mul", 4.0), ("Round",), ("Mul", 0.25), ("Clip", -2, 1.75))),
                          ("Round",), ("Div", -2.0), ("Clip", -3, 4)))  # fmt: skip


@case
def zero_point_between_rounding_and_bounds(g: Graph) -> bytes:
    affine = [("Div", 0.5), ("Round",), ("Add", 100.0), ("Clip", 0, 255), ("Sub", 100.0), ("Mul", 0.5)]
    return model(g, steps(g, dense(g, steps(g, "x", *affine)), *affine))


@case
def relu_and_min_as_bounds(g: Graph) -> bytes:
    y = steps(
        g,
        dense(g, steps(g, "x", ("Mul", 4.0), ("Round",), ("Max", -7.0), ("Min", 7.0), ("Mul", 0.25))),
        ("Mul", 2.0),
        ("Round",),
        ("Relu",),
    )
    return model(g, steps(g, y, ("Mul", 0.5), ("Min", 3.0)))


@case
def floor_of_a_half_more_and_ceil(g: Graph) -> bytes:
    a = dense(g, steps(g, "x", ("Mul", 4.0), ("Add", 0.5), ("Floor",), ("Clip", -8, 7), ("Mul", 0.25)))
    return g.model(VECTOR, {steps(g, a, ("Ceil",), ("Clip", -20, 20)): None, steps(g, a, ("Clip", -2, 2.5), ("Floor",)): None})


@case
def powers_of_two_of_qkeras(g: Graph) -> bytes:
    bits = [("Mul", 8.0), ("Round",), ("Clip", -128, 127), ("Mul", 0.125)]
    r = g.add("Relu", dense(g, steps(g, "x", *bits)))
    return model(g, g.add("MatMul", steps(g, r, *bits), g.weights(4, 3)))


@case
def rounding_of_codes_needs_no_bounds(g: Graph) -> bytes:
    return model(g, dense(g, steps(g, g.qdq("x", 0.25), ("Mul", 1.5), ("Round",), ("Mul", 0.5))))


@case
def rounding_of_an_integer_input(g: Graph) -> bytes:
    x = steps(g, g.add("Cast", "x", to=1), ("Div", 8.0), ("Round",), ("Sub", 16.0))
    return g.model(VECTOR, {g.qdq(dense(g, x), 2.0): None}, kind=TensorProto.UINT8)


@case
def sign_is_ternary(g: Graph) -> bytes:
    signs = g.add("Sign", dense(g, g.add("Sign", "x")))
    return g.model(VECTOR, {g.add("MatMul", signs, g.weights(4, 3)): None, signs: None})


@case
def sign_of_a_normalised_layer_and_two_signs(g: Graph) -> bytes:
    parameters = [g.constant(part) for part in ([1.0, 2, -0.5, 0.0], [0.5, 0, 1, -1], [0.25, 1, 0, 2], np.full(4, 0.25 - 2.0**-10))]
    b = g.add("BatchNormalization", dense(g, g.qdq("x")), *parameters, epsilon=2.0**-10)
    # The usual way to a sign without a zero.
    return model(g, g.add("MatMul", steps(g, b, ("Sign",), ("Add", 0.5), ("Sign",)), g.weights(4, 3)))


@case
def zero_point_before_the_scale(g: Graph) -> bytes:
    return model(g, steps(g, dense(g, g.qdq("x")), ("Round",), ("Add", 3.0), ("Mul", 0.5), ("Sub", 1.0), ("Clip", -4, 3.5)))


@case
def bound_that_float32_keeps_off_the_grid(g: Graph) -> bytes:
    return model(g, dense(g, steps(g, "x", ("Div", 0.1), ("Round",), ("Mul", 0.1), ("Clip", -0.8, 0.7))))


@case
def rounding_of_a_convolution_with_scales_of_channels(g: Graph) -> bytes:
    scales = np.array([0.5, 1, 2, 0.25]).reshape(4, 1, 1)
    c = g.add("Conv", g.qdq("x"), g.weights(4, 3, 2, 2))
    r = steps(g, c, ("Div", scales), ("Round",), ("Clip", -8, 7), ("Mul", scales))
    return g.model({"x": ("N", 3, 4, 4)}, {g.add("Conv", r, g.weights(4, 1, 2, 2), group=4): None})


@pytest.mark.parametrize("name", MODELS)
def test_written_out_quantisers_equal_onnx_runtime(name: str) -> None:
    lowered = assert_equal(MODELS[name](Graph(1)))
    assert not lowered.notes


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_order_of_rounding_and_bounds(data: st.DataObject) -> None:
    g = Graph(data.draw(st.integers(0, 100)))
    scale = data.draw(st.sampled_from([0.25, 0.5, 2.0]))
    low, zero = data.draw(st.integers(-100, 0)), data.draw(st.integers(-10, 10))
    high = data.draw(st.integers(low, low + 255))
    rounding = (data.draw(st.sampled_from(["Round", "Floor", "Ceil"])),)
    orders = [
        [("Div", scale), rounding, ("Add", zero), ("Clip", low, high), ("Sub", zero), ("Mul", scale)],
        [("Div", scale), rounding, ("Add", zero), ("Mul", scale), ("Clip", low * scale, high * scale)],
        [("Mul", 1 / scale), ("Clip", low, high), rounding, ("Mul", scale)],
        [("Mul", -1 / scale), rounding, ("Mul", -scale), ("Clip", low * scale, high * scale)],
        [("Div", scale), ("Clip", low + 0.25, high + 0.5), ("Add", zero), rounding, ("Div", 1 / scale)],
        [("Clip", low * scale, high * scale), ("Div", scale), rounding, ("Mul", scale), ("Relu",)],
    ]
    fake = data.draw(st.sampled_from(orders))
    try:
        assert_equal(model(g, steps(g, dense(g, g.qdq("x", 0.5)), *fake)), samples=10)
    except Exception:
        print(fake)
        raise


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("form", ["round(clip(w / s)) * s", "clip(round(w * s)) / s"])
@pytest.mark.parametrize("transposed", [False, True])
def test_ternary_weights_of_bitnet_are_recognised(per_row: bool, form: str, transposed: bool) -> None:
    """The sub-graph that computes abs-mean scales and ternary weights in float is folded to integers times one scale."""
    g = Graph(1)
    w = g.constant(g.rng.normal(size=(8, 6)))
    mean = g.add("ReduceMean", g.add("Abs", w), g.constant([1] if per_row else [0, 1], np.int64), keepdims=1)
    scale = g.add("Clip", mean, g.constant(1e-5))
    if form.endswith("* s"):
        t = g.add("Mul", g.add("Round", g.add("Clip", g.add("Div", w, scale), g.constant(-1.0), g.constant(1.0))), scale)
    else:
        inverse = g.add("Div", g.constant(1.0), scale)
        t = g.add("Div", g.add("Clip", g.add("Round", g.add("Mul", w, inverse)), g.constant(-1.0), g.constant(1.0)), inverse)
    y = g.add("Gemm", g.qdq("x"), t, transB=1) if transposed else g.add("MatMul", g.qdq("x"), g.add("Transpose", t, perm=[1, 0]))
    lowered = assert_equal(g.model(VECTOR, {y: None}))
    layer = lowered.program.operations[0]
    assert isinstance(layer, Convolution)
    assert (layer.planes, layer.weight_method, layer.weight_error < 1e-12) == (1, "exact", True)
    assert len(lowered.program.tensors[layer.output].scale) == (8 if per_row else 1)
    assert not lowered.notes and set(np.unique(layer.weights)) == {-1, 0, 1}


@pytest.mark.parametrize(("chain", "words"), [
    ([("Round",), ("Mul", 0.5)], "have no bounds"),
    ([("Round",), ("Clip", -200, 200)], "are -200..200, more than 256 codes"),
    ([("Round",), ("Relu",), ("Mul", 0.5)], "have no bounds"),
    ([("Round",), ("Mul", 0.5), ("Clip", -1.25, 1)], "its bound -1.25 lies between two rounded values"),
    ([("Round",), ("Mul", 0.0), ("Clip", -1.25, 1)], "multiplied by zero"),
    ([("Clip", -150, 150), ("Floor",), ("Add", np.arange(4))], "are -150..150, more than 256 codes"),
])  # fmt: skip
def test_rounding_without_few_codes_is_refused_in_words(chain: list, words: str) -> None:
    g = Graph()
    report = check(model(g, dense_of_four(g, steps(g, dense(g, g.qdq("x")), *chain))))
    assert [words in problem.reason for problem in report.problems] == [True], report.problems
    assert report.problems[0].hint


def dense_of_four(g: Graph, x: str) -> str:
    return g.add("MatMul", x, g.weights(4, 3))


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_the_range_of_a_chain_holds_every_value_and_is_reached(data: st.DataObject) -> None:
    numbers = st.fractions(-4, 4, max_denominator=4)
    chain = []
    for kind in data.draw(st.lists(st.sampled_from(["affine", "leaky", "clip"]), max_size=5)):
        if kind == "affine":
            chain.append(Affine((data.draw(numbers),), (data.draw(numbers),)))
        elif kind == "leaky":
            chain.append(LeakyRelu(data.draw(numbers)))
        else:
            low = data.draw(st.none() | numbers)
            chain.append(Clip(low, data.draw(st.none() | (numbers if low is None else st.fractions(low, 5, max_denominator=4)))))
    low = data.draw(st.none() | st.integers(-9, 9))
    high = data.draw(st.none() | st.integers(-9 if low is None else low, 20))
    least, most = chain_range(tuple(chain), 0, low, high)
    segments = compose(chain, 0)

    def value(x: Fraction) -> Fraction:
        segment = next(s for s in reversed(segments) if s.start is None or s.start <= x)
        return segment.gain * x + segment.offset

    far = 10**6
    points = {Fraction(low if low is not None else -far), Fraction(high if high is not None else far)}
    points |= {s.start for s in segments if s.start is not None and (low is None or s.start >= low) and (high is None or s.start <= high)}
    values = [value(point) for point in points]
    assert least == min(values) if least is not None else min(values) < -1000
    assert most == max(values) if most is not None else max(values) > 1000
