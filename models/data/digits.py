"""The 8x8 handwritten digits of scikit-learn (``load_digits``; UCI "Optical Recognition of Handwritten Digits").

The split is by row number: the original set lists writers one after another, so the last rows come from other
hands than the first ones, and a shuffled split would flatter every result.
"""

from dataclasses import dataclass

import numpy as np

from tritloom.errors import MissingToolError

__all__ = ["CLASSES", "TRAIN_ROWS", "Digits", "load"]

CLASSES = 10
TRAIN_ROWS = 1400
"""Rows 0..1399 are for training, rows 1400..1796 (397 of them) are held out."""


@dataclass(frozen=True)
class Digits:
    """Images float32 (N, 1, 8, 8) with whole values from 0 to 16, labels int64 (N,) from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> Digits:
    """Read the data set from the installed scikit-learn. Raises :class:`MissingToolError` where that is absent."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingToolError("the digits data set comes with scikit-learn; install it with: pip install 'tritloom[models]'") from error
    rows, digits = load_digits(return_X_y=True)
    images = np.asarray(rows, np.float32).reshape(-1, 1, 8, 8)
    labels = np.asarray(digits, np.int64)
    return Digits(images[:TRAIN_ROWS], labels[:TRAIN_ROWS], images[TRAIN_ROWS:], labels[TRAIN_ROWS:])
