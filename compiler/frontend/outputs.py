"""Graph outputs: which integer tensor they come from, and what the host still does."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.values import LARGEST_BATCH, Codes, Constant, Operand, Pending, Tail, Value, affine_of, dequantising
from tritloom.compiler.ir.program import HostOp, OutputSpec, Tensor
from tritloom.compiler.quantize.chain import entry

__all__ = ["output_spec"]

_LARGEST_EXACT = 1 << 24
"""Integers up to this are float32 numbers."""


@dataclass(frozen=True)
class _Reading:
    """A tensor, the view of its elements that the host starts from, and the host's operations."""

    tensor: Tensor
    start: np.ndarray
    epilogue: tuple[HostOp, ...]
    witness: str


def output_spec(builder: Builder, value: onnx_ir.Value, operand: Operand, batch: int | None) -> OutputSpec:
    """Describe one graph output. Raises :class:`RefusalError`."""
    if not isinstance(operand, Value):
        constant = isinstance(operand, Constant)
        raise RefusalError(f"graph output {value.name!r} does not depend on the input" if constant else f"graph output {value.name!r} is missing",
                           "remove this output")  # fmt: skip
    reading = _read(builder, operand)
    declared = value.shape[0] if value.shape is not None and len(value.shape) == len(operand.shape) and len(operand.shape) else None
    if isinstance(declared, int) and not 0 <= declared <= LARGEST_BATCH:
        declared = None  # some exporters write -1 for a free batch
    first = declared if isinstance(declared, int) else str(declared) if declared is not None else batch if batch is not None else "batch"
    dtype = "float32" if value.dtype is None else str(value.dtype.numpy())
    if value.dtype is not None and value.dtype.numpy().kind not in "fiub":
        raise RefusalError(f"graph output {value.name!r} is declared as {value.dtype}", "declare it as float32, as exporters do")
    tensor = reading.tensor
    largest = max(abs(bound - zero) for bound in (tensor.low, tensor.high) for zero in tensor.zero_point)
    if np.dtype(dtype).kind in "iu" and largest > _LARGEST_EXACT:
        raise RefusalError(f"graph output {value.name!r} may reach {largest}, more than the host's float32 holds exactly",
                           "quantise it before the output")  # fmt: skip
    return OutputSpec(
        name=str(value.name),
        shape=(first, *operand.shape[1:]),
        dtype=dtype,
        tensor=reading.tensor.name,
        epilogue=reading.epilogue,
        index=_without_batch(reading.start),
        witness=reading.witness,
    )


def _without_batch(view: np.ndarray) -> np.ndarray:
    if not view.shape or view.shape[0] != 1:
        raise RefusalError("the first axis of this output is not the batch", "keep the batch on axis 0")
    return view[0].copy()


def _read(builder: Builder, value: Value) -> _Reading:
    base = value.base
    if isinstance(base, Tail):
        before = _read(builder, base.inner)
        if value.trail is None:
            raise RefusalError(f"the batch axis is moved behind {base.operator}", "keep the batch on axis 0")
        return replace(before, epilogue=(*before.epilogue, *value.trail))
    value = builder.settle(value)
    if isinstance(value.base, Pending) and value.trail is not None:
        tensor = value.base.raw(builder, value.witness)
        if tensor is not None:
            return _filled(tensor, value)
    if isinstance(value.base, Pending) and value.trail is None and affine_of(value.chain) is not None:
        tensor = value.base.raw(builder, value.name)
        if tensor is not None:
            before = () if value.base.from_integers else (dequantising(tensor),)
            return _affine(replace(value, base=Codes(shape=tensor.shape, tensor=tensor), chain=(*before, *(value.chain or ()))), tensor)
    if not isinstance(value.base, Codes) or value.trail is None:
        value = builder.codes(value)
    assert isinstance(value.base, Codes)
    if value.trail is not None:
        return _filled(value.base.tensor, value)
    return _affine(value, value.base.tensor)


def _filled(tensor: Tensor, value: Value) -> _Reading:
    assert value.trail is not None
    steps = tuple(_dequantize(tensor, value.start) if step.kind == "Dequantize" and not step.constants else step for step in value.trail)
    return _Reading(tensor, value.start, steps, value.witness)


def _affine(value: Value, tensor: Tensor) -> _Reading:
    """Codes whose steps were not recorded for the host: scale and shift of each element, from the chain."""
    affine = affine_of(value.chain)
    assert affine is not None
    own = dequantising(tensor)
    if affine == own:
        return _Reading(tensor, value.view, (_dequantize(tensor, value.view),), value.name)
    channel = value.view // (tensor.shape[1] * tensor.shape[2])
    count = tensor.shape[0]
    gains = np.array([float(entry(affine.gain, c) / entry(own.gain, c)) for c in range(count)], np.float32)
    shifts = np.array(
        [float(entry(affine.offset, c) - entry(own.offset, c) * entry(affine.gain, c) / entry(own.gain, c)) for c in range(count)],
        np.float32,
    )
    steps = [_dequantize(tensor, value.view)]
    if (gains != 1).any():
        steps.append(HostOp(kind="Mul", constants={"B": gains[channel]}, attributes={"head": True}))
    if shifts.any():
        steps.append(HostOp(kind="Add", constants={"B": shifts[channel]}, attributes={"head": True}))
    return _Reading(tensor, value.view, tuple(steps), value.name)


def _dequantize(tensor: Tensor, view: np.ndarray) -> HostOp:
    """Dequantize for elements picked by ``view``: single numbers, vectors along the axis that counts the channels, or one an element."""
    scale = np.array([float(part) for part in tensor.scale])
    zero = np.array(tensor.zero_point, np.int64)
    if len(scale) == 1 and len(zero) == 1:
        return HostOp(kind="Dequantize", constants={"scale": scale.reshape(()), "zero_point": zero.reshape(())})
    channel = view // (tensor.shape[1] * tensor.shape[2])
    for axis in range(1, view.ndim):
        along = np.moveaxis(channel, axis, 0).reshape(channel.shape[axis], -1)
        if (along == along[:, :1]).all():
            picks = along[:, 0]
            constants = {"scale": scale[picks % len(scale)], "zero_point": zero[picks % len(zero)]}
            return HostOp(kind="Dequantize", constants=constants, attributes={"axis": axis})
    return HostOp(kind="Dequantize", constants={"scale": scale[channel[0] % len(scale)], "zero_point": zero[channel[0] % len(zero)]})
