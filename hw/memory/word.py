"""Memory of whole words, written over the link and read by the core."""

from collections.abc import Sequence

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.vendor import SiliconBluePlatform

__all__ = ["READ_LATENCY", "WordMemory", "address_bits", "read_registered"]

READ_LATENCY = 2
"""Clocks from an address to its word, for every memory of the core: one in the block RAM, one in a register beside it,
because the clock-to-output time of block RAM is long (5.8 ns on ECP5)."""


def address_bits(depth: int) -> int:
    """Width of an address of a memory of ``depth`` words, at least 1."""
    return max(1, (depth - 1).bit_length())


class WordMemory(wiring.Component):
    """``depth`` words of ``width`` bits; a word read is there :data:`READ_LATENCY` clocks after its address. Bytes are written singly.

    Reading a word in the clock in which it is written gives an unspecified value; the core never does. The clock beside that of
    the memory is spent in a register for the word, but on iCE40 in one for the address: the block RAM there is fast, and the cells
    of a wide word are many.

    Parameters
    ----------
    width, depth : :class:`int`
        Bits of a word, a multiple of 8, and words.
    init : sequence of :class:`int`
        First words; the rest is zero.

    Members
    -------
    read_address : :py:`In`
    read_data : :py:`Out(width)`
    write_enable : :py:`In(1)`
    write_address, write_lane : :py:`In`
        The word, and the byte in it, 0 for its lowest 8 bits.
    write_byte : :py:`In(8)`
    """

    def __init__(self, *, width: int, depth: int, init: Sequence[int] = ()) -> None:
        if width < 8 or width % 8:
            raise ValueError(f"Width must be a multiple of 8, not {width!r}")
        if len(init) > depth:
            raise ValueError(f"Initial contents must be at most {depth} words, not {len(init)}")
        self._width, self._depth, self._init = width, depth, tuple(init)
        super().__init__({
            "read_address": In(address_bits(depth)), "read_data": Out(width),
            "write_enable": In(1), "write_address": In(address_bits(depth)), "write_lane": In(address_bits(width // 8)), "write_byte": In(8),
        })  # fmt: skip

    @property
    def width(self) -> int:
        return self._width

    @property
    def depth(self) -> int:
        return self._depth

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.store = store = memory.Memory(shape=self._width, depth=self._depth, init=self._init)
        write, read = store.write_port(granularity=8), store.read_port()
        m.d.comb += [
            write.en.eq(self.write_enable << self.write_lane), write.addr.eq(self.write_address),
            write.data.eq(self.write_byte.replicate(self._width // 8)),
        ]  # fmt: skip
        read_registered(m, platform, address=self.read_address, port_address=read.addr, port_data=read.data, data=self.read_data)
        return m


def read_registered(m: Module, platform: object, *, address: Value, port_address: Value, port_data: Value, data: Value) -> None:
    """Connect a read port through the register that makes its latency :data:`READ_LATENCY`."""
    if isinstance(platform, SiliconBluePlatform):
        held = Signal.like(address, name="held_address", reset_less=True)
        m.d.sync += held.eq(address)
        m.d.comb += [port_address.eq(held), data.eq(port_data)]
    else:
        held = Signal.like(data, name="held_data", reset_less=True)
        m.d.sync += held.eq(port_data)
        m.d.comb += [port_address.eq(address), data.eq(held)]
