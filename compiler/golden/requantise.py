"""Step functions on whole arrays: the vectorised twin of :func:`tritloom.hw.arch.record.evaluate`."""

import numpy as np

from tritloom.compiler.ir.program import StepFunction

__all__ = ["requantise", "requantise_sum"]


def _fields(step: StepFunction) -> dict[str, np.ndarray]:
    """Record fields as int64 arrays (channels, pieces)."""
    names = ("start", "multiplier", "bias", "shift", "half_even")
    return {name: np.array([[int(getattr(record, name)) for record in pieces] for pieces in step.records], np.int64) for name in names}


def _finish(value: np.ndarray, shift: np.ndarray, half_even: np.ndarray, low: int, high: int) -> np.ndarray:
    """Shift with rounding and clamp, in place; ``value`` int64, result int8."""
    if half_even.any():
        even = (half_even > 0) & (shift > 0)
        value += np.where(even, (np.int64(1) << np.maximum(shift - 1, 0)) - 1, 0) + ((value >> shift) & even)
    value >>= shift
    return np.clip(value, low, high, out=value).astype(np.int8)


def requantise(step: StepFunction, acc: np.ndarray) -> np.ndarray:
    """Codes, int8 (N, C, H, W), of accumulators of at most 32 bits, ``acc`` (N, C, H, W) of integers or whole floats.

    ``multiplier * acc`` needs 24 + 31 bits and the bias 55, so int64 holds every intermediate value exactly. Where the batch has
    more values than the range of accumulators it meets, each code is computed once for each accumulator and looked up.
    """
    if acc.size:
        first, last, channels = int(acc.min()), int(acc.max()), acc.shape[1]
        count = last - first + 1
        if 2 * count * channels < acc.size:
            values = np.broadcast_to(np.arange(first, last + 1), (channels, count)).reshape(1, channels, 1, count)
            table = _compute(step, values).reshape(-1)
            base = (np.arange(channels) * count - first).reshape(1, channels, 1, 1)
            return table.take((acc + base).astype(np.intp, copy=False))
    return _compute(step, acc)


def _compute(step: StepFunction, acc: np.ndarray) -> np.ndarray:
    acc = acc.astype(np.int64, copy=False)
    fields = _fields(step)
    if step.pieces == 1:
        multiplier, bias, shift, half_even = (fields[name].reshape(1, -1, 1, 1) for name in ("multiplier", "bias", "shift", "half_even"))
        return _finish(acc * multiplier + bias, shift, half_even, step.low, step.high)
    codes = np.empty(acc.shape, np.int8)
    for channel in range(acc.shape[1]):
        start, multiplier, bias, shift, half_even = (array[channel] for array in fields.values())
        values = acc[:, channel]
        piece = np.searchsorted(start[1:], values, side="right")
        codes[:, channel] = _finish(values * multiplier[piece] + bias[piece], shift[piece], half_even[piece], step.low, step.high)
    return codes


def requantise_sum(step: StepFunction, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Codes, int8 (N, C, H, W), of the two-record form ``m0 * left + bias0 + m1 * right``; shift and rounding of the first record."""
    fields = {name: array.reshape(1, len(step.records), 2, 1, 1) for name, array in _fields(step).items()}
    value = left * fields["multiplier"][:, :, 0] + right * fields["multiplier"][:, :, 1] + fields["bias"][:, :, 0]
    return _finish(value, fields["shift"][:, :, 0], fields["half_even"][:, :, 0], step.low, step.high)
