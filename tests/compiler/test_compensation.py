"""Weights whose errors cancel in the outputs of their layer; the outputs of the float model are those of ONNX Runtime."""

import itertools

import numpy as np
import pytest
from frontend_models import Graph

from tritloom.compiler import golden
from tritloom.compiler.frontend import compensation, lower
from tritloom.compiler.frontend.compensation import dense_inputs, window_inputs
from tritloom.compiler.ir.program import Window
from tritloom.compiler.quantize.compensation import Moments, compensated
from tritloom.compiler.quantize.weights import residual_planes
from tritloom.errors import ModelError
from tritloom.sim.witness import run_witness


def loss(codes, scale, moments, group_of):
    rows = codes.reshape(len(codes), -1).astype(np.float64)
    curvature = moments.inputs[group_of]
    return scale**2 * np.einsum("ok,okl,ol->o", rows, curvature, rows) - 2 * scale * (rows * moments.outputs).sum(axis=1)


def damped(values, moments, group_of):
    """Moments with a hundredth of the mean diagonal holding on to the weights."""
    length = moments.inputs.shape[1]
    damping = 0.01 * np.trace(moments.inputs, axis1=1, axis2=2) / length
    rows = values.reshape(len(values), -1)
    return Moments(moments.inputs + damping[:, None, None] * np.eye(length), moments.outputs + damping[group_of][:, None] * rows)


@pytest.mark.parametrize(("seed", "planes", "groups"), [(0, 1, 1), (1, 2, 2), (2, 3, 1), (3, 1, 3), (4, 6, 1)])
def test_no_single_code_could_lower_the_error_further(seed, planes, groups):
    rng = np.random.default_rng(seed)
    outputs, length, samples = 2 * groups, 7, 40
    x = rng.normal(size=(groups, samples, length)) @ rng.normal(size=(length, length))
    values = rng.normal(size=(outputs, length)).astype(np.float32)
    group_of = np.repeat(np.arange(groups), 2)
    y = np.einsum("osk,ok->os", x[group_of], values)
    moments = Moments(np.einsum("gsk,gsl->gkl", x, x), np.einsum("os,osk->ok", y, x[group_of]))
    nearest = residual_planes(values, planes)
    found = compensated(values, nearest, moments)
    assert found.method == "planes"
    assert found.planes == planes
    largest = (3**planes - 1) // 2
    assert np.abs(found.codes).max() <= largest
    full = damped(values, moments, group_of)
    scale = np.array([float(part) for part in found.scale])
    own = loss(found.codes, scale, full, group_of)
    before = loss(nearest.codes, np.array([float(part) for part in nearest.scale]), full, group_of)
    assert (own <= before + 1e-9).all()
    assert own.sum() < before.sum()
    for k, step in itertools.product(range(length), (-1, 1)):
        other = found.codes.copy()
        other[:, k] = np.clip(other[:, k] + step, -largest, largest)
        assert (loss(other, scale, full, group_of) >= own - 1e-4 * np.abs(own)).all()


def test_inputs_that_never_vary_leave_the_codes():
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    nearest = residual_planes(values, 2)
    found = compensated(values, nearest, Moments(np.zeros((1, 4, 4)), np.zeros((3, 4))))
    np.testing.assert_array_equal(found.codes, nearest.codes)
    assert found.scale == nearest.scale


def test_a_layer_that_is_too_large_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(compensation, "LARGEST_WORK", 5 * 6 * 6 - 1)
    data, samples = network("gemm", 0)
    notes = lower(data, name="net", calibration=samples, planes=2).notes
    assert not any("errors cancel" in note for note in notes)
    monkeypatch.setattr(compensation, "LARGEST_WORK", 5 * 6 * 6)
    assert any("errors cancel" in note for note in lower(data, name="net", calibration=samples, planes=2).notes)


@pytest.mark.parametrize("seed", range(3))
def test_inputs_of_a_convolution_are_those_of_onnx_runtime(seed):
    rng = np.random.default_rng(seed)
    groups, kernel, strides, dilations, pads = [
        (1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
        (2, (3, 2), (2, 1), (1, 2), (1, 0, 2, 1)),
        (4, (2, 3), (1, 3), (2, 1), (0, 2, 1, 0)),
    ][seed]
    codes, weights = rng.integers(-5, 6, (3, 4, 9, 8)).astype(np.float32), rng.integers(-3, 4, (8, 4 // groups, *kernel)).astype(np.float32)
    g = Graph(seed)
    y = g.add("Conv", "x", g.constant(weights), strides=strides, dilations=dilations, pads=pads, group=groups, output="y")
    expected = run_witness(g.model({"x": ("N", 4, 9, 8)}, {y: None}), {"x": codes})["y"].reshape(3, 8, -1)
    window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
    pixels = expected.shape[2]
    inputs = window_inputs("x", window, 0, (1,) * groups, pixels, np.arange(8 * pixels))
    sample, pixel = np.divmod(np.arange(3 * pixels), pixels)
    rows = weights.reshape(groups, 8 // groups, -1)
    found = np.einsum("mgk,gok->mgo", inputs.pick(codes, sample, pixel), rows).reshape(3, pixels, 8).transpose(0, 2, 1)
    np.testing.assert_array_equal(found, expected)


def test_inputs_of_a_dense_layer_follow_its_rows():
    codes = np.arange(24).reshape(2, 3, 2, 2)
    inputs = dense_inputs("x", np.array([[0, 11], [5, 5]]), 1, np.zeros(2))
    found = inputs.pick(codes, np.array([0, 1, 1]), np.array([1, 0, 1]))
    np.testing.assert_array_equal(found, [[[5, 5]], [[12, 23]], [[17, 17]]])


@pytest.mark.parametrize(("total", "most"), [(5, 5), (7, 3), (1000, 999), (4096, 100), (1, 1)])
def test_looked_at_pixels_are_different_ones_from_everywhere(total, most):
    found = compensation._spread(total, most)
    assert len(set(found.tolist())) == len(found) == min(total, most)
    assert 0 <= found.min() <= found.max() < total
    assert np.diff(np.concatenate([[-1], found, [total]])).max() <= 3 * total / most


FORMS = ("gemm", "gemm_turned", "rows", "left", "conv", "grouped", "conv1d", "strided")


def network(form, seed):
    """One layer of Gaussian weights behind inputs of few independent directions, whose errors can cancel; model and samples."""
    g, rng = Graph(seed), np.random.default_rng(seed)
    shape = {"rows": (3, 6), "left": (6, 4), "conv": (6, 5, 4), "grouped": (6, 5, 4), "conv1d": (6, 7), "strided": (6, 6, 5)}.get(
        form, (6,)
    )
    features = shape.index(6) if form not in ("conv", "grouped", "strided", "conv1d") else 0

    def samples(count, seed):
        rng = np.random.default_rng((seed, count))
        mix = np.random.default_rng(99).normal(size=(6, 2))
        moved = np.moveaxis(np.empty((count, *shape)), features + 1, -1).shape
        latent = rng.normal(size=(*moved[:-1], 2)) @ mix.T + 0.05 * rng.normal(size=moved)
        return np.moveaxis(latent, -1, features + 1).astype(np.float32)

    if form in ("gemm", "gemm_turned"):
        turned = form == "gemm_turned"
        weights = g.constant(rng.normal(size=(6, 5) if turned else (5, 6)))
        y = g.add("Gemm", "x", weights, g.constant(rng.normal(size=5)), transB=0 if turned else 1, output="y")
    elif form == "rows":
        y = g.add("MatMul", "x", g.constant(rng.normal(size=(6, 5))), output="y")
    elif form == "left":
        y = g.add("MatMul", g.constant(rng.normal(size=(5, 6))), "x", output="y")
    elif form == "conv1d":
        y = g.add("Conv", "x", g.constant(rng.normal(size=(4, 6, 3))), pads=[1, 1], output="y")
    else:
        groups = 2 if form == "grouped" else 1
        extra = {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 1, 2]} if form == "strided" else {}
        y = g.add("Conv", "x", g.constant(rng.normal(size=(4, 6 // groups, 2, 2))), group=groups, output="y", **extra)
    return g.model({"x": ("N", *shape)}, {y: None}), {"x": samples(120, seed)}


def outputs_error(data, samples, fresh, **options):
    """Mean squared distance of the outputs from ONNX Runtime's, on inputs that are not among the samples."""
    program = lower(data, name="net", calibration=samples, planes=2, **options).program
    tensors = golden.run(program, golden.quantise_inputs(program, fresh))
    (ours,) = golden.dequantise_outputs(program, tensors).values()
    return float(((ours - run_witness(data, fresh)["y"]) ** 2).mean())


@pytest.mark.parametrize("form", FORMS)
def test_outputs_on_new_inputs_come_closer_to_the_float_model(form):
    data, samples = network(form, 5)
    fresh = {"x": samples["x"][80:]}
    samples = {"x": samples["x"][:80]}
    nearest = outputs_error(data, samples, fresh, compensation=False)
    better = outputs_error(data, samples, fresh)
    assert better < 0.5 * nearest, (form, better, nearest)


@pytest.mark.parametrize(
    "options", [{"compensation": False}, {"bias_correction": False}, {"method": "twn"}, {"method": "absmean"}], ids=str
)
def test_left_out_on_request_and_where_a_method_names_its_own_codes(options):
    data, samples = network("gemm", 1)
    lowered = lower(data, name="net", calibration=samples, **options)
    assert not any("errors cancel" in note for note in lowered.notes)


def test_exact_weights_and_scaled_gemms_keep_their_codes():
    g = Graph(3)
    hidden = g.add("Relu", g.add("Gemm", "x", g.weights(5, 6), transB=1))
    y = g.add("Gemm", hidden, g.constant(g.rng.normal(size=(4, 5))), transB=1, alpha=0.5, output="y")
    samples = {"x": g.rng.normal(size=(30, 6)) + 1}
    lowered = lower(g.model({"x": ("N", 6)}, {y: None}), name="net", calibration=samples, planes=2)
    assert not any("errors cancel" in note for note in lowered.notes)


def test_the_same_bytes_every_time():
    data, samples = network("conv", 2)
    first, second = (lower(data, name="net", calibration=samples, planes=3).program for _ in range(2))
    for one, other in zip(first.operations, second.operations, strict=True):
        np.testing.assert_array_equal(one.weights, other.weights)


def test_outputs_beyond_float32_are_refused_in_words():
    g = Graph(6)
    y = g.add("Gemm", "x", g.constant(g.rng.normal(size=(6, 5)) * 5e37), output="y")
    samples = {"x": g.rng.normal(size=(20, 6)) * 50}
    with pytest.raises(
        ModelError, match=r"node 'node_y': its outputs over the calibration samples are beyond float32; give samples in the range"
    ):
        lower(g.model({"x": ("N", 6)}, {y: None}), name="net", calibration=samples, planes=2)
