"""Sums of two tensors and concatenation, as pending operations."""

from dataclasses import dataclass, replace

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node
from tritloom.compiler.frontend.values import Codes, Pending, Tail, Value, affine_of
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
