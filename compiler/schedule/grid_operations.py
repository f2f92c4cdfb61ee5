"""The operations on integers of a fixed grid, each as instructions of the vector and scalar units; the rules are those of :mod:`tritloom.compiler.golden.grid`."""

from collections.abc import Callable

import numpy as np

from tritloom.compiler.ir.grid import Align, ClampedSum, GridOperation, Magnitude, Prepend, Reduce
from tritloom.compiler.schedule.blocks import ELEMENT_SIZES, LARGEST_OUT_SHIFT, WORD_BYTES, BlockLowering
from tritloom.compiler.schedule.emit import Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.errors import ModelError
from tritloom.hw.arch.scalar import ADDEND, FACTOR, OUT_SHIFT, SHIFT, STATISTIC, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, VectorFunction

__all__ = ["GRID_HANDLERS"]

PEAK, RIGHT = 1, 2
SCALE, SPARE = (3, 4), 5

LARGEST_FACTORED = 1 << 17
"""Magnitude up to which an element may be multiplied."""

Range = tuple[int, int]


def _axes(lowering: BlockLowering, shape: str, **tensors: str) -> list[Axis]:
    """All elements of a tensor, with the strides of the tensors at ``a``, ``b`` and ``o``, where an empty name is scratch space of 32 bits."""
    channels = lowering.placement(shape).shape[0]
    elements, pixels = {}, {}
    for register, name in tensors.items():
        place = lowering.placement(name) if name else None
        elements[register] = place.element_bytes if place else WORD_BYTES
        pixels[register] = place.pixel_bytes if place else WORD_BYTES * channels
    return [Axis(count=channels, strides=elements), Axis(count=lowering.pixels(shape), strides=pixels)]


Limits = tuple[int, Low]
"""``bits`` and ``low`` of a VECTOR."""

_ANY: Limits = 31, Low.TWO


def _limits(operation: ClampedSum, reached: Range) -> Limits:
    """What limits results of a range as ``low`` and ``high`` do. Raises :class:`ModelError` where the core's limits cannot."""
    low, high = (min(max(end, operation.low), operation.high) for end in reached)
    kinds = {Low.ZERO: lambda top: 0, Low.SYMMETRIC: lambda top: -top, Low.TWO: lambda top: -top - 1}
    for bits in range(1, 32):
        top = (1 << bits) - 1
        for kind, bottom in kinds.items():
            if tuple(min(max(end, bottom(top)), top) for end in reached) == (low, high):
                return bits, kind
    raise ModelError(
        f"layer {operation.name!r} limits a sum to {operation.low}..{operation.high}; the core limits to powers of two; run the model in golden"
    )


def _scaled(ends: Range, factor: int) -> Range:
    first, second = (end * factor for end in ends)
    return min(first, second), max(first, second)


def _clamped_sum(lowering: BlockLowering, operation: ClampedSum, emitter: Emitter) -> None:
    """One pass, or two where both operands are multiplied or a constant comes to a sum."""
    ends = {name: lowering.range(name) for name in operation.inputs}
    parts = [(operation.left, operation.left_factor)] + ([(operation.right, operation.right_factor)] if operation.right else [])
    reached = [_scaled(ends[name], factor) for name, factor in parts]
    whole = operation.constant + sum(low for low, _ in reached), operation.constant + sum(high for _, high in reached)
    limits = _limits(operation, whole)
    # What is multiplied comes first, and what only changes its sign second.
    parts.sort(key=lambda part: (part[1] in (1, -1), part[1] == -1, max(map(abs, ends[part[0]]))))
    first, *rest = parts
    if not rest:
        if first[1] == -1 and max(map(abs, ends[first[0]])) >= LARGEST_FACTORED:
            emitter.vector(
                VectorFunction(b_size=lowering.size(first[0]), o_size=lowering.size(operation.output), second=Second.SUBTRAHEND, bits=limits[0], low=limits[1]),
                _axes(lowering, first[0], b=first[0], o=operation.output),
                a=lowering.table(np.array([operation.constant]), WORD_BYTES), b=lowering.address(first[0]), o=lowering.address(operation.output),
            )  # fmt: skip
        else:
            _multiplied(lowering, operation, emitter, first, limits, constant=operation.constant)
        return
    second, scratch = rest[0], ("", 1)
    if operation.constant or second[1] not in (1, -1):
        # One of them goes through the multiplier first, with the constant, the one that is added as it is last.
        multiplied = first if second[1] in (1, -1) else second
        low, high = (operation.constant + end for end in _scaled(ends[multiplied[0]], multiplied[1]))
        if not -(1 << 31) <= low <= high < 1 << 31:
            raise ModelError(f"layer {operation.name!r} adds more than 32 bits hold; the core does not; run the model in golden")
        _multiplied(lowering, operation, emitter, multiplied, _ANY, constant=operation.constant, to_scratch=True)
        first, second = (scratch, second) if multiplied is first else (first, scratch)
    _multiplied(lowering, operation, emitter, first, limits, second=second)


_Part = tuple[str, int]
"""Name of a tensor, empty for the scratch space, and its factor."""


def _multiplied(
    lowering: BlockLowering,
    operation: ClampedSum,
    emitter: Emitter,
    part: _Part,
    limits: Limits,
    *,
    constant: int = 0,
    second: _Part | None = None,
    to_scratch: bool = False,
) -> None:
    """A part plus a constant, or plus or minus ``second``, to the output or to the scratch space, whose elements have 32 bits."""
    shape = operation.output
    scratch = lowering.scratch("addends", WORD_BYTES * lowering.placement(shape).shape[0] * lowering.pixels(shape))
    target = "" if to_scratch else shape
    name, factor = part
    if factor != 1:
        if max(map(abs, lowering.range(name))) >= LARGEST_FACTORED:
            raise ModelError(f"layer {operation.name!r} multiplies more than 18 bits; the core does not; run the model in golden")
        emitter.set(FACTOR, factor)
    if constant:
        emitter.set(ADDEND, constant)
    kind, strides = Second.NONE, {"a": name, "o": target}
    if second is not None:
        kind, strides["b"] = Second.ADDEND if second[1] > 0 else Second.SUBTRAHEND, second[0]
    size = {register: lowering.size(tensor) if tensor else ELEMENT_SIZES[WORD_BYTES] for register, tensor in strides.items()}
    address = {register: lowering.address(tensor) if tensor else scratch for register, tensor in strides.items()}
    function = VectorFunction(
        a_size=size["a"], b_size=size.get("b", 0), o_size=size["o"], second=kind, factor=Factor.ONE if factor == 1 else Factor.REGISTER,
        addend=bool(constant), bits=limits[0], low=limits[1],
    )  # fmt: skip
    emitter.vector(function, _axes(lowering, shape, **strides), a=address["a"], b=address.get("b", 0), o=address["o"])


def _magnitude(lowering: BlockLowering, operation: Magnitude, emitter: Emitter) -> None:
    """``x + max(-2 x, 0)``."""
    name, out = operation.input, operation.output
    if max(map(abs, lowering.range(name))) >= LARGEST_FACTORED:
        raise ModelError(f"layer {operation.name!r} takes the magnitude of more than 18 bits; the core does not; run the model in golden")
    twice = lowering.scratch("addends", WORD_BYTES * lowering.placement(name).shape[0] * lowering.pixels(name))
    emitter.set(FACTOR, -2)
    negative = VectorFunction(a_size=lowering.size(name), factor=Factor.REGISTER, low=Low.ZERO)
    emitter.vector(negative, _axes(lowering, name, a=name, o=""), a=lowering.address(name), o=twice)
    both = VectorFunction(a_size=lowering.size(name), o_size=lowering.size(out), second=Second.ADDEND)
    emitter.vector(both, _axes(lowering, name, a=name, b="", o=out), a=lowering.address(name), b=twice, o=lowering.address(out))


def _reduce(lowering: BlockLowering, operation: Reduce, emitter: Emitter) -> None:
    name, factor = operation.input, Factor.ONE
    if operation.smallest:
        if max(map(abs, lowering.range(name))) >= LARGEST_FACTORED:
            raise ModelError(
                f"layer {operation.name!r} takes the smallest of more than 18 bits; the core does not; run the model in golden"
            )
        emitter.set(FACTOR, -1)
        factor = Factor.REGISTER
    function = VectorFunction(a_size=lowering.size(name), o_size=NOT_WRITTEN, factor=factor, statistic=Statistic.LARGEST)
    emitter.vector(function, _axes(lowering, name, a=name), a=lowering.address(name))
    found = STATISTIC
    if operation.smallest:
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, STATISTIC, 0)
        found = SPARE
    # Four bytes: those behind an element of 8 bits belong to its padding.
    emitter.store(found, lowering.address(operation.output))


def _align(lowering: BlockLowering, operation: Align, emitter: Emitter) -> None:
    name, out = operation.input, operation.output
    function = VectorFunction(
        a_size=lowering.size(name), o_size=lowering.size(out), shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True,
        bits=15, statistic=Statistic.MAGNITUDE,
    )  # fmt: skip
    for _ in emitter.each_pixel(lowering.pixels(name)):
        lowering.normalise(emitter, name)
        emitter.move(SHIFT, RIGHT)
        lowering.scale(emitter, SCALE, operation.input_scale, RIGHT)
        emitter.product_constant(SCALE, SCALE, operation.constant, SPARE)
        emitter.move(FACTOR, SCALE[0])
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, SCALE[1], 0)
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 0)
        emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
        emitter.vector(function, lowering.channels(name, a=name, o=out), a=lowering.place(name), o=lowering.place(out))
        lowering.keep_peak(emitter, out)


def _prepend(lowering: BlockLowering, operation: Prepend, emitter: Emitter) -> None:
    name, out = operation.input, operation.output
    target, size = lowering.placement(out), lowering.size(out)
    channels, columns = operation.columns.shape
    width = 1 if lowering.placement(name).element_bytes == 1 else 2
    table = lowering.table(operation.columns.T, width)
    axes = [
        Axis(count=channels, strides={"a": width, "o": target.element_bytes}),
        Axis(count=columns, strides={"a": width * channels, "o": target.pixel_bytes}),
    ]
    emitter.vector(VectorFunction(a_size=ELEMENT_SIZES[width], o_size=size), axes, a=table, o=target.address)
    rest = target.address + columns * target.pixel_bytes
    emitter.vector(
        VectorFunction(a_size=lowering.size(name), o_size=size), _axes(lowering, name, a=name, o=out), a=lowering.address(name), o=rest
    )


GRID_HANDLERS: dict[type[GridOperation], Callable[..., None]] = {
    ClampedSum: _clamped_sum,
    Magnitude: _magnitude,
    Reduce: _reduce,
    Align: _align,
    Prepend: _prepend,
}
"""What lowers an operation of each kind, called with the lowering of the program, the operation and an emitter. They raise :class:`ModelError` for one that the core cannot do."""
