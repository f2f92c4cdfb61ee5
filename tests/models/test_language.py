"""Language models in PyTorch: what is exported is what was trained. Needs ``pip install 'tritloom[train]'``."""

import json
from importlib import import_module

import numpy as np
import onnx
import pytest
from decoder_cases import Runner, assert_alike, clear_sequences, small

from tritloom.cli.main import main
from tritloom.errors import UserError
from tritloom.models.data import text
from tritloom.models.nets.decoder import BLOCKS, PRESETS, angles
from tritloom.models.nets.decoder_export import decoder_model
from tritloom.models.nets.language_methods import LANGUAGE_METHODS, precision
from tritloom.models.train.language_settings import LanguageSettings
from tritloom.models.train.perplexity import evaluate

pytestmark = pytest.mark.training

TINY = {"epochs": 2, "warmup": 2, "batch": 4, "sequence": 16, "width": 32, "hidden": 48, "kv_heads": 2, "layers": 2}


@pytest.fixture(scope="module")
def torch():
    found = import_module("torch")
    found.set_num_threads(1)
    return found


@pytest.fixture(scope="module")
def language():
    return import_module("tritloom.models.nets.language")


@pytest.fixture
def training(monkeypatch):
    """The trainer's module with short epochs, and a short text."""
    found = import_module("tritloom.models.train.language")
    for module in (found, import_module("tritloom.models.train.language_settings")):
        monkeypatch.setattr(module, "STEPS_PER_EPOCH", 4)
    whole = text.load("topics")
    short = text.Text(whole.alphabet, whole.train[:5000], whole.held_out[:400])
    monkeypatch.setattr(found, "load", lambda corpus: short)
    return found


def network(torch, language, decoder, *words, **choices):
    """Random weights, gains other than 1, after the end of every schedule."""
    torch.manual_seed(1)
    net = language.LanguageModel(decoder, precision(*words, **choices)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 if decoder.block == "drna" else 3).add_(torch.randn_like(parameter), alpha=0.02)
    layers = import_module("tritloom.models.methods.layers")
    layers.set_progress(net, 1.0)
    layers.crystallise(net)
    return net


@pytest.mark.parametrize(
    ("name", "whole", "without_embeddings"),
    [
        ("bitnet-2b4t", 2_412_820_480, 2_412_820_480 - 128_256 * 2560),
        ("quest-30m", 30_482_560 + 2 * 32_000 * 640, 30_482_560),
        ("quest-100m", 102_777_856 + 2 * 32_000 * 1024, 102_777_856),
        ("drna", 50_430_464, 50_430_464 - 2 * 65_536 * 256),
    ],
)
def test_published_dimensions(torch, language, name, whole, without_embeddings):
    """Parameters, counted on a device that allocates nothing."""
    with torch.device("meta"):
        net = language.LanguageModel(PRESETS[name], precision("float"))
    counts = {key: parameter.numel() for key, parameter in net.named_parameters()}
    assert sum(counts.values()) == whole
    assert sum(count for key, count in counts.items() if key not in ("embedding", "head.weight")) == without_embeddings


def test_small_presets_count(torch, language):
    for name in ("llama-small", "bitnet-small", "drna-small"):
        net = language.LanguageModel(PRESETS[name], precision("float"))
        assert 400_000 < sum(parameter.numel() for parameter in net.parameters()) < 525_000
        assert net(torch.arange(8)[None]).shape == (1, 8, 100)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", [name for name in LANGUAGE_METHODS if name != "drna-reference"])
def test_the_file_computes_what_was_trained(torch, language, block, method):
    """QuEST with heads of their own: of heads that share keys its rotation gives exact zeros at the first token, which lie on the border of two levels."""
    decoder = small(block, kv_heads=4 if method.startswith("quest") else 2)
    head = "ternary" if method in ("bitnet", "drna-repaired") else "auto"
    net = network(torch, language, decoder, method, head=head)
    model = decoder_model("net", decoder, net.exported(), {}).SerializeToString(deterministic=True)
    rows, expected = clear_sequences(decoder, net.exported(), seed=3)
    with torch.no_grad():
        wanted = net(torch.from_numpy(np.stack(rows))).numpy()
        logits, state = net.advance(torch.from_numpy(np.stack(rows)[:, :3]), net.start(len(rows)))
        parts = [logits]
        for column in np.stack(rows)[:, 3:].T:
            logits, state = net.advance(torch.from_numpy(column[:, None]), state)
            parts.append(logits)
    assert_alike(list(wanted), expected)
    assert_alike(list(torch.cat(parts, 1).numpy()), list(wanted))
    for optimise in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        runner = Runner(model, decoder, optimise)
        assert_alike([runner.whole(row) for row in rows], list(wanted))
    assert_alike([runner.in_parts(row, 3) for row in rows], list(wanted))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", [name for name in LANGUAGE_METHODS if name != "drna-reference"])
def test_training_computes_the_definitions(torch, language, block, method):
    """In float64."""
    decoder = small(block, kv_heads=4 if method.startswith("quest") else 2, rotation="half" if block == "drna" else "interleaved")
    net = network(torch, language, decoder, method).double()
    table = torch.from_numpy(angles(decoder)).repeat(1, 2) if block == "drna" else torch.from_numpy(angles(decoder)).repeat_interleave(2, 1)
    net.angle, net.cosine, net.sine = table, table.cos(), table.sin()
    weights = net.exported()
    rows, wanted = clear_sequences(decoder, weights, seed=4)
    with torch.no_grad():
        found = [net(torch.from_numpy(row)[None])[0].numpy() for row in rows]
    assert_alike(found, wanted, within=1e-9)


def test_limits(torch, language):
    net = network(torch, language, small(), "float")
    with pytest.raises(UserError, match=r"^the model has 12 positions, not 13; give fewer tokens$"):
        net(torch.zeros(1, 13, dtype=torch.int64))
    tied = PRESETS["bitnet-2b4t"]
    with torch.device("meta"), pytest.raises(UserError, match=r"^a head that is tied to the embeddings stays float"):
        language.LanguageModel(tied, precision("bitnet"))


@pytest.mark.parametrize(
    ("method", "block"), [("bitnet", "bitnet"), ("drna-repaired", "drna"), ("quest-w1a1", "llama"), ("drna-reference", "drna")]
)
def test_a_resumed_training_gives_the_same_bytes(training, method, block):
    settings = LanguageSettings(method, net=block, **(TINY | {"epochs": 3}))
    whole = training.LanguageTrainer(settings)
    saved = None
    for _ in range(3):
        whole.run_epoch()
        part = training.LanguageTrainer(settings)
        if saved is not None:
            part.resume(saved)
        part.run_epoch()
        saved = part.checkpoint()
    assert part.history == whole.history and whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert part.model("net", {}).SerializeToString(deterministic=True) == whole.model("net", {}).SerializeToString(deterministic=True)
    moments = [entry for entry in whole.history if "after_crystallising" in entry]
    assert len(moments) == (method == "drna-repaired")
    with pytest.raises(UserError, match=r"^the checkpoint was made with seed = 0, not 5; use the same settings"):
        training.LanguageTrainer(LanguageSettings(method, net=block, seed=5, **(TINY | {"epochs": 3}))).resume(saved)


def test_crystallised_weights_rest_and_all_others_go_on(training, torch):
    settings = LanguageSettings("drna-repaired", net="drna", **(TINY | {"epochs": 20, "head": "float", "embedding": "float"}))
    trainer = training.LanguageTrainer(settings)
    while trainer.epoch < 18:
        trainer.run_epoch()
    assert "after_crystallising" in trainer.history[17]
    before = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    assert trainer.run_epoch()["flips"] == 0
    after = trainer.net.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    dense = {name for name in before if name.endswith(".weight") and name.startswith("blocks.") and "norm" not in name}
    assert dense and not moved & dense and {"embedding", "norm.weight", "blocks.0.attention.key.bias"} <= moved


def test_figures_are_those_of_the_file(training):
    """The published D-RNA exports other weights than it trained; the others what they trained."""
    for method, block in (("float", "llama"), ("bitnet", "bitnet"), ("drna-reference", "drna")):
        found = training.train_language(method, block, 1, **TINY)
        assert found["settings"]["seed"] == 1 and found["settings"]["head"] == "float" and len(found["history"]) == 2
        gap = found["nats_exported"] - found["nats_pytorch"]
        assert abs(gap) > 0.02 if method == "drna-reference" else abs(gap) < 1e-3, method
        assert 2 < found["nats_pytorch"] < 5 and 0 < found["correct"] < found["characters"]
        assert (found["weights"] == 0) == (method == "float")


def test_command_line(training, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *words])
        said = capsys.readouterr()
        assert (stopped.value.code or 0) == code, said.err
        return said

    (tmp_path / "run.toml").write_text(
        'method = "bitnet"\nnet = "bitnet"\nhead = "ternary"\n' + "".join(f"{key} = {value}\n" for key, value in TINY.items())
    )
    figures = json.loads(call("--config", "run.toml", "--json", "-q").out)
    folder = tmp_path / "charlm_bitnet"
    assert sorted(path.name for path in folder.iterdir()) == ["charlm_bitnet.onnx", "checkpoint.pt", "metrics.json", "training.svg"]
    said = {entry.key: entry.value for entry in onnx.load(folder / "charlm_bitnet.onnx").metadata_props}
    assert json.loads(said["vocabulary"]) == list(text.load("topics").alphabet) and said["context"] == "16"
    trainer = training.LanguageTrainer(LanguageSettings("bitnet", net="bitnet", head="ternary", **TINY))
    score = evaluate((folder / "charlm_bitnet.onnx").read_bytes(), trainer.held_out())
    assert score.nats == figures["nats_exported"] and f"({score.correct} of {score.characters})" in said["accuracy"]
    assert abs(figures["nats_exported"] - figures["nats_pytorch"]) < 1e-3
    first = (folder / "charlm_bitnet.onnx").read_bytes()
    call("--config", "run.toml", "-q", "--resume")
    assert (folder / "charlm_bitnet.onnx").read_bytes() == first
    for words, sentence in (
        (("int4", "--net", "llama"), "tritloom: method of a language model must be one of float, twn,"),
        (("twn", "--net", "llama", "--data", "mnist:x"), "tritloom: data of a language model must be one of text,"),
        (("float",), "tritloom: method must be one of twn,"),
    ):
        assert call(*words, code=1).err.startswith(sentence)
    with pytest.raises(UserError, match=r"^sequence is 400, but the text has only 400 held-out characters; take a shorter one$"):
        training.LanguageTrainer(LanguageSettings("float", sequence=400))
