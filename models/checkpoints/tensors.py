"""A ternary matrix, and how each way of storing one is turned into it; nothing is rounded, what is not ternary is refused.

Packings, as the projects' own programs write them:

- Hugging Face BitNet: uint8 (O / 4, I). Bits ``2 i`` and ``2 i + 1`` of row ``r`` hold the code ``t + 1`` of row ``i * O / 4 + r``; 3 is no code.
- GGUF ``TQ2_0``: for each 256 weights 64 bytes and a float16 scale. Byte ``32 h + k`` holds in its bits ``2 i`` and ``2 i + 1`` the code of weight ``128 h + 32 i + k``.
- GGUF ``TQ1_0``: for each 256 weights 52 bytes and a float16 scale. Bytes 0..31, 32..47 and 48..51 hold 5, 5 and 4 weights each: weight ``start + width * i + k`` is base-3 digit
  ``i``, the most significant first, of the fraction ``byte / 256`` rounded up, ``code = (byte * 3**i mod 256) * 3 >> 8``.
- GGUF ``I2_S`` (bitnet.cpp): blocks of ``4 g`` weights in ``g`` bytes, weight ``g * i + k`` in the bits ``6 - 2 i`` and ``7 - 2 i`` of byte ``k``; one float32 scale behind all of them.
  ``g`` is 32 in files made on x86 and 16 in those made on ARM, which the file does not say.
"""

from dataclasses import dataclass

import numpy as np

from tritloom.errors import ModelError

__all__ = [
    "BLOCK",
    "TQ1_BYTES",
    "TQ2_BYTES",
    "LeftOut",
    "TernaryTensor",
    "from_floats",
    "from_hugging_face",
    "from_i2s",
    "from_tq1",
    "from_tq2",
]

BLOCK = 256
"""Weights of a TQ1_0 or TQ2_0 block."""

TQ1_BYTES, TQ2_BYTES = 54, 66
"""Bytes of such a block, with its scale."""


@dataclass(frozen=True)
class TernaryTensor:
    """Weights ``scale * trits``: ``trits`` int8 (O, I) with values -1, 0 and 1; ``scale`` float32 above 0, (1,) for all, (O,) for each row or (O, I / 256) for each block."""

    name: str
    trits: np.ndarray
    scale: np.ndarray
    stored: str
    """How the checkpoint stores it."""

    @property
    def zeros(self) -> float:
        """Share of the weights that are 0."""
        return float((self.trits == 0).mean())


@dataclass(frozen=True)
class LeftOut:
    """A tensor that was not taken, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def from_floats(name: str, values: np.ndarray, stored: str) -> TernaryTensor:
    """Floats (O, I) of the values -g, 0 and g, with one ``g`` for all or one a row. Raises :class:`ModelError` for others, saying what was found."""
    if not np.isfinite(values).all():
        raise ModelError(f"tensor {name!r} holds values that are not finite")
    magnitude = np.abs(values.astype(np.float32))
    largest = magnitude.max(axis=1)
    off = (magnitude != 0) & (magnitude != largest[:, None])
    if off.any():
        found = np.unique(magnitude[off.any(axis=1).argmax()])
        shown = ", ".join(f"{value:.6g}" for value in found[found > 0][:3])
        raise ModelError(
            f"tensor {name!r} is not ternary: one row has {np.count_nonzero(found)} magnitudes beside 0 (such as {shown}), not one; "
            "weights as they were before ternarisation can be compiled from an ONNX export with --method absmean or twn"
        )
    scale = largest.max(keepdims=True) if (largest[largest > 0] == largest.max()).all() else largest
    return TernaryTensor(name, np.sign(values).astype(np.int8), _filled(scale), stored)


def from_hugging_face(name: str, packed: np.ndarray, scale: float) -> TernaryTensor:
    """Packed uint8 (O / 4, I) and the value of trit 1. Raises :class:`ModelError` for the code 3."""
    codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    return TernaryTensor(name, _trits(name, codes), np.array([scale], np.float32), "2-bit uint8")


def from_tq2(name: str, data: np.ndarray, shape: tuple[int, int]) -> TernaryTensor:
    """Bytes of all blocks, and (O, I) with I a multiple of 256. Raises :class:`ModelError` for the code 3 and scales that are not finite or below 0."""
    blocks = data.reshape(-1, TQ2_BYTES)
    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return _blocked(name, codes.reshape(shape), blocks[:, 64:], "TQ2_0")


def from_tq1(name: str, data: np.ndarray, shape: tuple[int, int]) -> TernaryTensor:
    """Like :func:`from_tq2`."""
    blocks = data.reshape(-1, TQ1_BYTES)
    parts = []
    for start, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        shifted = blocks[:, None, start:end] * np.array([3**digit for digit in range(digits)], np.uint8)[:, None]  # modulo 256
        parts.append((shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(blocks), -1))
    return _blocked(name, np.concatenate(parts, axis=1).reshape(shape), blocks[:, 52:], "TQ1_0")


def from_i2s(name: str, data: np.ndarray, shape: tuple[int, int], group: int) -> TernaryTensor:
    """Bytes of all weights with the scale behind them, (O, I), and ``g``. Raises :class:`ModelError` where a block is not whole, for the code 3 and a scale that makes no sense."""
    count = shape[0] * shape[1]
    if count % (4 * group):
        raise ModelError(f"tensor {name!r} of {shape[0]} x {shape[1]} weights is no whole number of I2_S blocks of {4 * group}")
    packed = data[: count // 4].reshape(-1, 1, group)
    codes = packed >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    scale = data[count // 4 : count // 4 + 4].copy().view("<f4").astype(np.float32)
    return TernaryTensor(name, _trits(name, codes.reshape(shape)), _checked(name, scale), "I2_S")


def _blocked(name: str, codes: np.ndarray, scales: np.ndarray, stored: str) -> TernaryTensor:
    """Scales of blocks, float16 bytes, as one for all or one a row where the blocks that hold anything agree."""
    trits = _trits(name, codes)
    scale = _checked(name, scales.copy().view("<f2").astype(np.float32).reshape(len(trits), -1))
    used = scale > 0
    trits = np.where(np.repeat(used, BLOCK, axis=1), trits, 0).astype(np.int8)  # a scale of 0 stands for zeros, whatever the trits are
    for axes in (None, 1):
        largest = scale.max(axis=axes, keepdims=True)
        if (~used | (scale == largest)).all():
            return TernaryTensor(name, trits, _filled(largest.reshape(-1)), stored)
    return TernaryTensor(name, trits, _filled(scale), stored)


def _trits(name: str, codes: np.ndarray) -> np.ndarray:
    if wrong := int((codes == 3).sum()):
        raise ModelError(f"tensor {name!r} is not ternary: {wrong} of its 2-bit codes are 3, which stands for no trit")
    return codes.astype(np.int8) - np.int8(1)


def _checked(name: str, scale: np.ndarray) -> np.ndarray:
    if not np.isfinite(scale).all() or (scale < 0).any():
        raise ModelError(f"tensor {name!r} has a scale that is negative or not finite")
    return scale


def _filled(scale: np.ndarray) -> np.ndarray:
    """Scale 1 for what holds only zeros."""
    return np.where(scale > 0, scale, 1).astype(np.float32)
