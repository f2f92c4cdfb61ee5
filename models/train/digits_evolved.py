"""Evolves ``digits_evolved``: a layered ternary network for the 8x8 digits of scikit-learn, without gradients, in integers.

::

    python -m tritloom.models.train.digits_evolved --output digits_evolved.onnx --seed 0

Needs no PyTorch. The same seed gives the same file. Progress goes to stderr, the result as JSON to stdout.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from tritloom.files import write_bytes
from tritloom.models.data.digits import CLASSES, Digits, load
from tritloom.models.data.distortion import distort
from tritloom.models.methods.layered import LayeredNet, evolve, random_net
from tritloom.models.nets.classifier import Grid, Stage, classifier
from tritloom.models.nets.export import FoldedLayer

__all__ = ["GENERATIONS", "correct", "evolve_digits", "export", "main", "recipe"]

GENERATIONS = 120_000
ROUND = 2_500
"""Generations between two draws of distorted images."""

HIDDEN = 128
MARGIN = 96
SHIFT = 0.5
ROTATION = 0.1
STRETCH = 0.06
HIGHEST_PIXEL = 16


def recipe() -> dict[str, float]:
    """What decides the result beside data and seed."""
    return {
        "generations": GENERATIONS, "round": ROUND, "hidden": HIDDEN, "margin": MARGIN, "shift": SHIFT, "rotation": ROTATION, "stretch": STRETCH,
    }  # fmt: skip


def evolve_digits(
    data: Digits, *, seed: int, generations: int = GENERATIONS, progress: Callable[[int, int], None] | None = None
) -> LayeredNet:
    """A network evolved on the training rows and, anew every :data:`ROUND` generations, on distorted copies of them.

    ``progress`` is called with generation and loss after each round.
    """
    images = data.train_images[:, 0].astype(np.int64)
    labels = np.tile(data.train_labels, 2)
    rng = np.random.default_rng([seed, 2])
    net = random_net(images[0].size, HIDDEN, CLASSES, seed=seed)
    for start in range(0, generations, ROUND):
        moved = distort(images, rng, shift=SHIFT, rotation=ROTATION, stretch=STRETCH)
        x = np.concatenate([images, moved]).reshape(2 * len(images), -1)
        count = min(ROUND, generations - start)
        net, losses = evolve(net, x, labels, generations=count, seed=int(rng.integers(1 << 62)), margin=MARGIN)
        if progress is not None:
            progress(start + count, losses[-1])
    return net


def correct(net: LayeredNet, images: np.ndarray, labels: np.ndarray) -> int:
    """Images that the network classifies as their label says."""
    return int((net.logits(images.reshape(len(images), -1).astype(np.int64)).argmax(1) == labels).sum())


def export(net: LayeredNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The ONNX model, which computes the same integers: ``floor(a / 8)`` is ``round((a - 3.5) / 8)``, never a tie."""
    step = 2**net.shift
    first = FoldedLayer(net.first, np.ones(len(net.first), np.float32), np.full(len(net.first), -(step - 1) / 2, np.float32))
    second = FoldedLayer(net.second, np.full(len(net.second), 1 / step, np.float32), np.zeros(len(net.second), np.float32))
    stages = [Stage(Grid(1.0, 0, HIGHEST_PIXEL), first), Stage(Grid(float(step), 0, net.top), second)]
    return classifier("digits_evolved", stages, shape=(1, 8, 8), metadata=metadata)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m tritloom.models.train.digits_evolved", description="Evolve a layered ternary network for 8x8 digits."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ONNX file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--generations", type=int, default=GENERATIONS, help=f"children made (default {GENERATIONS})")
    options = parser.parse_args(arguments)
    if options.generations < 1 or options.seed < 0:
        parser.error("--generations must be at least 1 and --seed at least 0")
    data = load()

    def tell(generation: int, loss: int) -> None:
        print(f"generation {generation} of {options.generations}: loss {loss}", file=sys.stderr)

    net = evolve_digits(data, seed=options.seed, generations=options.generations, progress=tell)
    rows, right = len(data.test_labels), correct(net, data.test_images, data.test_labels)
    model = export(
        net,
        {
            "training": f"python -m tritloom.models.train.digits_evolved --seed {options.seed} --generations {options.generations}",
            "seed": str(options.seed),
            "method": "(1+1) evolution of trits with neutral drift, integers only",
            "data": "scikit-learn load_digits, rows 0..1399; accuracy on the other rows",
            "accuracy": f"{right / rows:.4f} ({right} of {rows})",
            "licence": "Apache-2.0",
        },
    )
    write_bytes(options.output, model.SerializeToString(deterministic=True))
    result = {
        "model": str(options.output),
        "seed": options.seed,
        "generations": options.generations,
        "held_out_rows": rows,
        "correct": right,
        "accuracy": right / rows,
        "correct_training_rows": correct(net, data.train_images, data.train_labels),
        "weights": net.first.size + net.second.size,
    }
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
