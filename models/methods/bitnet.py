"""BitNet b1.58 (Ma and others: arXiv 2402.17764, section 2; 2504.12285 for the extra normalisation).

Weights: ``gamma = max(mean|W|, 1e-5)`` over the whole tensor, ``t = clip(round(W / gamma), -1, 1)``, value ``gamma * t``. Activations: for each token
(the last axis) ``s = 127 / max(max|x|, 1e-5)``, ``q = clip(round(x * s), -128, 127)``, value ``q / s``. Rounding is half to even. The gradient
passes both as if they were not there. ``gamma`` belongs to the float weights: the abs-mean of ``gamma * t`` is another, smaller number, so a file must
store trits and ``gamma``.

Because ``q`` depends on ratios only, a root-mean-square norm in front of the quantiser changes nothing but the scale: see :func:`absmax_codes`.
"""

from typing import TypeVar

__all__ = ["EPSILON", "absmax", "absmax_codes", "absmean"]

EPSILON = 1e-5

Array = TypeVar("Array")


def absmean(weights: Array) -> tuple[Array, Array]:
    """Trits and scale of ``weights``.

    Parameters
    ----------
    weights
        Float array or tensor of any shape, NumPy or PyTorch.

    Returns
    -------
    tuple
        Trits of the same shape, kind and dtype with values -1, 0 and 1; scale ``gamma``, shape (1,).
    """
    gamma = abs(weights).reshape(1, -1).mean(1).clip(min=EPSILON)  # type: ignore[arg-type]
    return (weights / gamma).round().clip(-1, 1), gamma


def absmax(x: Array, bits: int = 8) -> tuple[Array, Array]:
    """Codes and steps of ``x``, one step for each token.

    Parameters
    ----------
    x
        Float array or tensor (..., features), NumPy or PyTorch.
    bits
        Codes lie in ``-m .. m`` with ``m = 2 ** (bits - 1) - 1``; the lowest code is never used.

    Returns
    -------
    tuple
        Codes like ``x``, whole numbers; steps (..., 1): ``x`` is about ``codes * step``. A token of zeros has codes 0.
    """
    limit = 2 ** (bits - 1) - 1
    magnitude = abs(x)  # type: ignore[arg-type]
    largest = magnitude.amax(-1) if hasattr(magnitude, "amax") else magnitude.max(-1)
    scale = limit / largest.clip(min=EPSILON)[..., None]
    return (x * scale).round().clip(-limit - 1, limit), 1 / scale


def absmax_codes(x: Array, gain: Array) -> Array:
    """``round(127 * v / max|v|)`` of ``v = gain * x`` for integers, half away from zero, 0 for a token of zeros; exact.

    The codes of ``absmax(gain * x / rms(x))`` without the norm's square root: ``rms(x)`` is one positive factor for the whole token and cancels.

    Parameters
    ----------
    x
        Integer NumPy array (..., features) whose products with ``gain`` and 254 fit in int64.
    gain
        Integers (features,).
    """
    product = x * gain  # type: ignore[operator]
    largest = abs(product).max(-1)[..., None].clip(min=1)
    sign = (product > 0) * 1 - (product < 0) * 1
    return sign * ((254 * abs(product) + largest) // (2 * largest))
