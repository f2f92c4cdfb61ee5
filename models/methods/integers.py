"""Integer weights of a few bits, the baseline of quantisation-aware training (Jacob and others: arXiv 1712.05877, symmetric form).

``scale = max|W| / m`` with ``m = 2 ** (bits - 1) - 1`` for each output channel or for all, ``code = round(W / scale)``, half to even.
"""

from typing import TypeVar

from tritloom.errors import UserError

__all__ = ["symmetric"]

Array = TypeVar("Array")


def symmetric(weights: Array, bits: int, *, per_channel: bool = True) -> tuple[Array, Array]:
    """Codes and scales of ``weights`` (O, ...), NumPy or PyTorch; one scale per index of the first axis, or one for all.

    Returns codes of the same shape, kind and dtype, whole numbers from ``-m`` to ``m``, and scales (O,) or (1,); a group of zeros has scale 0 and codes 0.
    Raises :class:`UserError` unless there are 2 to 8 bits.
    """
    if not 2 <= bits <= 8:
        raise UserError(f"symmetric integer weights have 2 to 8 bits, not {bits}")
    limit = 2 ** (bits - 1) - 1
    groups = weights.reshape(len(weights) if per_channel else 1, -1)  # type: ignore[attr-defined, arg-type]
    magnitude = abs(groups)
    largest = magnitude.amax(1) if hasattr(magnitude, "amax") else magnitude.max(1)
    scale = largest / limit
    codes = (groups / (scale + (scale == 0) * 1)[:, None]).round().clip(-limit, limit)
    return codes.reshape(weights.shape), scale  # type: ignore[attr-defined]
