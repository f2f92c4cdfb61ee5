"""Inputs stored as patches: the taps of a convolution with few input channels lie side by side in the lanes of the array.

A first layer with one or three channels would use one or three lanes of a word for each tap. Where the host writes the tensor anyway, it
writes what one output pixel reads as one pixel of many channels: all taps of the window, or those of one row or one column. The layer then has
fewer taps, or one, and the convolution stays exact: it is the same sum.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from tritloom.compiler.ir.program import Convolution, Program, Window

__all__ = ["Patches", "input_patches", "patch_elements", "remaining_weights", "remaining_window", "stored_shape"]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The part of a convolution's window that is stored with every pixel, and the code outside the input."""

    window: Window
    pad_code: int


@lru_cache(maxsize=8)  # the same for every sample
def patch_elements(window: Window, shape: tuple[int, int, int]) -> np.ndarray:
    """Element of the tensor (C, H, W), or -1 outside of it, of each channel of each stored pixel: int64 (channels, rows, columns).

    Channel ``(c * kernel height + ky) * kernel width + kx`` of pixel (y, x) is what tap (ky, kx) of output pixel (y, x) reads of channel c.
    """
    channels, height, width = shape
    rows, columns = window.output_size(height, width)
    taps = np.indices(window.kernel)
    grid = np.indices((rows, columns))
    y, x = (
        taps[axis][..., None, None] * window.dilations[axis] + grid[axis] * window.strides[axis] - window.pads[axis] for axis in range(2)
    )
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    elements = np.arange(channels)[:, None, None, None, None] * height * width + y * width + x
    result = np.where(inside, elements, -1).reshape(-1, rows, columns)
    result.flags.writeable = False
    return result


def stored_shape(window: Window, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, rows and columns of the pixels that are stored for a tensor (C, H, W)."""
    return (shape[0] * prod(window.kernel), *window.output_size(*shape[1:]))


def remaining_window(window: Window, stored: Window) -> Window:
    """What is left of a convolution's window when ``stored`` is in the pixels."""
    whole = [stored.kernel[axis] == window.kernel[axis] for axis in range(2)]
    top, left, bottom, right = window.pads
    return Window(
        kernel=(1 if whole[0] else window.kernel[0], 1 if whole[1] else window.kernel[1]),
        strides=(1 if whole[0] else window.strides[0], 1 if whole[1] else window.strides[1]),
        dilations=(1 if whole[0] else window.dilations[0], 1 if whole[1] else window.dilations[1]),
        pads=(0 if whole[0] else top, 0 if whole[1] else left, 0 if whole[0] else bottom, 0 if whole[1] else right),
    )


def remaining_weights(weights: np.ndarray, stored: Window) -> np.ndarray:
    """Weights (outputs, C, kernel height, kernel width) for :func:`remaining_window`, taps in ``stored`` as further channels."""
    outputs, channels, *kernel = weights.shape
    (kept_y, kept_x), (y, x) = stored.kernel, (size // part for size, part in zip(kernel, stored.kernel, strict=True))
    split = weights.reshape(outputs, channels, y, kept_y, x, kept_x)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(outputs, channels * kept_y * kept_x, y, x)


def input_patches(program: Program, rows: int) -> dict[str, Patches]:
    """Inputs that take fewer clocks as patches on an array of ``rows`` inputs, without taking more memory.

    Every element must be stored, so that the tensor can be read back.
    """
    found: dict[str, Patches] = {}
    for name in sorted({spec.tensor for spec in program.inputs} - {spec.tensor for spec in program.outputs}):
        readers = [operation for operation in program.operations if name in operation.inputs]
        if len(readers) != 1 or not isinstance(readers[0], Convolution) or readers[0].groups != 1 or program.producer(name):
            continue
        layer, shape = readers[0], program.tensors[name].shape
        if layer.is_dense(shape):
            continue  # packed, which wastes no lane at all
        words = -(-shape[0] // rows)
        fewest, memory = words * prod(layer.window.kernel), words * shape[1] * shape[2]
        for part in _parts(layer.window):
            channels, height, width = stored_shape(part, shape)
            words = -(-channels // rows)
            taps = prod(remaining_window(layer.window, part).kernel)
            if words * taps < fewest and words * height * width <= memory and _stores_all(part, shape):
                found[name], fewest = Patches(window=part, pad_code=layer.pad_code), words * taps
    return found


def _parts(window: Window) -> list[Window]:
    """The whole window, one row of it, and one column of it; the other axis of the last two stays a loop."""
    (height, width), (top, left, bottom, right) = window.kernel, window.pads
    (stride_y, stride_x), (dilation_y, dilation_x) = window.strides, window.dilations
    parts = [window] if height * width > 1 else []
    if height > 1 and width > 1:
        parts.append(Window(kernel=(1, width), strides=(1, stride_x), dilations=(1, dilation_x), pads=(0, left, 0, right)))
        parts.append(Window(kernel=(height, 1), strides=(stride_y, 1), dilations=(dilation_y, 1), pads=(top, 0, bottom, 0)))
    return parts


def _stores_all(window: Window, shape: tuple[int, int, int]) -> bool:
    """Whether every element of the tensor (C, H, W) lies in some patch; judged axis by axis, as sizes may come from a damaged file."""
    for axis, outputs in enumerate(window.output_size(*shape[1:])):
        stored = np.zeros(shape[1 + axis], bool)
        for tap in range(window.kernel[axis]):
            places = tap * window.dilations[axis] - window.pads[axis] + window.strides[axis] * np.arange(outputs)
            stored[places[(places >= 0) & (places < len(stored))]] = True
        if not stored.all():
            return False
    return True
