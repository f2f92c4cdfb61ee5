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
from tritloom.compiler.schedule.blocks import (
    OTHER,
    PEAK,
    RIGHT,
    SPARE,
    SPARE_2,
    VALUE,
    BlockLowering,
)
from tritloom.compiler.schedule.curves import curve
from tritloom.compiler.schedule.emit import Emitter, Pair, Place
from tritloom.compiler.schedule.grid_operations import GRID_HANDLERS
from tritloom.compiler.schedule.movement import count_position, lookup, rotate, store, view
from tritloom.compiler.schedule.nest import Axis
from tritloom.compiler.schedule.norms import add_blocks, norm
from tritloom.compiler.schedule.quest_operations import hadamard, quantise_by_deviation
from tritloom.compiler.schedule.turn import turn
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import FACTOR, SHIFT, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import Factor, Low, Second, Statistic, VectorFunction

__all__ = ["lower_block"]


def lower_block(lowering: BlockLowering, operation: BlockOperation | GridOperation) -> list[Instruction | Scalar]:
    """Instructions of one operation on blocks, or on integers of a fixed grid. Raises :class:`ModelError` for one that the core cannot do."""
    emitter = lowering.emitter(f"layer {operation.name!r}")
    if type(operation) not in _HANDLERS:
        raise ModelError(f"layer {operation.name!r}: the core has no instructions for {type(operation).__name__}; run the model in golden")
    _HANDLERS[type(operation)](lowering, operation, emitter)
    return emitter.instructions


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
            emitter.product(VALUE, VALUE, VALUE, SPARE)
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
        add_blocks(emitter, (left, (address, size, SPARE_2, right)), lowering.place(out), lowering.placement(out).shape[0])
        lowering.keep_peak(emitter, out)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


_HANDLERS: dict[type, Callable[..., None]] = {
    Position: count_position,
    Lookup: lookup,
    Hadamard: hadamard,
    QuantiseByDeviation: quantise_by_deviation,
    Norm: norm,
    Quantise: _quantise,
    Rectify: _rectify,
    BlockProduct: _product,
    BlockSum: _sum,
    Curve: curve,
    Rotate: rotate,
    Turn: turn,
    Store: store,
    View: view,
    Attend: attend,
    **GRID_HANDLERS,
}
