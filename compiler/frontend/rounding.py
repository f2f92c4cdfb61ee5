"""Rounding as an operator of its own, the way fake quantisation is written: scale, Round, Clip and scale back, in several orders.

Round gives integers, which are codes once they have bounds. Bounds come from what stands before it (a Clip, or codes of known range), or
from a Clip behind it, with constants added and multiplied in between: ``clip(g * round(x) + o, a, b)`` is ``g * round(clip(x, a', b')) + o``
where ``a' = (a - o) / g`` and ``b'`` are integers. Until they are known a value carries a :class:`Rounding`.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.ir.program import HostOp
from tritloom.compiler.quantize.chain import Affine, LeakyRelu, Quantiser, Step, compose, round_exact

if TYPE_CHECKING:
    from tritloom.compiler.frontend.builder import Builder
    from tritloom.compiler.frontend.values import Value

__all__ = ["MOST_CODES", "Rounding", "bounded", "chain_range", "closed", "scaled"]

MOST_CODES = 256

_NEARLY = Fraction(1, 1 << 21)
"""Relative distance by which float32 may keep a bound off the grid: ``0.7`` is not ``7 * 0.1``."""


@dataclass(frozen=True)
class Rounding:
    """A rounding whose integers have no bounds yet, or bounds on one side.

    ``gain * code + offset`` is the value behind it; ``hosts`` are the same steps as the host does them. ``low`` and ``high`` bound the code.
    """

    mode: str
    low: int | None = None
    high: int | None = None
    gain: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    hosts: tuple[HostOp, ...] = ()


def chain_range(chain: tuple[Step, ...], channel: int, low: int | None, high: int | None) -> tuple[Fraction | None, Fraction | None]:
    """Smallest and largest value of a chain over the integers ``low..high``; ``None`` for a side without a bound."""
    segments = compose(chain, channel)
    points = [start for start in (segment.start for segment in segments[1:]) if start is not None]
    points = [point for point in points if (low is None or point > low) and (high is None or point < high)]
    points += [Fraction(end) for end in (low, high) if end is not None]
    values = [next(s for s in reversed(segments) if s.start is None or s.start <= point) for point in points]
    found = [segment.gain * point + segment.offset for segment, point in zip(values, points, strict=True)]
    falls = (low is None and segments[0].gain > 0) or (high is None and segments[-1].gain < 0)
    rises = (low is None and segments[0].gain < 0) or (high is None and segments[-1].gain > 0)
    found = found or [segments[0].offset]
    return None if falls else min(found), None if rises else max(found)


def _by_channel(step: Step) -> bool:
    if isinstance(step, Affine):
        return len(step.gain) > 1 or len(step.offset) > 1
    return isinstance(step, LeakyRelu) and isinstance(step.slope, tuple)


def _codes(value: "Value", rounding: Rounding) -> tuple[int | None, int | None]:
    """Bounds of the codes, by what stands before the rounding and by what stood behind it so far."""
    bounds: list[tuple[int | None, int | None]] = [(rounding.low, rounding.high)]
    if value.chain is not None:
        channels = range(value.base.shape[0] if any(_by_channel(step) for step in value.chain) else 1)
        ranges = [chain_range(value.chain, channel, *value.base.reach) for channel in channels]
        bottoms = [low for low, _ in ranges if low is not None]
        tops = [high for _, high in ranges if high is not None]
        least = round_exact(min(bottoms), rounding.mode) if len(bottoms) == len(ranges) else None
        most = round_exact(max(tops), rounding.mode) if len(tops) == len(ranges) else None
        bounds.append((least, most))
    lows, highs = ([side for side in part if side is not None] for part in zip(*bounds, strict=True))
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        # Everything is on one side of the Clip behind the rounding: its bound is the one code.
        low = high = rounding.low if rounding.low is not None and rounding.low == low else rounding.high
    return low, high


def closed(builder: "Builder", value: "Value", *, demand: bool = True) -> "Value":
    """``value`` as what a quantiser gives, when its codes have bounds; with ``demand`` a :class:`RefusalError` when not, else ``value`` itself."""
    rounding = value.rounding
    assert rounding is not None
    low, high = _codes(value, rounding)
    if low is None or high is None or high - low >= MOST_CODES:
        if not demand:
            return value
        reach = "have no bounds" if low is None or high is None else f"are {low}..{high}, more than {MOST_CODES} codes"
        raise RefusalError(f"the integers that {value.label!r} rounds to {reach}", "put a Clip right before or behind the rounding")
    offset = 0 if -128 <= low and high <= 127 else -128 - low
    quantiser = Quantiser(Fraction(1), 0, low, high, rounding.mode, offset=offset)
    codes = replace(value, quantiser=quantiser, integer=False, rounding=None)
    if not rounding.hosts:
        return codes
    settled = builder.settle(codes)
    heads = tuple(HostOp(kind=host.kind, constants=host.constants, attributes={**host.attributes, "head": True}) for host in rounding.hosts)
    return replace(
        settled,
        chain=(*(settled.chain or ()), Affine((rounding.gain,), (rounding.offset,))),
        trail=None if settled.trail is None else (*settled.trail, *heads),
        head=settled.head + len(heads),
    )


def scaled(value: "Value", name: str, gain: Fraction, offset: Fraction, host: HostOp) -> "Value":
    """``gain * value + offset`` while the codes have no bounds."""
    rounding = value.rounding
    assert rounding is not None
    behind = replace(rounding, gain=rounding.gain * gain, offset=rounding.offset * gain + offset, hosts=(*rounding.hosts, host))
    return replace(value, name=name, witness=name, rounding=behind)


def bounded(builder: "Builder", value: "Value", name: str, low: Fraction | None, high: Fraction | None) -> "Value":
    """``value`` clipped to ``low..high``. Raises :class:`RefusalError` for a bound that is no value of a code."""
    rounding = value.rounding
    assert rounding is not None
    if rounding.gain == 0:
        raise RefusalError("a rounded value is multiplied by zero", "remove the Mul")
    ends = [None if end is None else _code(end, rounding) for end in (low, high)]
    bottom, top = ends if rounding.gain > 0 else reversed(ends)
    low_codes = [code for code in (rounding.low, bottom) if code is not None]
    high_codes = [code for code in (rounding.high, top) if code is not None]
    narrowed = replace(rounding, low=max(low_codes, default=None), high=min(high_codes, default=None))
    return closed(builder, replace(value, name=name, witness=name, rounding=narrowed), demand=False)


def _code(end: Fraction, rounding: Rounding) -> int:
    code = (end - rounding.offset) / rounding.gain
    nearest = floor(code + Fraction(1, 2))
    if abs(code - nearest) > _NEARLY * max(abs(code), 1):
        raise RefusalError(
            f"its bound {np.float32(float(end))} lies between two rounded values", "clip at a value that the rounding can give"
        )
    return nearest
