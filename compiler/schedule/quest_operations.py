"""QuEST's operations on blocks: the Hadamard transform, and codes on a grid by the root mean square."""

from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.compiler.schedule.blocks import DEVIATION, LARGEST_OUT_SHIFT, OTHER, RIGHT, SPARE, SPARE_2, VALUE, WORD_BYTES, BlockLowering
from tritloom.compiler.schedule.emit import Emitter, Place
from tritloom.compiler.schedule.nest import Axis
from tritloom.compiler.schedule.norms import power_of
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import ADDEND, FACTOR, OUT_SHIFT, SHIFT, STATISTIC, ScalarOpcode
from tritloom.hw.arch.vector import OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, VectorFunction

__all__ = ["hadamard", "quantise_by_deviation"]


def hadamard(lowering: BlockLowering, operation: Hadamard, emitter: Emitter) -> None:
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


def quantise_by_deviation(lowering: BlockLowering, operation: QuantiseByDeviation, emitter: Emitter) -> None:
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
        power_of(lowering, emitter, name)
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
