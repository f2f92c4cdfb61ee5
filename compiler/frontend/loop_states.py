"""What may be carried from one trip of a loop to the next: which types of integers, and the grids of states that begin as constants."""

from fractions import Fraction

import numpy as np
import onnx

__all__ = ["INPUT_RANGES", "STATE_BITS", "STATE_KINDS", "codes_on", "exact_step", "placed"]

INPUT_RANGES: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT16: (-(1 << 15), (1 << 15) - 1),
    onnx.TensorProto.BOOL: (0, 1),
    onnx.TensorProto.INT32: (1 - (1 << 24), (1 << 24) - 1),
    onnx.TensorProto.INT64: (1 - (1 << 24), (1 << 24) - 1),
}
"""Values that an input or a state of each type may have; wide integers as far as the host's float32 tells them apart."""

STATE_KINDS: tuple[int, ...] = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.BOOL)
"""Types of integers that are carried."""

STATE_BITS = 16
"""Width of what is carried on a fixed grid."""


def placed(values: np.ndarray) -> np.ndarray:
    """Constants of an ONNX value as int16 (C, 1, W)."""
    channels = values.shape[-1] if values.ndim else 1
    return np.ascontiguousarray(values.reshape(-1, channels).T[:, None, :])


def exact_step(values: np.ndarray) -> Fraction:
    """The largest power of two, up to 1, that all values are multiples of; 1 where there is none."""
    for places in range(31):
        scaled = values.astype(np.float64) * (1 << places)
        if np.array_equal(scaled, np.rint(scaled)):
            return Fraction(1, 1 << places)
    return Fraction(1)


def codes_on(values: np.ndarray, step: Fraction) -> np.ndarray | None:
    """int16 codes with ``codes * step`` equal to ``values`` in their own type, or ``None``."""
    codes = np.rint(values.astype(np.float64) / float(step))
    limit = 1 << (STATE_BITS - 1)
    exact = (
        np.array_equal((codes * float(step)).astype(values.dtype), values) and codes.size and codes.min() >= -limit and codes.max() < limit
    )
    return codes.astype(np.int16) if exact else None
