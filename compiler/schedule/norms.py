"""Norms, and the passes over a block that they are made of: powers, deviations from the mean, sums of two blocks."""

import numpy as np

from tritloom.compiler.ir.block import (
    Norm,
)
from tritloom.compiler.schedule.blocks import (
    LARGEST_OUT_SHIFT,
    OTHER,
    PEAK,
    RIGHT,
    SPARE,
    SPARE_2,
    VALUE,
    WORD_BYTES,
    BlockLowering,
)
from tritloom.compiler.schedule.emit import Emitter, Pair, Place
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import ADDEND, FACTOR, OUT_SHIFT, SHIFT, STATISTIC, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Second, Statistic, VectorFunction

__all__ = ["Part", "add_blocks", "norm", "power_of"]


Part = tuple[Place, int, int, Pair]
"""An operand of a sum: place, size, register of the shift that normalises, and scale."""


def norm(lowering: BlockLowering, operation: Norm, emitter: Emitter) -> None:
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
            emitter.product(OTHER, OTHER, OTHER, SPARE)
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
            add_blocks(emitter, ((target, 2, RIGHT, VALUE), bias), lowering.place(out), count)
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


def power_of(lowering: BlockLowering, emitter: Emitter, name: str) -> None:
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


def add_blocks(emitter: Emitter, parts: tuple[Part, Part], target: Place, count: int) -> None:
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
