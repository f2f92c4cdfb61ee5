"""Small random distortions of training images."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augment"]


def augment(images: Tensor, generator: torch.Generator, *, shift: float, rotation: float, stretch: float, whole: bool) -> Tensor:
    """Each image rotated by up to ``rotation`` radians, stretched by up to the share ``stretch`` and moved by up to ``shift`` pixels.

    Images (N, C, H, W) of any device, square; pixels from outside are 0. Values are rounded to whole numbers where ``whole`` says that they were. ``generator`` is
    of the CPU, so that every device sees the same distortions.
    """
    count, size = len(images), images.shape[-1]

    def spread(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1) * limit

    angle, factor = spread(rotation), 1 + spread(stretch, 2)
    turned = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], 1).reshape(count, 2, 2)
    matrix = torch.cat([turned * factor[:, None], spread(shift * 2 / size, 2)[:, :, None]], 2).to(images.device)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return moved.round() if whole else moved
