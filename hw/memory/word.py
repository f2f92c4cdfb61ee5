"""Memory of whole words, written over the link and read by the core."""

from collections.abc import Sequence

from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["READ_LATENCY", "WordMemory", "address_bits"]

READ_LATENCY = 2
"""Clocks from an address to its word, for every memory of the core: one in the block RAM, one in a register behind it,
because the clock-to-output time of block RAM is long (5.8 ns on ECP5)."""


def address_bits(depth: int) -> int:
    """Width of an address of a memory of ``depth`` words, at least 1."""
    return max(1, (depth - 1).bit_length())


class WordMemory(wiring.Component):
    """``depth`` words of ``width`` bits; a word read is there :data:`READ_LATENCY` clocks after its address.

    Reading a word in the clock in which it is written gives an unspecified value; the core never does.

    Parameters
    ----------
    width, depth : :class:`int`
        Bits of a word, and words.
    init : sequence of :class:`int`
        First words; the rest is zero.
    style : :class:`str`
        Kind of memory that synthesis shall use: ``block``, or ``auto`` for its own choice.

    Members
    -------
    read_address : :py:`In`
    read_data : :py:`Out(width)`
    write_enable : :py:`In(1)`
    write_address : :py:`In`
    write_data : :py:`In(width)`
    """

    def __init__(self, *, width: int, depth: int, init: Sequence[int] = (), style: str = "auto") -> None:
        if len(init) > depth:
            raise ValueError(f"Initial contents must be at most {depth} words, not {len(init)}")
        if style not in ("auto", "block"):
            raise ValueError(f"Style must be 'auto' or 'block', not {style!r}")
        self._width, self._depth, self._init, self._style = width, depth, tuple(init), style
        super().__init__({
            "read_address": In(address_bits(depth)), "read_data": Out(width),
            "write_enable": In(1), "write_address": In(address_bits(depth)), "write_data": In(width),
        })  # fmt: skip

    @property
    def width(self) -> int:
        return self._width

    @property
    def depth(self) -> int:
        return self._depth

    def elaborate(self, platform) -> Module:
        m = Module()
        attributes = {} if self._style == "auto" else {"ram_style": self._style}
        m.submodules.store = store = memory.Memory(shape=self._width, depth=self._depth, init=self._init, attrs=attributes)
        write, read = store.write_port(), store.read_port()
        word = Signal(self._width, reset_less=True)
        m.d.comb += [
            write.en.eq(self.write_enable), write.addr.eq(self.write_address), write.data.eq(self.write_data),
            read.addr.eq(self.read_address), self.read_data.eq(word),
        ]  # fmt: skip
        m.d.sync += word.eq(read.data)
        return m
