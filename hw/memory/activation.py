"""Memory of activations: one byte lane for each row of the array."""

from collections.abc import Sequence

from amaranth.hdl import Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.memory.word import address_bits

__all__ = ["ActivationMemory", "ActivationWrite"]


class ActivationWrite(data.StructLayout):
    """A write of some bytes of a word: word address, a bit for each lane, and the lanes' bytes."""

    def __init__(self, *, rows: int, depth: int) -> None:
        super().__init__({"address": address_bits(depth), "mask": rows, "lanes": data.ArrayLayout(ACTIVATION_BITS, rows)})


class ActivationMemory(wiring.Component):
    """``depth`` words of ``rows`` bytes with one read and one write port; byte ``i`` of the memory is lane ``i % rows`` of word ``i // rows``.

    A lane is a memory of its own, so that a byte can be written without byte enables. A word read is there
    :data:`tritloom.hw.memory.READ_LATENCY` clocks after its address. Reading a byte in the clock in which it is written gives
    an unspecified value; no legal program does.

    Parameters
    ----------
    rows, depth : :class:`int`
        Lanes, and words.
    init : sequence of :class:`int`
        First words, lane 0 in the lowest bits; the rest is zero.

    Members
    -------
    read_address : :py:`In`
    read_data : :py:`Out(ArrayLayout(8, rows))`
    write : :py:`In(ActivationWrite)`
    """

    def __init__(self, *, rows: int, depth: int, init: Sequence[int] = ()) -> None:
        if len(init) > depth:
            raise ValueError(f"Initial contents must be at most {depth} words, not {len(init)}")
        self._rows, self._depth, self._init = rows, depth, tuple(init)
        super().__init__({
            "read_address": In(address_bits(depth)), "read_data": Out(data.ArrayLayout(ACTIVATION_BITS, rows)),
            "write": In(ActivationWrite(rows=rows, depth=depth)),
        })  # fmt: skip

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def depth(self) -> int:
        return self._depth

    def elaborate(self, platform) -> Module:
        m = Module()
        word = Signal.like(self.read_data, reset_less=True)
        m.d.comb += self.read_data.eq(word)
        for lane in range(self._rows):
            contents = [(value >> (ACTIVATION_BITS * lane)) & 0xFF for value in self._init]
            m.submodules[f"lane_{lane}"] = store = memory.Memory(shape=ACTIVATION_BITS, depth=self._depth, init=contents)
            write, read = store.write_port(), store.read_port()
            m.d.comb += [
                write.en.eq(self.write.mask[lane]), write.addr.eq(self.write.address), write.data.eq(self.write.lanes[lane]),
                read.addr.eq(self.read_address),
            ]  # fmt: skip
            m.d.sync += word[lane].eq(read.data)
        return m
