"""Requantisation: the step function of an accumulator, or of two activation codes, exactly as :mod:`tritloom.hw.arch.record` defines it."""

from collections.abc import Iterable, Sequence

import numpy as np
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch import record
from tritloom.hw.arch.parameters import ACTIVATION_BITS, SCALED_BITS
from tritloom.hw.arch.timing import REQUANTISE_LATENCY

__all__ = ["RecordLayout", "Requantiser", "requantise_formula"]

_LOW_VALUE, _LOW_MULTIPLIER = 15, 12
"""Low bits of value and multiplier that are multiplied apart: every partial product then fits a 16 x 16 or 18 x 18 signed multiplier."""
_HALF = 32
"""Bits that the first step of the shift drops."""
_WINDOW = 17
"""Bits kept by the coarse shift: a fraction bit, up to 7 bits that the fine shift drops, 9 bits of result."""


class RecordLayout(data.StructLayout):
    """Fields of a 128-bit record word."""

    def __init__(self) -> None:
        super().__init__({
            "start": signed(record.START_BITS), "multiplier": signed(record.MULTIPLIER_BITS), "bias": signed(record.BIAS_BITS),
            "shift": record.SHIFT_BITS, "half_even": record.HALF_EVEN_BITS,
        })  # fmt: skip


def requantise_formula(values: Sequence[int], records: Sequence[record.Record], low: int, high: int) -> np.ndarray:
    """Codes (int8) of accumulator values, each through the same records: :func:`tritloom.hw.arch.record.evaluate`."""
    return np.array([record.evaluate(list(records), int(value), low, high) for value in values], np.int8)


def _any(bits: Iterable[Value]) -> Value:
    """1 when any of the bits is set; 0 for none."""
    return Cat(C(0, 1), *bits).any()


class Requantiser(wiring.Component):
    """One piece a clock; the code of a value appears :data:`tritloom.hw.arch.timing.REQUANTISE_LATENCY` clocks after its last piece.

    In these clocks: choose the piece; multiply, in four parts; join the products and add the bias (two clocks); add the running
    total of a sum of two operands; shift by whole bytes and saturate (two clocks); shift by the rest; round; clamp.

    Parameters
    ----------
    accumulator_bits : :class:`int`
        Width of the signed value.
    scaled_bits : :class:`int`
        Width of the sums; a value and a record that need more give a code that means nothing.

    Members
    -------
    value : :py:`In(signed(accumulator_bits))`
        The same for all pieces of a value; with ``two_operands`` the operand of this piece.
    record : :py:`In(RecordLayout())`
    valid, first, last : :py:`In(1)`
        A piece is there; it is the first, the last one of its value.
    flush : :py:`In(1)`
        Forget all values that are under way.
    two_operands : :py:`In(1)`
        Add the products of all pieces; bias, shift and rounding are those of the first. Static.
    low, high : :py:`In(signed(8))`
        Bounds of the code. Static.
    code : :py:`Out(signed(8))`
    done : :py:`Out(1)`
        ``code`` is that of a value.
    """

    def __init__(self, *, accumulator_bits: int, scaled_bits: int = SCALED_BITS) -> None:
        if not _LOW_VALUE < accumulator_bits <= record.START_BITS:
            raise ValueError(f"Accumulator must have from {_LOW_VALUE + 1} to {record.START_BITS} bits, not {accumulator_bits!r}")
        if not 34 <= scaled_bits <= SCALED_BITS:
            raise ValueError(f"Sums must have from 34 to {SCALED_BITS} bits, not {scaled_bits!r}")
        self._bits, self._scaled = accumulator_bits, scaled_bits
        super().__init__({
            "value": In(signed(accumulator_bits)), "record": In(RecordLayout()), "valid": In(1), "first": In(1), "last": In(1), "flush": In(1),
            "two_operands": In(1), "low": In(signed(ACTIVATION_BITS)), "high": In(signed(ACTIVATION_BITS)),
            "code": Out(signed(ACTIVATION_BITS)), "done": Out(1),
        })  # fmt: skip

    @property
    def accumulator_bits(self) -> int:
        return self._bits

    def elaborate(self, platform) -> Module:
        m = Module()

        def delayed(signal, stages: int, name: str) -> list[Signal]:
            """The signal and its delayed copies; entry ``n`` is ``n`` clocks late."""
            line = [signal]
            for stage in range(stages):
                line.append(Signal.like(signal, name=f"{name}_{stage + 1}", reset_less=True))
                m.d.sync += line[-1].eq(line[-2])
            return line

        finished = [self.valid & self.last]
        for stage in range(REQUANTISE_LATENCY):
            finished.append(Signal(name=f"finished_{stage + 1}"))
            m.d.sync += finished[-1].eq(finished[-2] & ~self.flush)
        m.d.comb += self.done.eq(finished[-1])

        # 1: choose.
        value = Signal.like(self.value, reset_less=True)
        multiplier = Signal(signed(record.MULTIPLIER_BITS), reset_less=True)
        bias = Signal(signed(min(record.BIAS_BITS, self._scaled)), reset_less=True)
        shift, half_even = Signal(record.SHIFT_BITS, reset_less=True), Signal(reset_less=True)
        choose = Signal()
        # A piece that begins outside of the accumulator's range would never differ. The sign of a difference is a sum bit; on ECP5 the carry
        # that a comparison ends with would have to go through one more carry cell to get out of its chain.
        behind = Signal(signed(self._bits + 1))
        m.d.comb += behind.eq(self.value - self.record.start[: self._bits].as_signed())
        m.d.comb += choose.eq(self.first | (~self.two_operands & ~behind[-1]))
        m.d.sync += value.eq(self.value)
        with m.If(choose | self.two_operands):
            m.d.sync += multiplier.eq(self.record.multiplier)
        with m.If(choose):
            m.d.sync += [bias.eq(self.record.bias), shift.eq(self.record.shift), half_even.eq(self.record.half_even)]
        adding = delayed(self.two_operands & ~self.first, 4, "adding")
        shifts, halves = delayed(shift, 6, "shift"), delayed(half_even, 7, "half_even")

        # 2: multiply the parts; low parts are not negative and get a zero as sign.
        value_low, value_high = Cat(value[:_LOW_VALUE], 0).as_signed(), value[_LOW_VALUE:].as_signed()
        factor_low, factor_high = Cat(multiplier[:_LOW_MULTIPLIER], 0).as_signed(), multiplier[_LOW_MULTIPLIER:].as_signed()
        products = []
        for name, left, right in (
            ("low_low", value_low, factor_low), ("low_high", value_low, factor_high),
            ("high_low", value_high, factor_low), ("high_high", value_high, factor_high),
        ):  # fmt: skip
            products.append(Signal(signed(len(left) + len(right)), name=f"product_{name}", reset_less=True))
            m.d.sync += products[-1].eq(left * right)
        low_low, low_high, high_low, high_high = products
        first_bias = Signal.like(bias, name="first_bias", reset_less=True)  # zero for pieces that are added to a total
        m.d.sync += first_bias.eq(bias)
        with m.If(adding[1]):
            m.d.sync += first_bias.eq(0)

        # 3: the outer two products do not overlap.
        outer = Signal(signed(self._scaled), reset_less=True)
        inner = Signal(signed(1 + max(len(low_high), len(high_low) + _LOW_VALUE - _LOW_MULTIPLIER)), reset_less=True)
        low_bits = _LOW_VALUE + _LOW_MULTIPLIER
        m.d.sync += [
            outer.eq(Cat(low_low[:low_bits], high_high).as_signed() + first_bias),
            inner.eq(low_high + (high_low << (_LOW_VALUE - _LOW_MULTIPLIER))),
        ]
        # 4 and 5.
        part, total = Signal(signed(self._scaled), reset_less=True), Signal(signed(self._scaled), reset_less=True)
        m.d.sync += [part.eq(outer + (inner << _LOW_MULTIPLIER)), total.eq(part + Mux(adding[4], total, 0))]

        # 6 and 7: shift by whole bytes, and saturate to what the rest of the shift can need. One fraction bit stays; `rest` says
        # whether any bit below it was set.
        doubled = Cat(0, total)
        sign = total[-1]
        octets = [doubled[low : low + 8] for low in range(0, len(doubled), 8)]
        unlike, nonzero = Signal(len(octets), reset_less=True), Signal(len(octets), reset_less=True)
        halved, negative = Signal(len(doubled), reset_less=True), Signal(reset_less=True)
        m.d.sync += [
            unlike.eq(Cat((octet ^ sign.replicate(len(octet))).any() for octet in octets)),
            nonzero.eq(Cat(octet.any() for octet in octets)),
            halved.eq(Mux(shifts[4][-1], Cat(doubled[_HALF:], sign.replicate(_HALF)), doubled)),
            negative.eq(sign),
        ]
        window, rest = Signal(signed(_WINDOW), reset_less=True), Signal(reset_less=True)
        with m.Switch(shifts[5][3:]):
            for count in range(len(octets)):
                with m.Case(count):
                    low = 8 * count % _HALF
                    kept = Cat(halved[low:], negative.replicate(_WINDOW))[:_WINDOW]
                    bound = Cat((~negative).replicate(_WINDOW - 1), negative)
                    m.d.sync += [window.eq(Mux(_any(unlike[count + 2 :]), bound, kept)), rest.eq(_any(nonzero[:count]))]
        # 8: shift by the rest.
        shifted, sticky = Signal(signed(_WINDOW), reset_less=True), Signal(reset_less=True)
        m.d.sync += shifted.eq(window >> shifts[6][:3])
        with m.Switch(shifts[6][:3]):
            for count in range(8):
                with m.Case(count):
                    m.d.sync += sticky.eq(_any([rest, *window[:count]]))
        # 9: round. Floor is there already; half to even adds one above a half, and at a half to an odd value.
        rounded = Signal(signed(_WINDOW), reset_less=True)
        m.d.sync += rounded.eq((shifted >> 1) + (halves[7] & shifted[0] & (sticky | shifted[1])))
        # 10: clamp.
        m.d.sync += self.code.eq(Mux(rounded < self.low, self.low, Mux(rounded > self.high, self.high, rounded)))
        return m
