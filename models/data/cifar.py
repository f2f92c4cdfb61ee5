"""CIFAR-10 from the files of its binary version, which the user has: ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.

A row is a byte of label and 3072 bytes of pixels, red, green and blue planes of 32 x 32. The version for Python is pickled, and is never opened.
"""

from pathlib import Path

import numpy as np

from tritloom.errors import UserError
from tritloom.files import read_bytes
from tritloom.models.data.pictures import Pictures

__all__ = ["load", "read_batch"]

CLASSES = 10
ROW = 1 + 3 * 32 * 32


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file. Raises :class:`UserError` when it is not one."""
    content = np.frombuffer(read_bytes(path, "CIFAR-10 file"), np.uint8)
    if not len(content) or len(content) % ROW:
        raise UserError(f"CIFAR-10 file {str(path)!r} has {len(content)} bytes, no multiple of {ROW}; it must be of the binary version")
    rows = content.reshape(-1, ROW)
    if rows[:, 0].max() >= CLASSES:
        raise UserError(f"CIFAR-10 file {str(path)!r} has a label {rows[:, 0].max()}; labels lie in 0..9")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def load(folder: Path) -> Pictures:
    """Images (N, 3, 32, 32) from 0 to 1 and labels. Raises :class:`UserError` for absent or unfit files."""
    parts = [read_batch(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    test_images, test_labels = read_batch(folder / "test_batch.bin")
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    scaled = [part.astype(np.float32) / np.float32(255) for part in (images, test_images)]
    return Pictures("CIFAR-10, its training rows", scaled[0], labels, scaled[1], test_labels, classes=CLASSES, step=1 / 127, whole=False)
