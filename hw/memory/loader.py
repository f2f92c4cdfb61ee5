"""Hands the bytes that come over the link to the memories."""

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.link import Space

__all__ = ["ByteLoader"]


class ByteLoader(wiring.Component):
    """Counts the bytes of a word, and registers what the memories need to write one, a clock later.

    Parameters
    ----------
    spaces : iterable of :class:`Space`
        The memories.
    lane_bits : :class:`int`
        Width of the number of a byte in the widest word.

    Members
    -------
    valid, space, address, byte, commit : in, 1, 3, 32, 8 and 1 bits
        A byte from the link, see :class:`tritloom.hw.link.engine.LinkEngine`.
    enables : out
        A strobe for each memory, in the order of ``spaces``.
    write_address, write_lane, write_byte : out, 32, ``lane_bits`` and 8 bits
        The word, the place in it, and the byte.
    """

    def __init__(self, *, spaces: Iterable[Space], lane_bits: int) -> None:
        self._spaces = tuple(spaces)
        super().__init__({
            "valid": In(1), "space": In(3), "address": In(32), "byte": In(8), "commit": In(1),
            "enables": Out(len(self._spaces)), "write_address": Out(32), "write_lane": Out(lane_bits), "write_byte": Out(8),
        })  # fmt: skip

    def enable_of(self, space: Space):
        """The strobe of a memory."""
        return self.enables[self._spaces.index(space)]

    def elaborate(self, platform) -> Module:
        m = Module()
        following = Signal.like(self.write_lane)
        m.d.sync += self.enables.eq(0)
        with m.If(self.valid):
            m.d.sync += [
                self.enables.eq(Cat(self.space == space for space in self._spaces)),
                self.write_address.eq(self.address), self.write_lane.eq(following), self.write_byte.eq(self.byte),
                following.eq(Mux(self.commit, 0, following + 1)),
            ]  # fmt: skip
        return m
