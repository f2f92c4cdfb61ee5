"""What the training of a recursive network leaves behind: the model with its origin written in it, samples of its input, and figures."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from tritloom.models.nets.recursive_export import INPUT, OUTPUTS
from tritloom.models.train.recursion import RecursionTrainer

__all__ = ["SAMPLES", "finish", "halted"]

SAMPLES = 256
"""Training puzzles that are stored beside the model."""


def halted(model: bytes, puzzles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ONNX Runtime says of puzzles int64 (N, cells), one by one: logits (N, cells, symbols), halting logits (N,), steps int64 (N,)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = [session.run(list(OUTPUTS), {INPUT: puzzle[None]}) for puzzle in puzzles]
    return tuple(
        np.stack([np.asarray(row[index]) for row in found]).reshape(len(found), *kind)
        for index, kind in enumerate(((puzzles.shape[1], -1), (), ()))
    )  # type: ignore[return-value]


def finish(trainer: RecursionTrainer, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
    """The ONNX file, samples of its input by name, and the figures, of a training that has run its epochs."""
    data, settings = trainer.data, trainer.settings
    rows = len(data.test)
    plain = trainer.model(name, {}).SerializeToString(deterministic=True)
    logits, _, steps = halted(plain, data.test)
    trained = trainer.answers(data.test)
    right = int((logits.argmax(2) == data.test_answers).all(1).sum())
    method = "float32" if settings.method == "float" else f"{settings.method} weights, 8-bit activations"
    metadata = {
        "training": command,
        "seed": str(settings.seed),
        "method": f"Tiny Recursive Model (arXiv 2510.04871), {method}",
        "data": data.name,
        "accuracy": f"{right / rows:.4f} ({right} of {rows})",
        "pytorch": torch.__version__.split("+")[0],
    }
    model = trainer.model(name, metadata)
    integers = [onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer if entry.name.endswith((".weights", ".weight"))]
    rates = trainer.rates()
    count = sum(array.size for array in integers)
    figures = {
        "name": name,
        "settings": settings.as_dict(),
        "held_out_rows": rows,
        "correct_pytorch": rates.pop("solved_halting"),
        "correct_onnxruntime": right,
        "accuracy": right / rows,
        **rates,
        "onnxruntime": {
            "same_answers": int((logits.argmax(2) == trained[0].argmax(2)).all(1).sum()),
            "same_steps": int((steps == trained[2]).sum()),
            "largest_difference_of_logits": float(np.abs(logits - trained[0])[steps == trained[2]].max(initial=0)),
        },
        "parameters": sum(parameter.numel() for parameter in trainer.net.parameters()),
        "weights": count,
        "zeros": sum(int((array == 0).sum()) for array in integers) / count,
        "history": trainer.history,
    }
    return model.SerializeToString(deterministic=True), {INPUT: data.train[:SAMPLES]}, figures
