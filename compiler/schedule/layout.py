"""Where tensors lie in the activation memory: pixel layout and the plan by lifetime.

A tensor (C, H, W) is stored pixel by pixel in (H, W, C) order, one byte a code, each pixel padded to whole activation words, so
that a kernel tap reads whole words. Raw 32-bit tensors take four little-endian bytes a channel. A tensor whose windows are
always the whole tensor (the input of a dense layer) is *packed*: its pixels follow each other without padding and only its end is
padded. Every tensor begins on a word. The bytes of the padding are never used and may hold anything.
"""

from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Rescale
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["Placement", "lifetimes", "place", "tensor_from_bytes", "tensor_to_bytes"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Bytes of one tensor in the activation memory; ``shape`` is (channels, height, width)."""

    address: int
    pixel_bytes: int
    element_bytes: int
    shape: tuple[int, int, int]

    @property
    def bytes(self) -> int:
        """Bytes from ``address`` to the end of the last pixel."""
        return self.shape[1] * self.shape[2] * self.pixel_bytes


def tensor_to_bytes(placement: Placement, codes: np.ndarray, parameters: CoreParameters) -> bytes:
    """Bytes to write at ``placement.address`` for one tensor (C, H, W); the padding is zero.

    Raises :class:`ValueError` for another shape or a value that does not fit in an element.
    """
    codes = np.asarray(codes)
    channels, height, width = placement.shape
    if codes.shape != placement.shape:
        raise ValueError(f"tensor must have shape {placement.shape}, not {codes.shape}")
    bound = 1 << (8 * placement.element_bytes - 1)
    if codes.size and (codes.min() < -bound or codes.max() >= bound):
        raise ValueError(f"codes must be from {-bound} to {bound - 1}")
    size = -(-placement.bytes // parameters.rows) * parameters.rows
    stored = np.zeros(size, np.uint8)
    pixels = stored[: placement.bytes].reshape(height * width, placement.pixel_bytes)
    elements = np.ascontiguousarray(codes.reshape(channels, -1).T.astype(f"<i{placement.element_bytes}"))
    pixels[:, : channels * placement.element_bytes] = elements.view(np.uint8)
    return stored.tobytes()


def tensor_from_bytes(placement: Placement, data: bytes, parameters: CoreParameters) -> np.ndarray:
    """Inverse of :func:`tensor_to_bytes`: int64 (C, H, W) from at least ``placement.bytes`` bytes read at ``placement.address``."""
    channels, height, width = placement.shape
    if len(data) < placement.bytes:
        raise ValueError(f"data must be at least {placement.bytes} bytes, not {len(data)}")
    pixels = np.frombuffer(data, np.uint8, placement.bytes).reshape(height * width, placement.pixel_bytes)
    elements = np.ascontiguousarray(pixels[:, : channels * placement.element_bytes]).view(f"<i{placement.element_bytes}")
    return elements.T.reshape(placement.shape).astype(np.int64)


def is_dense(operation: Operation, shape: tuple[int, int, int]) -> bool:
    """Whether the operation is a convolution whose only window is the whole input (C, H, W), all channels in one group."""
    if not isinstance(operation, Convolution) or operation.groups != 1 or any(operation.window.pads):
        return False
    plain = all(size == 1 or dilation == 1 for size, dilation in zip(operation.window.kernel, operation.window.dilations, strict=True))
    return operation.window.kernel == shape[1:] and plain


def _packed(program: Program, tensor: str) -> bool:
    """Whether pixels may follow each other without padding: every whole-word access goes over the whole tensor."""
    shape = program.tensors[tensor].shape
    readers = [operation for operation in program.operations if tensor in operation.inputs]
    bytewise = all(isinstance(reader, (Rescale, Add, Copy)) or is_dense(reader, shape) for reader in readers)
    whole_words = any(isinstance(writer, MaxPool) for writer in program.producer(tensor))
    return bytewise and any(isinstance(reader, Convolution) for reader in readers) and not whole_words


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """First and last operation index that needs each tensor; inputs from -1, graph outputs to the end."""
    last = {name: -1 for name in program.tensors}
    first: dict[str, int] = {spec.tensor: -1 for spec in program.inputs}
    for index, operation in enumerate(program.operations):
        first.setdefault(operation.output, index)
        for name in (*operation.inputs, operation.output):
            last[name] = index
    last.update({spec.tensor: len(program.operations) for spec in program.outputs})
    return {name: (first[name], last[name]) for name in program.tensors if name in first}


def place(program: Program, rows: int) -> tuple[dict[str, Placement], int]:
    """Placements of all tensors and the bytes they need, a multiple of ``rows``.

    Largest tensors first, each in the smallest gap between the tensors placed already that live at the same time; the order
    and therefore the result depend on the program only.
    """
    alive = lifetimes(program)
    layouts = {}
    for name in alive:
        tensor = program.tensors[name]
        element = 4 if tensor.bits > 8 else 1
        unit = 1 if element == 1 and _packed(program, name) else rows
        pixel = -(-tensor.shape[0] * element // unit) * unit
        layouts[name] = Placement(address=0, pixel_bytes=pixel, element_bytes=element, shape=tensor.shape)
    sizes = {name: -(-layout.bytes // rows) * rows for name, layout in layouts.items()}
    placed: dict[str, tuple[int, int]] = {}
    for name in sorted(alive, key=lambda name: -sizes[name]):
        taken = sorted(
            (start, end)
            for other, (start, end) in placed.items()
            if alive[other][0] <= alive[name][1] and alive[name][0] <= alive[other][1]
        )
        best, position, smallest = None, 0, None
        for start, end in taken:
            gap = start - position
            if gap >= sizes[name] and (smallest is None or gap < smallest):
                best, smallest = position, gap
            position = max(position, end)
        address = position if best is None else best
        placed[name] = (address, address + sizes[name])
    placements = {
        name: Placement(address=placed[name][0], pixel_bytes=layout.pixel_bytes, element_bytes=layout.element_bytes, shape=layout.shape)
        for name, layout in layouts.items()
    }
    return placements, max((end for _, end in placed.values()), default=0)
