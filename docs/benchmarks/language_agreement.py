"""Compares a compiled language model with its float model on held-out text, token by token.

::

    python docs/benchmarks/language_agreement.py MODEL.onnx

Windows of :data:`LENGTH` characters at random places (seed 0) of the last tenth of ``pydoc_data.topics``. Printed are the nats a character of both, how often their
likeliest next characters are the same, and the root mean square of the difference of the logits over their standard deviation. The same of the float model and of itself
with gains and scales of outputs that are off by 1/10 000 shows how far rounding can be told from chance: quantisers of few levels make much of little.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import tritloom
from tritloom.models.data import text

WINDOWS, LENGTH = 24, 96


def nats(logits: np.ndarray, following: np.ndarray) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, following[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(shifted).sum(axis=-1)) - chosen).mean())


def logits(source: bytes, rows: np.ndarray) -> np.ndarray:
    """Of the float model, float32 (rows, S, vocabulary)."""
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    shapes = {given.name: [size if isinstance(size, int) else 0 for size in given.shape] for given in session.get_inputs()[1:]}
    past = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return np.concatenate([np.asarray(session.run(["logits"], {"input_ids": row[None], **past})[0]) for row in rows])


def disturbed(source: bytes) -> bytes:
    """The model with every float of a list multiplied by 1 plus a normal deviate of 1e-4 (seed 0)."""
    model, rng = onnx.ModelProto.FromString(source), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 1 and tensor.dims[0] > 1:
            values = numpy_helper.to_array(tensor)
            changed = values * (1 + 1e-4 * rng.normal(size=values.shape))
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
    return model.SerializeToString()


def report(name: str, floats: np.ndarray, other: np.ndarray, following: np.ndarray) -> None:
    difference = np.sqrt(((floats - other) ** 2).mean()) / floats.std()
    print(f"float {nats(floats, following):.4f}, {name} {nats(other, following):.4f} nats a character")
    print(
        f"same likeliest character: {(floats.argmax(-1) == other.argmax(-1)).mean():.2%}; logits differ by {difference:.2%} of their deviation"
    )


def main() -> None:
    source = Path(sys.argv[1]).read_bytes()
    held_out = text.load("topics").held_out
    starts = np.random.default_rng(0).integers(0, len(held_out) - LENGTH - 1, WINDOWS)
    rows = np.stack([held_out[start : start + LENGTH + 1] for start in starts])
    floats = logits(source, rows[:, :-1])
    (golden,) = tritloom.InferenceSession(source).run(["logits"], {"input_ids": rows[:, :-1]})
    report("golden", floats, golden, rows[:, 1:])
    report("disturbed", floats, logits(disturbed(source), rows[:, :-1]), rows[:, 1:])


if __name__ == "__main__":
    main()
