"""The core on Amaranth's own simulator: pure Python, for machines without a C++ compiler.

Some hundred to some thousand clocks a second, by the size of the array, so memories are filled before the simulation begins
instead of over the link, and the core is as small as the model allows (:func:`small_core`).
"""

from collections import deque
from collections.abc import Mapping, Sequence

from amaranth.sim import Simulator

from tritloom.boards.host import has_whole_frame
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule, memory_needs
from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import RECORD_BYTES
from tritloom.hw.core import Core

__all__ = ["AmaranthCore", "contents_of", "small_core"]

_PATIENCE = 2048
"""Clocks without a byte in either direction after which the core will not answer any more."""

_ROWS, _COLUMNS = 8, 8


def small_core(program: Program) -> CoreParameters:
    """Parameters of a core that holds ``program`` and simulates quickly: an 8 x 8 array, memories as small as they may be.

    Every tensor is the same as on any other core; the number of clocks is not.
    """
    needs = memory_needs(program, rows=_ROWS, columns=_COLUMNS, weight_encoding="trit2")
    return CoreParameters(
        rows=_ROWS,
        columns=_COLUMNS,
        accumulator_bits=max(16, needs.accumulator_bits),
        weight_words=max(1, needs.weight_words),
        activation_words=max(1, needs.activation_words),
        record_words=max(1, needs.record_words),
        program_words=max(1, needs.program_words),
    )


def contents_of(schedule: Schedule) -> dict[Space, list[int]]:
    """Initial memory contents that equal what :meth:`tritloom.boards.host.Host.load` writes, whole words as integers."""
    records, size = schedule.records, RECORD_BYTES
    return {
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

    async def _drive(self, context) -> None:  # type: ignore[no-untyped-def]
        rx, tx = self._core.rx, self._core.tx
        while True:
            context.set(rx.valid, bool(self._outgoing))
            if self._outgoing:
                context.set(rx.payload, self._outgoing[0])
            context.set(tx.ready, self._listening)
            _, _, accepted, taken, byte = await context.tick().sample(rx.valid & rx.ready, tx.valid & tx.ready, tx.payload)
            self._clocks += 1
            self._idle += 1
            if accepted:
                self._outgoing.popleft()
                self._idle = 0
            if taken:
                self._incoming.append(byte)
                self._idle = 0
