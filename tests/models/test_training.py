"""The training script and the network it trains: ``pytest -m training`` after ``pip install 'tritloom[train]'``.

What needs no PyTorch (the TWN rule, the ONNX writer, the packaged model) is tested by default, in the files beside this one.
"""

import json
from importlib import import_module

import numpy as np
import onnx
import onnxruntime
import pytest

from tritloom.models.data.digits import load
from tritloom.models.methods.twn import ternarise

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def torch():
    return import_module("torch")


@pytest.fixture(scope="module")
def cnn():
    """The network's module, which imports PyTorch."""
    return import_module("tritloom.models.nets.cnn")


@pytest.fixture(scope="module")
def digits_cnn_twn():
    """The training script, which imports PyTorch."""
    return import_module("tritloom.models.train.digits_cnn_twn")


def test_one_epoch_from_the_command_line(digits_cnn_twn, tmp_path, capsys):
    """Learns something, says what it did, and does the same again."""
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        digits_cnn_twn.main(["--output", str(file), "--seed", "3", "--epochs", "1"])
    result = json.loads(capsys.readouterr().out.split("}")[0] + "}")
    assert result["held_out_rows"] == 397 and result["weights"] == 25744
    assert 0.2 < result["zeros"] < 0.6
    assert result["accuracy"] > 0.5 and abs(result["correct_pytorch"] - result["correct_onnxruntime"]) <= 2
    assert files[0].read_bytes() == files[1].read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(files[0]).metadata_props}
    assert metadata["training"].endswith("--seed 3 --epochs 1") and f"({result['correct_onnxruntime']} of 397)" in metadata["accuracy"]


def test_other_seed_other_network(digits_cnn_twn, tmp_path):
    data = load()
    nets = [digits_cnn_twn.train(data, seed=seed, epochs=1) for seed in (0, 1)]
    assert any((a.trits != b.trits).any() for a, b in zip(nets[0].folded(), nets[1].folded(), strict=True))


def test_epochs_must_be_positive(digits_cnn_twn, tmp_path, capsys):
    with pytest.raises(SystemExit):
        digits_cnn_twn.main(["--output", str(tmp_path / "a.onnx"), "--epochs", "0"])
    assert "--epochs must be at least 1, not 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_export_computes_what_was_trained(torch, cnn, digits_cnn_twn):
    """Logits of ONNX Runtime and PyTorch agree, also where a normalisation has a negative gain."""
    torch.manual_seed(0)
    data = load()
    net = cnn.DigitsCnn()
    with torch.no_grad():
        for norm in net.norms:
            norm.weight[::3] *= -1
            norm.bias.uniform_(-0.5, 0.5)
        net.train()
        for _ in range(30):  # statistics of the normalisations
            net(torch.from_numpy(data.train_images[:100]))
        net.eval()
        expected = net(torch.from_numpy(data.test_images)).numpy()
    model = digits_cnn_twn.export(net, data, seed=0, epochs=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": data.test_images})[0]
    spread = expected.std()
    assert np.median(np.abs(logits - expected)) < 0.1 * spread  # biases are rounded in the file, so a code may differ here and there
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.95


def test_straight_through_gradients(torch, cnn):
    """The weight gradient is that of the ternary weights, unchanged; the input gradient sees the ternary weights."""
    torch.manual_seed(1)
    layer = cnn.TernaryLinear(6, 3)
    x = torch.randn(5, 6, requires_grad=True)
    upstream = torch.randn(5, 3)
    output = layer(x)
    output.backward(upstream)
    trits, scale = ternarise(layer.weight.detach())
    ternary = trits * scale[:, None]
    torch.testing.assert_close(output, x.detach() @ ternary.T + layer.bias)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x.detach())
    torch.testing.assert_close(x.grad, upstream @ ternary)


def test_activation_quantiser(torch, cnn):
    """Half to even, clamped to 0..127 steps; the gradient passes inside only."""
    step = cnn.ACTIVATION_SCALE
    x = torch.tensor([-1.0, 0.49, 0.5, 1.5, 2.5, 126.6, 127.4, 500.0]) * step
    x.requires_grad_(True)
    y = cnn.quantise(x, step)
    assert (y.detach() / step).tolist() == [0, 0, 0, 2, 2, 127, 127, 127]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_augmentation_keeps_the_grid(torch, digits_cnn_twn):
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(load().train_images[:200])
    moved = digits_cnn_twn.augment(images, generator)
    assert moved.shape == images.shape and (moved == moved.round()).all() and 0 <= moved.min() and moved.max() <= 16
    assert 0.2 < (moved != images).float().mean() < 0.9
    ratio = moved.sum() / images.sum()
    assert 0.8 < ratio < 1.2


def test_mnist_float_from_the_command_line(torch, tmp_path, capsys):
    """On made-up images: it learns them, ONNX Runtime and PyTorch agree, and the same seed gives the same file."""
    script = import_module("tritloom.models.train.mnist_cnn_float")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400).astype(np.uint8)
    images = np.repeat(np.repeat(rng.integers(0, 256, (10, 7, 7)), 4, axis=1), 4, axis=2)[labels].astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        script.main(["--data", str(tmp_path / "data.npz"), "--output", str(file), "--seed", "3", "--epochs", "5"])
    result = json.loads(capsys.readouterr().out.split("}")[0] + "}")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert result["held_out_rows"] == 40 and result["accuracy"] > 0.8
    data = script.load(tmp_path / "data.npz")
    assert len(data.train_labels) == 280
    net = script.train(data, seed=3, epochs=1)
    (logits,) = onnxruntime.InferenceSession(script.export(net, {})).run(None, {"image": data.test_images})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(torch.from_numpy(data.test_images)).numpy(), rtol=1e-3, atol=1e-3)
    with pytest.raises(SystemExit):
        script.main(["--data", str(files[0]), "--output", str(tmp_path / "c.onnx")])
    assert "is not an .npz file" in capsys.readouterr().err and not (tmp_path / "c.onnx").exists()
