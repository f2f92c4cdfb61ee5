"""The host's serial port in simulated time: a :class:`tritloom.boards.host.Transport` over two wires."""

from itertools import groupby
from random import Random
from typing import Any

import cocotb
from cocotb.task import resume
from cocotb.triggers import Event, FallingEdge, First, Timer

from tritloom.boards.host import has_whole_frame
from tritloom.sim.bench.job import CLOCK_NS, DIVISOR

__all__ = ["UartTransport"]

_BIT_NS = CLOCK_NS * DIVISOR
_PATIENCE_NS = 4096 * _BIT_NS
"""Silence after which the core will not answer any more."""

_GAP_CHANCE = 0.125
_LONGEST_GAP_NS = 12 * _BIT_NS


class UartTransport:
    """Sends and receives bytes, 8N1, with random pauses between the bytes that it sends.

    Bytes begin anywhere between two clock edges, as on a real line. The methods without ``async`` belong in a function called
    through :func:`cocotb.task.bridge`, as the host driver is.

    Parameters
    ----------
    dut
        Handle of a module with the wires ``rx`` (into the core) and ``tx``.
    random
        Draws the pauses.
    """

    def __init__(self, dut: Any, random: Random) -> None:
        self._dut = dut
        self._random = random
        self._received = bytearray()
        self._arrived = Event()
        dut.rx.value = 1
        self._monitor = cocotb.start_soon(self._listen())

    def exchange(self, data: bytes, *, timeout: float = 0.0) -> bytes:
        """See :meth:`tritloom.boards.host.Transport.exchange`; the timeout is a fixed simulated time."""
        return resume(self.talk)(data)

    def pause(self, clocks: int) -> None:
        """Let simulated time pass."""
        if clocks:
            resume(self._sleep)(clocks * CLOCK_NS)

    def close(self) -> None:
        """Stop listening."""
        self._monitor.cancel()

    async def talk(self, data: bytes) -> bytes:
        """Send ``data`` and return what has arrived once that holds a whole frame, or the line stays silent."""
        await self.send(data)
        while not has_whole_frame(self._received):
            self._arrived.clear()
            silence = Timer(_PATIENCE_NS, "ns")
            if await First(self._arrived.wait(), silence) is silence:
                break
        received = bytes(self._received)
        self._received.clear()
        return received

    async def send(self, data: bytes) -> None:
        """Send ``data`` without waiting for an answer."""
        for byte in data:
            if self._random.random() < _GAP_CHANCE:
                await Timer(self._random.randint(1, _LONGEST_GAP_NS), "ns")
            # Equal bits in a row are one wait: the simulator's callbacks are what takes time.
            for level, bits in groupby((0, *(byte >> index & 1 for index in range(8)), 1)):
                self._dut.rx.value = level
                await Timer(_BIT_NS * len(list(bits)), "ns")

    async def silence(self) -> bytes:
        """Whatever the core still sends until it has been silent for long."""
        collected = b""
        while received := await self.talk(b""):
            collected += received
        return collected

    @staticmethod
    async def _sleep(nanoseconds: int) -> None:
        await Timer(nanoseconds, "ns")

    async def _listen(self) -> None:
        while True:
            await FallingEdge(self._dut.tx)
            await Timer(_BIT_NS + _BIT_NS // 2, "ns")
            byte = 0
            for index in range(8):
                byte |= int(self._dut.tx.value) << index
                await Timer(_BIT_NS, "ns")
            if int(self._dut.tx.value) != 1:
                raise AssertionError(f"the core sent byte {byte:#04x} without a stop bit")
            self._received.append(byte)
            self._arrived.set()
