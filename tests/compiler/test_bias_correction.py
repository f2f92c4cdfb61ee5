"""Mean errors of ternarised layers, taken out of their biases; the means of the float model are those of ONNX Runtime."""

import numpy as np
import onnx
import pytest
from frontend_models import Graph
from onnx import numpy_helper

from tritloom.compiler import golden
from tritloom.compiler.frontend import lower
from tritloom.compiler.frontend.correction import mean_sums
from tritloom.compiler.ir.program import Convolution, Window
from tritloom.sim.witness import run_witness


def real(program, tensor, codes):
    """Real values (N, C, H, W) of codes."""
    grid = program.tensors[tensor]
    scale, zero = (np.array([float(v) for v in part]).reshape(-1, 1, 1) for part in (grid.scale, grid.zero_point))
    return scale * (codes - zero)


def channel_errors(data, samples, layers, **options):
    """Distance of the channel means of each layer's codes from those of the float values ``layers``, and the program."""
    program = lower(data, name="net", calibration=samples, **options).program
    tensors = golden.run(program, golden.quantise_inputs(program, samples))
    floats = run_witness(data, samples, outputs=list(layers.values()))
    found = {}
    for tensor, value in layers.items():
        ours = real(program, tensor, tensors[tensor]).reshape(len(tensors[tensor]), program.tensors[tensor].shape[0], -1).mean(axis=(0, 2))
        theirs = floats[value].reshape(len(floats[value]), len(ours), -1).mean(axis=(0, 2))
        found[tensor] = np.abs(ours - theirs).mean()
    return found, program


def cnn(seed, *, group=1, bias=True):
    """Conv, Relu, MaxPool, Conv (strides, groups), Relu, Gemm on (N, 4, 9, 7) with Gaussian weights; names of the activations."""
    g = Graph(seed)
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return g.constant(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:])))

    first = g.add("Relu", g.add("Conv", "x", weights(8, 4, 3, 3), *([g.constant(rng.normal(size=8))] if bias else []), pads=[1, 1, 1, 1]))
    pooled = g.add("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    second = g.add("Relu", g.add("Conv", pooled, weights(6, 8 // group, 3, 2), strides=[2, 1], pads=[0, 1, 1, 0], group=group))
    size = 6 * 2 * 3
    second = g.add("Flatten", second)
    y = g.add("Gemm", second, weights(5, size), g.constant(rng.normal(size=5)), transB=1, output="y")
    return g.model({"x": ("N", 4, 9, 7)}, {y: None}), pooled, second


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [1, 2])
def test_layer_means_move_to_those_of_the_float_model(seed, group):
    data, pooled, second = cnn(seed, group=group)
    samples = {"x": np.random.default_rng(100 + seed).gamma(2.0, size=(60, 4, 9, 7)).astype(np.float32)}
    layers = {pooled: pooled, second: second, "y": "y"}
    plain, program = channel_errors(data, samples, layers, bias_correction=False)
    better, corrected = channel_errors(data, samples, layers)
    assert [op.weight_method for op in program.operations if isinstance(op, Convolution)] == ["planes"] * 3
    assert all(better[layer] < 0.7 * plain[layer] for layer in layers), (plain, better)
    # The last layer's sums are not rounded to codes: their mean is met to within the host's float32.
    codes = golden.run(corrected, golden.quantise_inputs(corrected, samples))
    (ours,) = golden.dequantise_outputs(corrected, codes).values()
    theirs = run_witness(data, samples)["y"]
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1e-5)


def test_weights_stay_and_only_offsets_move():
    data, *_ = cnn(7, bias=False)
    samples = {"x": np.random.default_rng(8).normal(size=(20, 4, 9, 7))}
    plain, better = (lower(data, name="net", calibration=samples, bias_correction=on, compensation=False) for on in (False, True))
    for one, other in zip(plain.program.operations, better.program.operations, strict=True):
        if isinstance(one, Convolution):
            np.testing.assert_array_equal(one.weights, other.weights)
    assert better.notes[-1].startswith("mean errors over the calibration samples were taken out of the biases of node_conv_")
    assert not any("mean errors" in note for note in plain.notes)


@pytest.mark.parametrize("shape", ["rows", "left", "vector"])
def test_dense_layers_of_every_form(shape):
    """MatMul over rows, from the left, and of a vector: the channel is another axis of the ONNX value each time."""
    g = Graph(1)
    rng = np.random.default_rng(1)
    if shape == "left":
        y, size = g.add("MatMul", g.constant(rng.normal(size=(5, 6))), "x", output="y"), (6, 4)
    else:
        y, size = g.add("MatMul", "x", g.constant(rng.normal(size=(6, 5))), output="y"), (3, 6) if shape == "rows" else (6,)
    data = g.model({"x": ("N", *size)}, {y: None})
    samples = {"x": rng.gamma(1.0, size=(50, *size)).astype(np.float32)}
    program = lower(data, name="net", calibration=samples).program
    (ours,) = golden.dequantise_outputs(program, golden.run(program, golden.quantise_inputs(program, samples))).values()
    theirs = run_witness(data, samples)["y"]
    axes = {"rows": (0, 1), "left": (0, 2), "vector": 0}[shape]
    np.testing.assert_allclose(ours.mean(axis=axes), theirs.mean(axis=axes), atol=1e-4)


@pytest.mark.parametrize(("alpha", "bias"), [(0.5, (5,)), (1.0, (3, 5))])
def test_a_gemm_that_is_scaled_or_shifted_behind_its_sums_is_left_alone(alpha, bias):
    g = Graph(2)
    y = g.add("Gemm", "x", g.constant(g.rng.normal(size=(6, 5))), g.constant(g.rng.normal(size=bias)[:1] + 0.0), alpha=alpha)
    samples = {"x": g.rng.normal(size=(20, 6)) + 1}
    data = g.model({"x": ("N", 6)}, {y: None})
    notes = lower(data, name="net", calibration=samples).notes
    assert any("taken out of the biases" in note for note in notes) == (alpha == 1.0)
    ours, theirs = (lower(data, name="net", calibration=samples, bias_correction=on).program for on in (True, False))
    assert (ours.outputs[0].epilogue == theirs.outputs[0].epilogue) or alpha == 1.0


def test_exact_weights_are_never_corrected():
    g = Graph(3)
    y = g.add("Gemm", "x", g.weights(5, 6), g.constant(g.rng.normal(size=5)), transB=1)
    samples = {"x": g.rng.normal(size=(30, 6)) + 1}
    lowered = lower(g.model({"x": ("N", 6)}, {y: None}), name="net", calibration=samples)
    assert not any("mean errors" in note for note in lowered.notes)


def test_joined_branches_and_residual_sums_are_run_as_they_stand():
    """Concat and Add before a layer: the tensors that it reads are made by several operations."""
    g = Graph(4)
    rng = np.random.default_rng(4)
    left = g.add("Relu", g.add("Conv", "x", g.constant(rng.normal(size=(3, 2, 1, 1)))))
    right = g.add("Relu", g.add("Conv", "x", g.constant(rng.normal(size=(3, 2, 1, 1)))))
    joined = g.add("Concat", left, right, g.add("Add", left, right), axis=1)
    y = g.add("Conv", joined, g.constant(rng.normal(size=(4, 9, 1, 1))), output="y")
    data = g.model({"x": ("N", 2, 4, 3)}, {y: None})
    samples = {"x": rng.normal(size=(40, 2, 4, 3)).astype(np.float32)}
    program = lower(data, name="net", calibration=samples).program
    (ours,) = golden.dequantise_outputs(program, golden.run(program, golden.quantise_inputs(program, samples))).values()
    np.testing.assert_allclose(ours.mean(axis=(0, 2, 3)), run_witness(data, samples)["y"].mean(axis=(0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_mean_sums_equal_onnx_runtime(seed):
    rng = np.random.default_rng(seed)
    groups, kernel, strides, dilations, pads = [
        (1, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
        (2, (3, 2), (2, 1), (1, 2), (1, 0, 2, 1)),
        (4, (2, 3), (1, 3), (2, 1), (0, 2, 1, 0)),
        (1, (5, 4), (1, 1), (1, 1), (0, 0, 0, 0)),
    ][seed]
    codes, weights = rng.integers(-5, 6, (4, 9, 8)).astype(np.float32), rng.integers(-3, 4, (8, 4 // groups, *kernel)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, dilations=dilations, pads=pads, group=groups)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "conv", [info("x", 1, ("N", 4, 9, 8))], [onnx.helper.make_empty_tensor_value_info("y")],
                                   [numpy_helper.from_array(weights, "w")])  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    expected = run_witness(model.SerializeToString(), {"x": codes[None]})["y"][0]
    window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
    np.testing.assert_array_equal(mean_sums(codes, weights, window, groups, 0), expected)
    inside = mean_sums(codes + 3, weights, window, groups, 3)
    shift = 3 * weights.sum(axis=(1, 2, 3))[:, None, None]
    np.testing.assert_array_equal(inside, expected + shift)
