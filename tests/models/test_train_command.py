"""``tritloom train`` from the command line. Needs ``pip install 'tritloom[train]'``."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import onnx
import pytest

import tritloom
from tritloom.cli.main import main
from tritloom.errors import UserError
from tritloom.models.data.digits import load
from tritloom.models.train.settings import Settings

pytestmark = pytest.mark.training

TINY_TEXT = {"epochs": 1, "batch": 4, "sequence": 16, "width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "hidden": 16}

SMALL = 'epochs = 4\nbatch = 200\nhidden = [16]\nmethod = "{}"\n'


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *map(str, words)])
        said = capsys.readouterr()
        assert (stopped.value.code or 0) == code, said.err
        return said

    return call


@pytest.fixture(scope="module")
def loop():
    return import_module("tritloom.models.train.loop")


def test_a_training_leaves_a_model_that_compiles_alone(train, tmp_path):
    (tmp_path / "run.toml").write_text(SMALL.format("quest-w2a2"))
    figures = json.loads(train("--config", "run.toml", "--json", "-q").out)
    folder = tmp_path / "digits_mlp_quest_w2a2"
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.npz", "checkpoint.pt", "digits_mlp_quest_w2a2.onnx", "metrics.json", "training.svg",
    ]  # fmt: skip
    assert len(figures["history"]) == 4 and figures["history"][-1]["loss"] < figures["history"][0]["loss"]
    assert figures["correct_pytorch"] == figures["correct_onnxruntime"] == figures["correct_golden"] > 100
    assert figures["weights"] == 64 * 16 + 16 * 10 and figures["zeros"] == 0
    stored = json.loads((folder / "metrics.json").read_text())
    assert {key: figures[key] for key in stored} == stored
    model = folder / "digits_mlp_quest_w2a2.onnx"
    said = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    assert said["seed"] == "0" and f"({figures['correct_onnxruntime']} of 397)" in said["accuracy"] and '"hidden": [16]' in said["training"]
    compiled = tritloom.compile(model)
    samples = dict(np.load(folder / "calibration.npz"))
    assert np.array_equal(samples["image"], load().train_images[:256])
    assert tritloom.verify(compiled, on=["golden"], feeds=samples).against("onnx")[0].mismatches == 0


@pytest.mark.parametrize("method", ["twn", "quest-w1a1", "drna-repaired", "drna-reference"])
def test_a_resumed_training_gives_the_same_bytes(loop, method):
    """Interrupted after each epoch, by way of the file of the checkpoint."""
    pictures = import_module("tritloom.models.data.pictures").load_pictures("digits")
    settings = Settings(method, epochs=4, batch=200, hidden=(16,))
    whole = loop.Trainer(settings, pictures)
    while whole.epoch < 4:
        whole.run_epoch()
    saved, parts = None, None
    for _ in range(4):
        parts = loop.Trainer(settings, pictures)
        if saved is not None:
            parts.resume(saved)
        parts.run_epoch()
        saved = parts.checkpoint()
    assert parts.history == whole.history
    assert parts.model("net", {}).SerializeToString(deterministic=True) == whole.model("net", {}).SerializeToString(deterministic=True)
    other = loop.Trainer(Settings(method, epochs=4, batch=200, hidden=(16,), seed=1), pictures)
    other.run_epoch()
    assert other.history[0] != whole.history[0]
    with pytest.raises(UserError, match=r"^the checkpoint was made with seed = 0, not 1; use the same settings"):
        other.resume(saved)
    with pytest.raises(UserError, match=r"^the checkpoint cannot be read: it is damaged"):
        whole.resume(saved[:5000])


def test_published_drna_is_reported_for_what_it_is(loop):
    """Its trits flip nowhere in training, its exported network guesses; the repaired one learns them and loses nothing in the export."""
    pictures = import_module("tritloom.models.data.pictures").load_pictures("digits")
    found = {}
    for method in ("drna-reference", "drna-repaired"):
        trainer = loop.Trainer(Settings(method, epochs=12, batch=100, hidden=(64,)), pictures)
        while trainer.epoch < 12:
            trainer.run_epoch()
        correct = import_module("tritloom.models.train.results").correct
        exported = correct(trainer.model("net", {}).SerializeToString(), pictures.test_images, pictures.test_labels)
        found[method] = (sum(entry["flips"] for entry in trainer.history), trainer.correct() / 397, exported / 397)
    flips, trained, exported = found["drna-reference"]
    assert flips < 0.02 and exported < 0.25
    flips, trained, exported = found["drna-repaired"]
    assert flips > 0.1 and abs(trained - exported) < 0.01 and exported > 0.85


def test_wrong_command_lines(train, tmp_path):
    (tmp_path / "bad.toml").write_text("epoch = 3")
    (tmp_path / "text.toml").write_bytes(b"\xff\xfe")
    for words, sentence in (
        ((), "tritloom: name a METHOD, or a settings file"),
        (("tnw",), "tritloom: method must be one of twn,"),
        (("twn", "--config", "bad.toml"), "tritloom: config file 'bad.toml' has the unknown key 'epoch'"),
        (("twn", "--config", "text.toml"), "tritloom: config file 'text.toml' is not UTF-8 text"),
        (("twn", "--config", "absent.toml"), "tritloom: config file 'absent.toml' cannot be read"),
        (("twn", "--data", "mnist:absent"), "tritloom: mnist file 'absent' cannot be read"),
        (("twn", "--checkpoint-every", "0"), "tritloom: --checkpoint-every must be 1 or more, not 0"),
        (("float",), "tritloom: method float is a baseline of 'tritloom bench methods' and has no integers to export"),
        (("twn", "--device", "tpu"), "tritloom: device must be cpu or cuda, not 'tpu'"),
        (("twn", "--resume", "-o", "empty"), "tritloom: checkpoint 'empty/checkpoint.pt' cannot be read"),
    ):
        assert train(*words, code=1).err.startswith(sentence)
    (tmp_path / "run.toml").write_text(SMALL.format("twn"))
    train("--config", "run.toml", "--epochs", 1, "-o", "out", "-q")
    assert "holds a training already; add --resume" in train("--config", "run.toml", "--epochs", 1, "-o", "out", code=1).err
    train("--config", "run.toml", "--epochs", 1, "-o", "out", "-q", "--resume")


@pytest.mark.parametrize("jobs", [1, 2])
def test_bench_methods_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys, jobs):
    comparison = import_module("tritloom.models.train.comparison")

    def runs(seeds):
        small = {"epochs": 1, "batch": 200, "hidden": (8,)}
        return [
            comparison.Run("digits-writers", method, seed, Settings(method, seed=seed, **small).as_dict())
            for method in ("float", "twn-float", "twn", "quest-w2a2")
            for seed in range(seeds)
        ]

    def texts(seeds):
        return [
            replace(run, recipe={**run.recipe, **TINY_TEXT})
            for run in text_runs(seeds)
            if run.method in ("llama/float", "drna/drna-reference")
        ]

    text_runs = comparison.text_runs
    monkeypatch.setattr(comparison, "digits_runs", runs)
    monkeypatch.setattr(comparison, "text_runs", texts)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("# Page\n<!-- digits -->\n<!-- end of digits -->\n<!-- text -->\n<!-- end of text -->\n")

    def call(*words, code=0):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", "methods", "-o", "r.json", "--page", "page.md", *map(str, words)])
        assert (stopped.value.code or 0) == code
        return capsys.readouterr()

    said = call("--seeds", 1, "--method", "twn", "--method", "float", "-v", "--jobs", jobs, "--only", "digits").err
    assert "0 of 2 trainings are stored already" in said
    stored = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [row["method"] for row in stored] == ["float", "twn"] and "correct_golden" not in stored[0]["result"]
    assert stored[1]["result"]["correct_golden"] == stored[1]["result"]["correct_trained"] > 40
    found = json.loads(call("--seeds", 1, "--json", "--jobs", jobs).out)["runs"]
    assert [row["method"] for row in found] == ["float", "twn-float", "twn", "quest-w2a2", "llama/float", "drna/drna-reference"]
    assert all(1 < row["nats_pytorch"] < 6 for row in found[4:]) and found[4]["nats_exported"] == pytest.approx(
        found[4]["nats_pytorch"], abs=1e-3
    )
    before = (tmp_path / "r.json").read_bytes()
    assert "6 of 6 trainings are stored already" in call("--seeds", 1).err and (tmp_path / "r.json").read_bytes() == before
    page = (tmp_path / "page.md").read_text()
    assert "| TWN, one scale a row |" in page and "| D-RNA as published | drna |" in page
    assert call("--only", "pictures", code=1).err.startswith("tritloom: --only must be digits or text, not 'pictures'")
    assert call("--method", "tnw", code=1).err.startswith("tritloom: --method must name one of float,")
    assert call("-o", "absent/r.json", code=1).err.startswith("tritloom: folder 'absent' for the results does not exist")
    (tmp_path / "page.md").write_text("# Page\n")
    assert call(code=1).err.startswith("tritloom: the page has no place for the table 'digits'")
    assert call("--page", "none.md", code=1).err.startswith("tritloom: page 'none.md' cannot be read")
