"""Concat of activations: each part is rescaled onto one grid and written at its channel offset."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import (
    Codes,
    Constant,
    Operand,
    Pending,
    Source,
    Tail,
    Value,
    affine_of,
    canonical_shape,
    dequantising,
)
from tritloom.compiler.ir.program import Rescale, Tensor
from tritloom.compiler.quantize.curves import of_channel
from tritloom.compiler.quantize.steps import Affine, Fork, LeakyRelu, Quantised, Quantiser, Step

__all__ = ["Joined"]

_ONE, _ZERO = Fraction(1), Fraction(0)


@dataclass(eq=False, kw_only=True)
class Joined(Pending):
    """Concatenation along the channels of parts of one height and width; the chain starts at the parts' real values."""

    parts: tuple[Value, ...]

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        written = []
        first = 0
        for part in self.parts:
            channels = part.base.shape[0]
            last = first + channels
            own = _sliced_quantiser(quantiser, first, last)
            steps = (*(part.chain or ()), *(_sliced_step(step, first, last) for step in chain))
            if isinstance(part.base, Pending):
                tensor = part.base.finish(builder, steps, own, f"{name}_{part.name}", source)
                steps = ()
            else:
                assert isinstance(part.base, Codes)
                tensor = part.base.tensor
            if steps:
                step = builder.step(steps, own, tensor.low, tensor.high, channels)
            else:
                unit = Quantiser(_ONE, 0, -128, 127, "half_even")
                step = builder.step((Affine((_ONE,), (_ZERO,)),), unit, tensor.low, tensor.high, channels)
            written.append((tensor, step, first))
            first = last
        result = builder.tensor(name, self.shape, quantiser, None, source)
        result = builder.add(replace(result, low=min(step.low for _, step, _ in written), high=max(step.high for _, step, _ in written)))
        for tensor, step, offset in written:
            label = builder.operation_name(self.label)
            builder.emit(Rescale(name=label, output=result.name, input=tensor.name, step=step, channel_offset=offset))
        return result


def _slice(values: tuple, first: int, last: int) -> tuple:
    return values[first:last] if len(values) > 1 else values


def _sliced_step(step: Step, first: int, last: int) -> Step:
    if isinstance(step, Affine):
        return Affine(_slice(step.gain, first, last), _slice(step.offset, first, last))
    if isinstance(step, LeakyRelu) and isinstance(step.slope, tuple):
        return LeakyRelu(_slice(step.slope, first, last))
    if isinstance(step, Fork):
        left, right = (tuple(_sliced_step(part, first, last) for part in branch) for branch in (step.left, step.right))
        return replace(step, left=left, right=right)
    if isinstance(step, Quantised):
        return replace(step, quantiser=_sliced_quantiser(step.quantiser, first, last))
    return step


def _sliced_quantiser(quantiser: Quantiser, first: int, last: int) -> Quantiser:
    scale, zero, thresholds = quantiser.scale, quantiser.zero_point, quantiser.thresholds
    return replace(
        quantiser,
        scale=_slice(scale, first, last) if isinstance(scale, tuple) else scale,
        zero_point=_slice(zero, first, last) if isinstance(zero, tuple) else zero,
        thresholds=None if thresholds is None else _slice(thresholds, first, last),
    )


def _placement(view: np.ndarray, axis: int, pixels: int) -> np.ndarray | None:
    """Pixel of each element off the axis, where the axis counts the base's channels and the pixels are the same for all of them."""
    table = np.moveaxis(view, axis, 0).reshape(view.shape[axis], -1)
    if not (table // pixels == np.arange(len(table))[:, None]).all():
        return None
    pixel = table % pixels
    return pixel[0] if (pixel == pixel[:1]).all() else None


@operator("Concat", "activations, along any axis but the batch")
def _concat(builder: Builder, node: Node) -> Operand:
    values: list[Value] = []
    for operand in node.inputs:
        if isinstance(operand, Constant) or operand is None:
            raise RefusalError("it joins an activation with a constant", "join activations only")
        assert isinstance(operand, Value)
        values.append(builder.settle(operand))
    rank = len(values[0].shape)
    axis = node.attribute("axis", int, 1)
    if not -rank <= axis < rank:
        raise RefusalError(f"axis {axis} does not exist in a tensor of {rank} axes", "export the model again")
    axis %= rank
    rest = {value.shape[:axis] + value.shape[axis + 1 :] for value in values}
    if len(rest) > 1 or any(len(value.shape) != rank for value in values) or (axis == 0 and rank > 1):
        raise RefusalError(
            "its inputs do not have one shape off its axis, or it joins the batch axis", "join activations along an axis other than 0"
        )
    for value in values:
        if isinstance(value.base, Tail):
            raise RefusalError(
                f"a Concat behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end"
            )
    placements = [None if isinstance(value.base, Source) else _placement(value.view, axis, value.base.pixels) for value in values]
    first, base = placements[0], values[0].base
    fits = first is not None and all(
        placement is not None and np.array_equal(placement, first) and value.base.shape[1:] == base.shape[1:]
        and value.base.shape[0] == value.shape[axis] and value.chain is not None
        for placement, value in zip(placements, values, strict=True)
    )  # fmt: skip
    if not fits:
        values = [_laid_out(builder, value, axis) for value in values]
        base = values[0].base
        first = np.arange(base.pixels)
    assert first is not None
    shape = (sum(value.base.shape[0] for value in values), *base.shape[1:])
    table = np.arange(shape[0])[:, None] * base.pixels + first[None]
    view = np.moveaxis(table.reshape(shape[0], *rest.pop()), 0, axis)
    joined = Joined(shape=shape, label=node.label, parts=tuple(values))
    result = Value(
        name=node.outputs[0], base=joined, view=view, chain=(), trail=None, start=view, witness=node.outputs[0], label=node.label
    )
    common = _common_grid(values)
    if common is None:
        return result
    # All parts are codes of one grid already: the joined tensor has it too, and what follows need not wait for a quantiser.
    return builder.settle(replace(result, quantiser=common))


def _laid_out(builder: Builder, value: Value, axis: int) -> Value:
    """Elements with the axis as channels and everything else as pixels; behind axis 1 they stay (C, H, W), and what lies so already stays as it is."""
    if axis == 1 and value.chain is not None and not isinstance(value.base, Source):
        ordered = value.base.shape == canonical_shape(value.shape) and np.array_equal(value.view.ravel(), np.arange(value.view.size))
        if ordered:
            return value
    if axis == 1 and isinstance(value.base, Codes) and value.chain is not None and value.chain == of_channel(value.chain, 0):
        # Steps that are the same for all channels may as well follow the move.
        plain = replace(value, chain=(dequantising(value.base.tensor),))
        return replace(builder.placed(plain, canonical_shape(value.shape)), chain=value.chain, trail=None)
    value = builder.codes(value)
    if axis == 1:
        return builder.placed(value, canonical_shape(value.shape))
    table = np.moveaxis(value.view, axis, 0).reshape(value.view.shape[axis], -1)
    return builder.placed(replace(value, view=table), (table.shape[0], 1, table.shape[1]))


def _common_grid(values: list[Value]) -> Quantiser | None:
    """The quantiser of all parts when they are codes of one scale and zero point."""
    tensors = []
    for value in values:
        if not isinstance(value.base, Codes) or affine_of(value.chain) is None or len(value.chain or ()) != 1:
            return None
        tensors.append(value.base.tensor)
    scale, zero = tensors[0].scale, tensors[0].zero_point
    own = tuple(affine_of(value.chain) for value in values)
    expected = Affine(scale, tuple(-scale[0] * part for part in zero))
    if (
        len(scale) > 1
        or len(zero) > 1
        or any(tensor.scale != scale or tensor.zero_point != zero for tensor in tensors)
        or any(part != expected for part in own)
    ):
        return None
    low, high = min(tensor.low for tensor in tensors), max(tensor.high for tensor in tensors)
    return Quantiser(scale[0], zero[0], low, high, "half_even")
