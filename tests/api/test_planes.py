"""The search for the fewest digit planes within a loss of accuracy, on an MLP trained here on scikit-learn's digits."""

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import tritloom
from tritloom import planes as module
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.ir.program import Convolution
from tritloom.compiler.quantize.calibration import choose_grid
from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.errors import ModelError, UserError
from tritloom.models.data.digits import load
from tritloom.planes import PlaneSearch, choose_planes


def train(images, labels, widths, *, seed, epochs=15, batch=50):
    """Weights and biases of an MLP with Relu, by gradient descent with momentum, in NumPy."""
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=(b, a)) * np.sqrt(2 / a), np.zeros(b)) for a, b in pairwise(widths)]
    speed = [[np.zeros_like(part) for part in layer] for layer in layers]
    for rows in (part for _ in range(epochs) for part in rng.permutation(len(images)).reshape(-1, batch)):
        values = [images[rows]]
        for w, b in layers[:-1]:
            values.append(np.maximum(values[-1] @ w.T + b, 0))
        scores = values[-1] @ layers[-1][0].T + layers[-1][1]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (powers / powers.sum(axis=1, keepdims=True) - np.eye(widths[-1])[labels[rows]]) / batch
        for index in reversed(range(len(layers))):
            gradients = error.T @ values[index], error.sum(axis=0)
            error = (error @ layers[index][0]) * (values[index] > 0)
            for part, moved, gradient in zip(layers[index], speed[index], gradients, strict=True):
                moved *= 0.9
                moved -= 0.05 * gradient
                part += moved
    return layers


def save(layers, path: Path, *, tail: str = "") -> Path:
    nodes, tensors, value = [], [], "x"
    for index, (w, b) in enumerate(layers):
        tensors += [numpy_helper.from_array(part.astype(np.float32), f"{kind}{index}") for part, kind in ((w, "w"), (b, "b"))]
        nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], [f"sum{index}"], f"layer{index}", transB=1))
        value = f"sum{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"relu{index}"]))
            value = f"relu{index}"
    kind = TensorProto.FLOAT
    if tail == "ArgMax":
        nodes.append(helper.make_node("ArgMax", [value], ["class"], axis=1, keepdims=0))
        value, kind = "class", TensorProto.INT64
    outputs = [helper.make_tensor_value_info(value, kind, None)]
    if tail == "two":
        outputs.append(helper.make_tensor_value_info("sum0", kind, None))
    graph = helper.make_graph(nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def digits():
    """Pixels 0..1, half of them to train and 700 labelled samples."""
    data = load()
    images = np.concatenate([data.train_images, data.test_images]).reshape(-1, 64) / 16
    labels = np.concatenate([data.train_labels, data.test_labels])
    return images[:1000], labels[:1000], images[1000:1700].astype(np.float32), labels[1000:1700]


@pytest.fixture(scope="module")
def layers(digits):
    return train(digits[0], digits[1], (64, 24, 16, 10), seed=2)


@pytest.fixture(scope="module")
def mlp(layers, tmp_path_factory) -> Path:
    return save(layers, tmp_path_factory.mktemp("planes") / "mlp.onnx")


def search(mlp: Path, digits, **options) -> PlaneSearch:
    options = {"max_loss": 0.03, "calibration": {"x": digits[2]}, "labels": digits[3], **options}
    return choose_planes(mlp.read_bytes(), name="mlp", **options)


@pytest.fixture(scope="module")
def found(mlp, digits) -> PlaneSearch:
    return search(mlp, digits)


def test_accuracies_are_those_of_onnx_runtime_and_golden_on_the_other_half(found, mlp, digits):
    images, labels = digits[2][1::2], digits[3][1::2]
    session = onnxruntime.InferenceSession(mlp, providers=["CPUExecutionProvider"])
    expected = int((np.asarray(session.run(None, {"x": images})[0]).argmax(1) == labels).sum())
    assert (found.float_correct, found.samples) == (expected, 350)
    assert expected > 0.9 * 350, "the float model has learned something"
    (scores,) = tritloom.InferenceSession(found.model).run(None, {"x": images})
    assert int((scores.argmax(1) == labels).sum()) == found.chosen.correct
    assert found.model.schedule("sim").cycles == found.chosen.cycles
    assert expected - found.chosen.correct <= 0.03 * 350


def test_the_chosen_point_is_the_cheapest_good_one(found):
    assert found.chosen in found.points
    for point in found.points:
        if found.loss(point) <= found.max_loss + 1e-12:
            assert (point.cycles, point.weight_bytes) >= (found.chosen.cycles, found.chosen.weight_bytes), point.name
    names = [point.name for point in found.points]
    assert names[:4] == [f"all layers: {n} plane{'s' if n > 1 else ''}" for n in (4, 3, 2, 1)]
    assert any(name.startswith("step ") for name in names)
    assert len({json.dumps(point.to_json()["layers"]) for point in found.points}) == len(names), "nothing is tried twice"


def test_layers_differ_and_say_why(found):
    chosen = {layer: (choice.method, choice.planes) for layer, choice in found.chosen.layers.items()}
    made = {op.name: (op.weight_method, op.planes) for op in found.model.program.operations if isinstance(op, Convolution)}
    assert chosen == made and list(chosen) == ["layer0", "layer1", "layer2"]
    assert len({planes for _, planes in chosen.values()}) > 1, chosen
    for layer, (_, planes) in chosen.items():
        assert (planes == 1) == (layer not in found.reasons)
    assert all("would lose" in reason and "more than 3.00%" in reason for reason in found.reasons.values())


def test_a_larger_loss_never_costs_more(mlp, digits, found):
    strict, loose = search(mlp, digits, max_loss=0.003), search(mlp, digits, max_loss=0.6)
    assert strict.chosen.cost > found.chosen.cost > loose.chosen.cost
    assert {choice.planes for choice in loose.chosen.layers.values()} == {1}


def test_only_even_samples_make_grids(mlp, digits):
    """The other half may hold anything that the model gets right; it moves no grid and no bias."""
    samples = digits[2].copy()
    samples[1::2] *= 3
    moved, plain = (search(mlp, digits, calibration={"x": x}, max_loss=0.3, settings=fixed(3)) for x in (samples, digits[2]))
    assert moved.model.program == plain.model.program
    scale, _ = choose_grid(digits[2][::2], 8)
    assert plain.model.program.tensors["x"].scale == (scale,)


def fixed(planes: int) -> Settings:
    return Settings(layers={"layer0": WeightChoice(planes=planes), "layer1": WeightChoice(method="planes")})


def test_named_layers_keep_what_they_have(mlp, digits):
    done = search(mlp, digits, settings=fixed(3), max_loss=0.3)
    made = {op.name: (op.weight_method, op.planes) for op in done.model.program.operations if isinstance(op, Convolution)}
    assert list(done.chosen.layers) == ["layer2"] and made["layer0"] == ("planes", 3) and made["layer1"] == ("planes", 2)


def test_points_that_do_not_fit_the_board_are_not_chosen(mlp, digits, monkeypatch):
    """One plane is said not to fit, which would be the choice at this loss; then nothing does."""
    real = module.fit
    largest = 2

    def fit(board, program):
        planes = [op.planes for op in program.operations if isinstance(op, Convolution)]
        if planes[-1] < largest:
            raise ModelError("no room")
        return real(board, program)

    monkeypatch.setattr(module, "fit", fit)
    done = search(mlp, digits, max_loss=0.3, settings=fixed(1))
    assert max(choice.planes or 0 for choice in done.chosen.layers.values()) == 2
    assert any(point.cycles is None and point.to_json()["weight_bytes"] is None for point in done.points)
    largest = 5
    with pytest.raises(UserError, match=r"^no setting of 1 to 4 planes fits sim; choose a larger board with --board$"):
        search(mlp, digits, max_loss=0.3, settings=fixed(1))


def test_class_numbers_are_judged_like_scores(layers, mlp, digits, tmp_path):
    numbers = search(save(layers, tmp_path / "numbers.onnx", tail="ArgMax"), digits, settings=fixed(3))
    assert numbers.to_json() == search(mlp, digits, settings=fixed(3)).to_json()


def test_nothing_good_enough(mlp, digits):
    with pytest.raises(
        UserError, match=r"^no setting of up to 4 planes loses at most 0\.00%: the best \(.*\) loses \d+\.\d\d%, \d+ of 350 answers; allow"
    ):
        search(mlp, digits, max_loss=0.0, settings=Settings(activation_bits=2))


def test_wrong_arguments(mlp, digits, layers, tmp_path):
    x, y = digits[2], digits[3]
    for options, sentence in (
        ({"labels": y[:-1]}, r"^labels must be integers, one for each of the 700 calibration samples, not int64 \(699,\)$"),
        ({"labels": y.astype(float)}, r"^labels must be integers, one for each of the 700 calibration samples, not float64"),
        ({"labels": y + 1}, r"^labels must be from 0 to 9, the classes of mlp, not 1\.\.10$"),
        ({"labels": y[:1], "calibration": {"x": x[:1]}}, r"^at least 2 labelled samples are needed"),
        ({"max_loss": 1.0}, r"^the largest loss must be at least 0 and below 1 \(100%\), not 1\.0$"),
        ({"calibration": {"z": x}}, r"^calibration samples must be named x; given are z$"),
        ({"board": "sims"}, r"^unknown board 'sims'"),
    ):
        with pytest.raises(UserError, match=sentence):
            search(mlp, digits, **options)
    with pytest.raises(UserError, match=r"^mlp has 2 outputs; top-1 accuracy needs a model with one$"):
        search(save(layers, tmp_path / "two.onnx", tail="two"), digits)
    narrow = [*layers[:-1], (layers[-1][0][:1], layers[-1][1][:1])]
    with pytest.raises(UserError, match=r"^mlp has one score a sample; top-1 accuracy needs one score for each class$"):
        search(save(narrow, tmp_path / "narrow.onnx"), digits)
    ternary = [(np.sign(w) * (np.abs(w) > 0.1), b) for w, b in layers]
    with pytest.raises(UserError, match=r"^mlp has no layer with float weights to choose planes for; leave out --planes auto$"):
        search(save(ternary, tmp_path / "ternary.onnx"), digits, max_loss=0.5)


def test_command_line_and_report(cli, mlp, digits, found, tmp_path):
    np.savez(tmp_path / "labelled.npz", x=digits[2], labels=digits[3])
    words = ("compile", mlp, "--calibration", "labelled.npz", "-o")
    done = cli(*words, "a.loom", "--planes", "auto", "--max-loss", "3%", "--report", "report/deep", "--json")
    assert done.code == 0, done.err
    assert "* is chosen" in done.err and f"it loses {found.loss(found.chosen):.2%} of at most 3.00%" in done.err
    assert done.json["planes"] == found.to_json() == json.loads((tmp_path / "report/deep/planes.json").read_text())
    assert tritloom.CompiledModel.load("a.loom").program == found.model.program
    picture = ElementTree.parse(tmp_path / "report/deep/planes.svg").getroot()
    titles = [entry.text for entry in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 1 + 2 * len(found.points)
    assert sum(f"{found.chosen.accuracy:.2%}, {found.chosen.cycles} cycles" in str(text) for text in titles) >= 2
    texts = [entry.text for entry in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("chosen") == 2 and "cycles an inference, sim" in texts and "bytes of weight memory" in texts
    # The choice can be compiled again from its file, and 0.03 is 3%.
    assert cli(*words, "b.loom", "--layers", "report/deep/layers.toml").code == 0
    made = {op.name: op.planes for op in tritloom.CompiledModel.load("b.loom").program.operations if isinstance(op, Convolution)}
    assert made == {layer: choice.planes for layer, choice in found.chosen.layers.items()}
    np.savez(tmp_path / "samples.npz", x=digits[2])
    np.savez(tmp_path / "labels.npz", labels=digits[3][:, None].astype(np.uint8))
    (tmp_path / "layers.toml").write_text("[layer0]\nplanes = 3\n[layer1]\nplanes = 3\n")
    words = ("compile", mlp, "--layers", "layers.toml", "--planes", "auto", "--max-loss", "0.03", "--json", "--calibration")
    one, other = cli(*words, "labelled.npz"), cli(*words, "samples.npz", "--labels", "labels.npz")
    assert one.json["planes"]["max_loss"] == 0.03 and other.json["planes"] == one.json["planes"]


def test_wrong_words_on_the_command_line(cli, mlp, digits, tmp_path):
    np.savez(tmp_path / "samples.npz", x=digits[2][:20])
    auto = ("--planes", "auto")
    for words, sentence in (
        (auto, "--planes auto needs to know how much accuracy it may lose: add --max-loss 1%"),
        (
            (*auto, "--max-loss", "1%"),
            "--planes auto needs labelled samples: add --calibration samples.npz with the inputs by name and an array",
        ),
        ((*auto, "--max-loss", "1"), "--max-loss must be a share of the samples from 0 to below 1 such as 1% or 0.01, not '1'"),
        ((*auto, "--max-loss", "-1%"), "--max-loss must be a share of the samples from 0 to below 1 such as 1% or 0.01, not '-1%'"),
        ((*auto, "--max-loss", "nan"), "--max-loss must be a share"),
        (
            (*auto, "--max-loss", "1%", "--calibration", "samples.npz"),
            "calibration file 'samples.npz' holds no array 'labels'; add it, or give",
        ),
        (
            (*auto, "--max-loss", "1%", "--calibration", "samples.npz", "--labels", "samples.npz"),
            "labels file 'samples.npz' holds no array 'labels'",
        ),
        ((*auto, "--max-loss", "1%", "--method", "twn"), "--planes auto chooses the method of each layer by itself: leave out --method"),
        (("--planes", "2", "--max-loss", "1%"), "--max-loss, --labels and --report belong to --planes auto"),
        (("--report", "r"), "--max-loss, --labels and --report belong to --planes auto"),
        (("--planes", "many"), "--planes must be a number of digit planes or auto, not 'many'"),
        (("--planes", "0"), "planes must be from 1 to 6, not 0"),
    ):
        done = cli("compile", mlp, "-o", "a.loom", *words)
        assert done.code == 1 and sentence in done.err and done.err.count("\n") == 1, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.npz"]
