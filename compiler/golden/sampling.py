"""The next token drawn from logits, in integers: the same on every backend for a seed."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tritloom.compiler.ir.program import Program
from tritloom.errors import UserError
from tritloom.hw.arch import blockfloat

__all__ = ["Sampler", "logits_of", "sampler"]

_STEP_BITS = blockfloat.EXPONENT_STEPS.bit_length() - 1
_LEAST_SHIFT, _LARGEST_SHIFT = 1, 62


@dataclass
class Sampler:
    """Draws tokens with probability ``exp(logit / temperature)`` among the ``count`` largest logits.

    ``constant`` (mantissa, exponent) is the constant part of the logits' scale over ``temperature * ln 2``; ``state`` 32 bits, not 0.
    """

    count: int
    constant: tuple[int, int]
    state: int

    def choose(self, elements: np.ndarray, scale: tuple[int, int]) -> int:
        """The next token of logits ``elements * scale * constant``, int64 (size,).

        1. The ``count`` largest elements are taken in their order, equal ones in that of their numbers, and the largest one from each: ``d``, limited to 32 bits;
        2. ``d`` is normalised to 15 bits, and its product with the mantissa of its scale times ``constant`` is shifted to steps of 1/256, half up, limited to 30 bits:
           a logarithm to the base of 2;
        3. weights are powers of two of these, 15 bits, and ``t`` is their sum, of ``n`` bits;
        4. ``state`` goes on, ``r`` are its lower 16 bits; ``((t >> n - 16) * r) >> 32 - n`` lies below ``t`` (a shift to the left where the places are negative);
        5. the token is the first whose weight, added to those before it, exceeds that.
        """
        order = np.argsort(-elements, kind="stable")[: self.count]
        differences = np.clip(elements[order] - elements[order[0]], -(1 << 31), 0)
        normalised, right = blockfloat.normalise(differences[None, :, None, None], 1)
        factor = blockfloat.scale_product((np.array(scale[0]), np.array(scale[1]) + right), _pair(self.constant))
        places = np.clip(-factor[1] - _STEP_BITS, _LEAST_SHIFT, _LARGEST_SHIFT)
        product = normalised * factor[0]
        steps = np.clip((product >> places) + (product >> (places - 1) & 1), -(1 << 30), 0).ravel()
        weights = blockfloat.power_of_two(steps)
        total = int(weights.sum())
        self.state = blockfloat.RANDOM_MULTIPLIER * (self.state & 0xFFFF) + (self.state >> 16)
        extra = total.bit_length() - 16
        left = total >> extra if extra >= 0 else total << -extra
        drawn = (left * (self.state & 0xFFFF)) >> (16 - extra)
        return int(order[np.searchsorted(np.cumsum(weights), drawn, side="right")])


def _pair(scale: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scale[0], np.int64), np.array(scale[1], np.int64)


def sampler(program: Program, *, temperature: float, top_k: int, seed: int) -> Sampler | None:
    """For the logits of a language model; ``None`` where ``temperature`` is 0, which stands for the likeliest token. ``top_k`` 0 draws among all tokens.

    Raises :class:`UserError` for a negative argument, or a temperature that is no number.
    """
    if not (0 <= temperature < math.inf) or top_k < 0:
        raise UserError(f"temperature and top_k must not be negative, not {temperature!r} and {top_k!r}")
    if temperature == 0:
        return None
    spec = program.outputs[0]
    tensor = program.tensors[spec.tensor]
    size = tensor.elements if spec.index is None else int(np.asarray(spec.index).size)
    ratio = Fraction(tensor.scale[0]) / (Fraction(temperature) * Fraction(math.log(2)))
    exponent = ratio.numerator.bit_length() - ratio.denominator.bit_length() - blockfloat.MANTISSA_BITS
    mantissa = round(ratio / Fraction(2) ** exponent)
    while mantissa >= 1 << blockfloat.MANTISSA_BITS:
        exponent += 1
        mantissa = round(ratio / Fraction(2) ** exponent)
    state = int(np.random.default_rng(seed).integers(1, blockfloat.RANDOM_MULTIPLIER << 15))
    return Sampler(count=min(top_k or size, size), constant=(mantissa, exponent), state=state)


def logits_of(program: Program, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, tuple[int, int]]:
    """Elements, int64 (size,), and the scale of the logits of one token, of tensors (1, C, H, W) that a run has left."""
    spec = program.outputs[0]
    elements = tensors[spec.tensor][0].ravel().astype(np.int64)
    scale = tensors[spec.scale_tensor][0].ravel() if spec.scale_tensor else (1 << 15, -15)
    return elements if spec.index is None else elements[np.asarray(spec.index).ravel()], (int(scale[0]), int(scale[1]))
