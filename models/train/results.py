"""What a training leaves behind: the model with its origin written in it, samples of its input, and figures."""

from typing import Any

import numpy as np
import onnx
import torch

from tritloom.models.nets.classifier import INPUT
from tritloom.models.train.accuracy import correct
from tritloom.models.train.loop import Trainer

__all__ = ["SAMPLES", "correct", "finish"]

SAMPLES = 256
"""Training images that are stored beside the model."""


def finish(trainer: Trainer, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
    """The ONNX file, samples of its input by name, and the figures, of a training that has run its epochs."""
    data, settings = trainer.data, trainer.settings
    from tritloom.models.methods.recipes import recipe

    rows = len(data.test_labels)
    plain = trainer.model(name, {}).SerializeToString(deterministic=True)
    right = correct(plain, data.test_images, data.test_labels)
    model = trainer.model(
        name,
        {
            "training": command,
            "seed": str(settings.seed),
            "method": recipe(settings.method).title,
            "data": data.name,
            "accuracy": f"{right / rows:.4f} ({right} of {rows})",
            "pytorch": torch.__version__.split("+")[0],
        },
    )
    integers = [
        onnx.numpy_helper.to_array(entry)
        for entry in model.graph.initializer
        if entry.name.endswith(".weights") and ".rotation" not in entry.name
    ]
    figures = {
        "name": name,
        "settings": settings.as_dict(),
        "held_out_rows": rows,
        "correct_pytorch": trainer.correct(),
        "correct_onnxruntime": right,
        "accuracy": right / rows,
        "weights": sum(array.size for array in integers),
        "zeros": float(sum((array == 0).sum() for array in integers)) / sum(array.size for array in integers),
        "history": trainer.history,
    }
    return model.SerializeToString(deterministic=True), {INPUT: data.train_images[:SAMPLES]}, figures
