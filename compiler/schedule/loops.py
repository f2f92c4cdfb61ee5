"""Loops on the core, as instructions of the vector and scalar units."""

import numpy as np

from tritloom.compiler.ir.loop import Carried
from tritloom.compiler.schedule.blocks import BlockLowering
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.flat import LoopPart, LoopStart, LoopTop
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import INDEX_A, STATISTIC, Condition, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, Statistic, VectorFunction

__all__ = ["LoopLowering"]

TRIPS, FIRST, DISTANCE = 1, 2, 3
"""Registers."""


class LoopLowering:
    """Lowers the parts of loops, in their order.

    Before each trip a carried tensor is copied from where the trip before has left it; in the first trip from where its first value lies, which has the
    same layout. So every trip runs the same instructions.
    """

    def __init__(self, lowering: BlockLowering) -> None:
        self._lowering = lowering
        self._sources: dict[str, tuple[int, int]] = {}
        """Addresses of the first value of a carried tensor, and of the value behind a trip."""
        self._tops: dict[str, int] = {}
        """Program word of the top of each loop."""

    def lower(self, part: LoopPart) -> list[Instruction | Scalar]:
        """Instructions of one part."""
        emitter = self._lowering.emitter(f"layer {part.name!r}")
        if isinstance(part, LoopStart):
            self._start(part, emitter)
        elif isinstance(part, LoopTop):
            self._top(part, emitter)
        else:
            self._end(part, emitter)
        return emitter.instructions

    def _start(self, part: LoopStart, emitter: Emitter) -> None:
        """No trip is over. First values with another layout than those that follow are copied into it."""
        lowering = self._lowering
        emitter.set(TRIPS, 0)
        emitter.store(TRIPS, lowering.address(part.output))
        before = {carried.before for carried in part.loop.carried}
        for carried in part.loop.carried:
            after = lowering.placement(carried.after)
            # What another carried tensor overwrites first is put aside at the end of the trip.
            later = lowering.reserve(after.bytes) if carried.after in before else after.address
            if carried.values is not None:
                first = lowering.table(_stored(carried.values, after), 1)
            else:
                initial = lowering.placement(carried.initial)
                first = initial.address
                if _layout(initial) != _layout(after):
                    first = lowering.reserve(after.bytes)
                    _copy(lowering, emitter, initial, initial.address, after, first)
            self._sources[carried.before] = first, later

    def _top(self, part: LoopTop, emitter: Emitter) -> None:
        """Each carried tensor takes its next value."""
        lowering = self._lowering
        lowering.forget_held()
        self._tops[part.output] = emitter.word
        if part.loop.carried:
            emitter.load(TRIPS, lowering.address(part.output))
        for carried in part.loop.carried:
            first, later = self._sources[carried.before]
            emitter.set(DISTANCE, first - later)
            emitter.scalar(ScalarOpcode.KEEP, FIRST, TRIPS, right=DISTANCE)
            emitter.scalar(ScalarOpcode.SUBTRACT, INDEX_A, FIRST, right=DISTANCE)
            target = lowering.placement(carried.before)
            _copy(lowering, emitter, lowering.placement(carried.after), later, target, target.address, indexed=True)
            lowering.forget_peak(carried.before)

    def _end(self, part: LoopPart, emitter: Emitter) -> None:
        """Back to the top while there is another trip."""
        lowering, loop = self._lowering, part.loop
        for carried in loop.carried:
            self._put_aside(carried, emitter)
        emitter.load(TRIPS, lowering.address(part.output))
        emitter.add(TRIPS, TRIPS, 1)
        emitter.store(TRIPS, lowering.address(part.output))
        emitter.scalar(ScalarOpcode.SUBTRACT, TRIPS, TRIPS, loop.limit)
        if loop.condition:
            # An element of 8 bits stands among bytes that mean nothing, so no LOAD.
            function = VectorFunction(a_size=lowering.size(loop.condition), o_size=NOT_WRITTEN, statistic=Statistic.LARGEST)
            emitter.vector(function, [Axis(count=1)], a=lowering.address(loop.condition))
            emitter.scalar(ScalarOpcode.KEEP, TRIPS, STATISTIC, right=TRIPS)
        emitter.branch_back(Condition.NOT_ZERO, TRIPS, self._tops[part.output], loop.limit)

    def _put_aside(self, carried: Carried, emitter: Emitter) -> None:
        later, after = self._sources[carried.before][1], self._lowering.placement(carried.after)
        if later != after.address:
            _copy(self._lowering, emitter, after, after.address, after, later)


def _layout(place: Placement) -> tuple[int, int, tuple[int, int, int]]:
    return place.pixel_bytes, place.element_bytes, place.stored_shape


def _copy(
    lowering: BlockLowering, emitter: Emitter, source: Placement, a: int, target: Placement, o: int, *, indexed: bool = False
) -> None:
    """Every element from address ``a`` (with register INDEX_A when ``indexed``) in the layout of ``source`` to ``o`` in that of ``target``."""
    channels, height, width = target.shape
    axes = [
        Axis(count=channels, strides={"a": source.element_bytes, "o": target.element_bytes}),
        Axis(count=height * width, strides={"a": source.pixel_bytes, "o": target.pixel_bytes}),
    ]
    sizes = (place.element_bytes.bit_length() - 1 for place in (source, target))
    emitter.vector(VectorFunction(a_size=next(sizes), o_size=next(sizes)), axes, a=a, o=o, index_a=indexed)


def _stored(values: np.ndarray, place: Placement) -> np.ndarray:
    """The bytes, int8, of a constant (C, H, W) in a layout."""
    channels = len(values)
    stored = np.zeros((values[0].size, place.pixel_bytes), np.uint8)
    elements = np.ascontiguousarray(values.reshape(channels, -1).T.astype(f"<i{place.element_bytes}"))
    stored[:, : channels * place.element_bytes] = elements.view(np.uint8)
    return stored.view(np.int8).ravel()
