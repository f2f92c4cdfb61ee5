"""Assembles the bytes that come over the link into memory words."""

from collections.abc import Mapping

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.link import Space

__all__ = ["WordLoader"]


class WordLoader(wiring.Component):
    """One shift register for the words of all memories, as only one is written at a time.

    A byte taken in clock ``t`` is on top of the register in clock ``t + 1``; a strobe of ``enables`` then says that the word of that
    memory is whole: it is the top ``n`` bytes of ``word`` for a memory with words of ``n`` bytes.

    Parameters
    ----------
    widths : mapping of :class:`Space` to :class:`int`
        Bytes of a word of each memory.

    Members
    -------
    valid, space, address, byte, commit : in, 1, 3, 32, 8 and 1 bits
        A byte from the link, see :class:`tritloom.hw.link.engine.LinkEngine`.
    word : out, as many bytes as the widest memory
    address_out : :py:`Out(32)`
    enables : :py:`Out(len(widths))`
        A strobe for each memory, in the order of ``widths``.
    """

    def __init__(self, *, widths: Mapping[Space, int]) -> None:
        self._widths = dict(widths)
        super().__init__({
            "valid": In(1), "space": In(3), "address": In(32), "byte": In(8), "commit": In(1),
            "word": Out(8 * max(self._widths.values())), "address_out": Out(32), "enables": Out(len(self._widths)),
        })  # fmt: skip

    def word_of(self, space: Space) -> Signal:
        """The part of ``word`` that belongs to a memory."""
        return self.word[len(self.word) - 8 * self._widths[space] :]

    def enable_of(self, space: Space) -> Signal:
        """The strobe of a memory."""
        return self.enables[list(self._widths).index(space)]

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.sync += self.enables.eq(0)
        with m.If(self.valid):
            m.d.sync += [
                self.word.eq(Cat(self.word[8:], self.byte)),
                self.address_out.eq(self.address),
                self.enables.eq(Cat(self.commit & (self.space == space) for space in self._widths)),
            ]
        return m
