"""The design that is built for a board: clock generator, reset, serial port and the core."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# The stubs of Amaranth know neither its directions as strings nor attributes made out of signatures.

from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Module, Signal
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer

from tritloom.boards.board import Board
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.top import UartCore

__all__ = ["Top"]


class Top(Elaboratable):
    """A core on a board: domain ``sync`` runs from the clock generator and is in reset until that has locked.

    Parameters
    ----------
    board
        Gives the clock input, the family's clock generator, its first setting and the serial port's divisor.
    parameters
        The core.
    """

    def __init__(self, *, board: Board, parameters: CoreParameters) -> None:
        self._board = board
        self._core = UartCore(parameters, divisor=board.divisor)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains.sync = ClockDomain("sync")
        clock, locked = Signal(name="core_clock"), Signal(name="pll_locked")

        pad = platform.request(self._board.clock_resource, dir="-")
        if self._board.pll_on_pad:
            pin = pad.io  # the clock generator holds the input buffer itself
        else:
            m.submodules.clock_buffer = buffer = io.Buffer("i", pad)
            pin = buffer.i
        m.submodules.pll = self._board.typical_clock.instance(pin=pin, on_pad=self._board.pll_on_pad, output=clock, locked=locked)
        m.d.comb += ClockSignal("sync").eq(clock)
        # No clock constraint on the net: nextpnr is given the frequency for all nets (--freq), which every family's version accepts.
        m.submodules.reset = ResetSynchronizer(~locked, domain="sync")

        m.submodules.core = self._core
        serial = platform.request("uart", 0, dir=self._serial_directions(platform))
        m.submodules.receive = receive = io.Buffer("i", serial.rx)
        m.submodules.transmit = transmit = io.Buffer("o", serial.tx)
        m.d.comb += [self._core.rx.eq(receive.i), transmit.o.eq(self._core.tx)]
        return m

    @staticmethod
    def _serial_directions(platform: Any) -> dict[str, str]:
        """No buffers from the platform for any line of the serial port; modem lines stay unused."""
        return {line.name: "-" for line in platform.lookup("uart", 0).ios}
