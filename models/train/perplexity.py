"""What the file of a language model reaches on held-out characters, judged by ONNX Runtime; needs no PyTorch."""

from dataclasses import dataclass

import numpy as np
import onnxruntime

from tritloom.models.nets.decoder_export import INPUT

__all__ = ["Score", "evaluate", "windows"]


@dataclass(frozen=True)
class Score:
    """Mean ``nats`` a character, and how many of the ``characters`` were the most likely one."""

    nats: float
    correct: int
    characters: int


def windows(held_out: np.ndarray, sequence: int) -> np.ndarray:
    """Character codes, int64 (windows, sequence + 1), one behind the other: each begins with the last character of the one before. A short rest is left out."""
    count = (len(held_out) - 1) // sequence
    return held_out[np.arange(count)[:, None] * sequence + np.arange(sequence + 1)]


def evaluate(model: bytes, rows: np.ndarray) -> Score:
    """The score on rows of :func:`windows`, each from an empty cache."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    state = {
        entry.name: np.zeros([size if isinstance(size, int) else 0 for size in entry.shape], np.float32)
        for entry in session.get_inputs()
        if entry.name != INPUT
    }
    nats, correct = 0.0, 0
    for row in rows:
        logits = np.asarray(session.run(["logits"], {INPUT: row[None, :-1], **state})[0])[0].astype(np.float64)
        found = logits - logits.max(1, keepdims=True)
        found -= np.log(np.exp(found).sum(1, keepdims=True))
        nats -= float(found[np.arange(len(found)), row[1:]].sum())
        correct += int((found.argmax(1) == row[1:]).sum())
    characters = rows[:, 1:].size
    return Score(nats / characters, correct, characters)
