"""Convolutions, dense layers and sum pools as MATRIX instructions: tiles of the array, their weight words and records."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from tritloom.compiler.ir.program import Convolution, Operation, StepFunction, SumPool, Window
from tritloom.compiler.schedule.contents import MemoryContents
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis, build
from tritloom.compiler.schedule.patches import remaining_weights, remaining_window
from tritloom.hw.arch.isa import Instruction, Opcode
from tritloom.hw.arch.trits import digit_planes

__all__ = ["lower_convolution", "lower_sum_pool"]


def lower_convolution(contents: MemoryContents, operation: Convolution, source: Placement, target: Placement) -> Iterator[Instruction]:
    """MATRIX instructions of a convolution or a dense layer; ``source`` may hold patches of its tensor."""
    weights, window = np.asarray(operation.weights), operation.window
    if operation.is_dense(source.shape) and source.pixel_bytes % contents.rows:
        # A packed input is one long pixel in (H, W, C) order.
        elements = source.bytes
        weights = weights.transpose(0, 2, 3, 1).reshape(len(weights), elements, 1, 1)
        source = Placement(
            address=source.address, pixel_bytes=-(-elements // contents.rows) * contents.rows, element_bytes=1, shape=(elements, 1, 1)
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
        dense = np.zeros((contents.columns, words * contents.rows, *window.kernel), np.int16)
        for column, output in enumerate(range(first, last)):
            lane = first_lane[output] - word * contents.rows
            dense[column, lane : lane + group_inputs] = weights[output]
        digits = digit_planes(dense, operation.planes)[::-1]
        return digits.reshape(operation.planes, contents.columns, words, contents.rows, -1).transpose(0, 4, 2, 1, 3)

    yield from _matrix(
        contents, operation, source, target, window, operation.step, (0, target.shape[1], 0, target.shape[2]),
        lanes=(first_lane, first_lane + group_inputs), block=block, planes=operation.planes, pad_code=operation.pad_code, shared_taps=False,
    )  # fmt: skip


def lower_sum_pool(contents: MemoryContents, operation: SumPool, source: Placement, target: Placement) -> Iterator[Instruction]:
    """MATRIX instructions of a sum pool: weights of 1, one instruction or more for each region with a step of its own."""
    lanes = np.arange(source.shape[0])

    def block(first: int, last: int, word: int, words: int) -> np.ndarray:
        # Columns beyond the last channel get ones too: they are never written, and more tiles share their words.
        trits = np.zeros((1, 1, words, contents.columns, contents.rows), np.int8)
        for column in range(contents.columns):
            place, lane = divmod(first + column - word * contents.rows, contents.rows)
            if place < words:
                trits[0, 0, place, column, lane] = 1
        return trits

    for region, step in operation.regions:
        yield from _matrix(
            contents, operation, source, target, operation.window, step, region,
            lanes=(lanes, lanes + 1), block=block, planes=1, pad_code=operation.pad_code, shared_taps=True,
        )  # fmt: skip


def _tile_runs(contents: MemoryContents, lanes: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int, int, int, int]]:
    """Runs of tiles whose first input word is affine: (first tile, tiles, tile stride, first word, words), see :func:`_matrix`.

    ``lanes`` holds the first and the end input lane of each output. With grouped channels the word may repeat for
    some tiles; taking every second (third, ...) tile then gives fewer runs.
    """
    tiles = -(-len(lanes[0]) // contents.columns)
    spans = []
    for tile in range(tiles):
        outputs = slice(tile * contents.columns, (tile + 1) * contents.columns)
        word = int(lanes[0][outputs].min()) // contents.rows
        spans.append((word, -(-int(lanes[1][outputs].max()) // contents.rows) - word))
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
    contents: MemoryContents,
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
    rows, columns = contents.rows, contents.columns
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
    wide = step is not None and contents.aligned(target)
    taps = 1 if shared_taps else kernel_y * kernel_x
    for first, tiles, tile_stride, word, words in _tile_runs(contents, lanes):
        indices = range(first, first + tiles * tile_stride, tile_stride)
        blocks = []
        next_word = word if tiles == 1 else _first_word(contents, lanes, first + tile_stride)
        for index, tile in enumerate(indices):
            begin, end = tile * columns, min((tile + 1) * columns, outputs)
            blocks.append(block(begin, end, word + index * (next_word - word), words).reshape(-1, columns * rows))
        same = all(np.array_equal(blocks[0], other) for other in blocks[1:])
        tile_words = planes * taps * words
        weight_word = contents.store_weights(blocks[0] if same else np.concatenate(blocks))
        record, record_stride = 0, 0
        if step is not None:
            record, record_stride = _tile_records(contents, step, indices, wide=wide)
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
            o=target.address + y0 * target.shape[2] * target.pixel_bytes + x0 * target.pixel_bytes + first * columns * target.element_bytes,
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


def _first_word(contents: MemoryContents, lanes: tuple[np.ndarray, np.ndarray], tile: int) -> int:
    return int(lanes[0][tile * contents.columns : (tile + 1) * contents.columns].min()) // contents.rows


def _tile_records(contents: MemoryContents, step: StepFunction, tiles: range, *, wide: bool) -> tuple[int, int]:
    """First word of the tiles' records and the stride from tile to tile; 0 when all tiles can share one table."""
    records, columns = step.records, contents.columns
    words = columns // (contents.lanes if wide else 1) * step.pieces
    tables = [records[tile * columns : (tile + 1) * columns] for tile in tiles]
    if all(table == tables[0][: len(table)] for table in tables[1:]):
        return contents.store_records(tables[0], wide=wide), 0
    # The whole layer's table is stored once, whatever the number of instructions that use it.
    return contents.store_records(records, wide=wide) + tiles[0] * words, tiles.step * words
