"""The operations on blocks, each as instructions of the vector and scalar units; the rules are those of :mod:`tritloom.compiler.golden.block`."""

from collections.abc import Callable

import numpy as np

from tritloom.compiler.ir.block import (
    Attend,
    BlockOperation,
    BlockProduct,
    BlockSum,
    Curve,
    Lookup,
    Norm,
    Position,
    Quantise,
    Rectify,
    Rotate,
    Store,
    Turn,
    View,
)
from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.compiler.schedule.attention import attend
from tritloom.compiler.schedule.blocks import ELEMENT_SIZES, LARGEST_OUT_SHIFT, WORD_BYTES, BlockLowering
from tritloom.compiler.schedule.emit import LARGEST_FACTOR, Emitter, Pair, Place
from tritloom.compiler.schedule.grid_operations import GRID_HANDLERS
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis, affine_prefix
from tritloom.compiler.schedule.turn import turn
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import ADDEND, FACTOR, INDEX_A, INDEX_B, INDEX_O, OUT_SHIFT, SHIFT, STATISTIC, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, VectorFunction

__all__ = ["lower_block"]

PEAK, RIGHT = 1, 2
VALUE, OTHER, SPARE, SPARE_2, DEVIATION = (3, 4), (5, 6), 7, 8, (9, 10)

_Part = tuple[Place, int, int, Pair]
"""An operand of a sum: place, size, register of the shift that normalises, and scale."""


def lower_block(lowering: BlockLowering, operation: BlockOperation | GridOperation) -> list[Instruction | Scalar]:
    """Instructions of one operation on blocks, or on integers of a fixed grid. Raises :class:`ModelError` for one that the core cannot do."""
    emitter = lowering.emitter(f"layer {operation.name!r}")
    if type(operation) not in _HANDLERS:
        raise ModelError(f"layer {operation.name!r}: the core has no instructions for {type(operation).__name__}; run the model in golden")
    _HANDLERS[type(operation)](lowering, operation, emitter)
    return emitter.instructions


def _position(lowering: BlockLowering, operation: Position, emitter: Emitter) -> None:
    emitter.load(PEAK, lowering.address(operation.input))
    emitter.add(PEAK, PEAK, 1)
    emitter.scalar(ScalarOpcode.MINIMUM, PEAK, PEAK, operation.capacity)
    emitter.store(PEAK, lowering.address(operation.output))


def _lookup(lowering: BlockLowering, operation: Lookup, emitter: Emitter) -> None:
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


def _power(lowering: BlockLowering, emitter: Emitter, name: str) -> None:
    """Registers RIGHT and SHIFT for a pixel, and in VALUE the sum of its squares as a scale."""
    lowering.normalise(emitter, name)
    emitter.move(SHIFT, RIGHT)
    _squares(emitter, lowering.place(name), lowering.size(name), lowering.placement(name).shape[0])


def _squares(emitter: Emitter, place: Place, size: int, count: int) -> None:
    """In VALUE the sum of squares of elements that register SHIFT normalises, as a scale."""
    dropped = blockfloat.norm_shift(count)
    squares = VectorFunction(
        a_size=size, o_size=NOT_WRITTEN, shifted=True, factor=Factor.ITSELF, out_shift=dropped, statistic=Statistic.SUM
    )
    emitter.vector(squares, [Axis(count=count, reduces=True, strides={"a": 1 << size})], a=place)
    emitter.scale_of(VALUE, STATISTIC, None, SPARE, dropped)


def _hadamard(lowering: BlockLowering, operation: Hadamard, emitter: Emitter) -> None:
    """The normalised elements, then sums and differences of pairs that lie 1, 2, 4, ... apart, from one place to the other and back."""
    name, out, count = operation.input, operation.output, lowering.placement(operation.input).shape[0]
    spare = lowering.scratch("butterflies", WORD_BYTES * count)
    passes = operation.size.bit_length() - 1
    for _ in emitter.each_pixel(lowering.pixels(name)):
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        places = (lowering.place(out), Place(spare))
        source = places[passes % 2]
        function = VectorFunction(a_size=lowering.size(name), shifted=True, statistic=Statistic.MAGNITUDE)
        emitter.vector(function, [Axis(count=count, strides={"a": 1 << lowering.size(name), "o": 4})], a=lowering.place(name), o=source)
        for step in range(passes):
            source, target, distance = places[(passes - step) % 2], places[(passes - step - 1) % 2], WORD_BYTES << step
            strides = [{register: stride for register in "abo"} for stride in (WORD_BYTES, 2 * distance)]
            axes = [Axis(count=1 << step, strides=strides[0]), Axis(count=count >> (step + 1), strides=strides[1])]
            for second, offset in ((Second.ADDEND, 0), (Second.SUBTRAHEND, distance)):
                function = VectorFunction(second=second, statistic=Statistic.MAGNITUDE)
                emitter.vector(function, axes, a=source, b=source.behind(distance), o=target.behind(offset))
                if not offset:
                    emitter.move(SPARE, STATISTIC)
            emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, right=STATISTIC)
        lowering.keep_peak(emitter, out, SPARE)
        lowering.scale(emitter, VALUE, operation.input_scale, RIGHT)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _quantise_by_deviation(lowering: BlockLowering, operation: QuantiseByDeviation, emitter: Emitter) -> None:
    name, out, levels = operation.input, operation.output, operation.levels
    count = lowering.placement(name).shape[0]
    steps = lowering.scratch("levels", WORD_BYTES * count)
    # The outermost level, 2**bits - 1.
    bits = ((levels // 2 if levels % 2 else levels - 1) + 1).bit_length() - 1
    if (1 << bits) - 1 != (levels // 2 if levels % 2 else levels - 1):
        raise ModelError(
            f"layer {operation.name!r}: the core quantises to 3, 7, 15, ... or to 2, 4, 8, ... levels, not to {levels}; run the model in golden"
        )
    for _ in emitter.each_pixel(lowering.pixels(name)):
        _power(lowering, emitter, name)
        power, deviation = VALUE, DEVIATION
        emitter.root_reciprocal(OTHER, power, (SPARE, SPARE_2))
        emitter.product(deviation, power, OTHER, SPARE)
        emitter.add(deviation[1], deviation[1], right=RIGHT)
        emitter.add(deviation[1], deviation[1], -blockfloat.NOTHING)
        emitter.scalar(ScalarOpcode.KEEP, deviation[1], power[0], right=deviation[1])
        emitter.add(deviation[1], deviation[1], blockfloat.NOTHING)
        lowering.scale(emitter, power, operation.input_scale)
        emitter.product(deviation, deviation, power, SPARE)
        emitter.store_pair(deviation, lowering.place(operation.output_scale))
        emitter.product_constant(OTHER, OTHER, operation.ratio, SPARE)
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, OTHER[1], 0)
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
        emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
        codes = VectorFunction(
            a_size=lowering.size(name), o_size=0 if levels % 2 else 2, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER,
            rounded=bool(levels % 2), bits=bits if levels % 2 else bits + 2, low=Low.SYMMETRIC if levels % 2 else Low.TWO,
        )  # fmt: skip
        target = lowering.place(out)
        if levels % 2:
            emitter.move(FACTOR, OTHER[0])
            emitter.vector(codes, lowering.channels(name, a=name, o=out), a=lowering.place(name), o=target)
            continue
        # ceil(t) = -floor(-t), and the code is 2 ceil(t) - 1.
        emitter.scalar(ScalarOpcode.SUBTRACT, FACTOR, OTHER[0], 0)
        axes = [Axis(count=count, strides={"a": 1 << lowering.size(name), "o": 4})]
        emitter.vector(codes, axes, a=lowering.place(name), o=steps)
        emitter.set(FACTOR, -2)
        emitter.set(ADDEND, -1)
        odd = VectorFunction(o_size=0, factor=Factor.REGISTER, addend=True, bits=bits, low=Low.SYMMETRIC)
        emitter.vector(odd, [Axis(count=count, strides={"a": 4, "o": 1})], a=steps, o=target)


def _norm(lowering: BlockLowering, operation: Norm, emitter: Emitter) -> None:
    name, out, count = operation.input, operation.output, lowering.placement(operation.input).shape[0]
    gain = lowering.table(operation.gain, 2)
    for _ in emitter.each_pixel(lowering.pixels(name)):
        source, size = lowering.place(name), lowering.size(name)
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        if operation.centre:
            source, size = _deviations(lowering, emitter, source, size, count), 2
        _squares(emitter, source, size, count)
        if operation.epsilon[0]:
            lowering.scale(emitter, OTHER, operation.input_scale, RIGHT)
            if operation.centre:
                inverse = blockfloat.reciprocal(blockfloat.scale_of(np.array(count)))
                emitter.product_constant(OTHER, OTHER, (int(inverse[0]), int(inverse[1])), SPARE)
            emitter.reciprocal(OTHER, OTHER, SPARE)
            _square(emitter, OTHER)
            emitter.product_constant(OTHER, OTHER, operation.epsilon, SPARE)
            emitter.sum(VALUE, VALUE, OTHER, (SPARE, SPARE_2))
        emitter.root_reciprocal(VALUE, VALUE, (SPARE, SPARE_2))
        target = lowering.place(out) if operation.bias is None else Place(lowering.scratch("products", WORD_BYTES * count))
        products = VectorFunction(
            a_size=size, b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
        )
        emitter.vector(products, [Axis(count=count, strides={"a": 1 << size, "b": 2, "o": 4})], a=source, b=gain, o=target)
        if operation.bias is not None:
            emitter.scalar(ScalarOpcode.LENGTH, RIGHT, STATISTIC, blockfloat.BLOCK_BITS)
            emitter.add(VALUE[1], VALUE[1], right=RIGHT)
            emitter.set(SPARE_2, 0)
            emitter.set_pair(OTHER, operation.bias_scale)
            bias = Place(lowering.table(operation.bias, 2)), 1, SPARE_2, OTHER
            _add(emitter, ((target, 2, RIGHT, VALUE), bias), lowering.place(out), count)
        lowering.keep_peak(emitter, out)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _deviations(lowering: BlockLowering, emitter: Emitter, source: Place, size: int, count: int) -> Place:
    """Address of ``count`` times the deviations from the mean of elements that register SHIFT normalises; SHIFT is theirs then, and added to RIGHT."""
    target = Place(lowering.scratch("deviations", WORD_BYTES * count))
    each = [Axis(count=count, strides={"a": 1 << size, "o": 4})]
    emitter.vector(VectorFunction(a_size=size, o_size=NOT_WRITTEN, shifted=True, statistic=Statistic.SUM), each, a=source)
    emitter.scalar(ScalarOpcode.SUBTRACT, ADDEND, STATISTIC, 0)
    emitter.set(FACTOR, count)
    function = VectorFunction(a_size=size, shifted=True, factor=Factor.REGISTER, addend=True, statistic=Statistic.MAGNITUDE)
    emitter.vector(function, each, a=source, o=target)
    emitter.scalar(ScalarOpcode.LENGTH, SHIFT, STATISTIC, blockfloat.BLOCK_BITS)
    emitter.scalar(ScalarOpcode.LENGTH, SPARE, STATISTIC, blockfloat.BLOCK_BITS)
    emitter.add(RIGHT, RIGHT, right=SPARE)
    return target


def _add(emitter: Emitter, parts: tuple[_Part, _Part], target: Place, count: int) -> None:
    """:func:`tritloom.hw.arch.blockfloat.add_blocks` of two parts. Its scale goes to VALUE."""
    (*_, left), (*_, right) = parts
    exponent, places = PEAK, SPARE
    emitter.scalar(ScalarOpcode.MAXIMUM, exponent, left[1], right=right[1])
    emitter.add(exponent, exponent, 1)
    for index, (first, size, shift, pair) in enumerate(parts):
        emitter.move(SHIFT, shift)
        emitter.move(FACTOR, pair[0])
        emitter.scalar(ScalarOpcode.SUBTRACT, places, pair[1], right=exponent)
        emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, places, LARGEST_OUT_SHIFT)
        function = VectorFunction(
            a_size=size, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, second=Second.ADDEND if index else Second.NONE,
            statistic=Statistic.MAGNITUDE,
        )  # fmt: skip
        emitter.vector(
            function, [Axis(count=count, strides={"a": 1 << size, "b": 4 * index, "o": 4})], a=first, b=target if index else 0, o=target
        )
    emitter.set(VALUE[0], 1 << 15)
    emitter.add(VALUE[1], exponent, -15)


def _quantise(lowering: BlockLowering, operation: Quantise, emitter: Emitter) -> None:
    name = operation.input
    for _ in emitter.each_pixel(lowering.pixels(name)):
        _quantised(lowering, emitter, name, operation.input_scale)
        function = VectorFunction(
            a_size=lowering.size(name), o_size=0, shifted=True, factor=Factor.REGISTER, out_shift=blockfloat.RATIO_BITS, rounded=True, bits=7,
            low=Low.SYMMETRIC,
        )  # fmt: skip
        axes = lowering.channels(name, a=name, o=operation.output)
        emitter.vector(function, axes, a=lowering.place(name), o=lowering.place(operation.output))
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _quantised(lowering: BlockLowering, emitter: Emitter, name: str, input_scale: str) -> None:
    """Registers SHIFT and FACTOR for codes of a pixel, and their scale in VALUE."""
    top, exponent = VALUE
    lowering.normalise(emitter, name)
    emitter.move(SHIFT, RIGHT)
    emitter.scalar(ScalarOpcode.SHIFT_RIGHT, top, PEAK, right=RIGHT)
    emitter.scalar(ScalarOpcode.DIVIDE, FACTOR, top, blockfloat.LEVELS << blockfloat.RATIO_BITS)
    emitter.scale_of(VALUE, top, RIGHT, SPARE, -blockfloat.NOTHING)
    emitter.scalar(ScalarOpcode.KEEP, exponent, top, right=exponent)
    emitter.add(exponent, exponent, blockfloat.NOTHING)
    lowering.scale(emitter, OTHER, input_scale)
    emitter.product(VALUE, VALUE, OTHER, SPARE)


def _rectify(lowering: BlockLowering, operation: Rectify, emitter: Emitter) -> None:
    name, out = operation.input, operation.output
    for _ in emitter.each_pixel(lowering.pixels(name)):
        function = VectorFunction(a_size=lowering.size(name), o_size=lowering.size(out), low=Low.ZERO, statistic=Statistic.MAGNITUDE)
        emitter.vector(function, lowering.channels(name, a=name, o=out), a=lowering.place(name), o=lowering.place(out))
        lowering.keep_peak(emitter, out)


def _right(lowering: BlockLowering, operation: BlockProduct | BlockSum, emitter: Emitter) -> tuple[Place, Pair, int]:
    """The right operand: place, its registers (normalised scale), and its element's size; register SPARE_2 holds its shift."""
    if operation.table is not None:
        values, right = blockfloat.normalise(np.asarray(operation.table, np.int64), 0)
        emitter.set(SPARE_2, 0)
        emitter.set_pair(OTHER, (1 << 15, -15 + int(right[0])))
        return Place(lowering.table(values, 2)), OTHER, 1
    lowering.normalise(emitter, operation.right, SPARE_2)
    lowering.scale(emitter, OTHER, operation.right_scale, SPARE_2)
    return lowering.place(operation.right), OTHER, lowering.size(operation.right)


def _product(lowering: BlockLowering, operation: BlockProduct, emitter: Emitter) -> None:
    name, out = operation.left, operation.output
    square = operation.table is None and (name, operation.left_scale) == (operation.right, operation.right_scale)
    for _ in emitter.each_pixel(lowering.pixels(name)):
        function, b = VectorFunction(a_size=lowering.size(name), shifted=True, factor=Factor.ITSELF, statistic=Statistic.MAGNITUDE), 0
        if square:
            lowering.normalise(emitter, name)
            lowering.scale(emitter, VALUE, operation.left_scale, RIGHT)
            _square(emitter, VALUE)
        else:
            address, _, size = _right(lowering, operation, emitter)
            # A factor from the memory has 16 bits: the right operand is normalised first.
            b = lowering.scratch("factors", 2 * lowering.placement(name).shape[0])
            emitter.move(SHIFT, SPARE_2)
            axes = [Axis(count=lowering.placement(name).shape[0], strides={"a": 1 << size, "o": 2})]
            emitter.vector(VectorFunction(a_size=size, o_size=1, shifted=True, bits=15), axes, a=address, o=b)
            lowering.normalise(emitter, name)
            lowering.scale(emitter, VALUE, operation.left_scale, RIGHT)
            emitter.product(VALUE, VALUE, OTHER, SPARE)
            function = VectorFunction(
                a_size=lowering.size(name),
                b_size=1,
                shifted=True,
                second=Second.FACTOR,
                factor=Factor.OPERAND,
                statistic=Statistic.MAGNITUDE,
            )
        emitter.move(SHIFT, RIGHT)
        axes = lowering.channels(name, a=name, o=out, b_bytes=2)
        emitter.vector(function, axes, a=lowering.place(name), b=b, o=lowering.place(out))
        lowering.keep_peak(emitter, out)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _sum(lowering: BlockLowering, operation: BlockSum, emitter: Emitter) -> None:
    out = operation.output
    for _ in emitter.each_pixel(lowering.pixels(operation.left)):
        address, right, size = _right(lowering, operation, emitter)
        emitter.product_constant(right, right, operation.right_constant, SPARE)
        lowering.normalise(emitter, operation.left)
        lowering.scale(emitter, VALUE, operation.left_scale, RIGHT)
        emitter.product_constant(VALUE, VALUE, operation.left_constant, SPARE)
        left = lowering.place(operation.left), lowering.size(operation.left), RIGHT, VALUE
        _add(emitter, (left, (address, size, SPARE_2, right)), lowering.place(out), lowering.placement(out).shape[0])
        lowering.keep_peak(emitter, out)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _curve(lowering: BlockLowering, operation: Curve, emitter: Emitter) -> None:
    name, out = operation.input, operation.output
    half = len(operation.table) // 2
    table, channels = lowering.table(operation.table, 2), lowering.placement(name).shape[0]
    steps = lowering.scratch("factors", 2 * channels)
    for _ in emitter.each_pixel(lowering.pixels(name)):
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        lowering.scale(emitter, VALUE, operation.input_scale, RIGHT)
        emitter.product_constant(VALUE, VALUE, operation.constant, SPARE)
        emitter.move(FACTOR, VALUE[0])
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, VALUE[1], -blockfloat.CURVE_BITS)
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
        emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
        index = VectorFunction(
            a_size=lowering.size(name), o_size=1, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True,
            bits=half.bit_length() - 1,
        )  # fmt: skip
        emitter.vector(index, [Axis(count=channels, strides={"a": 1 << lowering.size(name), "o": 2})], a=lowering.place(name), o=steps)
        lookup = VectorFunction(a_size=1, b_size=1, second=Second.TABLE, statistic=Statistic.MAGNITUDE)
        emitter.vector(lookup, [Axis(count=channels, strides={"a": 2, "o": 4})], a=steps, b=table + 2 * half, o=lowering.place(out))
        lowering.keep_peak(emitter, out)


def _rotate(lowering: BlockLowering, operation: Rotate, emitter: Emitter) -> None:
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


def _store(lowering: BlockLowering, operation: Store, emitter: Emitter) -> None:
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


def _view(lowering: BlockLowering, operation: View, emitter: Emitter) -> None:
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


def _square(emitter: Emitter, pair: Pair) -> None:
    """A scale times itself."""
    emitter.product(pair, pair, pair, SPARE)


def _addresses(place: Placement) -> np.ndarray:
    """Byte address of every element in (C, H, W) order, int64."""
    channels, height, width = place.shape
    pixels = np.arange(height * width) * place.pixel_bytes
    return (place.address + pixels + np.arange(channels)[:, None] * place.element_bytes).ravel()


_HANDLERS: dict[type, Callable[..., None]] = {
    Position: _position,
    Lookup: _lookup,
    Hadamard: _hadamard,
    QuantiseByDeviation: _quantise_by_deviation,
    Norm: _norm,
    Quantise: _quantise,
    Rectify: _rectify,
    BlockProduct: _product,
    BlockSum: _sum,
    Curve: _curve,
    Rotate: _rotate,
    Turn: turn,
    Store: _store,
    View: _view,
    Attend: attend,
    **GRID_HANDLERS,
}
