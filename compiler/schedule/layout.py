"""Where tensors lie in the activation memory: pixel layout and the plan by lifetime.

A tensor (C, H, W) is stored pixel by pixel in (H, W, C) order, one byte a code, each pixel padded to whole activation words, so
that a kernel tap reads whole words. Raw 32-bit tensors take four little-endian bytes a channel. A tensor whose windows are
always the whole tensor (the input of a dense layer) is *packed*: its pixels follow each other without padding and only its end is
padded. Tensors of blocks that no array reads are padded to four bytes a pixel, and a state shares its memory with what it becomes by one column. Every tensor begins on a word. The bytes of the padding are never used and may hold anything. An input of few channels may be
stored as patches instead (:mod:`tritloom.compiler.schedule.patches`): its pixels are those of another tensor with more channels.
"""

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from tritloom.compiler.ir.block import BlockOperation, Store
from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Program, Rescale
from tritloom.compiler.schedule.flat import LoopTop, regions
from tritloom.compiler.schedule.patches import Patches, input_patches, patch_elements, stored_shape
from tritloom.hw.arch.parameters import CoreParameters

__all__ = ["Placement", "busiest_layer", "lifetimes", "place", "tensor_from_bytes", "tensor_to_bytes"]

_GROUP_BYTES = 4
"""What the vector unit reads at once: its tensors need no other alignment."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Bytes of one tensor in the activation memory; ``shape`` is (channels, height, width), as stored unless there are ``patches``."""

    address: int
    pixel_bytes: int
    element_bytes: int
    shape: tuple[int, int, int]
    patches: Patches | None = None

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the stored pixels."""
        return self.shape if self.patches is None else stored_shape(self.patches.window, self.shape)

    @property
    def stored_elements(self) -> np.ndarray | None:
        """Flat index into the tensor of each stored element, -1 for the padding code; ``None`` where the tensor is stored as it is."""
        return None if self.patches is None else patch_elements(self.patches.window, self.shape)

    @property
    def bytes(self) -> int:
        """Bytes from ``address`` to the end of the last pixel."""
        return self.stored_shape[1] * self.stored_shape[2] * self.pixel_bytes


def tensor_to_bytes(placement: Placement, codes: np.ndarray, parameters: CoreParameters) -> bytes:
    """Bytes to write at ``placement.address`` for one tensor (C, H, W); the padding is zero.

    Raises :class:`ValueError` for another shape or a value that does not fit in an element.
    """
    codes = np.asarray(codes)
    channels, height, width = placement.stored_shape
    if codes.shape != placement.shape:
        raise ValueError(f"tensor must have shape {placement.shape}, not {codes.shape}")
    bound = 1 << (8 * placement.element_bytes - 1)
    if codes.size and (codes.min() < -bound or codes.max() >= bound):
        raise ValueError(f"codes must be from {-bound} to {bound - 1}")
    if placement.patches is not None:
        codes = np.append(codes, placement.patches.pad_code)[placement.stored_elements]
    size = -(-placement.bytes // parameters.rows) * parameters.rows
    stored = np.zeros(size, np.uint8)
    pixels = stored[: placement.bytes].reshape(height * width, placement.pixel_bytes)
    elements = np.ascontiguousarray(codes.reshape(channels, -1).T.astype(f"<i{placement.element_bytes}"))
    pixels[:, : channels * placement.element_bytes] = elements.view(np.uint8)
    return stored.tobytes()


def tensor_from_bytes(placement: Placement, data: bytes, parameters: CoreParameters) -> np.ndarray:
    """Inverse of :func:`tensor_to_bytes`: int64 (C, H, W) from at least ``placement.bytes`` bytes read at ``placement.address``."""
    channels, height, width = placement.stored_shape
    if len(data) < placement.bytes:
        raise ValueError(f"data must be at least {placement.bytes} bytes, not {len(data)}")
    pixels = np.frombuffer(data, np.uint8, placement.bytes).reshape(height * width, placement.pixel_bytes)
    elements = np.ascontiguousarray(pixels[:, : channels * placement.element_bytes]).view(f"<i{placement.element_bytes}")
    stored = elements.T.astype(np.int64).ravel()
    if placement.stored_elements is not None:
        indices = placement.stored_elements.ravel()
        tensor = np.zeros(prod(placement.shape), np.int64)
        tensor[indices[indices >= 0]] = stored[indices >= 0]
        return tensor.reshape(placement.shape)
    return stored.reshape(placement.shape)


def _in_place(program: Program) -> dict[str, str]:
    """Tensors that are a state with one column changed, and the state: they share its memory."""
    states = {state.tensor for state in program.states}
    return {
        operation.output: operation.cache for operation in program.operations if isinstance(operation, Store) and operation.cache in states
    }


def _packed(program: Program, tensor: str) -> bool:
    """Whether pixels may follow each other without padding: every whole-word access goes over the whole tensor."""
    shape = program.tensors[tensor].shape
    readers = [operation for operation in program.operations if tensor in operation.inputs]
    bytewise = all(
        isinstance(reader, (Rescale, Add, Copy)) or (isinstance(reader, Convolution) and reader.is_dense(shape)) for reader in readers
    )
    whole_words = any(isinstance(writer, MaxPool) for writer in program.producer(tensor))
    return bytewise and any(isinstance(reader, Convolution) for reader in readers) and not whole_words


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """First and last operation index of a flattened program that needs each tensor; inputs from -1, graph outputs to the end."""
    last = {name: -1 for name in program.tensors}
    first: dict[str, int] = {spec.tensor: -1 for spec in program.inputs}
    end = len(program.operations)
    for index, operation in enumerate(program.operations):
        for name in operation.outputs:
            first.setdefault(name, index)
        for name in (*operation.inputs, *operation.outputs):
            last[name] = index
    for begin, stop in regions(program):
        body = program.operations[begin : stop + 1]
        top = body[0]
        assert isinstance(top, LoopTop)
        for name in {name for operation in body for name in operation.inputs if first.get(name, -1) < begin}:
            last[name] = max(last[name], stop)
        # The top reads what the trip before has left, and what it writes must not lie there.
        for name in (carried.after for carried in top.loop.carried):
            first[name], last[name] = min(first[name], begin), max(last[name], stop)
    last.update({name: end for spec in program.outputs for name in (spec.tensor, spec.scale_tensor) if name})
    for state in program.states:
        first[state.tensor], last[state.tensor], last[state.following] = -1, end, end
    shared = _in_place(program)
    return {name: (first[shared.get(name, name)], last[shared.get(name, name)]) for name in program.tensors if name in first}


def _layouts(program: Program, rows: int) -> tuple[dict[str, Placement], dict[str, int]]:
    """Pixel layout of every tensor, at address 0 as yet, and the bytes that it takes, a multiple of ``rows``."""
    patches = input_patches(program, rows)
    layouts = {}
    in_blocks = any(isinstance(operation, BlockOperation | GridOperation) for operation in program.operations)
    whole_words = {operation.input for operation in program.operations if isinstance(operation, Convolution)}
    for name in lifetimes(program):
        tensor = program.tensors[name]
        element = 4 if tensor.bits > 8 else 1
        unit = 1 if element == 1 and _packed(program, name) else rows
        if in_blocks and name not in whole_words:
            unit = _GROUP_BYTES
        layout = Placement(address=0, pixel_bytes=0, element_bytes=element, shape=tensor.shape, patches=patches.get(name))
        layouts[name] = replace(layout, pixel_bytes=-(-layout.stored_shape[0] * element // unit) * unit)
    return layouts, {name: -(-layout.bytes // rows) * rows for name, layout in layouts.items()}


def busiest_layer(program: Program, rows: int) -> tuple[str, int]:
    """The operation during which most bytes of the activation memory are in use (the first of equals), and how many: no plan needs fewer."""
    alive, (_, sizes) = lifetimes(program), _layouts(program, rows)
    used = [sum(sizes[name] for name, (first, last) in alive.items() if first <= index <= last) for index in range(len(program.operations))]
    most = max(used)
    return program.operations[used.index(most)].name, most


def place(program: Program, rows: int) -> tuple[dict[str, Placement], int]:
    """Placements of all tensors and the bytes they need, a multiple of ``rows``.

    Largest tensors first, each in the smallest gap between the tensors placed already that live at the same time; the order
    and therefore the result depend on the program only.
    """
    alive, (layouts, sizes) = lifetimes(program), _layouts(program, rows)
    placed: dict[str, tuple[int, int]] = {}
    shared = _in_place(program)
    for name in sorted(alive, key=lambda name: -sizes[name]):
        if name in shared:
            continue
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
    placed.update({name: placed[state] for name, state in shared.items()})
    placements = {name: replace(layout, address=placed[name][0]) for name, layout in layouts.items()}
    return placements, max((end for _, end in placed.values()), default=0)
