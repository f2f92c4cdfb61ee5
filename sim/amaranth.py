"""The core on Amaranth's own simulator: pure Python, for machines without a C++ compiler.

About a thousand clocks a second, so memories are filled before the simulation begins instead of over the link. A larger array is not
much slower per clock and needs fewer clocks: the core is that of the schedule, clock for clock.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from amaranth.hdl import Cat
from amaranth.sim import Simulator

from tritloom.boards.host import has_whole_frame
from tritloom.compiler.schedule import Schedule
from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.core import Core

__all__ = ["AmaranthCore", "contents_of"]

_PATIENCE = 2048
"""Clocks without a byte in either direction after which the core will not answer any more."""


def contents_of(schedule: Schedule) -> dict[Space, list[int]]:
    """Initial memory contents that equal what :meth:`tritloom.boards.host.Host.load` writes, whole words as integers."""
    records, size = schedule.records, schedule.parameters.record_word_bytes
    activations, rows = bytearray(max((address + len(table) for address, table in schedule.tables), default=0)), schedule.parameters.rows
    for address, table in schedule.tables:
        activations[address : address + len(table)] = table
    return {
        Space.ACTIVATIONS: [int.from_bytes(activations[start : start + rows], "little") for start in range(0, len(activations), rows)],
        Space.PROGRAM: [int(word) for word in schedule.program_words],
        Space.WEIGHTS: [int.from_bytes(bytes(word), "little") for word in schedule.weights],
        Space.RECORDS: [int.from_bytes(records[start : start + size], "little") for start in range(0, len(records), size)],
    }


class AmaranthCore:
    """A simulated core after reset; a transport for :class:`tritloom.boards.host.Host`.

    Parameters
    ----------
    parameters
        The core to simulate.
    contents
        What its memories hold at first, as :func:`contents_of` makes it; zeros by default.
    """

    def __init__(self, parameters: CoreParameters, *, contents: Mapping[Space, Sequence[int]] | None = None) -> None:
        self._core = Core(parameters, contents=None if contents is None else {space: list(words) for space, words in contents.items()})
        self._outgoing: deque[int] = deque()
        self._incoming = bytearray()
        self._clocks = 0
        self._idle = 0
        self._listening = False
        self._simulator = Simulator(self._core)
        self._simulator.add_clock(1e-6)
        self._simulator.add_testbench(self._drive, background=True)

    @property
    def clocks(self) -> int:
        """Clocks since the core was made, link traffic included."""
        return self._clocks

    def exchange(self, data: bytes, *, timeout: float = 0.0) -> bytes:
        """See :meth:`tritloom.boards.host.Transport.exchange`; ``timeout`` is not used, the core gets a fixed number of clocks."""
        self._outgoing.extend(data)
        self._idle = 0
        self._listening = True
        while self._idle < _PATIENCE and (self._outgoing or not has_whole_frame(self._incoming)):
            self._tick()
        self._listening = False
        received = bytes(self._incoming)
        self._incoming.clear()
        return received

    def pause(self, clocks: int) -> None:
        """Clock the core with its link idle."""
        for _ in range(clocks):
            self._tick()

    def close(self) -> None:
        """Nothing to release; here so that all transports are alike."""

    def _tick(self) -> None:
        target = self._clocks + 1
        while self._clocks < target:
            self._simulator.advance()

    async def _drive(self, context: Any) -> None:
        rx, tx = self._core.rx, self._core.tx
        valid, payload, ready = rx.valid, rx.payload, tx.ready
        # One expression instead of three, made once: the interpreter of expressions takes a good part of a clock.
        sampled = Cat(rx.valid & rx.ready, tx.valid & tx.ready, tx.payload)
        while True:
            context.set(valid, bool(self._outgoing))
            if self._outgoing:
                context.set(payload, self._outgoing[0])
            context.set(ready, self._listening)
            *_, sample = await context.tick().sample(sampled)
            self._clocks += 1
            self._idle += 1
            if sample & 1:
                self._outgoing.popleft()
                self._idle = 0
            if sample & 2:
                self._incoming.append(sample >> 2)
                self._idle = 0
