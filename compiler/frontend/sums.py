"""Sums of two tensors and concatenation, as pending operations."""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node
from tritloom.compiler.frontend.values import Codes, Pending, Tail, Value, affine_of, identity_view
from tritloom.compiler.ir.program import Add, Tensor
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step, is_clamped_line

__all__ = ["Sum", "add_values", "aligned"]


@dataclass(eq=False, kw_only=True)
class Sum(Pending):
    """``left + right`` of two tensors of codes of one shape; the chain starts at the real sum. ``value`` is its ONNX name."""

    left: Value
    right: Value
    value: str

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        if not is_clamped_line(chain, quantiser, self.shape[0]):
            return builder.on_own_grid(self, self.value, chain, quantiser, name, source)
        step = builder.sum_step(self.left, self.right, chain, quantiser, self.shape[0])
        tensor = builder.tensor(name, self.shape, quantiser, step, source)
        assert isinstance(self.left.base, Codes) and isinstance(self.right.base, Codes)
        names = self.left.base.tensor.name, self.right.base.tensor.name
        builder.emit(Add(name=builder.operation_name(self.label), output=tensor.name, left=names[0], right=names[1], step=step))
        return tensor

    def codes(self, builder: Builder, value: Value) -> Value | None:
        """The sum on the coarsest grid that holds every sum of two codes, where that needs at most 8 bits."""
        quantiser = self._own_quantiser()
        if quantiser is None or affine_of(value.chain) is None:
            return None
        plain = replace(value, name=self.value, witness=self.value, view=identity_view(self.shape), start=identity_view(self.shape),
                        chain=(), trail=None, quantiser=quantiser, integer=False)  # fmt: skip
        settled = builder.settle(plain)
        return replace(value, base=settled.base, chain=(*(settled.chain or ()), *(value.chain or ())), trail=None)

    def _own_quantiser(self) -> Quantiser | None:
        sides = []
        for part in (self.left, self.right):
            affine = affine_of(part.chain)
            assert affine is not None and isinstance(part.base, Codes)
            if len(affine.gain) != 1 or len(affine.offset) != 1 or not affine.gain[0]:
                return None
            ends = [affine.gain[0] * code + affine.offset[0] for code in (part.base.tensor.low, part.base.tensor.high)]
            sides.append((abs(affine.gain[0]), affine.offset[0], min(ends), max(ends)))
        (first, shift, low, high), (second, other, bottom, top) = sides
        common = Fraction(
            gcd(first.numerator * second.denominator, second.numerator * first.denominator), first.denominator * second.denominator
        )
        ends = [Fraction(end) / common for end in (min(low + bottom, 0), max(high + top, 0))]
        if ((shift + other) / common).denominator != 1 or ends[1] - ends[0] > 255:
            return None
        least, most = int(ends[0]), int(ends[1])
        return Quantiser(common, 0, least, most, offset=0 if -128 <= least and most <= 127 else -128 - least)


def add_values(builder: Builder, node: Node, left: Value, right: Value, *, subtract: bool) -> Value:
    """The sum or difference of two activations."""
    for value in (left, right):
        if isinstance(value.base, Tail):
            raise RefusalError(f"a sum behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    if left.shape != right.shape:
        raise RefusalError(
            f"activations of shapes {list(left.shape)} and {list(right.shape)} cannot be added", "add activations of one shape"
        )
    left, right = aligned(builder, builder.codes(left), builder.codes(right))
    if subtract:
        affine = affine_of(right.chain)
        assert affine is not None
        right = replace(right, chain=(Affine(tuple(-g for g in affine.gain), tuple(-o for o in affine.offset)),))
    base = Sum(shape=left.base.shape, label=node.label, left=left, right=right, value=node.outputs[0])
    return Value(
        name=node.outputs[0], base=base, view=left.view, chain=(), trail=None, start=left.view, witness=node.outputs[0], label=node.label
    )


def aligned(builder: Builder, left: Value, right: Value) -> tuple[Value, Value]:
    """Two values of one shape, both codes, as tensors of one shape in one element order; both have the same view then."""
    size = left.view.size
    if left.base.shape == right.base.shape and np.array_equal(left.view, right.view) and size == np.prod(left.base.shape):
        return left, right
    if size == np.prod(right.base.shape) and np.array_equal(right.view.ravel(), np.arange(size)):
        return builder.placed(left, right.base.shape), right
    if size == np.prod(left.base.shape) and len(np.unique(left.view)) == size:
        order = np.empty(size, np.int64)
        order[left.view.ravel()] = np.arange(size)
        shuffled = builder.placed(replace(right, view=right.view.ravel()[order]), left.base.shape)
        return left, replace(shuffled, view=left.view)
    return builder.placed(left, (size, 1, 1)), builder.placed(right, (size, 1, 1))
