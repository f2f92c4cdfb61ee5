"""NumPy twin of the vector unit: what :mod:`tritloom.hw.arch.vector` says, on whole instructions."""

import numpy as np

from tritloom.hw.arch.vector import OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, VectorFunction

__all__ = ["vector_results"]

_FACTOR_BITS, _EXPONENT_BITS = 18, 16


def _wrapped(values: np.ndarray, bits: int) -> np.ndarray:
    half = np.int64(1) << (bits - 1)
    return ((values + half) & ((half << 1) - 1)) - half


def _moved(values: np.ndarray, places: np.ndarray | int) -> np.ndarray:
    """32 bits shifted to the right; left beyond 32 bits is cut."""
    places = np.clip(places, -16, 47)
    return _wrapped(np.where(places >= 0, values >> np.maximum(places, 0), values << np.maximum(-places, 0)), 32)


def vector_results(
    function: VectorFunction, first: np.ndarray, second: np.ndarray | None, *, shift: int, factor: int, out_shift: int, addend: int
) -> tuple[np.ndarray, int | None, int]:
    """Results, int64 (results,), the statistic (``None`` if there is none) and the number of the first largest result.

    ``first`` and ``second`` are int64 (results, elements of a reduction); ``second`` holds the table's entries where there is a table. The others are the registers.
    """
    kind = function.second
    amount = _wrapped(np.int64(shift), _EXPONENT_BITS) if function.shifted else np.int64(0)
    if kind == Second.TABLE:
        assert second is not None
        x = second
    elif kind == Second.POWER:
        assert second is not None
        x = _moved(second, np.clip(-(first >> 8), 0, 47))
    elif kind == Second.SHIFT:
        assert second is not None
        x = _moved(first, amount - _wrapped(second, _EXPONENT_BITS))
    else:
        x = _moved(first, amount)
    if function.factor == Factor.ONE:
        products = x
    else:
        other = {Factor.REGISTER: np.int64(factor), Factor.ITSELF: x, Factor.OPERAND: second}[function.factor]
        products = _wrapped(x, _FACTOR_BITS) * _wrapped(np.asarray(other, np.int64), _FACTOR_BITS)
    total = _wrapped(products.sum(axis=1), 48)
    places = out_shift & 63 if function.out_shift == OUT_SHIFT_REGISTER else function.out_shift
    # Beyond 47 places nothing but the sign is left; its own bit is what rounds.
    results = total >> min(places, 62)
    if function.rounded and places:
        results = results + (total >> (places - 1) & 1)
    if kind == Second.ADDEND:
        assert second is not None
        results = results + second[:, -1]
    elif kind == Second.SUBTRAHEND:
        assert second is not None
        results = results - second[:, -1]
    elif function.addend:
        results = results + addend
    high = (1 << function.bits) - 1
    low = {Low.SYMMETRIC: -high, Low.TWO: -high - 1, Low.ZERO: 0}[function.low]
    results = np.clip(results, low, high)
    statistic, argument = None, 0
    if function.statistic == Statistic.MAGNITUDE:
        statistic = int(np.abs(results).max())
    elif function.statistic == Statistic.SUM:
        statistic = int(results.sum())
    elif function.statistic == Statistic.LARGEST:
        argument = int(np.argmax(results))
        statistic = int(results[argument])
    return results, statistic, argument
