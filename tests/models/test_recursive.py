"""Tiny Recursive Models: the network against a plain one in NumPy, the file against the network, training. Needs ``pip install 'tritloom[train]'``."""

import json
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import onnx
import onnxruntime
import pytest

from tritloom.cli.main import main
from tritloom.errors import UserError
from tritloom.models import zoo
from tritloom.models.data.puzzles import load_puzzles
from tritloom.models.nets.recursion import PRESETS, Preset, RecursiveShape
from tritloom.models.nets.recursive_export import INPUT, OUTPUTS, recursive_model
from tritloom.models.train.recursion_settings import RECURSION_METHODS, RecursionSettings

pytestmark = pytest.mark.training

MIXER = RecursiveShape.of(Preset(16, prefix=2, heads=0, multiple=8, n=2, cycles=2, supervision=3), 9, 4)
ATTENTION = replace(MIXER, heads=2, prefix=1)


@pytest.fixture(scope="module")
def torch():
    module = import_module("torch")
    module.set_num_threads(1)
    return module


def made(torch, shape, method, seed=0):
    """A network whose heads say something."""
    torch.manual_seed(seed)
    net = import_module("tritloom.models.nets.recursive").RecursiveNet(shape, method).eval()
    with torch.no_grad():
        net.halt_head.weight.normal_(std=0.2)
        net.halt_head.bias.fill_(-0.1)
        net.prefix.normal_()
    return net


@pytest.mark.parametrize(("name", "cells", "symbols", "low", "high"), [
    ("trm-mlp", 81, 11, 4.95e6, 5.1e6), ("trm-attention", 81, 11, 6.75e6, 6.9e6), ("trm-sudoku4", 16, 5, 81_025, 81_025),
])  # fmt: skip
def test_parameters_of_the_presets(torch, name, cells, symbols, low, high):
    """Counted on the meta device, which allocates nothing: 5.0 and 6.8 million, as the paper says."""
    with torch.device("meta"):
        net = import_module("tritloom.models.nets.recursive").RecursiveNet(RecursiveShape.of(PRESETS[name], cells, symbols), "bitnet")
    assert low <= sum(parameter.numel() for parameter in net.parameters()) <= high


def rms(h: np.ndarray) -> np.ndarray:
    return h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)


def swiglu(x: np.ndarray, state: dict, name: str) -> np.ndarray:
    both = x @ state[f"{name}.gate_up.weight"].T
    a, b = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
    return (a / (1 + np.exp(-a)) * b) @ state[f"{name}.down.weight"].T


def attention(x: np.ndarray, state: dict, name: str, heads: int) -> np.ndarray:
    tokens, features = x.shape
    width = features // heads
    qkv = (x @ state[f"{name}.qkv.weight"].T).reshape(tokens, 3, heads, width)
    found = np.zeros((tokens, heads, width))
    for head in range(heads):
        q, k = qkv[:, 0, head].copy(), qkv[:, 1, head].copy()
        for part in (q, k):
            for t in range(tokens):
                for i in range(width // 2):
                    angle = t * 10_000.0 ** (-2 * i / width)
                    a, b = part[t, i], part[t, i + width // 2]
                    part[t, i], part[t, i + width // 2] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        scores = np.exp(q @ k.T / np.sqrt(width))
        found[:, head] = scores / scores.sum(1, keepdims=True) @ qkv[:, 2, head]
    return found.reshape(tokens, features) @ state[f"{name}.out.weight"].T


def plain_step(net, puzzle: np.ndarray, y: np.ndarray, z: np.ndarray):
    """One supervision step of one puzzle with float weights, in float64 and without any of the project's code."""
    shape, state = net.shape, {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}

    def f(h: np.ndarray) -> np.ndarray:
        for index in range(shape.blocks):
            name = f"blocks.{index}"
            if shape.heads:
                h = rms(h + attention(h, state, f"{name}.tokens", shape.heads))
            else:
                h = rms(h.T + swiglu(h.T, state, f"{name}.tokens")).T
            h = rms(h + swiglu(h, state, f"{name}.channels"))
        return h

    x = np.concatenate([state["prefix"], state["embedding"][puzzle]])
    for _ in range(shape.cycles):
        for _ in range(shape.n):
            z = f(z + y + x)
        y = f(y + z)
    logits = y[shape.prefix :] @ state["answer_head.weight"].T
    return logits, (y[0] @ state["halt_head.weight"].T + state["halt_head.bias"])[0], y, z


@pytest.mark.parametrize("shape", [MIXER, ATTENTION, replace(MIXER, n=1, cycles=1, cells=1, prefix=1, symbols=2)])
def test_a_step_by_hand(torch, shape):
    net = made(torch, shape, "float", seed=3)
    puzzle = np.random.default_rng(1).integers(0, shape.symbols, (2, shape.cells))
    with torch.no_grad():
        found = net(torch.from_numpy(puzzle), *net.start(2))
    start = [np.tile(vector.double().numpy(), (shape.tokens, 1)) for vector in (net.y0, net.z0)]
    for row in range(2):
        logits, halt, y, z = plain_step(net, puzzle[row], *start)
        for value, wanted in ((found.logits, logits), (found.y, y), (found.z, z), (found.halt, halt)):
            np.testing.assert_allclose(value[row].numpy(), wanted, atol=2e-4)


def test_calls_and_gradient(torch):
    """The network is applied ``cycles * (n + 1)`` times; the gradient enters the last cycle only, so what stands before it gets none."""
    for cycles in (1, 3):
        net = made(torch, replace(MIXER, cycles=cycles), "bitnet")
        calls = []
        net.blocks[0].register_forward_hook(lambda module, inputs, output, calls=calls: calls.append(output.requires_grad))
        y, z = (state.requires_grad_() for state in net.start(2))
        answer = net(torch.zeros(2, 9, dtype=torch.int64), y, z)
        assert calls == [False] * (cycles - 1) * 3 + [True] * 3
        answer.logits.square().sum().backward()
        assert (y.grad is None) == (cycles > 1) and not answer.y.requires_grad
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "halt_head" not in n)


def test_states_and_embedding_lie_on_their_grids(torch):
    net = made(torch, MIXER, "bitnet")
    with torch.no_grad():
        net.embedding[0, 0] = 9.0
        found = net(torch.zeros(2, 9, dtype=torch.int64), *net.start(2))
        x = net.embed(torch.zeros(2, 9, dtype=torch.int64))
    for value, step in ((found.y, 1 / 2048), (found.z, 1 / 2048), (net.y0, 1 / 2048), (x, 1 / 32)):
        codes = value.numpy() / step
        assert (codes == np.rint(codes)).all() and np.abs(codes).max() < 32768
    assert x[0, 2, 0] == 127 / 32 and np.abs(found.y.numpy()).max() <= 4.001


def test_a_puzzle_does_not_see_its_neighbours(torch):
    net, puzzles = made(torch, ATTENTION, "bitnet"), torch.arange(18).reshape(2, 9) % 4
    both, one = net.every_step(puzzles)[0], net.every_step(puzzles[1:])[0]
    torch.testing.assert_close(both.logits[1:], one.logits)


def run(model: onnx.ModelProto, puzzle: np.ndarray, optimise: str = "ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimise)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(list(OUTPUTS), {INPUT: row[None]}) for row in puzzle]


@pytest.mark.parametrize("optimise", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("method", RECURSION_METHODS)
@pytest.mark.parametrize("shape", [MIXER, ATTENTION])
def test_the_file_computes_the_network(torch, shape, method, optimise):
    """Every exit of the outer loop is taken; with quantisers a rounding may fall to the other side, which untrained networks amplify: the median is judged."""
    net = made(torch, shape, method, seed=1)
    puzzles = np.random.default_rng(5).integers(0, 4, (40, 9))
    steps = net.every_step(torch.from_numpy(puzzles))
    halt, logits = (np.stack([getattr(step, name).numpy() for step in steps]) for name in ("halt", "logits"))
    with torch.no_grad():
        net.halt_head.bias.add_(-float(np.quantile(halt[0], 0.6)))  # so that some rows halt at once and some late
    halt = halt - np.float32(np.quantile(halt[0], 0.6))
    model = recursive_model("net", shape, net.exported(), metadata={})
    rows = np.arange(len(puzzles))
    last = np.where((halt > 0).any(0), (halt > 0).argmax(0), shape.supervision - 1)
    assert len(set(last)) >= 2
    found = run(model, puzzles, optimise)
    same = np.array([int(row[2]) for row in found]) == last + 1
    errors = np.array([np.abs(row[0][0] - logits[end, at]).max() for row, end, at in zip(found, last, rows, strict=True)])
    halt_errors = np.array([abs(row[1][0] - halt[end, at]) for row, end, at in zip(found, last, rows, strict=True)])
    if method == "float":
        assert same.all() and errors.max() < 2e-3 and halt_errors.max() < 2e-3
    else:
        assert same.mean() >= 0.9 and np.median(errors) < 0.1 and np.median(halt_errors) < 0.1


def test_the_file_holds_integers_and_shares_weights(torch):
    """Each matrix stands in the file once, as trits or int8; the same network gives the same bytes."""
    net = made(torch, MIXER, "bitnet")
    model = recursive_model("net", MIXER, net.exported(), metadata={"b": "1", "a": "2"})
    assert model.SerializeToString() == recursive_model("net", MIXER, net.exported(), metadata={"b": "1", "a": "2"}).SerializeToString()
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    matrices = {name: array for name, array in stored.items() if name.endswith(".weights")}
    assert len(matrices) == 2 * 4 + 2 and all(array.dtype == np.int8 for array in matrices.values())
    for name, array in matrices.items():
        assert (set(np.unique(array)) <= {-1, 0, 1}) == name.startswith("block"), name
    loops = [node for node in model.graph.node if node.op_type == "Loop"]
    assert len(loops) == 1 and not any(attribute.g.initializer for attribute in loops[0].attribute)
    assert sum(array.nbytes for array in stored.values() if array.dtype == np.float32 and array.size > 64) == 0


def packaged(torch):
    """The network of the zoo's file, made from its integers."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(zoo.path("trm_sudoku4")).graph.initializer}
    shape = RecursiveShape.of(PRESETS["trm-sudoku4"], 16, 5)
    net = made(torch, shape, "bitnet")
    base = import_module("tritloom.models.methods").WeightQuantiser

    class Stored(base):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.found = torch.from_numpy(stored[f"{name}.weights"].T.astype(np.float32)), torch.tensor(stored[f"{name}.weight_scale"])

        def codes(self, weight):
            return self.found

    for name, layer in net.named_modules():
        if hasattr(layer, "activations"):
            number = re.sub(r"^blocks\.(\d)", lambda found: f"block{int(found[1]) + 1}", name)
            layer.weights = Stored(number)
    with torch.no_grad():
        table = torch.from_numpy(np.concatenate([stored["prefix"][0], stored["embedding"]])) / 32
        net.prefix.copy_(table[:1])
        net.embedding.copy_(table[1:])
        net.halt_head.bias.fill_(float(stored["halt_head.bias"]))
        for state in ("y0", "z0"):
            getattr(net, state).copy_(torch.from_numpy(stored[f"{state}.codes"][0, 0] / 2048))
    return net


def test_the_packaged_network_and_its_file(torch):
    """200 held-out puzzles: the same answers after as many steps, logits within 0.2 (a state may move by 1/2048 and an int8 code by one)."""
    net, data = packaged(torch), load_puzzles("sudoku4", seed=0)
    puzzles = data.test[:200]
    steps = net.every_step(torch.from_numpy(puzzles))
    halt, logits = (np.stack([getattr(step, name).numpy() for step in steps]) for name in ("halt", "logits"))
    last = np.where((halt > 0).any(0), (halt > 0).argmax(0), 5)
    found = run(onnx.load(zoo.path("trm_sudoku4")), puzzles)
    assert [int(row[2]) for row in found] == (last + 1).tolist()
    for row, end, at in zip(found, last, range(200), strict=True):
        assert np.array_equal(row[0][0].argmax(1), logits[end, at].argmax(1))
        assert np.abs(row[0][0] - logits[end, at]).max() < 0.2
    assert (logits[-1].argmax(2) == data.test_answers[:200]).all(1).mean() >= 0.98


SMALL = RecursionSettings("bitnet", epochs=3, steps=3, batch=8, puzzles=64, held_out=16)


def trainer_of(settings: RecursionSettings):
    data = load_puzzles(settings.data, count=settings.puzzles, held_out=settings.held_out, seed=settings.seed)
    return import_module("tritloom.models.train.recursion").RecursionTrainer(settings, data)


def test_a_resumed_training_gives_the_same_bytes(torch):
    """Interrupted after each epoch; the rows in flight, their counts and states, and the mean weights all come back."""
    whole = trainer_of(SMALL)
    while whole.epoch < 3:
        whole.run_epoch()
    saved, parts = None, None
    for _ in range(3):
        parts = trainer_of(SMALL)
        if saved is not None:
            parts.resume(saved)
        parts.run_epoch()
        saved = parts.checkpoint()
    assert parts.history == whole.history
    assert parts.model("net", {}).SerializeToString() == whole.model("net", {}).SerializeToString()
    other = trainer_of(replace(SMALL, seed=1))
    with pytest.raises(UserError, match=r"^the checkpoint was made with seed = 0, not 1; use the same settings"):
        other.resume(saved)
    other.run_epoch()
    assert other.history[0] != whole.history[0]


def test_mean_weights_and_rows(torch):
    """Without decay the mean is the last weights; a row is replaced when it has had all its steps, and keeps its puzzle until then."""
    trainer = trainer_of(replace(SMALL, decay=0.0, steps=1, epochs=20))
    seen = trainer.rows["puzzles"].clone()
    for number in range(1, 8):
        trainer.run_epoch()
        same = (trainer.rows["puzzles"] == seen).all(1)
        if number < trainer.shape.supervision:
            assert same.all() and (trainer.rows["done"] == number).all()
        elif number == trainer.shape.supervision:
            assert not same.all() and (trainer.rows["done"] == 0).all()
            torch.testing.assert_close(trainer.rows["y"], trainer.net.start(8)[0])
    for mean, weight in zip(trainer.mean.parameters(), trainer.net.parameters(), strict=True):
        assert torch.equal(mean, weight)


def test_rows_halt_where_the_head_says_so(torch):
    trainer = trainer_of(replace(SMALL, batch=600))
    with torch.no_grad():
        trainer.net.halt_head.bias.fill_(5.0)
    least = trainer.rows["least"].clone()
    assert 30 <= (least > 0).sum() <= 100 and set(least[least > 0].tolist()) == {2, 3, 4, 5, 6}
    trainer.settings = replace(trainer.settings, steps=1)
    trainer.run_epoch()
    assert (trainer.rows["done"] == torch.where(least > 1, 1, 0)).all()


def test_training_learns_and_leaves_files(torch, tmp_path, monkeypatch, capsys):
    """From the command line, in less than a minute: cells are learned long before whole puzzles are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("steps = 20\nbatch = 32\nepochs = 2\nheld_out = 40\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "bitnet", "--net", "trm-sudoku4", "--data", "sudoku4", "--config", "run.toml", "--json", "-q"])
    said = capsys.readouterr()
    assert (stopped.value.code or 0) == 0, said.err
    figures = json.loads(said.out)
    folder = tmp_path / "trm_sudoku4"
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.npz", "checkpoint.pt", "metrics.json", "training.svg", "trm_sudoku4.onnx",
    ]  # fmt: skip
    assert figures["history"][1]["loss"] < 0.9 * figures["history"][0]["loss"]
    assert len(figures["solved_after_step"]) == 6 and figures["held_out_rows"] == 40 and figures["parameters"] == 81_025
    assert figures["onnxruntime"]["same_steps"] == 40
    assert dict(np.load(folder / "calibration.npz"))[INPUT].shape == (256, 16)


@pytest.mark.parametrize(("data", "net"), [("sudoku9", "trm-small"), ("maze", "trm-small-attention")])
def test_other_configurations_run(torch, data, net):
    trainer = trainer_of(RecursionSettings("bitnet", net=net, data=data, epochs=1, steps=1, batch=2, puzzles=2, held_out=1))
    entry = trainer.run_epoch()
    assert np.isfinite(entry["loss"]) and trainer.net.shape.cells == {"sudoku9": 81, "maze": 121}[data]
    model = trainer.model("net", {})
    assert run(model, trainer.data.test)[0][0].shape == (1, trainer.data.cells, trainer.data.symbols)
