"""Convolution and dense layers as pending operations: integer weights, proven accumulator bounds, the exact affine behind them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import ClassVar

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.compensation import LayerInputs
from tritloom.compiler.frontend.correction import mean_sums
from tritloom.compiler.frontend.portrait import weight_facts
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.values import Codes, Constant, Grid, Pending, Value, affine_of, identity_view
from tritloom.compiler.ir.program import Convolution, HostOp, StepFunction, Tensor, Window
from tritloom.compiler.quantize.chain import entry
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step, is_curved
from tritloom.compiler.quantize.weights import MAX_PLANES, IntegerWeights, lower_weights
from tritloom.hw.arch.trits import plane_count

__all__ = ["Accumulators", "accumulator_bounds", "accumulators_value", "integer_weights", "pad_code_of", "reachable_bounds"]

_ACCUMULATOR_LIMIT = 1 << 31
_LARGEST_CODE = (3**MAX_PLANES - 1) // 2


@dataclass(eq=False, kw_only=True)
class Accumulators(Pending):
    """A convolution whose result is not yet requantised. ``low`` and ``high`` bound the accumulator of each output channel.

    ``value`` is its ONNX name, behind the first step of every chain that starts here.
    """

    from_integers: ClassVar[bool] = True
    value: str
    input: Tensor
    weights: np.ndarray
    planes: int
    window: Window
    groups: int
    pad_code: int
    low: list[int]
    high: list[int]
    scale: tuple[Fraction, ...]
    zero_point: tuple[int, ...]
    method: str
    error: float

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        reachable = sum(high - low + 1 for low, high in zip(self.low, self.high, strict=True))
        if is_curved(chain) and reachable > builder.most_sums:
            first = next(index for index, step in enumerate(chain) if is_curved((step,)))
            stated = getattr(chain[first], "value", "")
            before = first if stated else 1
            return builder.on_own_grid(self, stated or self.value, chain[before:], quantiser, name, source, before=chain[:before])
        step = builder.step(chain, quantiser, self.low, self.high, self.shape[0])
        tensor = builder.tensor(name, self.shape, quantiser, step, source)
        self._emit(builder, tensor, step)
        return tensor

    def raw(self, builder: Builder, name: str) -> Tensor | None:
        tensor = builder.add(
            Tensor(
                name=builder.unique(name),
                shape=self.shape,
                bits=32,
                low=min(self.low),
                high=max(self.high),
                scale=self.scale,
                zero_point=self.zero_point,
                source="accumulator",
            )
        )
        self._emit(builder, tensor, None)
        return tensor

    def _emit(self, builder: Builder, tensor: Tensor, step: StepFunction | None) -> None:
        pads = (self.pad_code,) if any(self.window.pads) else ()
        low, high = (
            (0, 0)
            if builder.dry
            else accumulator_bounds(self.weights, self.planes, min(self.input.low, *pads, 0), max(self.input.high, *pads, 0))
        )
        if max(-low, high) >= _ACCUMULATOR_LIMIT:
            raise RefusalError(f"its sums may reach {max(-low, high)}, more than the 32 bits of the widest accumulator",
                               "split the layer, or use fewer weight bits")  # fmt: skip
        builder.emit(
            Convolution(
                name=builder.operation_name(self.label),
                output=tensor.name,
                input=self.input.name,
                weights=self.weights,
                planes=self.planes,
                window=self.window,
                groups=self.groups,
                pad_code=self.pad_code,
                step=step,
                acc_low=low,
                acc_high=high,
                weight_method=self.method,
                weight_error=self.error,
            )
        )


def reachable_bounds(weights: np.ndarray, low: int, high: int) -> tuple[list[int], list[int]]:
    """Bounds of ``sum(w * code)`` for each output channel, codes from ``low`` to ``high``."""
    rows = weights.reshape(len(weights), -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    return (positive * low + negative * high).tolist(), (positive * high + negative * low).tolist()


def accumulator_bounds(weights: np.ndarray, planes: int, low: int, high: int) -> tuple[int, int]:
    """Bounds of every intermediate accumulator: any part of the sum, after each digit plane and the factor 3 before it.

    Horner order, most significant plane first. While plane ``p`` is added, an input has been counted with the weight
    ``3 * W[p+1]`` (its turn has not come) or ``W[p] = 3 * W[p+1] + t[p]``; ``low <= 0 <= high``.
    """
    rest = weights.reshape(len(weights), -1).astype(np.int32)
    partial = []
    for _ in range(planes):
        partial.append(rest)
        rest = (rest - ((rest + 1) % 3 - 1)) // 3
    bottom = top = 0
    before = np.zeros_like(rest)
    for current in reversed(partial):
        # The two weights of an input never have opposite signs, so that one of them bounds its part on either side.
        positive = np.maximum(np.maximum(before, current), 0).sum(axis=1, dtype=np.int64)
        negative = np.minimum(np.minimum(before, current), 0).sum(axis=1, dtype=np.int64)
        bottom = min(bottom, int((positive * low + negative * high).min(initial=0)))
        top = max(top, int((positive * high + negative * low).max(initial=0)))
        before = 3 * current
    return bottom, top


def pad_code_of(affine: Affine) -> int:
    """The code of the real value 0, the same for all channels."""
    return int(-affine.offset[0] / affine.gain[0]) if affine.gain[0] else 0


def integer_weights(builder: Builder, constant: Constant, label: str, name: str = "", inputs: LayerInputs | None = None) -> IntegerWeights:
    """Integer weights of a constant (O, ...): its own codes where it comes out of a quantiser, else as the user's method makes them.

    With ``inputs`` their errors may be made to cancel in the ONNX output ``name``.
    """
    values = constant.array
    if values.dtype.kind not in "fiu":
        raise RefusalError(f"its weights are of type {values.dtype}", "use float32 weights")
    choice = builder.settings.choice(label)
    grid = constant.grid
    common = None if grid is None else _common_grid(grid, label)
    if builder.dry:
        builder.weights_seen[builder.operation_name(label)] = weight_facts(constant)
        return IntegerWeights(codes=np.zeros(values.shape, np.int16), scale=(Fraction(1),), planes=1, method="exact", error=0.0)
    if common is not None:
        codes, scales = common
        return lower_weights(values, codes=codes, scale=scales, method=choice.method, planes=choice.planes)
    key = (choice, values.shape, values.dtype.str, hashlib.sha256(values.tobytes()).digest())
    lowered = builder.known_weights.get(key) or lower_weights(values, method=choice.method, planes=choice.planes)
    builder.known_weights[key] = lowered
    if lowered.method != "exact":
        if inputs is not None and builder.compensation is not None and choice.method in ("auto", "planes"):
            lowered = builder.compensation.weights(builder, values, lowered, name, label, inputs)
        planes = f"{lowered.planes} digit plane" + ("s" if lowered.planes > 1 else "")
        builder.notes.append(
            f"{label}: float weights became {planes} by method {lowered.method}, relative squared error {lowered.error:.4f}"
        )
    return lowered


def _common_grid(grid: Grid, label: str) -> tuple[np.ndarray, tuple[Fraction, ...]] | None:
    """Codes and scales, one or one an output, of weights (O, ...) on a grid; ``None`` where the scales of an output have no common one.

    Scales that differ within an output are multiples of their greatest common divisor, and the codes are multiplied accordingly.
    Raises :class:`RefusalError` for codes of too many bits, and for blocks without a common grid.
    """
    rows, codes = grid.scale.reshape(len(grid.scale), -1), grid.codes.reshape(len(grid.codes), -1).astype(np.int64)
    if not rows.shape[1]:
        return None
    uniform = bool((rows == rows[:, :1]).all())
    steps = rows[:, 0].tolist() if uniform else []
    if not uniform:
        codes = codes.copy()
        for output, row in enumerate(rows):
            # Scales of codes that are all zero do not matter.
            used = np.unique(row[codes[output] != 0])
            step = _divisor([Fraction(float(scale)) for scale in used]) if len(used) else Fraction(1)
            factors = {float(scale): Fraction(float(scale)) / step for scale in used}
            largest = max((factors[float(scale)] * int(np.abs(codes[output][row == scale]).max()) for scale in used), default=Fraction(0))
            if largest > _LARGEST_CODE:
                if not grid.blocked:
                    return None
                raise RefusalError(
                    f"the scales of the blocks of output {output} of {label!r} have no common grid of {MAX_PLANES} digit planes",
                    "use one scale for each output, or block scales that are small multiples of one another",
                )
            codes[output] *= np.array([int(factors.get(float(scale), 1)) for scale in row], np.int64)
            steps.append(step)
    largest = int(np.abs(codes).max(initial=0))
    if largest > _LARGEST_CODE:
        raise RefusalError(f"its weights reach {largest} after the zero point, more than {MAX_PLANES} digit planes hold",
                           "quantise the weights to 9 bits or fewer")  # fmt: skip
    scales = tuple(Fraction(step) for step in steps)
    return codes.reshape(grid.codes.shape), scales[:1] if len(set(scales)) == 1 else scales


def _divisor(numbers: list[Fraction]) -> Fraction:
    """Greatest rational of which all positive ``numbers`` are multiples."""
    common = lcm(*(number.denominator for number in numbers))
    return Fraction(gcd(*(int(number * common) for number in numbers)), common)


def accumulators_value(
    builder: Builder,
    activation: Value,
    weights: IntegerWeights,
    kernel: np.ndarray,
    window: Window,
    groups: int,
    bias: tuple[Fraction, ...] | None,
    *,
    name: str,
    label: str,
    arrange: Callable[[np.ndarray], np.ndarray],
    whole: bool = True,
) -> Value:
    """The pending convolution of codes; ``kernel`` is the integer weights in their final layout (O, I / groups, kh, kw).

    ``activation`` is codes with an affine chain whose gain is the same within each group. ``arrange`` takes the element
    numbers (O, H, W) to the view of the value. ``whole`` says that the value is the ONNX value ``name`` already, so that its mean
    error can be taken out of the bias.
    """
    assert isinstance(activation.base, Codes)
    tensor = activation.base.tensor
    affine = affine_of(activation.chain)
    assert affine is not None
    outputs, inputs = kernel.shape[:2]
    kernel = kernel.astype(np.int64)
    per_group = outputs // groups
    gains, offsets = [], []
    for group in range(groups):
        gain = entry(affine.gain, group * inputs)
        rows = slice(group * per_group, (group + 1) * per_group)
        sums = kernel[rows].sum(axis=(2, 3))
        if gain < 0:
            kernel[rows] *= -1
        elif gain == 0:
            kernel[rows] = 0
        for row in range(per_group):
            output = group * per_group + row
            scale = entry(weights.scale, output)
            if len(affine.offset) == 1:
                total = affine.offset[0] * int(sums[row].sum())
            else:
                total = sum((affine.offset[group * inputs + i] * int(sums[row, i]) for i in range(inputs)), Fraction(0))
            gains.append(scale * abs(gain) if gain else scale)
            offsets.append(scale * total + (entry(bias, output) if bias is not None else 0))
    largest = int(np.abs(kernel).max(initial=0))
    if largest > _LARGEST_CODE:
        # Weights of an input that the layer reads more than once have been added up.
        hint = "quantise the weights to 9 bits or fewer" if weights.method == "exact" else "use fewer digit planes for this layer"
        raise RefusalError(f"its weights reach {largest}, more than {MAX_PLANES} digit planes hold", hint)
    pad_code = pad_code_of(affine) if any(window.pads) else 0
    height, width = window.output_size(*tensor.shape[1:])
    view = arrange(identity_view((outputs, height, width)))
    builder.weighted[label], builder.weights[label] = (name, view.size), weights
    if whole and builder.correction is not None and weights.method != "exact":
        slope, bias_of = (np.array([float(part) for part in parts])[:, None, None] for parts in (gains, offsets))
        errors = builder.correction.errors(
            builder, name, label, view, tensor, lambda codes: mean_sums(codes, kernel, window, groups, pad_code) * slope + bias_of
        )
        offsets = [offset + error for offset, error in zip(offsets, errors, strict=True)]
    # The integer part of the offset becomes the zero point of the raw tensor, the rest is for the host.
    zeros = [-round(offset / gain) for gain, offset in zip(gains, offsets, strict=True)]
    zeros = [zero if abs(zero) < _ACCUMULATOR_LIMIT else 0 for zero in zeros]
    rest = [offset + gain * zero for gain, offset, zero in zip(gains, offsets, zeros, strict=True)]
    bounds = [tensor.low, tensor.high, *([pad_code] if any(window.pads) else [])]
    low, high = reachable_bounds(kernel, min(bounds), max(bounds))
    base = Accumulators(
        shape=(outputs, height, width),
        label=label,
        value=name,
        input=tensor,
        weights=kernel.astype(np.int16),
        planes=max(weights.planes, plane_count(largest)),
        window=window,
        groups=groups,
        pad_code=pad_code,
        low=low,
        high=high,
        scale=tuple(gains) if len(set(gains)) > 1 else tuple(gains[:1]),
        zero_point=tuple(zeros) if len(set(zeros)) > 1 else tuple(zeros[:1]),
        method=weights.method,
        error=weights.error,
    )
    trail = [HostOp(kind="Dequantize")]
    if any(rest):
        constant = np.array([float(part) for part in rest], np.float32)[view // base.pixels]
        for axis in range(constant.ndim):
            first = constant.take([0], axis)
            constant = first if (constant == first).all() else constant
        trail.append(HostOp(kind="Add", constants={"B": constant}, attributes={"head": True}))
    return Value(
        name=name,
        base=base,
        view=view,
        chain=(Affine(tuple(gains), tuple(offsets)),),
        trail=tuple(trail),
        start=view,
        witness=name,
        label=label,
        head=len(trail),
    )
