"""Pad: a frame of one code around the pixels. A pass folds it into the layer behind it where that layer can pad by itself."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.grids import differs
from tritloom.compiler.frontend.operators_select import choose
from tritloom.compiler.frontend.operators_shape import integers, move, positive_axis, shape_of
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, append, operator
from tritloom.compiler.frontend.values import Codes, Operand, Pending, Source, Tail, Value, affine_of, identity_view
from tritloom.compiler.ir.program import HostOp, SumPool, Tensor, Window
from tritloom.compiler.passes.fold_pads import identity_step
from tritloom.compiler.quantize.chain import entry
from tritloom.compiler.quantize.curves import evaluate_exact
from tritloom.compiler.quantize.steps import Quantiser, Step

__all__ = ["Padded"]

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@dataclass(eq=False, kw_only=True)
class Padded(Pending):
    """``inner``, whose elements are those of its base in order, in a frame of the real value ``fill``.

    What follows elementwise is done to both: the frame is added behind the quantiser, when it is one code. ``value`` is its ONNX name.
    """

    value: str
    inner: Value
    window: Window
    fill: Fraction

    def finish(self, builder: Builder, chain: tuple[Step, ...], quantiser: Quantiser, name: str, source: str) -> Tensor:
        codes = {quantiser.code(self._filled(chain, channel), channel) for channel in range(self.shape[0])}
        if len(codes) > 1:
            return builder.on_own_grid(self, self.value, chain, quantiser, name, source)
        inner = builder.settle(self._inside(chain, quantiser=quantiser, name=f"{name}_inside", source=source))
        assert isinstance(inner.base, Codes)
        return self._frame(builder, inner.base.tensor, codes.pop(), name)

    def codes(self, builder: Builder, value: Value) -> Value | None:
        assert value.chain is not None
        inside = self._inside(value.chain, name=value.name if value.chain else self.inner.name)
        inner = inside.base.codes(builder, inside) if isinstance(inside.base, Pending) else builder.codes(inside)
        if inner is None:
            return None
        affine = affine_of(inner.chain)
        assert isinstance(inner.base, Codes) and affine is not None
        alike = not differs(value.chain) and len(affine.gain) == len(affine.offset) == 1
        found = {
            (self._filled(value.chain, c) - entry(affine.offset, c)) / entry(affine.gain, c) if entry(affine.gain, c) else None
            for c in range(1 if alike else self.shape[0])
        }
        code = found.pop() if len(found) == 1 else None
        if code is None or code.denominator != 1 or not -128 <= code <= 127:
            return None
        tensor = self._frame(builder, inner.base.tensor, int(code), value.name)
        return replace(value, base=Codes(shape=tensor.shape, tensor=tensor), chain=inner.chain, trail=None)

    def _filled(self, chain: tuple[Step, ...], channel: int) -> Fraction:
        """The frame behind ``chain``."""
        return evaluate_exact(chain, self.fill, channel)

    def _inside(self, chain: tuple[Step, ...], *, name: str, quantiser: Quantiser | None = None, source: str = "quantiser") -> Value:
        assert self.inner.chain is not None
        return replace(
            self.inner,
            name=name,
            chain=(*self.inner.chain, *chain),
            trail=None if chain else self.inner.trail,
            quantiser=quantiser,
            source=source,
        )

    def _frame(self, builder: Builder, tensor: Tensor, code: int, name: str) -> Tensor:
        """A pool of single elements moves the codes; its padding is the frame."""
        low, high = min(tensor.low, code), max(tensor.high, code)
        result = builder.add(replace(tensor, name=builder.unique(name), shape=self.shape, low=low, high=high))
        builder.emit(
            SumPool(
                name=builder.operation_name(self.label),
                output=result.name,
                input=tensor.name,
                window=self.window,
                pad_code=code,
                regions=(((0, self.shape[1], 0, self.shape[2]), identity_step(self.shape[0], low, high)),),
                acc_low=min(low, 0),
                acc_high=max(high, 0),
            )
        )
        return result


def _widths(node: Node, rank: int) -> list[tuple[int, int]]:
    """(before, after) of each axis; negative numbers cut."""
    pads = integers(node, 1, "pads", "pads")
    constant = node.constant(3, "axes")
    axes = list(range(rank)) if constant is None else [positive_axis(int(axis), rank) for axis in constant.array.ravel()]
    if pads is None or len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise RefusalError("its pads do not fit its input", "give two numbers for each axis")
    widths = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        widths[axis] = (pads[position], pads[position + len(axes)])
    return widths


def _fill(node: Node) -> Fraction:
    constant = node.constant(2, "value")
    if constant is not None and constant.array.size != 1:
        raise RefusalError("its value is not a single number", "pad with one number")
    value = node.attribute("value", float, 0.0) if constant is None else float(constant.array.reshape(-1)[0])
    if not np.isfinite(value):
        raise RefusalError("it pads with infinity", "use the pads of MaxPool")
    return Fraction(value)


@operator("Pad", "all modes, constant pads and value, on one or two axes other than the batch")
def _pad(builder: Builder, node: Node) -> Operand:
    operand = node.operand(0)
    shape = shape_of(operand)
    widths = _widths(node, len(shape))
    mode = node.attribute("mode", str, "constant")
    if mode not in _MODES:
        raise RefusalError(f"padding mode {mode} is not known", f"use one of {', '.join(_MODES)}")
    if any(widths[0]):
        raise RefusalError("it pads the batch axis", "pad axes other than 0")
    for axis, (before, after) in enumerate(widths):
        if min(before, after) < 0:
            operand = choose(builder, node, operand, axis, np.arange(max(-before, 0), shape[axis] + min(after, 0)))
    frame = [(max(before, 0), max(after, 0)) for before, after in widths]
    if not any(map(any, frame)):
        return operand
    if mode != "constant":
        return move(builder, node, operand, lambda array: np.pad(array, frame, mode=mode), gathers=True)
    fill = _fill(node)
    value = builder.settle(node.activation()) if operand is node.operand(0) else operand
    assert isinstance(value, Value)
    if isinstance(value.base, Tail):
        raise RefusalError(f"a Pad behind {value.base.operator} is not supported", f"{value.base.operator} may stand only at the end")
    if isinstance(value.base, Source):
        return _padded_input(builder, node, value, frame, fill)
    return _padded(builder, node, value, frame, fill)


def _padded_input(builder: Builder, node: Node, value: Value, frame: list[tuple[int, int]], fill: Fraction) -> Value:
    """The host pads what comes before the first quantiser."""
    host = HostOp(kind="Pad", constants={"value": np.array(float(fill), np.float32)}, attributes={"pads": tuple(frame[1:])})
    padded = append(builder, node, value, None, host)
    return replace(padded, view=np.pad(value.view, frame), integer=False)


def _padded(builder: Builder, node: Node, value: Value, frame: list[tuple[int, int]], fill: Fraction) -> Value:
    axes = [axis for axis, widths in enumerate(frame) if any(widths)]
    if len(axes) > 2:
        raise RefusalError("it pads more than two axes", "pad one or two axes")
    rank, final = len(value.shape), [size + before + after for size, (before, after) in zip(value.shape, frame, strict=True)]
    if rank == 4 and axes[0] >= 2:
        axes = [2, 3]
    # The padded axes become height and width, the others channels; for pixels of (N, C, H, W) and (N, C, L) that is how they lie already.
    order = [axis for axis in range(rank) if axis not in axes] + axes
    view = value.view.transpose(order)
    sizes = view.shape[rank - len(axes) :]
    pixels = sizes if len(sizes) == 2 else (1, *sizes)
    inner_shape = (value.view.size // (pixels[0] * pixels[1]), pixels[0], pixels[1])
    if value.chain is None or value.base.shape != inner_shape or not np.array_equal(view.ravel(), np.arange(view.size)):
        value = builder.placed(replace(builder.codes(value), view=view), inner_shape)
    (top, bottom), (left, right) = ([(0, 0)] * (2 - len(axes)) + [frame[axis] for axis in axes])[-2:]
    window = Window(pads=(top, left, bottom, right))
    base = Padded(
        shape=(inner_shape[0], *window.output_size(*pixels)), label=node.label, value=node.outputs[0], inner=value, window=window, fill=fill
    )
    outside = identity_view((*(final[axis] for axis in order),)).transpose(np.argsort(order))
    return Value(
        name=node.outputs[0], base=base, view=outside, chain=(), trail=None, start=outside, witness=node.outputs[0], label=node.label
    )
