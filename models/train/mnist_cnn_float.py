"""Trains ``mnist_cnn_float``: a float CNN for 28x28 handwritten digits, to be ternarised without retraining.

::

    pip install 'tritloom[train]'
    python -m tritloom.models.train.mnist_cnn_float --data mnist10k.npz --output mnist_cnn_float.onnx --seed 0

``--data`` is an ``.npz`` file with ``images`` uint8 (N, 28, 28) and ``labels`` uint8 (N,), in an order that means nothing. The last tenth
is held out, the two tenths before it are left for calibration and for the choice of digit planes, the rest trains.

One thread and deterministic algorithms: the same seed on the same kind of processor with the same PyTorch gives the same file.
Progress goes to stderr, the result as JSON to stdout.
"""

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tritloom.errors import UserError
from tritloom.models.nets.export import IR_VERSION, OPSET
from tritloom.models.train import augmentation
from tritloom.models.train.supervised import train_classifier

__all__ = ["EPOCHS", "Mnist", "accuracy", "export", "load", "main", "network", "train"]

EPOCHS = 25
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.05
SHIFT = 1.5
ROTATION = 0.15
STRETCH = 0.08
CHANNELS = (16, 32, 32)
POOLED_SIZE = 3
"""Height and width behind three 2x2 poolings of 28, 14 and 7 pixels."""


@dataclass(frozen=True)
class Mnist:
    """Images float32 (N, 1, 28, 28) from 0 to 1, labels int64 (N,) from 0 to 9; the part between the two is not used here."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(path: Path) -> Mnist:
    """Read the file: seven tenths of the rows for training, the last tenth held out. Raises :class:`UserError` for another file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz file with the arrays images and labels: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != (len(images),) or len(images) < 10:
        raise UserError(f"{path} must hold images uint8 (N, 28, 28) and labels (N,), not {images.dtype} {images.shape} and {labels.shape}")
    pixels = images[:, None].astype(np.float32) / np.float32(255)
    numbers = labels.astype(np.int64)
    last, first = len(images) - len(images) // 10, len(images) * 7 // 10
    return Mnist(pixels[:first], numbers[:first], pixels[last:], numbers[last:])


def network() -> nn.Sequential:
    """Three times a 3x3 convolution, batch normalisation, Relu and 2x2 maximum pooling, and a dense head."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * POOLED_SIZE**2, 10))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image rotated by up to :data:`ROTATION` radians, stretched by up to :data:`STRETCH` and moved by up to :data:`SHIFT` pixels."""
    return augmentation.augment(images, generator, shift=SHIFT, rotation=ROTATION, stretch=STRETCH, whole=False)


def train(data: Mnist, *, seed: int, epochs: int = EPOCHS, progress: Callable[[int, float], None] | None = None) -> nn.Sequential:
    """Train on the training rows only; AdamW, learning rate falling along a cosine. The network is in evaluation mode.

    ``seed`` is that of the weights, the order of the images and their distortion. ``progress`` is called after each epoch
    with the epoch (from 1) and the mean loss.
    """
    return train_classifier(
        network, data.train_images, data.train_labels, augment, seed=seed, epochs=epochs, batch=BATCH, learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY, label_smoothing=LABEL_SMOOTHING, progress=progress,
    )  # fmt: skip


def export(net: nn.Sequential, metadata: dict[str, str]) -> bytes:
    """The ONNX file: input ``image`` (N, 1, 28, 28), output ``logits`` (N, 10), float32, batch normalisation folded in."""
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    value = "image"

    def node(operator: str, name: str, weights: np.ndarray | None = None, bias: np.ndarray | None = None, **attributes: Any) -> str:
        inputs = [value]
        if weights is not None and bias is not None:
            inputs += [f"{name}.weight", f"{name}.bias"]
            arrays = (np.ascontiguousarray(array, np.float32) for array in (weights, bias))
            tensors.extend(numpy_helper.from_array(array, label) for label, array in zip(inputs[1:], arrays, strict=True))
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    modules = list(net)
    for index in range(len(CHANNELS)):
        convolution, norm = modules[4 * index : 4 * index + 2]
        state = {name: tensor.double().numpy() for name, tensor in norm.state_dict().items()}
        gain = state["weight"] / np.sqrt(state["running_var"] + 1e-5)
        weights = convolution.state_dict()["weight"].double().numpy() * gain[:, None, None, None]
        name = f"conv{index + 1}"
        value = node("Conv", name, weights, state["bias"] - state["running_mean"] * gain, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value = node("Relu", f"{name}.relu")
        value = node("MaxPool", f"pool{index + 1}", kernel_shape=[2, 2], strides=[2, 2])
    value = node("Flatten", "flatten")
    head = modules[-1].state_dict()
    node("Gemm", "logits", head["weight"].numpy(), head["bias"].numpy(), transB=1)
    graph = helper.make_graph(
        nodes,
        "mnist_cnn_float",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        initializer=tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tritloom")
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def accuracy(model: bytes, images: np.ndarray, labels: np.ndarray) -> int:
    """Images that ONNX Runtime classifies as their label says."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return int((np.asarray(session.run(["logits"], {"image": images})[0]).argmax(axis=1) == labels).sum())


def main(arguments: list[str] | None = None) -> None:
    """Command line of this script."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parser = argparse.ArgumentParser(
        prog="python -m tritloom.models.train.mnist_cnn_float", description="Train a float CNN for 28x28 digits."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="images uint8 (N, 28, 28) and labels (N,)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ONNX file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and distortion (default 0)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training rows (default {EPOCHS})")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {options.epochs}")
    try:
        data = load(options.data)
    except UserError as error:
        parser.error(str(error))
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=options.epochs, loss=math.nan)
        net = train(
            data, seed=options.seed, epochs=options.epochs, progress=lambda epoch, loss: progress.update(task, completed=epoch, loss=loss)
        )
    rows = len(data.test_labels)
    correct = accuracy(export(net, {}), data.test_images, data.test_labels)
    model = export(
        net,
        {
            "training": f"python -m tritloom.models.train.mnist_cnn_float --data mnist10k.npz "
            f"--seed {options.seed} --epochs {options.epochs}",
            "seed": str(options.seed),
            "data": f"{len(data.train_labels)} rows of a subset of MNIST's training set; accuracy on its last tenth, {rows} rows",
            "accuracy": f"{correct / rows:.4f} ({correct} of {rows})",
            "pytorch": torch.__version__.split("+")[0],
            "method": "float32, without quantisers",
            "licence": "Apache-2.0",
        },
    )
    options.output.write_bytes(model)
    result = {
        "model": str(options.output),
        "seed": options.seed,
        "epochs": options.epochs,
        "held_out_rows": rows,
        "correct_onnxruntime": correct,
        "accuracy": correct / rows,
        "correct_training_rows": accuracy(model, data.train_images, data.train_labels),
        "weights": sum(tensor.numel() for name, tensor in net.state_dict().items() if name.endswith("weight") and tensor.dim() > 1),
    }
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
