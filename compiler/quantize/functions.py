"""Curved functions of one real value: fast in float64, and exact, rational where the result is rational and else cut to 60 digits.

Formulas are those of the ONNX operators of these names. Parameters are rationals, in the order of the ONNX attributes. The fast form takes
float64 arrays, has a relative error of a few units in the last place, and gives infinities and NaN as NumPy does. The exact form takes a
:class:`fractions.Fraction` and raises :class:`ArithmeticError` where the function has no finite value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from math import isqrt

import numpy as np

__all__ = ["FUNCTIONS", "Curve"]

_DIGITS = 60
_DECIMAL = Context(prec=_DIGITS, Emax=10**9, Emin=-(10**9))
_LARGEST_POWER = 10_000
"""Beyond ``e**10000`` either way every quantiser of 8 bits has cut off long ago, but the number would take thousands of digits."""
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
_HALF = Fraction(1, 2)

Fast = Callable[..., np.ndarray]
Exact = Callable[..., Fraction]


@dataclass(frozen=True)
class Curve:
    """One function. Near each of ``jumps`` (of the parameters) the fast form cannot be trusted; ``rising``: it never decreases."""

    fast: Fast
    exact: Exact
    jumps: Callable[..., tuple[Fraction, ...]] = lambda *parameters: ()
    rising: bool = False


def _decimal(value: Fraction) -> Decimal:
    return _DECIMAL.divide(Decimal(value.numerator), Decimal(value.denominator))


def exp(x: Fraction) -> Fraction:
    """``e**x``, rational only at 0."""
    bounded = min(max(x, Fraction(-_LARGEST_POWER)), Fraction(_LARGEST_POWER))
    return Fraction(1) if x == 0 else Fraction(_DECIMAL.exp(_decimal(bounded)))


def log(x: Fraction) -> Fraction:
    """Natural logarithm. Raises :class:`ArithmeticError` where ``x`` is not positive."""
    if x <= 0:
        raise ArithmeticError
    return Fraction(0) if x == 1 else Fraction(_DECIMAL.ln(_decimal(x)))


def sqrt(x: Fraction) -> Fraction:
    """Square root, exact where it is rational. Raises :class:`ArithmeticError` for negative values."""
    if x < 0:
        raise ArithmeticError
    numerator, denominator = isqrt(x.numerator), isqrt(x.denominator)
    if numerator**2 == x.numerator and denominator**2 == x.denominator:
        return Fraction(numerator, denominator)
    return Fraction(_DECIMAL.sqrt(_decimal(x)))


def erf(x: Fraction) -> Fraction:
    """Error function: ``2 / sqrt(pi) * exp(-x**2) * sum(2**n * x**(2 * n + 1) / (1 * 3 * ... * (2 * n + 1)))`` (DLMF 7.6.2)."""
    if abs(x) > 12:
        # 1 - erf(12) is less than 10**-63: on this side of one.
        return (1 - Fraction(1, 10**64)) * (1 if x > 0 else -1)
    value = _decimal(x)
    square = _DECIMAL.multiply(value, value)
    term = total = value
    odd = 1
    while term and abs(term) > abs(total) * Decimal(10) ** -(_DIGITS + 2):
        odd += 2
        term = _DECIMAL.divide(_DECIMAL.multiply(_DECIMAL.multiply(term, square), Decimal(2)), Decimal(odd))
        total = _DECIMAL.add(total, term)
    factor = _DECIMAL.divide(_DECIMAL.multiply(Decimal(2), _DECIMAL.exp(-square)), _DECIMAL.sqrt(_PI))
    return Fraction(_DECIMAL.multiply(factor, total))


def sigmoid(x: Fraction) -> Fraction:
    power = exp(-abs(x))
    return (1 if x >= 0 else power) / (1 + power)


def tanh(x: Fraction) -> Fraction:
    return 2 * sigmoid(2 * x) - 1


def softplus(x: Fraction) -> Fraction:
    return max(x, Fraction(0)) + log(1 + exp(-abs(x)))


def power(x: Fraction, exponent: Fraction) -> Fraction:
    """``x ** exponent``. Raises :class:`ArithmeticError` where that is no real number, or infinite."""
    if exponent.denominator == 1:
        return x**exponent.numerator
    if x == 0 and exponent > 0:
        return Fraction(0)
    if exponent == _HALF:
        return sqrt(x)
    return exp(exponent * log(x))


_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def _fast_sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _fast_softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _fast_elu(x: np.ndarray, alpha: Fraction) -> np.ndarray:
    return np.where(x < 0, float(alpha) * np.expm1(np.minimum(x, 0)), x)


def _fast_celu(x: np.ndarray, alpha: Fraction) -> np.ndarray:
    return np.maximum(x, 0) + np.minimum(0, float(alpha) * np.expm1(np.minimum(x / float(alpha), 700)))


def _fast_shrink(x: np.ndarray, bias: Fraction, width: Fraction) -> np.ndarray:
    return np.where(x < -float(width), x + float(bias), np.where(x > float(width), x - float(bias), 0.0))


def _shrink(x: Fraction, bias: Fraction, width: Fraction) -> Fraction:
    return x + bias if x < -width else x - bias if x > width else Fraction(0)


_CUBE = Fraction(44715, 10**6)


def _gelu_tanh(x: Fraction) -> Fraction:
    return x * sigmoid(2 * Fraction(_DECIMAL.sqrt(_DECIMAL.divide(Decimal(2), _PI))) * (x + _CUBE * x**3)) if x else x


def _fast_gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * _fast_sigmoid(2 * math.sqrt(2 / math.pi) * (x + float(_CUBE) * x**3))


def _at_zero(*parameters: Fraction) -> tuple[Fraction, ...]:
    return (Fraction(0),)


FUNCTIONS: dict[str, Curve] = {
    "Sigmoid": Curve(_fast_sigmoid, sigmoid, rising=True),
    "Tanh": Curve(np.tanh, tanh, rising=True),
    "Softplus": Curve(_fast_softplus, softplus, rising=True),
    "Softsign": Curve(lambda x: x / (1 + np.abs(x)), lambda x: x / (1 + abs(x)), rising=True),
    "Elu": Curve(_fast_elu, lambda x, alpha: x if x >= 0 else alpha * (exp(x) - 1)),
    "Selu": Curve(
        lambda x, alpha, gamma: float(gamma) * _fast_elu(x, alpha),
        lambda x, alpha, gamma: gamma * (x if x >= 0 else alpha * (exp(x) - 1)),
    ),
    "Celu": Curve(_fast_celu, lambda x, alpha: max(x, Fraction(0)) + min(Fraction(0), alpha * (exp(x / alpha) - 1))),
    "Swish": Curve(lambda x, alpha: x * _fast_sigmoid(float(alpha) * x), lambda x, alpha: x * sigmoid(alpha * x)),
    "HardSwish": Curve(
        lambda x, alpha, beta: x * np.clip(float(alpha) * x + float(beta), 0, 1),
        lambda x, alpha, beta: x * min(max(alpha * x + beta, Fraction(0)), Fraction(1)),
    ),
    "Mish": Curve(lambda x: x * np.tanh(_fast_softplus(x)), lambda x: x * tanh(softplus(x))),
    "Gelu": Curve(
        lambda x: 0.5 * x * np.asarray(_erfc(-x / math.sqrt(2)), np.float64),
        lambda x: _HALF * x * (1 + erf(x / sqrt(Fraction(2)))) if x else x,
    ),
    "GeluTanh": Curve(_fast_gelu_tanh, _gelu_tanh),
    "Erf": Curve(lambda x: np.asarray(_erf(x), np.float64), erf, rising=True),
    "Exp": Curve(np.exp, exp, rising=True),
    "Log": Curve(np.log, log, jumps=_at_zero, rising=True),
    "Sqrt": Curve(np.sqrt, sqrt, jumps=_at_zero, rising=True),
    "Reciprocal": Curve(lambda x: 1 / x, lambda x: 1 / x, jumps=_at_zero),
    "Pow": Curve(lambda x, exponent: np.power(x, float(exponent)), power, jumps=_at_zero),
    "ThresholdedRelu": Curve(
        lambda x, alpha: np.where(x > float(alpha), x, 0.0),
        lambda x, alpha: x if x > alpha else Fraction(0),
        jumps=lambda alpha: (alpha,),
    ),
    "Shrink": Curve(_fast_shrink, _shrink, jumps=lambda bias, width: (-width, width)),
}
"""By name, which is that of the ONNX operator; ``GeluTanh`` is ``Gelu`` with ``approximate="tanh"``."""
