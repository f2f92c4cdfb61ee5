"""Rotations by angles that depend on data on the vector unit, step by step as :mod:`tritloom.compiler.golden.block` defines them.

Seven passes over the channels of a key head make cosines and sines of its angles, in scratch space; one more pass turns a head. Queries and keys of a layer have the same angles,
and so have the heads that share a key head: these are computed once. An angle is 16 bits that wrap, a whole turn: what exceeds them is left out where a result of the unit
is written to two bytes.
"""

import numpy as np

from tritloom.compiler.ir.block import TURN_BITS, Turn
from tritloom.compiler.schedule.blocks import RIGHT, VALUE, BlockLowering
from tritloom.compiler.schedule.curves import table_places
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.scalar import FACTOR, INDEX_B, SHIFT
from tritloom.hw.arch.vector import Factor, Second, Statistic, VectorFunction

__all__ = ["turn"]

_DROPPED = 4
"""Lowest bits of an angle that :func:`tritloom.hw.arch.blockfloat.cosine` rounds away."""
_HALF_TURN = 1 << (15 - _DROPPED)
_QUARTER = _HALF_TURN // 2
_WAVE = blockfloat.cosine(np.arange(-_HALF_TURN - _QUARTER, _HALF_TURN + 1) << _DROPPED)
"""Cosines from three quarters of a turn below 0 to half a turn; read a quarter earlier these are the sines from -1/2 to 1/2."""

_LOOKUP = VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.TABLE)


def turn(lowering: BlockLowering, operation: Turn, emitter: Emitter) -> None:
    """Instructions of a :class:`Turn`."""
    name, out, key_heads = operation.input, operation.output, lowering.pixels(operation.before)
    channels, heads, _ = lowering.placement(name).shape
    half, element = channels // 2, lowering.placement(name).element_bytes
    factors = lowering.scratch("turn factors", 4 * channels * key_heads)
    _all_factors(lowering, operation, emitter, factors)
    axes = [
        Axis(count=2, reduces=True, strides={"a": half * element, "b": 2 * half}),
        Axis(count=half, strides={"a": element, "b": 2, "o": 4}),
        Axis(count=2, strides={"b": 4 * half, "o": 4 * half}),
    ]
    function = VectorFunction(
        a_size=lowering.size(name), b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
    )
    for head in emitter.each_pixel(heads, written_out=True):
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        row = factors + 4 * channels * (head * key_heads // heads)
        emitter.vector(function, axes, a=lowering.place(name), b=row, o=lowering.place(out))
        lowering.keep_peak(emitter, out)
        lowering.scale(emitter, VALUE, operation.input_scale, RIGHT)
        emitter.store_pair(VALUE, lowering.place(operation.output_scale))


def _all_factors(lowering: BlockLowering, operation: Turn, emitter: Emitter, factors: int) -> None:
    """``factors``: a row for each key head, unless the operation before that turns has left them there.

    A row holds what the first and the second element of a pair are multiplied by for the first result, and for the second one; elements have angles of their own, so these are
    four times half of the channels.
    """
    rows = lowering.table((operation.angles & 0xFFFF).astype(np.uint16).view(np.int16), 2)
    shares = lowering.table(operation.table, 2)
    if lowering.holds("turn factors", (operation.before, operation.before_scale, operation.constant, operation.position, rows, shares)):
        return
    channels, key_heads, _ = lowering.placement(operation.before).shape
    lowering.index(operation, emitter, INDEX_B, lowering.place(operation.position), 2 * channels)
    for head in emitter.each_pixel(key_heads, written_out=True):
        _factors(lowering, operation, emitter, rows, shares, factors + 4 * channels * head)


def _factors(lowering: BlockLowering, operation: Turn, emitter: Emitter, rows: int, shares: int, target: int) -> None:
    channels, _, _ = lowering.placement(operation.before).shape
    half = channels // 2
    angles, places = (lowering.scratch(f"turn {name}", 2 * channels) for name in ("angles", "places"))
    each = [Axis(count=channels, strides={"a": 2, "o": 2})]
    table_places(
        lowering,
        emitter,
        operation.before,
        operation.before_scale,
        operation.constant,
        fraction=TURN_BITS,
        entries=len(operation.table),
        target=angles,
    )
    emitter.vector(_LOOKUP, each, a=angles, b=shares + len(operation.table), o=places)
    added = [Axis(count=channels, strides={"a": 2, "b": 2, "o": 2})]
    emitter.vector(VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.ADDEND), added, a=places, b=rows, o=angles, index_b=True)
    emitter.vector(VectorFunction(a_size=1, o_size=1, out_shift=_DROPPED, rounded=True), each, a=angles, o=places)
    sine = lowering.table(_WAVE, 2) + 2 * _HALF_TURN
    cosine = sine + 2 * _QUARTER
    halves = [Axis(count=half, strides={"a": 2, "o": 2}), Axis(count=2, strides={"a": 2 * half, "o": 6 * half})]
    emitter.vector(_LOOKUP, halves, a=places, b=cosine, o=target)
    emitter.vector(_LOOKUP, halves[:1], a=places + 2 * half, b=sine, o=target + 4 * half)
    emitter.set(FACTOR, -1)
    negated = VectorFunction(a_size=1, b_size=1, o_size=1, second=Second.TABLE, factor=Factor.REGISTER)
    emitter.vector(negated, halves[:1], a=places, b=sine, o=target + 2 * half)
