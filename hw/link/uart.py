"""UART, 8 data bits, no parity, one stop bit; the bit period is a whole number of clocks."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["MIN_DIVISOR", "UartReceiver", "UartTransmitter"]

MIN_DIVISOR = 4
"""Shortest bit period in clocks: the receiver finds an edge to within a clock and must still sample well inside the bit."""


def _check_divisor(divisor: int) -> int:
    if not isinstance(divisor, int) or isinstance(divisor, bool):
        raise TypeError(f"Divisor must be an integer, not {divisor!r}")
    if divisor < MIN_DIVISOR:
        raise ValueError(f"Divisor must be at least {MIN_DIVISOR}, not {divisor!r}")
    return divisor


class UartReceiver(wiring.Component):
    """Receives bytes. A byte appears in the middle of its stop bit, three to four clocks after that moment on the wire.

    A start bit that is high again at its middle is taken as a glitch. A byte whose stop bit is low is dropped, and the receiver
    waits until the line is high.

    Parameters
    ----------
    divisor : :class:`int`
        Clocks in a bit, at least :data:`MIN_DIVISOR`.

    Members
    -------
    rx : :py:`In(1)`
        The line, asynchronous to the clock.
    o : :py:`Out(stream.Signature(8))`
        A byte stays valid until it is taken.
    overrun : :py:`Out(1)`
        Strobe: a byte was dropped because the one before it had not been taken.
    """

    o: stream.Interface

    def __init__(self, divisor: int) -> None:
        self._divisor = _check_divisor(divisor)
        super().__init__({"rx": In(1, init=1), "o": Out(stream.Signature(8)), "overrun": Out(1)})

    @property
    def divisor(self) -> int:
        return self._divisor

    def elaborate(self, platform) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules.synchroniser = FFSynchronizer(self.rx, line, init=1)
        timer = Signal(range(self._divisor))
        sample = timer == 0
        shift = Signal(8)  # begins as one set bit; when that is the lowest, the last data bit is due
        m.d.sync += timer.eq(timer - 1)
        with m.If(sample):
            m.d.sync += timer.eq(self._divisor - 1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        with m.FSM(name="receiver"):
            with m.State("IDLE"):
                # The line is low for the first time, so the start bit is between 0 and 1 clocks old.
                m.d.sync += [timer.eq((self._divisor - 1) // 2 - 1), shift.eq(0x80)]
                with m.If(~line):
                    m.next = "START"
            with m.State("START"):
                with m.If(sample):
                    m.next = "DATA"
                    with m.If(line):
                        m.next = "IDLE"
            with m.State("DATA"):
                with m.If(sample):
                    m.d.sync += shift.eq(Cat(shift[1:], line))
                    with m.If(shift[0]):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(sample):
                    m.next = "BREAK"
                    with m.If(line):
                        m.next = "IDLE"
                        with m.If(self.o.valid & ~self.o.ready):
                            m.d.comb += self.overrun.eq(1)
                        with m.Else():
                            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(shift)]
            with m.State("BREAK"):
                with m.If(line):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Sends bytes, back to back while there are any: ten bit periods a byte.

    Parameters
    ----------
    divisor : :class:`int`
        Clocks in a bit, at least :data:`MIN_DIVISOR`.

    Members
    -------
    i : :py:`In(stream.Signature(8))`
    tx : :py:`Out(1)`
        The line, high when idle.
    """

    i: stream.Interface

    def __init__(self, divisor: int) -> None:
        self._divisor = _check_divisor(divisor)
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    @property
    def divisor(self) -> int:
        return self._divisor

    def elaborate(self, platform) -> Module:
        m = Module()
        # Both counters end at -1: their signs are ready at once, and much of the link waits for `ready`.
        timer = Signal(range(-1, self._divisor - 1), init=-1)
        left = Signal(range(-1, 9), init=-1)  # bits after the one on the line, minus one
        shift = Signal(9, init=-1)  # bits after the one on the line, then ones: the stop bit
        tick = timer < 0
        m.d.comb += self.i.ready.eq(tick & (left < 0))
        with m.If(~tick):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(left >= 0):
            m.d.sync += [timer.eq(self._divisor - 2), left.eq(left - 1), self.tx.eq(shift[0]), shift.eq(Cat(shift[1:], 1))]
        with m.Elif(self.i.valid):
            m.d.sync += [timer.eq(self._divisor - 2), left.eq(8), self.tx.eq(0), shift.eq(Cat(self.i.payload, 1))]
        return m
