"""Compares a compiled language model with its float model on held-out text, token by token.

::

    python docs/benchmarks/language_agreement.py MODEL.onnx

Windows of :data:`LENGTH` characters at random places (seed 0) of the last tenth of ``pydoc_data.topics``. Printed are the nats a character of both, how often their
likeliest next characters are the same, and the root mean square of the difference of the logits over their standard deviation.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import tritloom
from tritloom.models.data import text

WINDOWS, LENGTH = 24, 96


def nats(logits: np.ndarray, following: np.ndarray) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, following[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(shifted).sum(axis=-1)) - chosen).mean())


def main() -> None:
    source = Path(sys.argv[1]).read_bytes()
    held_out = text.load("topics").held_out
    starts = np.random.default_rng(0).integers(0, len(held_out) - LENGTH - 1, WINDOWS)
    rows = np.stack([held_out[start : start + LENGTH + 1] for start in starts])
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    shapes = {given.name: [size if isinstance(size, int) else 0 for size in given.shape] for given in session.get_inputs()[1:]}
    past = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    floats = np.concatenate([np.asarray(session.run(["logits"], {"input_ids": row[None, :-1], **past})[0]) for row in rows])
    (golden,) = tritloom.InferenceSession(source).run(["logits"], {"input_ids": rows[:, :-1]})
    difference = np.sqrt(((floats - golden) ** 2).mean()) / floats.std()
    print(f"float {nats(floats, rows[:, 1:]):.4f}, golden {nats(golden, rows[:, 1:]):.4f} nats a character")
    print(
        f"same likeliest character: {(floats.argmax(-1) == golden.argmax(-1)).mean():.2%}; logits differ by {difference:.2%} of their deviation"
    )


if __name__ == "__main__":
    main()
