"""Labelled pictures of a fixed size, split into rows for training and rows held out; and the data sets by name."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritloom.errors import UserError

__all__ = ["DATA_SETS", "Pictures", "load_pictures"]

DATA_SETS = ("digits", "digits:random[:SEED]", "mnist:PATH", "fashion-mnist:PATH", "cifar10:PATH")
"""What :func:`load_pictures` understands."""


@dataclass(frozen=True)
class Pictures:
    """Images float32 (N, C, H, W), labels int64 (N,) below ``classes``; ``step`` is that of a grid of the codes 0..127 which holds every pixel.

    ``whole`` says that pixels are whole numbers, and stay so when an image is distorted.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    step: float
    whole: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load_pictures(data: str) -> Pictures:
    """``digits``, or the name of a data set, a colon, and where the user has its files; see :mod:`tritloom.models.data.mnist` and :mod:`tritloom.models.data.cifar`.

    ``digits`` holds out other writers, ``digits:random`` and ``digits:random:3`` rows of a random permutation of seed 0 and 3.
    Raises :class:`UserError` for another name or unreadable files, :class:`MissingToolError` for the digits without scikit-learn.
    """
    from tritloom.models.data import cifar, digits, mnist

    name, colon, path = data.partition(":")
    if name == "digits" and (split := re.fullmatch(r"(?::(random)(?::(\d{1,9}))?)?", colon + path, re.ASCII)):
        seed = int(split[2] or 0)
        found = digits.load(split[1] or "writers", seed=seed)
        images = (found.train_images, found.train_labels, found.test_images, found.test_labels)
        rows = f"1400 rows of a random permutation of seed {seed}" if split[1] else "rows 0..1399"
        return Pictures(f"scikit-learn load_digits, {rows}", *images, classes=digits.CLASSES, step=1 / 4, whole=True)
    if colon and path and name in ("mnist", "fashion-mnist"):
        return mnist.load(Path(path), name)
    if colon and path and name == "cifar10":
        return cifar.load(Path(path))
    raise UserError(f"data must be one of {', '.join(DATA_SETS)}, not {data!r}")
