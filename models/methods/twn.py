"""Ternary Weight Networks (Li, Liu: arXiv 1605.04711, section 2).

For each group of weights ``W``: ``delta = 0.7 * mean|W|``; ``t = sign(W)`` where ``|W| > delta``, else 0; ``alpha`` is the mean of ``|W|``
over the weights that were kept, which is the least-squares scale of ``t``. The paper takes a layer as one group; a group per output
channel costs nothing in hardware, where the scale belongs to the channel's requantisation anyway.
"""

from typing import TypeVar

__all__ = ["THRESHOLD", "ternarise"]

THRESHOLD = 0.7

Array = TypeVar("Array")


def ternarise(weights: Array, *, per_channel: bool = True) -> tuple[Array, Array]:
    """Trits and scales of ``weights``.

    Parameters
    ----------
    weights
        Float array or tensor (O, ...), NumPy or PyTorch.
    per_channel
        One group per index of the first axis, or one group for all.

    Returns
    -------
    tuple
        Trits of the same shape, kind and dtype with values -1, 0 and 1; scales ``alpha``, shape (O,), or (1,) for one group. A
        group of nothing but zeros has scale 0.
    """
    groups = weights.reshape(len(weights) if per_channel else 1, -1)  # type: ignore[attr-defined, arg-type]
    magnitude = abs(groups)
    delta = THRESHOLD * magnitude.mean(1)[:, None]
    positive, negative = groups > delta, groups < -delta
    kept = (positive | negative).sum(1)
    scale = (magnitude * (positive | negative)).sum(1) / kept.clip(min=1)
    trits = groups * 0 + positive * 1 - negative * 1
    return trits.reshape(weights.shape), scale  # type: ignore[attr-defined]
