"""The core behind a UART: what a board needs besides clock and pins."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.core import Core
from tritloom.hw.link.uart import UartReceiver, UartTransmitter

__all__ = ["UartCore"]


class UartCore(wiring.Component):
    """A core whose link is a UART, 8 data bits, no parity, one stop bit.

    Parameters
    ----------
    parameters : :class:`CoreParameters`
    divisor : :class:`int`
        Clocks in a bit.

    Members
    -------
    rx : :py:`In(1)`
        Line from the host, asynchronous to the clock.
    tx : :py:`Out(1)`
        Line to the host.
    """

    def __init__(self, parameters: CoreParameters, *, divisor: int) -> None:
        self._core = Core(parameters)
        self._receiver, self._transmitter = UartReceiver(divisor), UartTransmitter(divisor)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    @property
    def parameters(self) -> CoreParameters:
        return self._core.parameters

    @property
    def divisor(self) -> int:
        return self._receiver.divisor

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.core = core = self._core
        m.submodules.receiver = receiver = self._receiver
        m.submodules.transmitter = transmitter = self._transmitter
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]
        wiring.connect(m, receiver.o, core.rx)
        wiring.connect(m, core.tx, transmitter.i)
        return m
