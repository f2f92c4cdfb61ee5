"""The packaged models: what they claim, judged by ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import tritloom
from tritloom.errors import UserError
from tritloom.models import zoo
from tritloom.models.data.digits import TRAIN_ROWS, load
from tritloom.models.data.puzzles import load_puzzles
from tritloom.models.methods.ring import addition
from tritloom.models.train.settings import read_settings


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(zoo.path("digits_cnn_twn"))


def test_names_and_paths():
    assert "digits_cnn_twn" in zoo.names()
    for name in zoo.names():
        assert zoo.path(name).is_file()
        assert zoo.path(name).with_suffix(".md").is_file(), "every model has a card"
    with pytest.raises(UserError, match=r"^the zoo has no model 'digits'; it has: .*digits_cnn_twn"):
        zoo.path("digits")


def test_split_of_the_digits():
    data = load()
    assert data.train_images.shape == (TRAIN_ROWS, 1, 8, 8) and data.test_images.shape == (397, 1, 8, 8)
    assert data.train_images.dtype == np.float32 and data.train_labels.dtype == np.int64
    assert data.test_images.min() == 0 and data.test_images.max() == 16 and (data.test_images % 1 == 0).all()
    assert data.test_labels[:4].tolist() == [4, 0, 5, 3] or set(data.test_labels) == set(range(10))


@pytest.mark.parametrize("optimise", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_digits_accuracy_is_what_the_file_says(model, optimise):
    """At least 97 % on the held-out rows, the number in the metadata, in one batch and one by one."""
    data = load()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimise)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": data.test_images})[0]
    correct = int((logits.argmax(axis=1) == data.test_labels).sum())
    assert correct >= 0.97 * 397
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["accuracy"] == f"{correct / 397:.4f} ({correct} of 397)"
    assert "--seed" in metadata["training"] and metadata["seed"].isdigit()
    for row in (0, 200, 396):
        single = session.run(["logits"], {"image": data.test_images[row : row + 1]})[0]
        np.testing.assert_allclose(single[0], logits[row], rtol=1e-4, atol=1e-4)


def test_digits_weights_are_ternary_and_quantisers_explicit(model):
    """Convolutions and head read trits through a DequantizeLinear, and activations from a quantiser or a pooling of one."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for node in layers:
        weight = producer[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        trits, scale = constants[weight.input[0]], constants[weight.input[1]]
        assert trits.dtype == np.int8 and set(np.unique(trits)) == {-1, 0, 1}
        assert scale.shape == (len(trits),) and (scale > 0).all()
        source = producer[node.input[0]]
        while source.op_type in ("MaxPool", "Flatten"):
            source = producer[source.input[0]]
        assert source.op_type == "DequantizeLinear"
        zero_point = constants[source.input[2]]
        assert zero_point.dtype == np.int8 and zero_point == 0
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert constants["input.scale"] == 0.25


def test_mnist_float_is_a_small_float_cnn_that_compiles():
    """The data is not here; what can be said without it. The claimed accuracy is printed by docs/benchmarks/mnist_planes.py."""
    import tritloom

    path = Path(__file__).parents[2] / "docs/benchmarks/mnist_cnn_float.onnx"
    model = onnx.load(path)
    assert path.stat().st_size < 300_000 and not any("Quantize" in node.op_type for node in model.graph.node)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["accuracy"] == "0.9950 (995 of 1000)" and "--seed 0" in metadata["training"]
    assert f"({metadata['accuracy'].split('(')[1]}".replace(")", " held-out rows)") in path.with_suffix(".md").read_text()
    # A thick stroke down the middle and a ring are a one and a zero for any network that knows digits.
    y, x = np.mgrid[:28, :28] - 13.5
    radius = np.hypot(x, y * 0.75)
    images = np.stack([np.clip(2.5 - np.abs(radius - 6), 0, 1), np.clip(2.2 - np.abs(x), 0, 1) * (np.abs(y) < 9)])[:, None].astype(
        np.float32
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": images})[0].argmax(axis=1).tolist() == [0, 1]
    compiled = tritloom.compile(path, calibration={"image": images}, planes=3)
    assert tritloom.InferenceSession(compiled).run(None, {"image": images})[0].argmax(axis=1).tolist() == [0, 1]


def integers(name: str) -> list[np.ndarray]:
    """Weights of every layer but the rotations, as they are stored."""
    tensors = onnx.load(zoo.path(name)).graph.initializer
    return [
        numpy_helper.to_array(tensor)
        for tensor in tensors
        if tensor.name.endswith((".trits", ".weights")) and "rotation" not in tensor.name
    ]


@pytest.mark.parametrize("name", [name for name in zoo.names() if name.startswith("digits_")])
def test_digits_models_keep_their_word(name):
    """ONNX Runtime gets as many held-out digits right as the file says; golden, compiled without any other file, within half a point of that."""
    data = load()
    session = onnxruntime.InferenceSession(str(zoo.path(name)), providers=["CPUExecutionProvider"])
    correct = int((session.run(["logits"], {"image": data.test_images})[0].argmax(axis=1) == data.test_labels).sum())
    assert zoo.properties(name)["accuracy"] == f"{correct / 397:.4f} ({correct} of 397)"
    logits = tritloom.InferenceSession(zoo.path(name)).run(None, {"image": data.test_images})[0]
    assert abs(int((logits.argmax(axis=1) == data.test_labels).sum()) - correct) <= 0.005 * 397


@pytest.mark.parametrize(
    ("name", "values", "most"),
    [
        ("digits_mlp_twn", {-1, 0, 1}, 26_000),
        ("digits_mlp_quest_w1a1", {-1, 1}, 26_000),
        ("digits_mlp_quest_w2a2", {-3, -1, 1, 3}, 26_000),
        ("digits_evolved", {-1, 0, 1}, 10_000),
        ("mnist_cnn_twn", {-1, 0, 1}, 99_999),
        ("mnist_cnn_bitnet", {-1, 0, 1}, 99_999),
    ],
)
def test_weights_of_every_layer(name, values, most):
    layers = integers(name)
    assert len(layers) >= 2 and [set(np.unique(array).tolist()) for array in layers] == [values] * len(layers)
    assert sum(array.size for array in layers) <= most


@pytest.mark.parametrize("name", ["mnist_cnn_twn", "mnist_cnn_bitnet"])
def test_mnist_models_compile_alone_and_are_exact(name):
    """On random pictures, because the images are the user's: golden gives the codes of ONNX Runtime, but for one picture that a near tie may decide."""
    assert float(zoo.properties(name)["accuracy"].split()[0]) >= 0.983, "of the tenth of the images that was held out"
    images = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    found = tritloom.verify(zoo.path(name), on=["golden"], feeds={"image": images})
    logits = found.against("onnx")[0]
    assert logits.values == 40 and logits.top1_agreement == 1.0 and logits.mismatches <= 10


def test_small_sudoku_is_solved_in_onnxruntime():
    """Held-out puzzles, one by one; the answer keeps the clues and is a filled grid. The share of all 1000 stands in the file and in the figures."""
    figures = json.loads(zoo.path("trm_sudoku4").with_suffix(".json").read_text())
    rates = figures["solved_after_step"]
    assert figures["accuracy"] >= 0.98 and rates[-1] >= rates[0] >= 0.95 and figures["halt_accuracy"] >= 0.95 and len(rates) == 6
    data = load_puzzles("sudoku4", seed=0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(zoo.path("trm_sudoku4")), options, providers=["CPUExecutionProvider"])
    right, steps = 0, []
    for puzzle, answer in zip(data.test[:100], data.test_answers[:100], strict=True):
        logits, halt, taken = session.run(None, {"puzzle": puzzle[None]})
        right += bool((np.asarray(logits)[0].argmax(1) == answer).all())
        steps.append(int(np.asarray(taken)))
        assert (np.asarray(halt)[0] > 0) == (steps[-1] < 6) or steps[-1] == 6
    assert right >= 97 and min(steps) == 1 and np.mean(steps) < 1.5
    impossible = np.array([[1, 1, 1, 1] * 4])
    assert int(np.asarray(session.run(None, {"puzzle": impossible})[2])) == 6, "no answer of this is right, so the head never halts"


def test_weights_of_the_recursive_network():
    tensors = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(zoo.path("trm_sudoku4")).graph.initializer}
    blocks = {name: array for name, array in tensors.items() if name.startswith("block") and name.endswith(".weights")}
    assert sum(array.size for array in blocks.values()) == 80_256 and all(set(np.unique(array)) == {-1, 0, 1} for array in blocks.values())
    assert all(array.dtype in (np.int8, np.int16, np.int64, np.bool_) or array.size <= 80 for array in tensors.values())
    assert tensors["y0.codes"].dtype == np.int16 and tensors["embedding"].dtype == np.int8


def test_the_ring_on_its_whole_truth_table():
    """As many bits right as the file says, and never more than it may claim: it has not learned addition."""
    bits, wanted = addition(3)
    session = onnxruntime.InferenceSession(str(zoo.path("ring")), providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(["answer"], {"bits": row[None].astype(np.int8)})[0] for row in bits])
    right = int((answers == wanted).sum())
    assert zoo.properties("ring")["accuracy"] == f"{right / 256:.4f} ({right} of 256)" and 0.65 * 256 <= right < 256


def test_settings_files_are_those_of_the_models():
    for path in sorted(zoo.path("digits_mlp_twn").parent.glob("[!c]*.toml")):  # language models: test_zoo_language.py
        settings = read_settings(path.read_text(), path.name, {})
        figures = json.loads(path.with_suffix(".json").read_text())
        assert settings.as_dict() == figures["settings"] and figures["name"] == path.stem
        right, of = ("right_bits", "bits") if path.stem == "ring" else ("correct_onnxruntime", "held_out_rows")
        assert zoo.properties(path.stem)["accuracy"].endswith(f"({figures[right]} of {figures[of]})")


def test_two_bit_weights_are_the_same_program():
    """The packaged perceptron with its trits in INT2: the same logits in ONNX Runtime, the same integers here, a third of the bytes."""
    import ml_dtypes

    plain = onnx.load(zoo.path("digits_mlp_twn"))
    packed = onnx.ModelProto()
    packed.CopyFrom(plain)
    packed.opset_import[0].version, packed.ir_version = 25, 13
    for tensor in packed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(ml_dtypes.int2), tensor.name))
    assert packed.ByteSize() < 0.4 * plain.ByteSize()
    images = load().test_images
    logits = [
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
        for model in (plain, packed)
    ]
    assert np.array_equal(*logits)
    assert tritloom.compile(packed.SerializeToString()).program == tritloom.compile(plain.SerializeToString()).program
