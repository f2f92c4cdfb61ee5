"""Rotations by angles that depend on data on the vector unit, step by step as :mod:`tritloom.compiler.golden.block` defines them.

The angles of a key head are the same for all heads that read it: seven passes over its channels make cosines and sines of them, in scratch space, and one more pass turns a head.
An angle is 16 bits that wrap, a whole turn: where it is written to an element of two bytes, what exceeds a turn is left out.
"""

import numpy as np

from tritloom.compiler.ir.block import TURN_BITS, Turn
from tritloom.compiler.schedule.blocks import LARGEST_OUT_SHIFT, BlockLowering
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import FACTOR, INDEX_B, OUT_SHIFT, SHIFT, ScalarOpcode
from tritloom.hw.arch.vector import OUT_SHIFT_REGISTER, Factor, Second, Statistic, VectorFunction

__all__ = ["turn"]

RIGHT, SPARE = 2, 7
VALUE = (3, 4)

_DROPPED = 4
"""Lowest bits of an angle that :func:`tritloom.hw.arch.blockfloat.cosine` rounds away."""
_HALF_TURN = 1 << (15 - _DROPPED)
_QUARTER = _HALF_TURN // 2
_WAVE = blockfloat.cosine(np.arange(-_HALF_TURN - _QUARTER, _HALF_TURN + 1) << _DROPPED)
"""Cosines of angles from three quarters of a turn below 0 to half a turn; a quarter earlier they are the sines of -1/2 to 1/2."""


def turn(lowering: BlockLowering, operation: Turn, emitter: Emitter) -> None:
    """Instructions of a :class:`Turn`."""
    name, out = operation.input, operation.output
    channels, heads, _ = lowering.placement(name).shape
    half, shared = channels // 2, heads // lowering.pixels(operation.before)
    element = lowering.placement(name).element_bytes
    factors = lowering.scratch("turn factors", 4 * channels)
    axes = [
        Axis(count=2, reduces=True, strides={"a": half * element, "b": 2 * half}),
        Axis(count=half, strides={"a": element, "b": 2, "o": 4}),
        Axis(count=2, strides={"b": 4 * half, "o": 4 * half}),
    ]
    function = VectorFunction(
        a_size=lowering.size(name), b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
    )
    for head in range(heads):
        if head % shared == 0:
            _cosines(lowering, operation, emitter, head // shared, factors)
        lowering.normalise(emitter, name, head)
        emitter.move(SHIFT, RIGHT)
        emitter.vector(function, axes, a=lowering.address(name, head), b=factors, o=lowering.address(out, head))
        lowering.keep_peak(emitter, out, head)
        lowering.scale(emitter, VALUE, operation.input_scale, head, RIGHT)
        emitter.store_pair(VALUE, lowering.address(operation.output_scale, head))


def _cosines(lowering: BlockLowering, operation: Turn, emitter: Emitter, head: int, factors: int) -> None:
    """``factors``: what the first and the second element of a pair are multiplied by for its first result, and for its second one. They have angles of their own."""
    channels, _, _ = lowering.placement(operation.before).shape
    half = channels // 2
    angles, places = (lowering.scratch(f"turn {name}", 2 * channels) for name in ("angles", "places"))
    each = [Axis(count=channels, strides={"a": 2, "b": 2, "o": 2})]
    _shares(lowering, operation, emitter, head, angles, places)
    rows = lowering.table((operation.angles & 0xFFFF).astype(np.uint16).view(np.int16), 2)
    lowering.index(operation, emitter, INDEX_B, operation.position, 2 * channels)
    emitter.vector(VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.ADDEND), each, a=places, b=rows, o=angles, index_b=True)
    emitter.vector(VectorFunction(a_size=1, o_size=1, out_shift=_DROPPED, rounded=True), each, a=angles, o=places)
    sine = lowering.table(_WAVE, 2) + 2 * _HALF_TURN
    cosine = sine + 2 * _QUARTER
    lookup = VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.TABLE)
    outer = [Axis(count=half, strides={"a": 2, "o": 2}), Axis(count=2, strides={"a": 2 * half, "o": 6 * half})]
    emitter.vector(lookup, outer, a=places, b=cosine, o=factors)
    emitter.vector(lookup, outer[:1], a=places + 2 * half, b=sine, o=factors + 4 * half)
    emitter.set(FACTOR, -1)
    negated = VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.TABLE, factor=Factor.REGISTER)
    emitter.vector(negated, outer[:1], a=places, b=sine, o=factors + 2 * half)


def _shares(lowering: BlockLowering, operation: Turn, emitter: Emitter, head: int, steps: int, shares: int) -> None:
    """``shares``: turns that the key before adds, by way of the places in their table, ``steps``."""
    name, half = operation.before, len(operation.table) // 2
    channels, size = lowering.placement(name).shape[0], lowering.size(name)
    lowering.normalise(emitter, name, head)
    emitter.move(SHIFT, RIGHT)
    lowering.scale(emitter, VALUE, operation.before_scale, head, RIGHT)
    emitter.product_constant(VALUE, VALUE, operation.constant, SPARE)
    emitter.move(FACTOR, VALUE[0])
    emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, VALUE[1], -TURN_BITS)
    emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
    emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
    function = VectorFunction(
        a_size=size, o_size=1, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True, bits=half.bit_length() - 1
    )
    emitter.vector(function, [Axis(count=channels, strides={"a": 1 << size, "o": 2})], a=lowering.address(name, head), o=steps)
    lookup = VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.TABLE)
    table = lowering.table(operation.table, 2) + 2 * half
    emitter.vector(lookup, [Axis(count=channels, strides={"a": 2, "o": 2})], a=steps, b=table, o=shares)
