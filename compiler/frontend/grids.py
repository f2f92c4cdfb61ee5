"""Quantisers and what stands behind them: how calibration, the host and the codes of a tensor state one grid."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from tritloom.compiler.frontend.values import Codes, Value, affine_of, dequantising
from tritloom.compiler.ir.program import HostOp, Tensor
from tritloom.compiler.quantize.steps import Affine, LeakyRelu, Quantiser, Step

__all__ = ["differs", "grid_quantiser", "host_quantise", "keeps_codes", "on_codes", "signed_bits"]


def grid_quantiser(scale: Fraction, zero_point: int, bits: int) -> Quantiser:
    """Quantiser of a calibrated tensor: nearest code, ties to even, signed range of ``bits``."""
    return Quantiser(scale, zero_point, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, "half_even")


def host_quantise(quantiser: Quantiser, rank: int, dtype: np.dtype) -> HostOp:
    """The quantiser as the host does it on an array of ``rank`` axes, axis 1 the channels, in the model's own float type."""
    scale, zero = (
        np.array([float(entry) for entry in part]) if isinstance(part, tuple) else np.array(float(part))
        for part in (quantiser.scale, quantiser.zero_point)
    )
    constants = {"scale": scale.astype(dtype), "zero_point": zero.astype(np.int32)}
    if quantiser.thresholds is not None:
        constants["thresholds"] = np.array([[float(part) for part in row] for row in quantiser.thresholds]).astype(dtype)
    return HostOp(
        kind="Quantize",
        constants=constants,
        attributes={
            "axis": 1 if rank > 1 else 0,
            "low": quantiser.low,
            "high": quantiser.high,
            "rounding": quantiser.rounding,
            "bipolar": quantiser.bipolar,
            "clip_first": quantiser.clip_first,
            "offset": quantiser.offset,
        },
    )


def signed_bits(low: int, high: int) -> int:
    """Bits of the smallest signed type that holds ``low..high``."""
    bits = 1
    while not -(1 << (bits - 1)) <= low <= high < 1 << (bits - 1):
        bits += 1
    return bits


def differs(chain: tuple[Step, ...]) -> bool:
    """Whether a step has entries of their own for the channels."""
    return any(
        (isinstance(step, Affine) and max(len(step.gain), len(step.offset)) > 1)
        or (isinstance(step, LeakyRelu) and isinstance(step.slope, tuple) and len(step.slope) > 1)
        for step in chain
    )


def on_codes(value: Value, tensor: Tensor, quantiser: Quantiser) -> Value:
    """What a value is once its codes exist."""
    base = Codes(shape=tensor.shape, tensor=tensor, origin=value if isinstance(value.base, Codes) else None)
    if value.integer:
        chain: tuple[Step, ...] = (Affine((Fraction(1),), (Fraction(-quantiser.offset),)),)
        trail = (HostOp(kind="Dequantize", constants={"scale": np.array(1.0), "zero_point": np.array(quantiser.offset)}),)
        return replace(value, base=base, chain=chain, trail=trail, start=value.view, quantiser=None, head=1)
    return replace(
        value,
        base=base,
        chain=(dequantising(tensor),),
        trail=(HostOp(kind="Dequantize"),),
        start=value.view,
        witness=value.name,
        quantiser=None,
        head=1,
    )


def keeps_codes(chain: tuple[Step, ...], quantiser: Quantiser, tensor: Tensor) -> bool:
    """Whether the quantiser gives back every code of ``tensor`` unchanged, on the same grid."""
    affine = affine_of(chain)
    scale = quantiser.scale if isinstance(quantiser.scale, tuple) else (quantiser.scale,)
    zero = quantiser.zero_point if isinstance(quantiser.zero_point, tuple) else (quantiser.zero_point,)
    return (
        affine == dequantising(tensor)
        and scale == tensor.scale
        and tuple(value + quantiser.offset for value in zero) == tensor.zero_point
        and not quantiser.bipolar
        and quantiser.thresholds is None
        and quantiser.low + quantiser.offset <= tensor.low
        and tensor.high <= quantiser.high + quantiser.offset
    )
