"""How many pictures a model gets right; needs no PyTorch."""

import numpy as np
import onnxruntime

from tritloom.models.nets.classifier import INPUT

__all__ = ["correct"]


def correct(model: bytes, images: np.ndarray, labels: np.ndarray) -> int:
    """Images that ONNX Runtime classifies as their label says."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = [np.asarray(session.run(None, {INPUT: images[start : start + 500]})[0]).argmax(1) for start in range(0, len(images), 500)]
    return int((np.concatenate(found) == labels).sum())
