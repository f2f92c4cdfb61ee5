"""Exact step functions: an elementwise chain and a quantiser between two integer tensors, as requantisation records.

The chain is composed in rationals into linear segments; the accumulator at which the code changes is found for each
level by one exact integer division. A chain with a curved step is evaluated at every reachable accumulator instead
(:mod:`tritloom.compiler.quantize.curves`). The runs of equal codes are then realised as records by exact integer inequalities
(:mod:`tritloom.compiler.quantize.pieces`), and the records are compared with the runs once more for the proof.
"""

from collections.abc import Sequence

from tritloom.compiler.ir.program import Proof, StepFunction
from tritloom.compiler.quantize.chain import (
    ROUNDINGS,
    Affine,
    Clip,
    Fork,
    Function,
    LeakyRelu,
    Quantised,
    Quantiser,
    Relu,
    Run,
    Step,
    compose,
    entry,
    find_runs,
    is_curved,
)
from tritloom.compiler.quantize.curves import curved_runs, of_channel
from tritloom.compiler.quantize.pieces import MAX_PIECES, differences, realise
from tritloom.compiler.quantize.sums import derive_add, is_clamped_line
from tritloom.hw.arch.record import Record

__all__ = [
    "ROUNDINGS", "Affine", "Clip", "Fork", "Function", "LeakyRelu", "Quantised", "Quantiser", "Relu", "Step", "derive_add", "derive_step", "is_clamped_line",
    "is_curved",
]  # fmt: skip


def _bounds(values: int | Sequence[int], channels: int) -> list[int]:
    return [int(values)] * channels if isinstance(values, int) else [int(value) for value in values]


def _approximate(runs: Sequence[Run], low: int, high: int, *, half_even: bool, pieces: int) -> list[Record]:
    """Records within the smallest tolerance, in codes, that needs no more than ``pieces`` of them."""
    tolerance = 0
    while True:
        records = realise(runs, low, high, half_even=half_even, tolerance=tolerance)
        if len(records) <= pieces:
            return records
        tolerance = 2 * tolerance + 1


def derive_step(
    chain: Sequence[Step],
    quantiser: Quantiser,
    low: int | Sequence[int],
    high: int | Sequence[int],
    channels: int,
    *,
    max_pieces: int = MAX_PIECES,
) -> StepFunction:
    """Step function of ``quantiser(chain(acc))`` for every channel.

    ``low`` and ``high`` are the reachable accumulators, one bound or one a channel. The result is exact at each of them unless a channel
    needs more than ``max_pieces`` records; then it is the closest that fits and the proof says how many values differ.
    Its clamps are the smallest and largest code that any channel reaches. Raises :class:`ModelError` for a curved chain of too many sums,
    or outside its domain.
    """
    lows, highs = _bounds(low, channels), _bounds(high, channels)
    curved = is_curved(chain)
    runs: dict[tuple, list[Run]] = {}
    keys = []
    for channel in range(channels):
        function = of_channel(chain, channel) if curved else tuple(compose(chain, channel))
        thresholds = None if quantiser.thresholds is None else entry(quantiser.thresholds, channel)
        key = (function, quantiser.parameters(channel), thresholds, lows[channel], highs[channel])
        keys.append(key)
        if key in runs:
            continue
        if curved:
            runs[key] = curved_runs(chain, quantiser, channel, lows[channel], highs[channel])
        else:
            runs[key] = find_runs(compose(chain, channel), quantiser, channel, lows[channel], highs[channel])
    codes = [run.code for channel_runs in runs.values() for run in channel_runs]
    least, most = min(codes), max(codes)
    half_even = quantiser.rounding == "half_even"
    realised = {key: _approximate(found, least, most, half_even=half_even, pieces=max_pieces) for key, found in runs.items()}
    errors = {key: differences(found, realised[key], least, most) for key, found in runs.items()}
    pieces = max(len(records) for records in realised.values())
    differing = sum(errors[key][0] for key in keys)
    return StepFunction(
        records=tuple(tuple(realised[key] + realised[key][-1:] * (pieces - len(realised[key]))) for key in keys),
        low=least,
        high=most,
        proof=Proof(
            exact=differing == 0,
            reachable=sum(last - first + 1 for first, last in zip(lows, highs, strict=True)),
            differing=differing,
            largest=max(error[1] for error in errors.values()),
        ),
    )
