"""MaxPool, AveragePool and GlobalAveragePool."""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import Codes, Operand, Pending, Tail, Value, affine_of, direction, identity_view
from tritloom.compiler.frontend.windows import spatial_rank, window_of
from tritloom.compiler.ir.program import Convolution, MaxPool, Rescale, SumPool, Tensor, Window
from tritloom.compiler.quantize.chain import compose, entry
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step, is_curved

__all__ = ["LargestOf", "MeanOf", "max_pool", "mean_pool"]

_MIRRORED = {
    "half_even": "half_even",
    "half_away": "half_away",
    "half_toward_zero": "half_toward_zero",
    "toward_zero": "toward_zero",
    "away_from_zero": "away_from_zero",
}
"""Rounding modes for which ``round(-x) == -round(x)``."""

_ONE, _ZERO = (Fraction(1),), (Fraction(0),)


def _pooled_tensor(builder: Builder, tensor: Tensor, name: str, window: Window) -> Tensor:
    height, width = window.output_size(*tensor.shape[1:])
    return builder.add(replace(tensor, name=builder.unique(name), shape=(tensor.shape[0], height, width)))


def _mirror(builder: Builder, tensor: Tensor, falling: list[int], low: int, high: int, result: Tensor, label: str) -> Tensor:
    """``low + high - code`` in the falling channels, other channels unchanged; ``result`` describes the tensor that is written."""
    gains = [Fraction(1)] * tensor.shape[0]
    offsets = [Fraction(0)] * tensor.shape[0]
    for channel in falling:
        gains[channel], offsets[channel] = Fraction(-1), Fraction(low + high)
    quantiser = Quantiser(Fraction(1), 0, -128, 127, "half_even")
    step = builder.step((Affine(tuple(gains), tuple(offsets)),), quantiser, tensor.low, tensor.high, tensor.shape[0])
    mirrored = builder.add(replace(result, low=low if builder.dry else step.low, high=high if builder.dry else step.high))
    builder.emit(Rescale(name=builder.operation_name(label), output=mirrored.name, input=tensor.name, step=step))
    return mirrored


def _falling_at_zero(chain: tuple[Step, ...], channel: int) -> Fraction:
    """Less than the least magnitude other than zero that the chain takes at an integer: its pieces are rational."""
    parts = [part for segment in compose(chain, channel) for part in (segment.gain, segment.offset)]
    return Fraction(1, 2 * lcm(*(part.denominator for part in parts)))


@dataclass(eq=False, kw_only=True)
class LargestOf(Pending):
    """Max-pool of something that is not yet codes: it is quantised first and the codes are compared.

    A quantiser never decreases, so this commutes with the maximum where the steps between pool and quantiser do not decrease
    either. In channels where they do not increase, the mirrored codes ``low + high - code`` are compared and mirrored back. ``value`` is the pool's ONNX name.
    """

    value: str
    inner: Value
    window: Window

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        inner = self.inner
        assert isinstance(inner.base, Pending) and inner.chain is not None
        channels = self.shape[0]
        directions = [direction(chain, channel) for channel in range(channels)]
        curved = is_curved((*inner.chain, *chain))
        if 0 in directions or (-1 in directions and (quantiser.thresholds is not None or (quantiser.bipolar and curved))):
            # Steps that both rise and fall do not commute with a maximum; how near to zero a falling curve comes is not known, and thresholds
            # that are reached by falling would have to be passed.
            return builder.on_own_grid(self, self.value, chain, quantiser, name, source)
        falling = [channel for channel, sign in enumerate(directions) if sign < 0]
        before = f"{name}_before_{self.label}"
        low, high = quantiser.low + quantiser.offset, quantiser.high + quantiser.offset
        first = inner.base.finish(builder, *self._turned((*inner.chain, *chain), quantiser, falling), before, source)
        pooled = _pooled_tensor(builder, first, f"{name}_mirrored" if falling else name, self.window)
        builder.emit(MaxPool(name=builder.operation_name(self.label), output=pooled.name, input=first.name, window=self.window))
        if not falling:
            return pooled
        return _mirror(
            builder, pooled, falling, low, high, builder.tensor(name, self.shape, quantiser, None, source), f"{self.label}_mirror"
        )

    def _turned(self, chain: tuple[Step, ...], quantiser: Quantiser, falling: list[int]) -> tuple[tuple[Step, ...], Quantiser]:
        """Chain and quantiser that give mirrored codes in the falling channels."""
        if not falling:
            return chain, quantiser
        channels = self.shape[0]
        zero = [
            entry(quantiser.zero_point, c) if isinstance(quantiser.zero_point, tuple) else quantiser.zero_point for c in range(channels)
        ]
        if quantiser.clip_first or quantiser.bipolar:
            # The zero point is added before rounding: make it part of the chain.
            shifts = tuple(quantiser.parameters(c)[0] * zero[c] for c in range(channels))
            chain = (*chain, Affine(_ONE, shifts))
            zero = [0] * channels
        gains, offsets = [Fraction(1)] * channels, [Fraction(0)] * channels
        for channel in falling:
            gains[channel] = Fraction(-1)
            if quantiser.bipolar:
                offsets[channel] = -_falling_at_zero(chain, channel)
            else:
                zero[channel] = quantiser.low + quantiser.high - zero[channel]
        if not quantiser.bipolar and quantiser.rounding not in _MIRRORED:
            raise RefusalError(
                f"a decreasing step behind the pool cannot be combined with rounding {quantiser.rounding}",
                "put a quantiser before the pool",
            )
        turned = replace(quantiser, zero_point=tuple(zero) if any(zero) else 0, clip_first=False)
        return (*chain, Affine(tuple(gains), tuple(offsets))), turned


@operator("MaxPool", "1-D and 2-D, strides, pads, auto_pad, dilations, ceil_mode; values only")
def _max_pool(builder: Builder, node: Node) -> Operand:
    if len(node.outputs) > 1 and node.outputs[1]:
        raise RefusalError("the indices of MaxPool are used", "use its first output only")
    value = builder.settle(node.activation())
    rank = spatial_rank(value.shape)
    kernel = _kernel(node, rank)
    window, _ = window_of(node, value.shape[2:], kernel, pool=True)
    return max_pool(builder, node, value, window, rank)


def max_pool(builder: Builder, node: Node, value: Value, window: Window, rank: int) -> Value:
    """Max-pool of ``value``, (1, C, L) or (1, C, H, W)."""
    shape = (value.shape[1], 1, value.shape[2]) if rank == 1 else (value.shape[1], value.shape[2], value.shape[3])
    ordered = value.base.shape == shape and np.array_equal(value.view.ravel(), np.arange(value.view.size))
    if isinstance(value.base, Pending) and value.chain is not None:
        value = value.base.codes(builder, value) or value
    if isinstance(value.base, Pending) and value.chain is not None and ordered:
        base = LargestOf(
            shape=(shape[0], *window.output_size(*shape[1:])), label=node.label, value=node.outputs[0], inner=value, window=window
        )
        view = _view(base.shape, rank)
        return Value(
            name=node.outputs[0], base=base, view=view, chain=(), trail=None, start=view, witness=node.outputs[0], label=node.label
        )
    if not isinstance(value.base, Codes) or value.chain is None or not _monotone(value):
        value = builder.codes(value)
    assert isinstance(value.base, Codes) and value.chain is not None
    if not ordered or value.base.shape != shape:
        value = builder.placed(builder.codes(value), shape)
    assert isinstance(value.base, Codes) and value.chain is not None
    chain, tensor = value.chain, value.base.tensor
    falling = [c for c in range(shape[0]) if direction(chain, c) < 0]
    if falling:
        mirrored = replace(tensor, name=builder.unique(f"{value.name}_mirrored"))
        tensor = _mirror(builder, tensor, falling, tensor.low, tensor.high, mirrored, f"{node.label}_mirror")
    pooled = _pooled_tensor(builder, tensor, f"{node.outputs[0]}_mirrored" if falling else node.outputs[0], window)
    builder.emit(MaxPool(name=builder.operation_name(node.label), output=pooled.name, input=tensor.name, window=window))
    if falling:
        back = replace(pooled, name=builder.unique(node.outputs[0]))
        pooled = _mirror(builder, pooled, falling, value.base.tensor.low, value.base.tensor.high, back, f"{node.label}_mirror")
    view = _view(pooled.shape, rank)
    plain = value.trail is not None and len(value.trail) == 1
    return Value(name=node.outputs[0], base=Codes(shape=pooled.shape, tensor=pooled), view=view, chain=chain, trail=value.trail if plain else None,
                 start=view, witness=node.outputs[0], label=node.label)  # fmt: skip


def _monotone(value: Value) -> bool:
    assert value.chain is not None
    return all(direction(value.chain, channel) for channel in range(value.base.shape[0]))


def _view(shape: tuple[int, int, int], rank: int) -> np.ndarray:
    return identity_view((1, *shape)) if rank == 2 else identity_view((1, shape[0], shape[2]))


def _kernel(node: Node, rank: int) -> list[int]:
    kernel = node.attribute("kernel_shape", list)
    if kernel is None or len(kernel) != rank or min(kernel) < 1:
        raise RefusalError("its kernel_shape does not fit its input", f"give {rank} values of 1 or more")
    return kernel


@dataclass(eq=False, kw_only=True)
class MeanOf(Pending):
    """Average pool of codes. ``regions`` are rectangles (y0, y1, x0, x1) with divisor and the number of elements inside the input.

    Outside the input counts ``pad_code``: the zero point when the padding counts (so that it adds nothing), else 0.
    """

    value: Value
    window: Window
    regions: tuple[tuple[tuple[int, int, int, int], int, int], ...]
    pad_code: int
    padded: bool

    def _chain(self, divisor: int, inside: int) -> Affine:
        affine = affine_of(self.value.chain)
        assert affine is not None
        count = self.window.kernel[0] * self.window.kernel[1] if self.padded else inside
        return Affine(tuple(gain / divisor for gain in affine.gain), tuple(offset * count / divisor for offset in affine.offset))

    def _bounds(self) -> tuple[Tensor, int, int]:
        assert isinstance(self.value.base, Codes)
        tensor = self.value.base.tensor
        count = self.window.kernel[0] * self.window.kernel[1]
        codes = [tensor.low, tensor.high, *([self.pad_code] if any(self.window.pads) else [])]
        return tensor, count * min(codes), count * max(codes)

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        tensor, low, high = self._bounds()
        keys = dict.fromkeys((divisor, inside) for _, divisor, inside in self.regions)
        steps = {key: builder.step((self._chain(*key), *chain), quantiser, low, high, self.shape[0]) for key in keys}
        bottom, top = min(step.low for step in steps.values()), max(step.high for step in steps.values())
        result = builder.tensor(name, self.shape, quantiser, None, source)
        result = builder.add(replace(result, low=bottom, high=top))
        builder.emit(
            SumPool(
                name=builder.operation_name(self.label),
                output=result.name,
                input=tensor.name,
                window=self.window,
                pad_code=self.pad_code,
                regions=tuple((rectangle, steps[divisor, inside]) for rectangle, divisor, inside in self.regions),
                acc_low=min(low, 0),
                acc_high=max(high, 0),
            )
        )
        return result

    def raw(self, builder: Builder, name: str) -> Tensor | None:
        """The sums themselves, by a convolution of ones in each channel, where one divisor holds everywhere."""
        if len({(divisor, inside) for _, divisor, inside in self.regions}) > 1:
            return None
        tensor, low, high = self._bounds()
        affine = self._chain(*self.regions[0][1:])
        channels = self.shape[0]
        count = max(len(affine.gain), len(affine.offset))
        zeros = tuple(-entry(affine.offset, c) / entry(affine.gain, c) if entry(affine.gain, c) else None for c in range(count))
        if any(
            zero is None or zero.denominator != 1 or gain <= 0
            for zero, gain in zip(zeros, affine.gain * (count // len(affine.gain)), strict=True)
        ):
            return None
        result = builder.add(
            Tensor(name=builder.unique(name), shape=self.shape, bits=32, low=low, high=high, scale=affine.gain,
                   zero_point=tuple(int(zero) for zero in zeros if zero is not None), source="accumulator")
        )  # fmt: skip
        builder.emit(
            Convolution(
                name=builder.operation_name(self.label),
                output=result.name,
                input=tensor.name,
                weights=np.ones((channels, 1, *self.window.kernel), np.int16),
                planes=1,
                window=self.window,
                groups=channels,
                pad_code=self.pad_code,
                step=None,
                acc_low=min(low, 0),
                acc_high=max(high, 0),
            )
        )
        return result


def _axis_counts(
    size: int, outputs: int, kernel: int, stride: int, before: int, after: int, *, include: bool
) -> tuple[list[int], list[int]]:
    """For each output along one axis: the divisor's share, and the elements of its window inside the input."""
    divisors, inside = [], []
    for index in range(outputs):
        start = index * stride - before
        real = min(start + kernel, size) - max(start, 0)
        counted = min(start + kernel, size + after) - start
        inside.append(real)
        divisors.append(counted if include else real)
    return divisors, inside


def _runs(keys: list[tuple[int, int]]) -> list[tuple[int, int, tuple[int, int]]]:
    runs: list[tuple[int, int, tuple[int, int]]] = []
    for index, key in enumerate(keys):
        if runs and runs[-1][2] == key:
            runs[-1] = (runs[-1][0], index + 1, key)
        else:
            runs.append((index, index + 1, key))
    return runs


def mean_pool(builder: Builder, node: Node, value: Value, window: Window, plain: Window, rank: int, *, include: bool) -> Value:
    """Average pool of ``value``; ``plain`` is the window whose pads the model states, without the ends that ceil mode adds."""
    if isinstance(value.base, Tail):
        raise RefusalError(f"a pool behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    if window.dilations != (1, 1):
        raise RefusalError("dilation in an average pool is not supported", "use dilation 1")
    value = builder.codes(value)
    shape = (value.shape[1], 1, value.shape[2]) if rank == 1 else (value.shape[1], value.shape[2], value.shape[3])
    value = builder.placed(value, shape)
    affine = affine_of(value.chain)
    assert affine is not None
    height, width = window.output_size(*shape[1:])
    axes = [
        _axis_counts(shape[1 + axis], (height, width)[axis], window.kernel[axis], window.strides[axis], window.pads[axis], plain.pads[axis + 2],
                     include=include)
        for axis in range(2)
    ]  # fmt: skip
    zeros = {
        -entry(affine.offset, c) / entry(affine.gain, c) if entry(affine.gain, c) else None
        for c in range(max(len(affine.gain), len(affine.offset)))
    }
    zero = zeros.pop() if len(zeros) == 1 else None
    padded = zero is not None and zero.denominator == 1 and -128 <= zero <= 127
    rows, columns = (_runs([(d, 0 if padded else i) for d, i in zip(*axis, strict=True)]) for axis in axes)
    regions = tuple(((y0, y1, x0, x1), dy * dx, iy * ix) for y0, y1, (dy, iy) in rows for x0, x1, (dx, ix) in columns)
    base = MeanOf(
        shape=(shape[0], height, width), label=node.label, value=value, window=window, regions=regions,
        pad_code=int(zero) if padded and zero is not None else 0, padded=padded,
    )  # fmt: skip
    view = _view(base.shape, rank)
    return Value(name=node.outputs[0], base=base, view=view, chain=(), trail=None, start=view, witness=node.outputs[0], label=node.label)


@operator("AveragePool", "1-D and 2-D, strides, pads, auto_pad, ceil_mode, count_include_pad")
def _average_pool(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    rank = spatial_rank(value.shape)
    window, plain = window_of(node, value.shape[2:], _kernel(node, rank), pool=True)
    return mean_pool(builder, node, value, window, plain, rank, include=bool(node.attribute("count_include_pad", int, 0)))


def _whole(value: Value) -> tuple[Window, int]:
    rank = spatial_rank(value.shape)
    return Window(kernel=(1, value.shape[2]) if rank == 1 else (value.shape[2], value.shape[3])), rank


@operator("GlobalAveragePool", "1-D and 2-D")
def _global_average_pool(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    window, rank = _whole(value)
    return mean_pool(builder, node, value, window, window, rank, include=False)


@operator("GlobalMaxPool", "1-D and 2-D")
def _global_max_pool(builder: Builder, node: Node) -> Operand:
    value = builder.settle(node.activation())
    return max_pool(builder, node, value, *_whole(value))
