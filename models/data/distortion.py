"""Small random distortions of images, in NumPy."""

import numpy as np

__all__ = ["distort"]


def distort(images: np.ndarray, rng: np.random.Generator, *, shift: float, rotation: float, stretch: float) -> np.ndarray:
    """Each image (N, H, W) rotated by up to ``rotation`` radians, stretched by up to the share ``stretch`` and moved by up to ``shift`` pixels.

    Pixels are interpolated between their four neighbours in float64, with 0 outside, and rounded to whole numbers, int64, half to even.
    """
    count, height, width = images.shape
    angle, factor = rng.uniform(-rotation, rotation, count), 1 + rng.uniform(-stretch, stretch, (2, count))
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    y, x = np.meshgrid(np.arange(height) - centre[0], np.arange(width) - centre[1], indexing="ij")
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    moved = rng.uniform(-shift, shift, (2, count))[:, :, None, None]
    down = (cosine * y - sine * x) * factor[0][:, None, None] + centre[0] + moved[0]
    across = (sine * y + cosine * x) * factor[1][:, None, None] + centre[1] + moved[1]
    top, left = np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)
    framed = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    total = np.zeros(images.shape)
    for row, row_share in ((top, 1 - (down - top)), (top + 1, down - top)):
        for column, share in ((left, 1 - (across - left)), (left + 1, across - left)):
            inside = framed[np.arange(count)[:, None, None], np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)]
            total += inside * row_share * share
    return np.rint(total).astype(np.int64)
