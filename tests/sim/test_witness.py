"""The outside witness on batches, whatever batch a model declares."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritloom.errors import MissingToolError, ModelError, UserError
from tritloom.sim import witness
from tritloom.sim.witness import run_witness, uses_custom_operators


def model(nodes, inputs, outputs, constants=(), *, opset=17, ir=8, custom=""):
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(custom, 1)] if custom else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString()


@pytest.fixture
def weights(rng):
    return rng.normal(size=(6, 4)).astype(np.float32)


def dense(weights, *, batch=1, reshape=(1, 6), axis=None, ir=8):
    """Reshape or Flatten, MatMul, Relu on an input (batch, 2, 3)."""
    if axis is None:
        first = helper.make_node("Reshape", ["x", "shape"], ["flat"])
    else:
        first = helper.make_node("Flatten", ["x"], ["flat"], axis=axis)
    nodes = [first, helper.make_node("MatMul", ["flat", "w"], ["product"]), helper.make_node("Relu", ["product"], ["y"])]
    return model(nodes, {"x": [batch, 2, 3]}, {"y": [batch, 4]}, {"shape": np.array(reshape), "w": weights}, ir=ir)


@pytest.mark.parametrize("batch", [1, 7, 1000, "N"])
@pytest.mark.parametrize("samples", [1, 5])
def test_any_batch_of_any_declared_batch(batch, samples, weights, rng):
    x = rng.normal(size=(samples, 2, 3)).astype(np.float32)
    reshape = (-1, 6) if batch == "N" else (batch, 6)
    got = run_witness(dense(weights, batch=batch, reshape=reshape), {"x": x})
    assert list(got) == ["y"] and np.allclose(got["y"], np.maximum(x.reshape(samples, 6) @ weights, 0), atol=1e-6)


def test_a_model_that_cannot_take_a_batch_runs_sample_by_sample(weights, rng, monkeypatch):
    x = rng.normal(size=(9, 2, 3)).astype(np.float32)
    expected = np.maximum(x.reshape(9, 6) @ weights, 0)
    # Flattened from axis 0 a batch becomes one long row.
    assert np.allclose(run_witness(dense(weights, axis=0), {"x": x})["y"], expected, atol=1e-6)
    # A batch that the executor takes but mixes up is found out by its first and last sample.
    honest = witness._with_batch

    def mixing(source, batch):
        copy = honest(source, batch)
        constant = copy.graph.initializer[-1]
        constant.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(constant), 1), constant.name))
        return copy

    monkeypatch.setattr(witness, "_with_batch", mixing)
    assert np.allclose(run_witness(dense(weights, reshape=(-1, 6)), {"x": x})["y"], expected, atol=1e-6)


def test_intermediate_values_and_chunks(weights, rng, monkeypatch):
    x = rng.normal(size=(11, 2, 3)).astype(np.float32)
    monkeypatch.setattr(witness, "_CHUNK_ELEMENTS", 24)
    got = run_witness(dense(weights, reshape=(-1, 6)), {"x": x}, outputs=["product", "x", "y"])
    assert list(got) == ["product", "x", "y"] and np.array_equal(got["x"], x)
    assert np.allclose(got["product"], x.reshape(11, 6) @ weights, atol=1e-6) and np.array_equal(got["y"], np.maximum(got["product"], 0))


def test_file_formats_newer_than_the_runtime_and_wider_inputs(weights, rng):
    x = rng.normal(size=(3, 2, 3))
    got = run_witness(dense(weights, reshape=(-1, 6), ir=onnx.IR_VERSION), {"x": x})["y"]
    assert got.dtype == np.float32 and np.allclose(got, np.maximum(x.reshape(3, 6) @ weights, 0), atol=1e-5)


def test_intermediate_values_that_are_not_float32(weights, rng):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]), helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Relu", ["wide"], ["positive"]), helper.make_node("Cast", ["positive"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    data = model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, {"scale": np.float32(0.5), "zero": np.int8(3)})
    x = rng.integers(-9, 9, (5, 4)).astype(np.float32)
    got = run_witness(data, {"x": x}, outputs=["codes", "positive"])
    assert got["codes"].dtype == np.int8 and np.array_equal(got["codes"], 2 * x + 3)
    assert got["positive"].dtype == np.float64 and np.array_equal(got["positive"], np.maximum(x, 0))


def test_an_input_that_no_node_reads_is_not_asked_for(rng):
    data = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4], "unread": [1, 3]}, {"y": [1, 4]})
    x = rng.normal(size=(3, 4)).astype(np.float32)
    assert np.array_equal(run_witness(data, {"x": x})["y"], np.maximum(x, 0))


def test_refusals(weights):
    data = dense(weights)
    for feeds in ({}, {"x": np.zeros((1, 2, 3)), "z": np.zeros(1)}):
        with pytest.raises(UserError, match=r"^inputs must be x; given are"):
            run_witness(data, feeds)
    with pytest.raises(UserError, match=r"^the model has no value 'q'$"):
        run_witness(data, {"x": np.zeros((1, 2, 3))}, outputs=["q"])
    with pytest.raises(UserError, match=r"^inputs must have one batch size of at least 1, not \[0\]$"):
        run_witness(data, {"x": np.zeros((0, 2, 3))})
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run this model: "):
        run_witness(data, {"x": np.zeros((1, 9, 9))})


def quantised(weights, *, batch=1, domain="qonnx.custom_op.general", output_bits=3):
    """Reshape, Quant, MatMul by bipolar weights, Quant, as Brevitas writes them."""
    attributes = {"domain": domain, "narrow": 0, "rounding_mode": "ROUND", "signed": 1}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Quant", ["flat", "scale", "zero", "eight"], ["codes"], **attributes),
        helper.make_node("BipolarQuant", ["w", "one"], ["signs"], domain=domain),
        helper.make_node("MatMul", ["codes", "signs"], ["product"]),
        helper.make_node("Quant", ["product", "scale", "zero", "bits"], ["y"], **attributes),
    ]
    constants = {
        "shape": np.array([batch, 6]), "scale": np.float32(0.25), "zero": np.float32(0), "eight": np.float32(8), "bits": np.float32(output_bits),
        "one": np.float32(1), "w": weights,
    }  # fmt: skip
    return model(nodes, {"x": [batch, 2, 3]}, {"y": [batch, 4]}, constants, custom=domain)


@pytest.mark.parametrize("domain", ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"])
@pytest.mark.parametrize("samples", [1, 40])
def test_qonnx_operators_in_all_domains(domain, samples, weights, rng):
    data = quantised(weights, domain=domain)
    assert uses_custom_operators(onnx.load_from_string(data))
    x = rng.normal(size=(samples, 2, 3)).astype(np.float32)
    got = run_witness(data, {"x": x}, outputs=["product", "y"])
    product = np.rint(x.reshape(samples, 6) * 4) / 4 @ np.where(weights >= 0, 1, -1)
    assert np.array_equal(got["product"], product.astype(np.float32))
    assert np.array_equal(got["y"], np.clip(np.rint(product * 4), -4, 3).astype(np.float32) / 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_convolution(batch, rng):
    domain = "qonnx.custom_op.channels_last"
    kernel = rng.integers(-2, 3, (3, 1, 1, 2)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], domain=domain, dilations=[1, 1], group=1, kernel_shape=[1, 1], pads=[0] * 4, strides=[1, 1]
    )
    data = model([node], {"x": [batch, 4, 5, 2]}, {"y": [batch, 4, 5, 3]}, {"w": kernel}, custom=domain)
    x = rng.integers(-9, 9, (3, 4, 5, 2)).astype(np.float32)
    assert np.array_equal(run_witness(data, {"x": x})["y"], np.einsum("nhwc,oc->nhwo", x, kernel[:, 0, 0]))


def test_the_newest_format_is_left_as_it_was(weights):
    before = onnx.IR_VERSION
    run_witness(quantised(weights), {"x": np.zeros((2, 2, 3))})
    assert before == onnx.IR_VERSION


def test_missing_qonnx_names_the_command(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "qonnx.core.modelwrapper", None)
    with pytest.raises(MissingToolError, match=r"run: pip install 'tritloom\[qonnx\]'$"):
        run_witness(quantised(weights), {"x": np.zeros((2, 2, 3))})


def test_unknown_domains_are_refused(weights):
    data = model([helper.make_node("Mystery", ["x"], ["y"], domain="nobody")], {"x": [1, 2]}, {"y": [1, 2]}, custom="nobody")
    with pytest.raises(ModelError, match=r"^the qonnx executor cannot run this model: "):
        run_witness(data, {"x": np.zeros((1, 2))})


@pytest.mark.parametrize("attribute", ["value", "value_ints"])
@pytest.mark.parametrize("allowzero", [None, 0, 1])
def test_a_constant_shape_that_repeats_the_declared_batch_takes_any_batch(attribute, allowzero, monkeypatch):
    honest = witness._one_by_one

    def ends(execute, feeds, samples):
        assert list(samples) == [0, 3], "the batch is run at once"
        return honest(execute, feeds, samples)

    monkeypatch.setattr(witness, "_one_by_one", ends)
    shape = helper.make_node(
        "Constant", [], ["shape"], **{attribute: [1, 6] if attribute == "value_ints" else numpy_helper.from_array(np.array([1, 6]))}
    )
    graph = helper.make_graph(
        [shape, helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=allowzero)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    assert np.array_equal(run_witness(model.SerializeToString(), {"x": x})["y"], x.reshape(4, 6))


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_batch_that_is_free_by_name_only_runs_sample_by_sample(samples, weights, rng):
    """Its Reshape joins all samples into one row: what a batch gives is that of no sample."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [shape], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1, -1]), "shape")],
    )  # fmt: skip
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    x = rng.normal(size=(samples, 2, 3)).astype(np.float32)
    assert np.array_equal(run_witness(source, {"x": x})["y"], x.reshape(samples, 6))
