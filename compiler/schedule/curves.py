"""Functions of one number by tables, on the vector unit."""

from tritloom.compiler.ir.block import Curve
from tritloom.compiler.schedule.blocks import LARGEST_OUT_SHIFT, RIGHT, SPARE, VALUE, BlockLowering
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import FACTOR, OUT_SHIFT, SHIFT, ScalarOpcode
from tritloom.hw.arch.vector import OUT_SHIFT_REGISTER, Factor, Second, Statistic, VectorFunction

__all__ = ["curve", "table_places"]


def curve(lowering: BlockLowering, operation: Curve, emitter: Emitter) -> None:
    """Instructions of a :class:`Curve`."""
    name, out, entries = operation.input, operation.output, len(operation.table)
    table, channels = lowering.table(operation.table, 2), lowering.placement(name).shape[0]
    places = lowering.scratch("factors", 2 * channels)
    lookup = VectorFunction(a_size=1, b_size=1, second=Second.TABLE, statistic=Statistic.MAGNITUDE)
    for _ in emitter.each_pixel(lowering.pixels(name)):
        table_places(
            lowering,
            emitter,
            name,
            operation.input_scale,
            operation.constant,
            fraction=blockfloat.CURVE_BITS,
            entries=entries,
            target=places,
        )
        axes = [Axis(count=channels, strides={"a": 2, "o": 4})]
        emitter.vector(lookup, axes, a=places, b=table + 2 * (entries // 2), o=lowering.place(out))
        lowering.keep_peak(emitter, out)


def table_places(
    lowering: BlockLowering, emitter: Emitter, name: str, scale: str, constant: tuple[int, int], *, fraction: int, entries: int, target: int
) -> None:
    """``target``: two bytes for each channel of the pixel, its value times a constant, with ``fraction`` fraction bits, as its place in a table of ``entries``, counted
    from the middle."""
    lowering.normalise(emitter, name)
    emitter.move(SHIFT, RIGHT)
    lowering.scale(emitter, VALUE, scale, RIGHT)
    emitter.product_constant(VALUE, VALUE, constant, SPARE)
    emitter.move(FACTOR, VALUE[0])
    emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, VALUE[1], -fraction)
    emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
    emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
    function = VectorFunction(
        a_size=lowering.size(name), o_size=1, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True,
        bits=(entries // 2).bit_length() - 1,
    )  # fmt: skip
    axes = [Axis(count=lowering.placement(name).shape[0], strides={"a": 1 << lowering.size(name), "o": 2})]
    emitter.vector(function, axes, a=lowering.place(name), o=target)
