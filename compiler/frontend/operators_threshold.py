"""MultiThreshold of FINN and QONNX: the code is how many thresholds a value reaches.

``y = out_scale * #{t : x >= t} + out_bias`` with thresholds (C, T), one row a channel, or (1, T). The order of a row's thresholds does not
matter and equal ones are counted each. Where ``out_bias`` is a multiple of a positive ``out_scale`` the codes have an integer zero point, else an
affine step stands behind them.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_elementwise import channel_values
from tritloom.compiler.frontend.operators_quantise import QONNX_DOMAINS, constant_on_grid, needed
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import (
    Codes,
    Constant,
    Operand,
    Source,
    Tail,
    Value,
    channels_of,
    dequantising,
    fractions,
    moves_only,
    take_channels,
)
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.steps import Affine, LeakyRelu, Quantiser

__all__ = ["threshold_axis"]

_LAYOUTS = {2: "NC", 3: "NWC", 4: "NCHW"}
"""What the qonnx executor takes for a tensor of so many axes when ``data_layout`` is empty."""


def threshold_axis(layout: str, rank: int) -> int:
    """The channel axis of ``data_layout`` for a tensor of ``rank`` axes."""
    layout = layout or _LAYOUTS.get(rank, "NC")
    return layout.index("C") if "C" in layout else 1


@operator("MultiThreshold", "up to 255 thresholds, for each channel or for all; any scale, bias and layout", domains=QONNX_DOMAINS)
def _multi_threshold(builder: Builder, node: Node) -> Operand:
    operand = node.operand(0)
    if isinstance(operand, Constant):
        return _of_constant(node, operand.array)
    value = builder.settle(node.activation())
    if isinstance(value.base, Tail):
        raise RefusalError(f"thresholds behind {value.base.operator} are not supported", f"{value.base.operator} may stand only at the end")
    table, axis = _table(node, value.shape)
    steps = table.shape[1]
    if steps > 255:
        raise RefusalError(f"its {steps} thresholds make {steps + 1} codes, more than 8 bits", "use at most 255 thresholds")
    ordered = np.sort(table.astype(np.float64), axis=1)
    value, rows = _rows_by_channel(builder, node, value, ordered, axis)
    scale, bias = _line(node)
    whole = scale > 0 and (bias / scale).denominator == 1
    offset = 0 if steps <= 127 else -128
    grid = (scale, int(-bias / scale)) if whole else (Fraction(1), 0)
    quantised = replace(
        value,
        name=node.outputs[0],
        witness=node.outputs[0],
        label=node.label,
        quantiser=Quantiser(*grid, 0, steps, "floor", offset=offset, thresholds=rows),
        integer=not whole,
        source="quantiser",
    )
    if whole:
        return quantised
    counted = builder.settle(quantised)
    return replace(
        counted,
        chain=(*(counted.chain or ()), Affine((scale,), (bias,))),
        trail=(
            *(counted.trail or ()),
            HostOp(kind="Mul", constants={"B": np.array(float(scale), np.float32)}, attributes={"head": True}),
            HostOp(kind="Add", constants={"B": np.array(float(bias), np.float32)}, attributes={"head": True}),
        ),
        head=3,
        integer=False,
    )


def _table(node: Node, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Thresholds (C, T) or (1, T) and the channel axis of an input of ``shape``."""
    table = needed(node.constant(1, "thresholds"), "thresholds").array
    axis = threshold_axis(node.attribute("data_layout", str, ""), len(shape))
    if axis >= len(shape) or table.ndim != 2 or table.shape[0] not in (1, shape[axis]):
        raise RefusalError(
            f"its thresholds of shape {list(table.shape)} do not fit an input of shape {list(shape)}",
            "give (channels, steps) or (1, steps) thresholds, and the data_layout of the input",
        )
    return table, axis


def _line(node: Node) -> tuple[Fraction, Fraction]:
    """``out_scale`` and ``out_bias``."""
    scale, bias = (np.float32(node.attribute(name, float, default)) for name, default in (("out_scale", 1.0), ("out_bias", 0.0)))
    return Fraction(float(scale)), Fraction(float(bias))


def _of_constant(node: Node, array: np.ndarray) -> Constant:
    """Quantised weights: codes on a grid where ``out_bias`` is a multiple of a positive ``out_scale``."""
    table, axis = _table(node, array.shape)
    rows = np.moveaxis(array, axis, -1)
    codes = np.moveaxis((rows[..., None] >= table).sum(axis=-1), -1, axis)
    scale, bias = _line(node)
    if scale > 0 and (bias / scale).denominator == 1:
        return constant_on_grid(codes + int(bias / scale), np.array(float(scale), np.float32))
    return Constant((np.float32(scale) * codes.astype(np.float32) + np.float32(bias)).astype(np.float32))


def _elements_as_channels(builder: Builder, value: Value, base: Codes) -> Value:
    """``value`` with every element a channel of its own, its chain the same."""
    channels = value.view.ravel() // base.pixels
    plain = replace(value, chain=(dequantising(base.tensor),), trail=None)
    steps = []
    for step in value.chain or ():
        if isinstance(step, Affine):
            step = Affine(take_channels(step.gain, channels), take_channels(step.offset, channels))
        elif isinstance(step, LeakyRelu) and isinstance(step.slope, tuple):
            step = LeakyRelu(take_channels(step.slope, channels))
        steps.append(step)
    return replace(builder.placed(plain, (value.view.size, 1, 1)), chain=tuple(steps))


def _rows_by_channel(
    builder: Builder, node: Node, value: Value, table: np.ndarray, axis: int
) -> tuple[Value, tuple[tuple[Fraction, ...], ...]]:
    """``value``, where needed with every element a channel of its own, and the thresholds of each channel of its base."""
    rows = tuple(fractions(row) for row in table)
    if len(set(rows)) == 1:
        return value, rows[:1]
    number = Constant(np.arange(len(rows)).reshape([-1 if i == axis else 1 for i in range(len(value.shape))]))
    if isinstance(value.base, Source) and not moves_only(value.trail or ()):
        # The host thresholds the array as the model has it, along axis 1.
        if axis == 1:
            return value, rows
        found = None
    else:
        if isinstance(value.base, Codes) and channels_of(number, value.view, value.base) is None:
            value = _elements_as_channels(builder, value, value.base)
        value, found = channel_values(builder, node, value, number)
    if found is None:
        raise RefusalError("its thresholds differ within a channel of a graph input", "transpose the input to channels first")
    return value, tuple(rows[int(index)] for index in found)
