"""Elements that move: rows of tables and caches that a number names, rotations by angles of a position, transposes and slices."""

import numpy as np

from tritloom.compiler.ir.block import (
    Lookup,
    Position,
    Rotate,
    Store,
    View,
)
from tritloom.compiler.schedule.blocks import (
    ELEMENT_SIZES,
    PEAK,
    RIGHT,
    SPARE,
    VALUE,
    BlockLowering,
)
from tritloom.compiler.schedule.emit import LARGEST_FACTOR, Emitter, Place
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis, affine_prefix
from tritloom.errors import ModelError
from tritloom.hw.arch.scalar import INDEX_A, INDEX_B, INDEX_O, SHIFT, STATISTIC, ScalarOpcode
from tritloom.hw.arch.vector import Factor, Second, Statistic, VectorFunction

__all__ = ["count_position", "lookup", "rotate", "store", "view"]


def count_position(lowering: BlockLowering, operation: Position, emitter: Emitter) -> None:
    emitter.load(PEAK, lowering.address(operation.input))
    emitter.add(PEAK, PEAK, 1)
    emitter.scalar(ScalarOpcode.MINIMUM, PEAK, PEAK, operation.capacity)
    emitter.store(PEAK, lowering.address(operation.output))


def lookup(lowering: BlockLowering, operation: Lookup, emitter: Emitter) -> None:
    table = np.asarray(operation.table)
    if len(table) > LARGEST_FACTOR:
        raise ModelError(f"layer {operation.name!r} has {len(table)} rows; the core finds one of at most {LARGEST_FACTOR}")
    out, numbers = operation.output, lowering.place(operation.input)
    function = VectorFunction(a_size=1, o_size=lowering.size(out), statistic=Statistic.MAGNITUDE)
    axes = [Axis(count=table.shape[1], strides={"a": 2, "o": lowering.placement(out).element_bytes})]
    for _ in emitter.each_pixel(lowering.pixels(out)):
        lowering.index(operation, emitter, INDEX_A, numbers, 2 * table.shape[1])
        emitter.vector(function, axes, a=lowering.table(table, 2), o=lowering.place(out), index_a=True)
        lowering.keep_peak(emitter, out)


def rotate(lowering: BlockLowering, operation: Rotate, emitter: Emitter) -> None:
    name, out = operation.input, operation.output
    cosine, sine = (np.asarray(part, np.int64) for part in (operation.cosine, operation.sine))
    half = cosine.shape[1]
    # A row holds what the first and the second element of a pair are multiplied by, for the first result and for the second one.
    table = lowering.table(np.stack([cosine, -sine, sine, cosine], axis=1), 2)
    lowering.index(operation, emitter, INDEX_B, lowering.place(operation.position), 8 * half)
    element = lowering.placement(name).element_bytes
    pair, following = (element, 2 * element) if operation.interleaved else (half * element, element)
    results = (4, 8) if operation.interleaved else (4 * half, 4)
    axes = [
        Axis(count=2, reduces=True, strides={"a": pair, "b": 2 * half}),
        Axis(count=half, strides={"a": following, "b": 2, "o": results[1]}),
        Axis(count=2, strides={"b": 4 * half, "o": results[0]}),
    ]
    function = VectorFunction(
        a_size=lowering.size(name), b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
    )
    for _ in emitter.each_pixel(lowering.pixels(name)):
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        emitter.vector(function, axes, a=lowering.place(name), b=table, o=lowering.place(out), index_b=True)
        lowering.keep_peak(emitter, out)
        lowering.scale(emitter, VALUE, operation.input_scale, RIGHT)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def store(lowering: BlockLowering, operation: Store, emitter: Emitter) -> None:
    source, target = lowering.placement(operation.input), lowering.placement(operation.output)
    if target.address != lowering.placement(operation.cache).address:
        raise ModelError(f"layer {operation.name!r}: the core changes a cache in place, but {operation.cache!r} is no state")
    lowering.index(operation, emitter, INDEX_O, lowering.place(operation.position), target.pixel_bytes)
    width = source.element_bytes
    axes = [
        Axis(count=source.shape[0], strides={"a": width, "o": width}),
        Axis(count=source.shape[1], strides={"a": source.pixel_bytes * source.shape[2], "o": target.pixel_bytes * target.shape[2]}),
    ]
    emitter.vector(
        VectorFunction(a_size=ELEMENT_SIZES[width], o_size=ELEMENT_SIZES[width]), axes, a=source.address, o=target.address, index_o=True
    )


def view(lowering: BlockLowering, operation: View, emitter: Emitter) -> None:
    source, target = lowering.placement(operation.input), lowering.placement(operation.output)
    places = _addresses(source)[np.asarray(operation.index).ravel()].reshape(target.shape)
    function = VectorFunction(a_size=lowering.size(operation.input), o_size=lowering.size(operation.output), statistic=Statistic.MAGNITUDE)
    flat = places.reshape(target.shape[0], -1)
    apart = int(flat[0, 1] - flat[0, 0]) if flat.shape[1] > 1 else 0
    # Whether every pixel takes its elements equally far from where the one before takes them.
    regular = apart >= 0 and (np.diff(flat, axis=1) == apart).all()
    for pixel in emitter.each_pixel(flat.shape[1], written_out=not regular):
        rest = np.stack([flat[:, 0 if regular else pixel], np.arange(target.shape[0]) * target.element_bytes], axis=1)
        first = True
        while len(rest):
            loops, covered = affine_prefix(rest)
            axes = [Axis(count=count, strides={"a": int(stride[0]), "o": int(stride[1])}) for count, stride in loops]
            place = lowering.place(operation.output).behind(int(rest[0, 1]))
            emitter.vector(function, axes, a=Place(int(rest[0, 0]), apart if regular else 0), o=place)
            if first:
                emitter.move(SPARE, STATISTIC)
            else:
                emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, right=STATISTIC)
            first, rest = False, rest[covered:]
        lowering.keep_peak(emitter, operation.output, SPARE)
    if operation.output_scale:
        lowering.scale(emitter, VALUE, operation.input_scale)
        for _ in emitter.each_pixel(lowering.pixels(operation.output)):
            emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _addresses(place: Placement) -> np.ndarray:
    """Byte address of every element in (C, H, W) order, int64."""
    channels, height, width = place.shape
    pixels = np.arange(height * width) * place.pixel_bytes
    return (place.address + pixels + np.arange(channels)[:, None] * place.element_bytes).ravel()
