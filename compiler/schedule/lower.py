"""Integer operations to instructions, weight words and requantisation records."""

import numpy as np

from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Rescale, StepFunction, SumPool
from tritloom.compiler.schedule.contents import MemoryContents
from tritloom.compiler.schedule.copies import lower_copy
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.matrix import lower_convolution, lower_sum_pool
from tritloom.compiler.schedule.nest import Axis, build
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Instruction, Opcode

__all__ = ["Lowering", "count_macs"]

LARGEST_SIZE = 1 << 14
"""Largest height or width: coordinates have 16 bits, and those of the padding must fit as well."""


def count_macs(program: Program, operation: Operation) -> int:
    """Multiply-accumulates of one inference, each once however many digit planes its weight has; 0 for other operations."""
    if not isinstance(operation, Convolution):
        return 0
    _, height, width = program.tensors[operation.output].shape
    return int(operation.weights.size) * height * width


class Lowering:
    """Collects what the core's memories hold while :meth:`lower` is called operation by operation.

    Weight words and record tables that are equal are stored once.

    Parameters
    ----------
    program, placements
        The integer program and the place of each tensor.
    rows, columns, encoding, post_lanes
        Shape of the array, the weight encoding, and the lanes of the post unit.

    Attributes
    ----------
    weights, records
        Encoded weight words, uint8 (words, bytes of a word), and the bytes of the record memory.
    """

    def __init__(
        self, *, program: Program, placements: dict[str, Placement], rows: int, columns: int, encoding: str, post_lanes: int
    ) -> None:
        self._program, self._placements = program, placements
        self._contents = MemoryContents(rows=rows, columns=columns, encoding=encoding, lanes=post_lanes)

    @property
    def weights(self) -> np.ndarray:
        return self._contents.weights

    @property
    def records(self) -> bytes:
        return self._contents.records

    def lower(self, operation: Operation) -> list[Instruction]:
        """Instructions of one operation. Raises :class:`ModelError` for one that the core cannot do."""
        for name in (*operation.inputs, operation.output):
            _, height, width = self._program.tensors[name].shape
            if max(height, width) > LARGEST_SIZE:
                raise ModelError(
                    f"layer {operation.name!r}: tensor {name!r} is {height}x{width}; the core addresses at most {LARGEST_SIZE} rows and columns"
                )
        for name in operation.inputs:
            if self._placements[name].element_bytes != 1:
                raise ModelError(f"layer {operation.name!r} reads the raw accumulators {name!r}; only a graph output may be raw")
        if isinstance(operation, Convolution):
            return list(lower_convolution(self._contents, operation, *self._places(operation)))
        if isinstance(operation, SumPool):
            return list(lower_sum_pool(self._contents, operation, *self._places(operation)))
        if isinstance(operation, MaxPool):
            return [self._max_pool(operation)]
        if isinstance(operation, Rescale):
            return [self._elementwise(operation, operation.input, None, operation.step, operation.channel_offset)]
        if isinstance(operation, Add):
            return [self._elementwise(operation, operation.left, operation.right, operation.step, 0)]
        if isinstance(operation, Copy):
            return list(lower_copy(self._contents, operation, *self._places(operation)))
        raise ModelError(f"layer {operation.name!r}: the core has no instruction for {type(operation).__name__}")

    def _places(self, operation: Convolution | SumPool | MaxPool | Copy) -> tuple[Placement, Placement]:
        """Of the operation's input and of its output."""
        return self._placements[operation.input], self._placements[operation.output]

    def _max_pool(self, operation: MaxPool) -> Instruction:
        source, target = self._places(operation)
        window = operation.window
        (kernel_y, kernel_x), (dilation_y, dilation_x), (stride_y, stride_x) = window.kernel, window.dilations, window.strides
        _, height, width = source.shape
        _, out_height, out_width = target.shape
        y, x = -window.pads[0], -window.pads[1]
        bottom = y + (out_height - 1) * stride_y + (kernel_y - 1) * dilation_y
        right = x + (out_width - 1) * stride_x + (kernel_x - 1) * dilation_x
        padded = y < 0 or x < 0 or bottom >= height or right >= width
        pixel, line = source.pixel_bytes, source.pixel_bytes * width
        axes = [
            Axis(count=kernel_x, reduces=True, strides={"a": dilation_x * pixel, "x": dilation_x}),
            Axis(count=kernel_y, reduces=True, strides={"a": dilation_y * line, "y": dilation_y}),
            Axis(count=pixel // self._contents.rows, strides={"a": self._contents.rows, "o": self._contents.rows}),
            Axis(count=out_width, strides={"a": stride_x * pixel, "o": target.pixel_bytes, "x": stride_x}),
            Axis(count=out_height, strides={"a": stride_y * line, "o": target.pixel_bytes * out_width, "y": stride_y}),
        ]
        return build(
            Opcode.POOL,
            axes,
            f"layer {operation.name!r}",
            padded=padded,
            a=source.address + y * line + x * pixel,
            o=target.address,
            y=y if padded else 0,
            x=x if padded else 0,
            height=height if padded else 0,
            width=width if padded else 0,
        )

    def _elementwise(self, operation: Operation, left: str, right: str | None, step: StepFunction, channel_offset: int) -> Instruction:
        first, target = self._placements[left], self._placements[operation.output]
        second = self._placements[right] if right is not None else None
        channels, height, width = first.shape
        shared = all(pieces == step.records[0] for pieces in step.records)
        wide = (
            self._contents.aligned(first, target, *([second] if second is not None else [])) and channel_offset % self._contents.lanes == 0
        )
        if channels % self._contents.lanes and len(self._program.producer(operation.output)) > 1:
            wide = False  # a last group of lanes would reach into the channels of another operation
        lanes = self._contents.lanes if wide else 1
        strides = {"a": lanes, "o": lanes, "p": 0 if shared else step.pieces}
        pixel = {"a": first.pixel_bytes, "o": target.pixel_bytes}
        if second is not None:
            strides["b"], pixel["b"] = lanes, second.pixel_bytes
        return build(
            Opcode.ELEMENTWISE,
            [Axis(count=-(-channels // lanes), strides=strides), Axis(count=height * width, strides=pixel)],
            f"layer {operation.name!r}",
            two_operands=second is not None,
            wide=wide,
            a=first.address,
            b=second.address if second is not None else 0,
            o=target.address + channel_offset,
            p=self._contents.store_records(step.records[:1] * lanes if shared else step.records, wide=wide),
            records=step.pieces,
            low=step.low,
            high=step.high,
        )
