"""Rounding in the forward pass, and what the backward pass sees instead."""

from torch import Tensor

__all__ = ["straight_through", "through_mask", "to_grid"]


def straight_through(x: Tensor, quantised: Tensor) -> Tensor:
    """``quantised`` forward, to the last bit; ``x`` backward: the gradient passes unchanged (Bengio and others: arXiv 1308.3432)."""
    return quantised.detach() + (x - x.detach())


def through_mask(x: Tensor, quantised: Tensor, mask: Tensor) -> Tensor:
    """``quantised`` forward; backward the gradient of ``x`` where ``mask`` is true, and 0 elsewhere."""
    return straight_through(x * mask, quantised)


def to_grid(x: Tensor, step: float | Tensor, low: int, high: int) -> Tensor:
    """Nearest multiple of ``step``, ties to even, clamped to the codes ``low .. high``. The gradient passes where nothing was clamped."""
    clamped = x.clamp(low * step, high * step)  # type: ignore[arg-type, call-overload]
    return straight_through(clamped, (clamped / step).round() * step)
