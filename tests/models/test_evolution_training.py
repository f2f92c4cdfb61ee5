"""Evolution by ``tritloom train evolve``: repeatable, resumed to the last bit, without PyTorch; its files against the integers that evolved."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

import tritloom
from tritloom.cli.main import app
from tritloom.errors import UserError
from tritloom.models.data.digits import load
from tritloom.models.data.pictures import load_pictures
from tritloom.models.methods import ring
from tritloom.models.nets.ring_export import INPUT, OUTPUTS, ring_model
from tritloom.models.train.evolution import LayeredEvolution, RingEvolution, evolution
from tritloom.models.train.evolution_settings import EvolutionSettings, LayeredSettings, RingSettings
from tritloom.models.train.settings import Settings, read_settings

SMALL = LayeredSettings(epochs=3, generations=200, hidden=16)
TINY = RingSettings(epochs=3, generations=40, width=2, tries=2, weights=8)


def finished(settings: EvolutionSettings) -> LayeredEvolution | RingEvolution:
    found = evolution(settings)
    while found.epoch < settings.epochs:
        found.run_epoch()
    return found


def test_evolved_digits_are_the_same_integers_in_the_file():
    """Few generations: golden's logits are those of the evolved network, bit by bit."""
    found, images = finished(SMALL), load().test_images
    assert isinstance(found, LayeredEvolution)
    model, samples, figures = found.finish("digits_evolved", "command")
    wanted = found.net.logits(images.reshape(-1, 64).astype(np.int64))
    assert np.array_equal(tritloom.InferenceSession(model).run(None, {"image": images})[0], wanted)
    assert tritloom.verify(model, on=["golden"], feeds={"image": images}).against("onnx")[0].mismatches == 0
    assert model == finished(SMALL).finish("digits_evolved", "command")[0]
    assert onnx.load_from_string(model).graph.name == "digits_evolved" and samples["image"].shape == (256, 1, 8, 8)
    assert figures["correct_evolved"] == figures["correct_onnxruntime"] == int((wanted.argmax(1) == load().test_labels).sum())
    assert [entry["epoch"] for entry in figures["history"]] == [1, 2, 3] and found.history[2]["loss"] < found.history[0]["loss"]


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, batch=100, shift=0, rotation=0, stretch=0), TINY, replace(TINY, changes=3)])
def test_a_resumed_evolution_gives_the_same_bytes(settings):
    whole, saved, parts = finished(settings), None, None
    for _ in range(3):
        parts = evolution(settings)
        if saved is not None:
            parts.resume(saved)
        parts.run_epoch()
        saved = parts.checkpoint()
    assert parts is not None and saved is not None
    assert parts.history == whole.history and saved == whole.checkpoint()
    assert parts.finish("a", "b")[0] == whole.finish("a", "b")[0]
    other = evolution(replace(settings, seed=1))
    other.run_epoch()
    assert any(not np.array_equal(a, other.arrays().get(name)) for name, a in whole.arrays().items())
    with pytest.raises(UserError, match=r"^the checkpoint was made with seed = 0, not 1; use the same settings"):
        other.resume(saved)
    for damaged in (saved[:300], b"", b"PK"):
        with pytest.raises(UserError, match=r"^the checkpoint cannot be read: it is damaged"):
            parts.resume(damaged)


def digits_permuted() -> "object":
    """Rows in a random order: writers of the training rows are among the held-out ones too."""
    data = load_pictures("digits")
    images, labels = (np.concatenate(pair) for pair in ((data.train_images, data.test_images), (data.train_labels, data.test_labels)))
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order]
    return replace(data, train_images=images[:1400], train_labels=labels[:1400], test_images=images[1400:], test_labels=labels[1400:])


@pytest.mark.parametrize(("seeds", "generations", "least"), [(1, 10_000, 0.95), pytest.param(3, 40_000, 0.97, marks=pytest.mark.training)])
def test_digits_in_random_order(seeds, generations, least):
    """What methods of this kind are judged by elsewhere; the split by writers is harder."""
    data, rates = digits_permuted(), []
    for seed in range(seeds):
        found = LayeredEvolution(
            LayeredSettings(seed=seed, hidden=64, margin=48, shift=0, rotation=0, stretch=0, generations=generations), data
        )  # type: ignore[arg-type]
        found.run_epoch()
        images, labels = found.pictures()
        rates.append((found.net.logits(images.reshape(len(images), -1).astype(np.int64)).argmax(1) == labels).mean())
    assert np.mean(rates) >= least, rates


def run_ring(model: onnx.ModelProto, bits: np.ndarray) -> tuple[np.ndarray, list[int]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(list(OUTPUTS), {INPUT: row[None].astype(np.int8)}) for row in bits]
    return np.concatenate([np.asarray(row[0]) for row in found]), [int(np.asarray(row[1])) for row in found]


def ticks_by_hand(found: ring.Ring, bits: np.ndarray, most: int) -> list[int]:
    """Ticks until nothing changes or every output is known, at least one."""
    matrix, counts = found.dense(), []
    for row in bits:
        states, count = np.zeros(len(found.roles), np.int64), 0
        states[found.inputs()] = row
        while count < most:
            after = np.sign(matrix @ states)
            count += 1
            ended = (after == states).all() or (after[found.outputs()] != 0).all()
            states = after
            if ended:
                break
        counts.append(count)
    return counts


@pytest.mark.parametrize("most", [1, 2, 5, 64])
@pytest.mark.parametrize(("width", "seed", "m"), [(1, 0, 1), (2, 1, 6), (2, 2, 3), (3, 3, 16)])
def test_the_ring_in_the_file_on_every_input(width, seed, m, most):
    """Random and somewhat evolved rings: answers and ticks of every input of the truth table; long runs and unknown bits occur."""
    bits, wanted = ring.addition(width)
    found = ring.random_ring(bits.shape[1], wanted.shape[1], m=m, seed=seed)
    for evolved in (found, ring.evolve_ring(found, bits, wanted, generations=60, seed=seed, ticks=most, limit=20)[0]):
        model = ring_model("ring", evolved, most, metadata={})
        answers, ticks = run_ring(model, bits)
        assert answers.dtype == np.int8 and np.array_equal(answers, evolved.run(bits, most))
        assert ticks == ticks_by_hand(evolved, bits, most)
    assert model.SerializeToString() == ring_model("ring", evolved, most, metadata={}).SerializeToString()


def test_ticks_and_unknown_bits_vary():
    """What the test above would not see on rings that always halt at once."""
    bits, _ = ring.addition(2)
    rings = [ring.random_ring(4, 3, m=m, seed=seed) for m, seed in ((6, 1), (3, 2), (2, 5), (2, 8))]
    assert len({count for found in rings for count in ticks_by_hand(found, bits, 64)}) >= 3
    assert any((found.run(bits, 64) == 0).any() for found in rings)


def test_the_best_ring_is_kept():
    found = finished(replace(TINY, tries=4))
    assert isinstance(found, RingEvolution)
    scores = [ring.score(each, found.bits, found.wanted, 64) for each in found.rings]
    assert len(set(scores)) > 1 and ring.score(found.best(), found.bits, found.wanted, 64) == max(scores)
    assert found.history[-1]["right"] == max(scores)[0] / found.wanted.size
    assert [entry["right"] for entry in found.history] == sorted(entry["right"] for entry in found.history)


NO_TORCH = """import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Absent)
from tritloom.cli.main import main; main(sys.argv[1:])
"""


def test_evolution_from_the_command_line_without_pytorch(tmp_path):
    """Interrupted and resumed; files, figures and messages."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", NO_TORCH, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "run.toml").write_text('net = "ring"\nwidth = 1\ngenerations = 30\ntries = 1\nweights = 4\nepochs = 2\n')
    done = run("train", "evolve", "--config", "run.toml", "--json", "-q")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert sorted(path.name for path in (tmp_path / "ring").iterdir()) == [
        "calibration.npz", "checkpoint.npz", "metrics.json", "ring.onnx", "training.svg",
    ]  # fmt: skip
    assert figures["bits"] == 8 and figures["right_bits"] == round(figures["accuracy"] * 8) and figures["sums"] == 4
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "ring" / "ring.onnx").metadata_props}
    assert said["training"].startswith('tritloom train evolve --net ring, settings {"epochs": 2')
    first = (tmp_path / "ring" / "ring.onnx").read_bytes()
    again = run("train", "evolve", "--config", "run.toml", "--resume")
    assert again.returncode == 0 and (tmp_path / "ring" / "ring.onnx").read_bytes() == first


def test_words_that_do_not_go_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, sentence in (
        (("--net", "mlp"), "net of evolve must be one of layered, ring, not 'mlp'"),
        (("--net", "ring", "--data", "digits"), "a ring evolves on the data addition, not on 'digits'"),
        (("--device", "cuda"), "evolve computes on the cpu, not on 'cuda'"),
    ):
        with pytest.raises(UserError, match=sentence):
            CliRunner().invoke(app, ["train", "evolve", *words], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_settings():
    found = read_settings('net = "ring"\nwidth = 2', "run.toml", {"method": "evolve", "seed": 3})
    assert found == RingSettings(width=2, seed=3) and found.name == "ring"
    assert read_settings("", "", {"method": "evolve"}) == LayeredSettings()
    assert LayeredSettings(data="fashion-mnist:a.npz").name == "fashion_mnist_evolved"
    assert LayeredSettings().command == "tritloom train evolve --net layered"
    assert Settings("twn", hidden=(4,)).command == 'tritloom train twn, settings {"hidden": [4]}'
    for text, sentence in (
        ('net = "ring"\nneurons = 9', r"^neurons must lie in 10\.\.1024, not 9$"),
        ('net = "ring"\nhidden = 9', "^run.toml has the unknown key 'hidden'"),
        ('net = "layered"\nmargin = 0', r"^margin must lie in 1\.\.1e\+06, not 0$"),
        ('net = "layered"\nmethod = "twn"', "^the net 'layered' has the method evolve, not 'twn'$"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_settings(text, "run.toml", {"method": None if "method" in text else "evolve"})
    with pytest.raises(UserError, match=r"^batch is 1401, but there are only 1400 rows"):
        evolution(LayeredSettings(batch=1401))
