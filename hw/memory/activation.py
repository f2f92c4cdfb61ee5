"""Memory of activations: one byte lane for each row of the array."""

from collections.abc import Sequence

from amaranth.hdl import Module
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.memory.word import address_bits, read_registered

__all__ = ["ActivationMemory", "ActivationWrite"]


class ActivationWrite(data.StructLayout):
    """A write of some bytes of a word: word address, a bit for each lane, and the lanes' bytes."""

    def __init__(self, *, rows: int, depth: int) -> None:
        super().__init__({"address": address_bits(depth), "mask": rows, "lanes": data.ArrayLayout(ACTIVATION_BITS, rows)})


class ActivationMemory(wiring.Component):
    """``depth`` words of ``rows`` bytes with one read and one write port; byte ``i`` of the memory is lane ``i % rows`` of word ``i // rows``.

    One memory with a write enable for each byte, which every family's block RAM has: a memory for each lane would leave most of
    the wide blocks of ECP5 and Gowin empty. A word read is there :data:`tritloom.hw.memory.READ_LATENCY` clocks after its address.
    Reading a byte in the clock in which it is written gives an unspecified value; no legal program does.

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
        m.submodules.store = store = memory.Memory(shape=ACTIVATION_BITS * self._rows, depth=self._depth, init=self._init)
        write, read = store.write_port(granularity=ACTIVATION_BITS), store.read_port()
        m.d.comb += [write.en.eq(self.write.mask), write.addr.eq(self.write.address), write.data.eq(self.write.lanes)]
        data_bits = self.read_data.as_value()
        read_registered(m, platform, address=self.read_address, port_address=read.addr, port_data=read.data, data=data_bits)
        return m
