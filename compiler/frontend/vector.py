"""Products of activations, normalisation and Softmax as pending operations: integer operands, their layout, and bounds of the accumulators."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from math import isqrt

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node
from tritloom.compiler.frontend.sums import aligned
from tritloom.compiler.frontend.values import Codes, Pending, Value, affine_of, identity_view
from tritloom.compiler.ir.program import StepFunction, Tensor
from tritloom.compiler.ir.vector import (
    NORMALISED_BITS,
    POWER_BITS,
    PROBABILITY_BITS,
    MatrixProduct,
    Normalise,
    Product,
    Softmax,
    VectorOperation,
)
from tritloom.compiler.quantize.chain import entry
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step

__all__ = ["MASKED", "IntegerCodes", "as_rows", "integer_codes", "matrix_product", "normalised", "powers_of", "product", "softmax"]

MASKED = -9999.0
"""Constants that are added to leave elements out of a Softmax are this or lower."""

_ACCUMULATOR_LIMIT = 1 << 31
_LARGEST_ZERO = 255
_LONGEST_ROW = 1 << 16
"""Most elements that are normalised together or share a Softmax: what the widths of the rules allow."""

_SCALED_BITS = 62
_MOST_FRACTION_BITS = 30
_APART = 32
"""Elements whose score a mask lowers by more than the scores' own range and this have no part in a Softmax: ``exp(-32)`` is 1.3e-14."""


@dataclass(eq=False, kw_only=True)
class Accumulated(Pending):
    """Accumulators of an operation that only golden can do; the chain starts at ``scale * accumulator``.

    ``make`` gives the operation from its name, its output and its step function.
    """

    low: int
    high: int
    scale: Fraction
    make: Callable[[str, str, StepFunction | None], VectorOperation]

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        own = Affine((self.scale,), (Fraction(0),))
        step = builder.step((own, *chain), quantiser, self.low, self.high, self.shape[0])
        tensor = builder.tensor(name, self.shape, quantiser, step, source)
        builder.emit(self.make(builder.operation_name(self.label), tensor.name, step))
        return tensor

    def raw(self, builder: Builder, name: str) -> Tensor | None:
        tensor = builder.add(
            Tensor(
                name=builder.unique(name),
                shape=self.shape,
                bits=32,
                low=self.low,
                high=self.high,
                scale=(self.scale,),
                source="accumulator",
            )
        )
        builder.emit(self.make(builder.operation_name(self.label), tensor.name, None))
        return tensor


@dataclass(frozen=True, kw_only=True)
class IntegerCodes:
    """Codes of one scale and zero point: ``real = gain * (code - zero)``, ``gain`` positive. ``value`` holds their view, and a chain that says the same."""

    value: Value
    gain: Fraction
    zero: int

    @property
    def tensor(self) -> Tensor:
        assert isinstance(self.value.base, Codes)
        return self.value.base.tensor

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code less the zero point."""
        return self.tensor.low - self.zero, self.tensor.high - self.zero


def integer_codes(builder: Builder, value: Value) -> IntegerCodes:
    """``value`` as codes of one positive scale and one integer zero point; calibration gives the grid where the model does not."""
    value = builder.codes(value)
    found = _uniform(value)
    if found is None:
        value = builder.requantised(value)
        found = _uniform(value)
    if found is None:
        raise RefusalError("its operand has no grid of one scale and zero point", "put a quantiser with one scale before it")
    return IntegerCodes(value=value, gain=found[0], zero=found[1])


def _uniform(value: Value) -> tuple[Fraction, int] | None:
    """Gain and zero point that hold for the whole value, ``None`` where there are none."""
    affine = affine_of(value.chain)
    gains, offsets = (set(affine.gain), set(affine.offset)) if affine is not None else (set(), set())
    if len(gains) != 1 or len(offsets) != 1:
        return None
    gain, offset = gains.pop(), offsets.pop()
    zero = -offset / gain if gain > 0 else Fraction(1, 2)
    return (gain, int(zero)) if zero.denominator == 1 and abs(zero) <= _LARGEST_ZERO else None


def as_rows(builder: Builder, value: Value, rows: np.ndarray) -> tuple[Value, np.ndarray]:
    """Codes whose rows (R, K) of element numbers are pixels with K channels: as they lie, or copied. Returns the rows in the new order of elements."""
    count, size = rows.shape
    channel, pixel = rows // value.base.pixels, rows % value.base.pixels
    fits = (
        (channel == channel[:1]).all()
        and (pixel == pixel[:, :1]).all()
        and np.array_equal(np.sort(channel[0]), np.arange(value.base.shape[0]))
    )
    if fits:
        return value, rows
    value = builder.placed(replace(value, view=rows.T.reshape(1, size, count)), (size, 1, count))
    return value, np.arange(size * count).reshape(size, count).T


def _pending(node: Node, base: Accumulated, view: np.ndarray) -> Value:
    return Value(name=node.outputs[0], base=base, view=view, chain=(), trail=None, start=view, witness=node.outputs[0], label=node.label)


def _products(left: IntegerCodes, right: IntegerCodes) -> tuple[int, int]:
    corners = [a * b for a in left.bounds for b in right.bounds]
    return min(corners), max(corners)


def product(builder: Builder, node: Node, left: Value, right: Value) -> Value:
    """``left * right`` of two activations that broadcast against each other; what is repeated is copied."""
    if len(left.shape) != len(right.shape) or left.shape[:1] != (1,) or right.shape[:1] != (1,):
        raise RefusalError(f"activations of shapes {list(left.shape)} and {list(right.shape)} cannot be multiplied",
                           "multiply activations of equally many axes, the batch on axis 0")  # fmt: skip
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        raise RefusalError(f"shapes {list(left.shape)} and {list(right.shape)} do not broadcast", "export the model again") from None
    first, second = integer_codes(builder, left), integer_codes(builder, right)
    spread = [replace(codes.value, view=np.broadcast_to(codes.value.view, shape)) for codes in (first, second)]
    placed = aligned(builder, *spread)
    low, high = _products(first, second)
    names = [value.base.tensor.name for value in placed if isinstance(value.base, Codes)]

    def make(name: str, output: str, step: StepFunction | None) -> Product:
        return Product(name=name, output=output, left=names[0], right=names[1], left_zero=first.zero, right_zero=second.zero, step=step,
                       acc_low=low, acc_high=high)  # fmt: skip

    base = Accumulated(shape=placed[0].base.shape, label=node.label, low=low, high=high, scale=first.gain * second.gain, make=make)
    return _pending(node, base, placed[0].view)


def matrix_product(builder: Builder, node: Node, left: Value, right: Value) -> Value:
    """``left @ right``, (N, ..., M, K) by (N, ..., K, P); the axes before the last two broadcast."""
    shapes = f"activations of shapes {list(left.shape)} and {list(right.shape)}"
    if min(len(left.shape), len(right.shape)) < 3 or left.shape[0] != 1 or right.shape[0] != 1 or len(left.shape) != len(right.shape):
        raise RefusalError(
            f"the product of {shapes} mixes the samples of a batch", "keep the batch on axis 0 and matrices on the last two axes"
        )
    if left.shape[-1] != right.shape[-2]:
        raise RefusalError(f"{shapes} do not fit", "export the model again")
    try:
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        raise RefusalError(f"{shapes} do not fit", "export the model again") from None
    first, second = integer_codes(builder, left), integer_codes(builder, right)
    rows, size, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    low, high = (size * bound for bound in _products(first, second))
    if max(-low, high) >= _ACCUMULATOR_LIMIT:
        raise RefusalError(f"its sums may reach {max(-low, high)}, more than the 32 bits of the widest accumulator", "use smaller matrices")
    heads = int(np.prod(batch, dtype=np.int64))
    names = []
    for codes, view in ((first, first.value.view), (second, np.swapaxes(second.value.view, -1, -2))):
        count = view.shape[-2]
        lines = np.broadcast_to(view, (*batch, count, size)).reshape(heads, count, size).transpose(2, 0, 1)
        placed = builder.placed(replace(codes.value, view=lines.reshape(1, size, heads * count)), (size, heads, count))
        assert isinstance(placed.base, Codes)
        names.append(placed.base.tensor.name)

    def make(name: str, output: str, step: StepFunction | None) -> MatrixProduct:
        return MatrixProduct(name=name, output=output, left=names[0], right=names[1], left_zero=first.zero, right_zero=second.zero, step=step,
                             acc_low=low, acc_high=high)  # fmt: skip

    base = Accumulated(shape=(columns, heads, rows), label=node.label, low=low, high=high, scale=first.gain * second.gain, make=make)
    return _pending(node, base, identity_view((columns, heads, rows)).transpose(1, 2, 0).reshape(*batch, rows, columns))


def normalised(
    builder: Builder, node: Node, value: Value, rows: np.ndarray | None, *, groups: int, centre: bool, epsilon: Fraction
) -> Value:
    """``value`` over its standard deviation (``centre``) or root mean square; scale and bias follow as steps of the chain.

    ``rows`` (R, K) picks the positions of the value's elements that are normalised together; with ``None`` the elements of each of
    ``groups`` groups of channels are, over all pixels.
    """
    shape = value.shape
    codes = integer_codes(builder, value)
    value, zero = codes.value, 0 if centre else codes.zero
    if rows is None:
        whole = value.base.shape[0] % groups == 0 and np.array_equal(value.view.ravel(), np.arange(np.prod(value.base.shape)))
        value = value if whole else builder.placed(value, (shape[1], 1, value.view.size // shape[1]))
        view, count = value.view.reshape(shape), value.view.size // groups
    else:
        value, placed = as_rows(builder, value, value.view.ravel()[rows])
        flat = np.empty(rows.size, np.int64)
        flat[rows.ravel()] = placed.ravel()
        view, count = flat.reshape(shape), rows.shape[1]
    if count > _LONGEST_ROW:
        raise RefusalError(f"it normalises {count} elements together", f"normalise at most {_LONGEST_ROW} elements together")
    assert isinstance(value.base, Codes)
    name, pixels = value.base.tensor.name, rows is None
    variance = (count * max(abs(codes.tensor.low - zero), abs(codes.tensor.high - zero))) ** 2
    shift = epsilon * count**2 / codes.gain**2
    fraction = _MOST_FRACTION_BITS
    while fraction > 0 and round((variance + shift) * (1 << fraction)) >= 1 << _SCALED_BITS:
        fraction -= 2
    offset = round(shift * (1 << fraction))
    if (variance << fraction) + offset >= 1 << _SCALED_BITS:
        raise RefusalError("its epsilon is far larger than the variance of its input", "scale the input, or use a smaller epsilon")
    root = isqrt(count << 2 * NORMALISED_BITS) + 1
    high = root + (root >> 20) + 2

    def make(label: str, output: str, step: StepFunction | None) -> Normalise:
        return Normalise(name=label, output=output, input=name, groups=groups, pixels=pixels, centre=centre, zero_point=zero, epsilon=offset,
                         fraction=fraction, step=step, acc_low=-high, acc_high=high)  # fmt: skip

    base = Accumulated(shape=value.base.shape, label=node.label, low=-high, high=high, scale=Fraction(1, 1 << NORMALISED_BITS), make=make)
    return _pending(node, base, view)


def powers_of(gain: Fraction, levels: int) -> np.ndarray:
    """``round((2**24 - 1) * exp(-gain * d))`` for ``d`` from 0 to ``levels - 1``, int32, ties to even; in decimal arithmetic of 60 digits, the same on every machine."""
    with localcontext() as context:
        context.prec = 60
        scale, largest = Decimal(gain.numerator) / Decimal(gain.denominator), Decimal((1 << POWER_BITS) - 1)
        values = [
            int((largest * (-scale * d).exp()).to_integral_value(ROUND_HALF_EVEN)) if scale * d < _APART else 0 for d in range(levels)
        ]
    return np.array(values, np.int32)


def softmax(builder: Builder, node: Node, value: Value, axis: int) -> Value:
    """Softmax of ``value`` along ``axis``; what differs only by constants far below the others (a mask) gets probability 0."""
    shape = value.shape
    if shape[axis] > _LONGEST_ROW:
        raise RefusalError(f"its axis has {shape[axis]} elements", f"use at most {_LONGEST_ROW}")
    value = builder.codes(value)
    taking = _taking(value, axis)
    if taking is None:
        codes = integer_codes(builder, value)
    else:
        affine = affine_of(value.chain)
        assert affine is not None
        codes = integer_codes(builder, replace(value, chain=(Affine(affine.gain, (Fraction(0),)),)))
    moved = np.moveaxis(codes.value.view, axis, -1)
    positions = np.moveaxis(identity_view(shape), axis, -1).reshape(-1, shape[axis])
    value, rows = as_rows(builder, codes.value, moved.reshape(-1, shape[axis]))
    mask = None
    if taking is not None and not taking.all():
        mask = np.ones(int(np.prod(value.base.shape)), np.uint8)
        mask[rows.ravel()] = taking.ravel()[positions.ravel()]
        mask = mask.reshape(value.base.shape)
    assert isinstance(value.base, Codes)
    name, high = value.base.tensor.name, 1 << PROBABILITY_BITS
    powers = powers_of(codes.gain, codes.tensor.high - codes.tensor.low + 1)

    def make(label: str, output: str, step: StepFunction | None) -> Softmax:
        return Softmax(name=label, output=output, input=name, powers=powers, mask=mask, step=step, acc_low=0, acc_high=high)

    base = Accumulated(shape=value.base.shape, label=node.label, low=0, high=high, scale=Fraction(1, high), make=make)
    return _pending(node, base, np.moveaxis(rows.reshape(moved.shape), -1, axis))


def _taking(value: Value, axis: int) -> np.ndarray | None:
    """Which elements of codes with a scale and a constant for each channel take part in a Softmax; ``None`` where the constants are no mask.

    A constant that a whole row has changes nothing. Raises :class:`RefusalError` for a mask whose other constants differ.
    """
    affine = affine_of(value.chain)
    assert affine is not None and isinstance(value.base, Codes)
    if len(set(affine.gain)) > 1 or affine.gain[0] <= 0:
        return None
    channels = value.view // value.base.pixels
    offsets = np.array([float(entry(affine.offset, c)) for c in range(value.base.shape[0])])[channels]
    top = offsets.max(axis=axis, keepdims=True)
    if (top <= MASKED).any():
        raise RefusalError("a mask leaves out all elements of a row", "use a mask that leaves at least one element in every row")
    reach = float(affine.gain[0]) * (value.base.tensor.high - value.base.tensor.low) + _APART
    taking = offsets >= top - reach
    if (taking & (offsets != top)).any():
        if not taking.all():
            raise RefusalError("a mask of more than two values stands before it", "use a mask of 0 and minus infinity")
        return None
    return taking
