"""Integer operations to instructions, weight words and requantisation records."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Rescale, StepFunction, SumPool, Window
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import MAX_ITERATIONS, Axis, affine_prefix, build
from tritloom.compiler.schedule.patches import remaining_weights, remaining_window
from tritloom.errors import ModelError
from tritloom.hw.arch.isa import Instruction, Opcode
from tritloom.hw.arch.record import RECORD_BYTES, START_MIN, Record
from tritloom.hw.arch.trits import digit_planes, encode_trits

__all__ = ["Lowering", "count_macs"]

MAX_COPY_INSTRUCTIONS = 1000
LARGEST_SIZE = 1 << 14
"""Largest height or width: coordinates are 16 bits, with room for padding."""


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
        self._rows, self._columns, self._encoding, self._lanes = rows, columns, encoding, post_lanes
        self._blocks: list[np.ndarray] = []
        self._block_starts: dict[bytes, int] = {}
        self._weight_words = 0
        self._records = bytearray()
        self._record_starts: dict[bytes, int] = {}

    @property
    def weights(self) -> np.ndarray:
        word = encode_trits(np.zeros((1, self._rows * self._columns), np.int8), self._encoding).shape[1]
        return np.concatenate([np.zeros((0, word), np.uint8), *self._blocks])

    @property
    def records(self) -> bytes:
        return bytes(self._records)

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
            return list(self._convolution(operation))
        if isinstance(operation, SumPool):
            return list(self._sum_pool(operation))
        if isinstance(operation, MaxPool):
            return [self._max_pool(operation)]
        if isinstance(operation, Rescale):
            return [self._elementwise(operation, operation.input, None, operation.step, operation.channel_offset)]
        if isinstance(operation, Add):
            return [self._elementwise(operation, operation.left, operation.right, operation.step, 0)]
        if isinstance(operation, Copy):
            return list(self._copy(operation))
        raise ModelError(f"layer {operation.name!r}: the core has no instruction for {type(operation).__name__}")

    def _store_weights(self, trits: np.ndarray) -> int:
        """First word of int8 (words, rows * columns), stored unless the same words are there."""
        block = encode_trits(trits, self._encoding)
        key = block.tobytes()
        if key not in self._block_starts:
            self._block_starts[key] = self._weight_words
            self._blocks.append(block)
            self._weight_words += len(block)
        return self._block_starts[key]

    def _store_records(self, records: tuple[tuple[Record, ...], ...], *, wide: bool) -> int:
        """First word of a table with equally many pieces a channel, stored unless the same table is there.

        The records of a ``wide`` instruction lie side by side, those of neighbouring channels in a word; of another one in lane 0.
        """
        lanes, used = self._lanes, self._lanes if wide else 1
        nothing = bytes(RECORD_BYTES)
        words = []
        for first in range(0, len(records), used):
            group = records[first : first + used]
            for piece in range(len(group[0])):
                stored = [pieces[piece].to_bytes() for pieces in group]
                words.append(b"".join([*stored, *[nothing] * (lanes - len(stored))]))
        key = b"".join(words)
        if key not in self._record_starts:
            self._record_starts[key] = len(self._records) // (RECORD_BYTES * lanes)
            self._records += key
        return self._record_starts[key]

    def _aligned(self, *placements: Placement) -> bool:
        """Whether every pixel begins at a multiple of the lanes of the post unit, of which there are several."""
        pixels = (place.pixel_bytes if place.shape[1] * place.shape[2] > 1 else 0 for place in placements)
        return self._lanes > 1 and all(pixel % self._lanes == 0 for pixel in pixels)

    def _convolution(self, operation: Convolution) -> Iterator[Instruction]:
        source, target = self._placements[operation.input], self._placements[operation.output]
        weights, window = np.asarray(operation.weights), operation.window
        if operation.is_dense(source.shape) and source.pixel_bytes % self._rows:
            # A packed input is one long pixel in (H, W, C) order.
            elements = source.bytes
            weights = weights.transpose(0, 2, 3, 1).reshape(len(weights), elements, 1, 1)
            source = Placement(
                address=source.address, pixel_bytes=-(-elements // self._rows) * self._rows, element_bytes=1, shape=(elements, 1, 1)
            )
            window = Window()
        if source.patches is not None:
            weights = remaining_weights(weights, source.patches.window)
            window = remaining_window(window, source.patches.window)
            source = replace(source, shape=source.stored_shape, patches=None)
        outputs, group_inputs = weights.shape[:2]
        group_outputs = outputs // operation.groups
        first_lane = np.arange(outputs) // group_outputs * group_inputs

        def block(first: int, last: int, word: int, words: int) -> np.ndarray:
            dense = np.zeros((self._columns, words * self._rows, *window.kernel), np.int16)
            for column, output in enumerate(range(first, last)):
                lane = first_lane[output] - word * self._rows
                dense[column, lane : lane + group_inputs] = weights[output]
            digits = digit_planes(dense, operation.planes)[::-1]
            return digits.reshape(operation.planes, self._columns, words, self._rows, -1).transpose(0, 4, 2, 1, 3)

        yield from self._matrix(
            operation, source, target, window, operation.step, (0, target.shape[1], 0, target.shape[2]),
            lanes=(first_lane, first_lane + group_inputs), block=block, planes=operation.planes, pad_code=operation.pad_code, shared_taps=False,
        )  # fmt: skip

    def _sum_pool(self, operation: SumPool) -> Iterator[Instruction]:
        lanes = np.arange(self._placements[operation.input].shape[0])

        def block(first: int, last: int, word: int, words: int) -> np.ndarray:
            # Columns beyond the last channel get ones too: they are never written, and more tiles share their words.
            trits = np.zeros((1, 1, words, self._columns, self._rows), np.int8)
            for column in range(self._columns):
                place, lane = divmod(first + column - word * self._rows, self._rows)
                if place < words:
                    trits[0, 0, place, column, lane] = 1
            return trits

        for region, step in operation.regions:
            yield from self._matrix(
                operation, self._placements[operation.input], self._placements[operation.output], operation.window, step, region,
                lanes=(lanes, lanes + 1), block=block, planes=1, pad_code=operation.pad_code, shared_taps=True,
            )  # fmt: skip

    def _tile_runs(self, lanes: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int, int, int, int]]:
        """Runs of tiles whose first input word is affine: (first tile, tiles, tile stride, first word, words), see :meth:`_matrix`.

        ``lanes`` holds the first and the end input lane of each output. With grouped channels the word may repeat for
        some tiles; taking every second (third, ...) tile then gives fewer runs.
        """
        tiles = -(-len(lanes[0]) // self._columns)
        spans = []
        for tile in range(tiles):
            outputs = slice(tile * self._columns, (tile + 1) * self._columns)
            word = int(lanes[0][outputs].min()) // self._rows
            spans.append((word, -(-int(lanes[1][outputs].max()) // self._rows) - word))
        best: list[tuple[int, int, int, int, int]] = []
        for stride in range(1, min(tiles, 8) + 1):
            runs = []
            for phase in range(stride):
                tile = phase
                while tile < tiles:
                    word, words = spans[tile]
                    count = 1
                    while tile + count * stride < tiles:
                        step = spans[tile + stride][0] - word
                        if spans[tile + count * stride] != (word + count * step, words):
                            break
                        count += 1
                    runs.append((tile, count, stride, word, words))
                    tile += count * stride
            if not best or len(runs) < len(best):
                best = runs
        return best

    def _matrix(
        self,
        operation: Operation,
        source: Placement,
        target: Placement,
        window: Window,
        step: StepFunction | None,
        region: tuple[int, int, int, int],
        *,
        lanes: tuple[np.ndarray, np.ndarray],
        block: Callable[[int, int, int, int], np.ndarray],
        planes: int,
        pad_code: int,
        shared_taps: bool,
    ) -> Iterator[Instruction]:
        """One MATRIX instruction for each run of tiles over one rectangle of output pixels.

        ``lanes`` are the first and end input lane of each output. ``block(first, last, word, words)`` gives the trits
        of outputs ``first`` to ``last - 1`` on some input words, int8 (planes, taps, words, columns, rows), most
        significant plane first; with ``shared_taps`` there is one tap and every tap uses it.
        """
        rows, columns = self._rows, self._columns
        outputs = target.shape[0]
        (kernel_y, kernel_x), (dilation_y, dilation_x), (stride_y, stride_x) = window.kernel, window.dilations, window.strides
        y0, y1, x0, x1 = region
        y, x = y0 * stride_y - window.pads[0], x0 * stride_x - window.pads[1]
        _, height, width = source.shape
        bottom = y + (y1 - y0 - 1) * stride_y + (kernel_y - 1) * dilation_y
        right = x + (x1 - x0 - 1) * stride_x + (kernel_x - 1) * dilation_x
        padded = y < 0 or x < 0 or bottom >= height or right >= width
        pixel, line = source.pixel_bytes, source.pixel_bytes * width
        pieces = step.pieces if step is not None else 1
        wide = step is not None and self._aligned(target)
        taps = 1 if shared_taps else kernel_y * kernel_x
        for first, tiles, tile_stride, word, words in self._tile_runs(lanes):
            indices = range(first, first + tiles * tile_stride, tile_stride)
            blocks = []
            next_word = word if tiles == 1 else self._first_word(lanes, first + tile_stride)
            for index, tile in enumerate(indices):
                begin, end = tile * columns, min((tile + 1) * columns, outputs)
                blocks.append(block(begin, end, word + index * (next_word - word), words).reshape(-1, columns * rows))
            same = all(np.array_equal(blocks[0], other) for other in blocks[1:])
            tile_words = planes * taps * words
            weight_word = self._store_weights(blocks[0] if same else np.concatenate(blocks))
            record, record_stride = 0, 0
            if step is not None:
                record, record_stride = self._tile_records(step, indices, wide=wide)
            tap = 0 if shared_taps else words
            axes = [
                Axis(count=words, reduces=True, strides={"a": rows, "b": 1}),
                Axis(count=kernel_x, reduces=True, strides={"a": dilation_x * pixel, "b": tap, "x": dilation_x}),
                Axis(count=kernel_y, reduces=True, strides={"a": dilation_y * line, "b": kernel_x * tap, "y": dilation_y}),
                Axis(count=planes, reduces=True, role="plane", strides={"b": taps * words}),
                Axis(
                    count=tiles,
                    role="tile",
                    strides={
                        "a": (next_word - word) * rows,
                        "b": 0 if same else tile_words,
                        "o": tile_stride * columns * target.element_bytes,
                        "p": record_stride,
                    },
                ),
                Axis(count=x1 - x0, strides={"a": stride_x * pixel, "o": target.pixel_bytes, "x": stride_x}),
                Axis(count=y1 - y0, strides={"a": stride_y * line, "o": target.pixel_bytes * target.shape[2], "y": stride_y}),
            ]
            yield build(
                Opcode.MATRIX,
                axes,
                f"layer {operation.name!r}",
                raw=step is None,
                wide=wide,
                padded=padded,
                a=source.address + y * line + x * pixel + word * rows,
                b=weight_word,
                o=target.address
                + y0 * target.shape[2] * target.pixel_bytes
                + x0 * target.pixel_bytes
                + first * columns * target.element_bytes,
                p=record,
                records=pieces,
                y=y if padded else 0,
                x=x if padded else 0,
                height=height if padded else 0,
                width=width if padded else 0,
                last_columns=min(columns, outputs - indices[-1] * columns),
                pad_value=pad_code if padded else 0,
                low=-128 if step is None else step.low,
                high=127 if step is None else step.high,
            )

    def _first_word(self, lanes: tuple[np.ndarray, np.ndarray], tile: int) -> int:
        return int(lanes[0][tile * self._columns : (tile + 1) * self._columns].min()) // self._rows

    def _tile_records(self, step: StepFunction, tiles: range, *, wide: bool) -> tuple[int, int]:
        """First word of the tiles' records and the stride from tile to tile; 0 when all tiles can share one table."""
        records, columns = step.records, self._columns
        words = columns // (self._lanes if wide else 1) * step.pieces
        tables = [records[tile * columns : (tile + 1) * columns] for tile in tiles]
        if all(table == tables[0][: len(table)] for table in tables[1:]):
            return self._store_records(tables[0], wide=wide), 0
        # The whole layer's table is stored once, whatever the number of instructions that use it.
        return self._store_records(records, wide=wide) + tiles[0] * words, tiles.step * words

    def _max_pool(self, operation: MaxPool) -> Instruction:
        source, target = self._placements[operation.input], self._placements[operation.output]
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
            Axis(count=pixel // self._rows, strides={"a": self._rows, "o": self._rows}),
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
        wide = self._aligned(first, target, *([second] if second is not None else [])) and channel_offset % self._lanes == 0
        if channels % self._lanes and len(self._program.producer(operation.output)) > 1:
            wide = False  # a last group of lanes would reach into the channels of another operation
        lanes = self._lanes if wide else 1
        strides = {"a": lanes, "o": lanes, "p": 0 if shared else step.pieces}
        pixel = {"a": first.pixel_bytes, "o": target.pixel_bytes}
        if second is not None:
            strides["b"], pixel["b"] = lanes, second.pixel_bytes
        pixels = [Axis(count=height * width, strides=pixel)]
        if height * width > MAX_ITERATIONS:
            pixels = [Axis(count=width, strides=pixel), Axis(count=height, strides={name: width * step for name, step in pixel.items()})]
        return build(
            Opcode.ELEMENTWISE,
            [Axis(count=-(-channels // lanes), strides=strides), *pixels],
            f"layer {operation.name!r}",
            two_operands=second is not None,
            wide=wide,
            a=first.address,
            b=second.address if second is not None else 0,
            o=target.address + channel_offset,
            p=self._store_records(step.records[:1] * lanes if shared else step.records, wide=wide),
            records=step.pieces,
            low=step.low,
            high=step.high,
        )

    def _copy(self, operation: Copy) -> Iterator[Instruction]:
        """Decompose the index map into affine nests, in whichever order of elements needs the fewest instructions."""
        source, target = self._placements[operation.input], self._placements[operation.output]
        points = np.stack([_addresses(source)[np.asarray(operation.index).ravel()], _addresses(target)], axis=1)
        best: list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]] | None = None
        for order in (np.argsort(points[:, 1], kind="stable"), np.arange(len(points)), np.argsort(points[:, 0], kind="stable")):
            rest, nests = points[order], []
            while len(rest) and len(nests) < MAX_COPY_INSTRUCTIONS:
                loops, covered = affine_prefix(rest)
                nests.append((rest[0], loops))
                rest = rest[covered:]
            if not len(rest) and (best is None or len(nests) < len(best)):
                best = nests
        if best is None:
            raise ModelError(
                f"layer {operation.name!r} moves its elements in more than {MAX_COPY_INSTRUCTIONS} separate runs; use a regular transpose or reshape"
            )
        for start, loops in best:
            loops, lanes = self._in_lanes(start, loops)
            record = self._store_records(((Record(START_MIN, 1, 0, 0),),) * lanes, wide=lanes > 1)
            axes = [Axis(count=count, strides={"a": int(stride[0]), "o": int(stride[1])}) for count, stride in loops]
            yield build(Opcode.ELEMENTWISE, axes, f"layer {operation.name!r}", a=int(start[0]), o=int(start[1]), p=record, wide=lanes > 1)

    def _in_lanes(self, start: np.ndarray, loops: list[tuple[int, np.ndarray]]) -> tuple[list[tuple[int, np.ndarray]], int]:
        """Loops of a copy that take the bytes of all lanes at once, and the lanes; the same loops and 1 where that is not possible."""
        lanes = self._lanes
        if lanes > 1 and loops:
            (count, stride), *outer = loops
            addresses = [start, *(step for _, step in outer)]
            if (stride == 1).all() and count % lanes == 0 and all((address % lanes == 0).all() for address in addresses):
                return [(count // lanes, stride * lanes), *outer], lanes
        return loops, 1


def _addresses(placement: Placement) -> np.ndarray:
    """Byte address of every element in (C, H, W) order, int64."""
    channels, height, width = placement.shape
    pixels = np.arange(height * width) * placement.pixel_bytes
    return (placement.address + pixels + np.arange(channels)[:, None]).ravel()
