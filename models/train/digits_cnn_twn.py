"""Trains ``digits_cnn_twn``: a ternary CNN for the 8x8 digits of scikit-learn, with Ternary Weight Networks.

::

    pip install 'tritloom[train]'
    python -m tritloom.models.train.digits_cnn_twn --output digits_cnn_twn.onnx --seed 0

One thread and deterministic algorithms: the same seed on the same kind of processor with the same PyTorch gives the same file.
Progress goes to stderr, the result as JSON to stdout.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from tritloom.models.data.digits import Digits, load
from tritloom.models.nets.cnn import ACTIVATION_SCALE, INPUT_SCALE, POOLED, DigitsCnn
from tritloom.models.nets.export import image_classifier
from tritloom.models.train import augmentation
from tritloom.models.train.supervised import train_classifier

__all__ = ["EPOCHS", "accuracy", "export", "main", "train"]

EPOCHS = 100
BATCH = 50
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.05
SHIFT = 0.5
ROTATION = 0.1
STRETCH = 0.06


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Distorted by up to :data:`ROTATION` radians, :data:`STRETCH` and :data:`SHIFT` pixels; values stay whole, like those of the data set."""
    return augmentation.augment(images, generator, shift=SHIFT, rotation=ROTATION, stretch=STRETCH, whole=True)


def train(data: Digits, *, seed: int, epochs: int = EPOCHS, progress: Callable[[int, float], None] | None = None) -> DigitsCnn:
    """Train on the training rows only; AdamW, learning rate falling along a cosine, straight-through gradients.

    Parameters
    ----------
    data
        The digits; the held-out rows are not looked at.
    seed
        Seeds the weights, the order of the images and their augmentation.
    epochs
        Passes over the training rows.
    progress
        Called after each epoch with the epoch (from 1) and the mean loss.

    Returns
    -------
    DigitsCnn
        In evaluation mode.
    """
    return train_classifier(
        DigitsCnn, data.train_images, data.train_labels, augment, seed=seed, epochs=epochs, batch=BATCH, learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY, label_smoothing=LABEL_SMOOTHING, progress=progress,
    )  # fmt: skip


def export(net: DigitsCnn, data: Digits, *, seed: int, epochs: int) -> onnx.ModelProto:
    """The ONNX model of a trained network; its metadata say how it was made and how many held-out rows ONNX Runtime gets right."""

    def model(**metadata: str) -> onnx.ModelProto:
        return image_classifier(
            "digits_cnn_twn",
            net.folded(),
            size=8,
            pooled=POOLED,
            input_scale=INPUT_SCALE,
            activation_scale=ACTIVATION_SCALE,
            metadata=metadata,
        )

    rows = len(data.test_labels)
    correct = accuracy(model().SerializeToString(), data.test_images, data.test_labels)
    return model(
        training=f"python -m tritloom.models.train.digits_cnn_twn --seed {seed} --epochs {epochs}",
        seed=str(seed),
        method="TWN (arXiv 1605.04711), one scale per output channel",
        data="scikit-learn load_digits, rows 0..1399; accuracy on the other rows",
        accuracy=f"{correct / rows:.4f} ({correct} of {rows})",
        pytorch=torch.__version__.split("+")[0],
        licence="Apache-2.0",
    )


def accuracy(model: bytes, images: np.ndarray, labels: np.ndarray) -> int:
    """Images that ONNX Runtime classifies as their label says."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"image": images})[0])
    return int((logits.argmax(axis=1) == labels).sum())


def main(arguments: list[str] | None = None) -> None:
    """Command line of this script."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parser = argparse.ArgumentParser(
        prog="python -m tritloom.models.train.digits_cnn_twn", description="Train a ternary CNN for 8x8 digits."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ONNX file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default 0)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the training rows (default {EPOCHS})")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {options.epochs}")

    data = load()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=options.epochs, loss=math.nan)
        net = train(
            data, seed=options.seed, epochs=options.epochs, progress=lambda epoch, loss: progress.update(task, completed=epoch, loss=loss)
        )

    with torch.no_grad():
        trained = int((net(torch.from_numpy(data.test_images)).argmax(1).numpy() == data.test_labels).sum())
    rows = len(data.test_labels)
    model = export(net, data, seed=options.seed, epochs=options.epochs).SerializeToString(deterministic=True)
    exported = accuracy(model, data.test_images, data.test_labels)
    options.output.write_bytes(model)
    trits = np.concatenate([layer.trits.ravel() for layer in net.folded()])
    result = {
        "model": str(options.output),
        "seed": options.seed,
        "epochs": options.epochs,
        "held_out_rows": rows,
        "correct_pytorch": trained,
        "correct_onnxruntime": exported,
        "accuracy": exported / rows,
        "correct_training_rows": accuracy(model, data.train_images, data.train_labels),
        "weights": int(trits.size),
        "zeros": float((trits == 0).mean()),
    }
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
