"""Memory of whole words, written over the link and read by the core."""

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.vendor import GowinPlatform, LatticePlatform, SiliconBluePlatform

from tritloom.hw.arch.parameters import BYTES_TOGETHER, stored_lanes

__all__ = ["READ_LATENCY", "WordMemory", "address_bits", "read_registered"]

READ_LATENCY = 2
"""Clocks from an address to its word, for every memory of the core: one in the block RAM, one in a register beside it,
because the clock-to-output time of block RAM is long (5.8 ns on ECP5)."""


def address_bits(depth: int) -> int:
    """Width of an address of a memory of ``depth`` words, at least 1."""
    return max(1, (depth - 1).bit_length())


class WordMemory(wiring.Component):
    """``depth`` words of ``width`` bits; a word read is there :data:`READ_LATENCY` clocks after its address.

    The bytes of a word are written one after the other, lowest first, and all of them. Block RAM of ECP5 and Gowin has nine bits
    where others have a byte: there the first of nine bytes waits in a register, and each of the other eight takes one bit of it
    along, which saves one block RAM in nine.

    Reading a word in the clock in which it is written gives an unspecified value; the core never does. The clock beside that of
    the memory is spent in a register for the word, but on iCE40 in one for the address: the block RAM there is fast, and the cells
    of a wide word are many.

    Parameters
    ----------
    width, depth : :class:`int`
        Bits of a word, a multiple of 8, and words.
    init : sequence of :class:`int`
        First words; the rest is zero.
    ninth_bits : :class:`bool`, or None
        Keep nine bytes in eight lanes of nine bits; by default where the part's block RAM has them.

    Members
    -------
    read_address : :py:`In`
    read_data : :py:`Out(width)`
    write_enable : :py:`In(1)`
    write_address, write_lane : :py:`In`
        The word, and the byte in it, 0 for its lowest 8 bits.
    write_byte : :py:`In(8)`
    """

    def __init__(self, *, width: int, depth: int, init: Sequence[int] = (), ninth_bits: bool | None = None) -> None:
        if width < 8 or width % 8:
            raise ValueError(f"Width must be a multiple of 8, not {width!r}")
        if len(init) > depth:
            raise ValueError(f"Initial contents must be at most {depth} words, not {len(init)}")
        self._width, self._depth, self._init, self._ninth_bits = width, depth, tuple(init), ninth_bits
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
        count = self._width // 8
        ninth_bits = isinstance(platform, (LatticePlatform, GowinPlatform)) if self._ninth_bits is None else self._ninth_bits
        # Byte `index` of a word is in the lane of this number, or, the first of nine, in the ninth bits of the eight lanes that follow.
        groups = count // BYTES_TOGETHER if ninth_bits else 0
        lanes, bits = stored_lanes(count, ninth_bits=ninth_bits), BYTES_TOGETHER if groups else 8
        bytes_of_lanes = [index for index in range(count) if index >= groups * BYTES_TOGETHER or index % BYTES_TOGETHER]

        def stored(word: int) -> int:
            """A word as the block RAM holds it."""
            data = word.to_bytes(count, "little")
            kept = 0
            for lane, index in enumerate(bytes_of_lanes):
                bit = data[index - index % BYTES_TOGETHER] >> (index % BYTES_TOGETHER - 1) & 1 if index < groups * BYTES_TOGETHER else 0
                kept |= (data[index] | bit << 8) << (bits * lane)
            return kept

        m.submodules.store = store = memory.Memory(shape=bits * lanes, depth=self._depth, init=[stored(word) for word in self._init])
        write, read = store.write_port(granularity=bits), store.read_port()
        waiting = Signal(8, reset_less=True)
        if groups:
            with m.If(self.write_enable & Cat(self.write_lane == BYTES_TOGETHER * group for group in range(groups)).any()):
                m.d.sync += waiting.eq(self.write_byte)
        m.d.comb += write.addr.eq(self.write_address)
        for lane, index in enumerate(bytes_of_lanes):
            shared = waiting[index % BYTES_TOGETHER - 1] if index < groups * BYTES_TOGETHER else C(0, 1)
            m.d.comb += [
                write.en[lane].eq(self.write_enable & (self.write_lane == index)),
                write.data[bits * lane : bits * (lane + 1)].eq(Cat(self.write_byte, shared)[:bits]),
            ]
        output = Signal(bits * lanes)
        read_registered(m, platform, address=self.read_address, port_address=read.addr, port_data=read.data, data=output)
        place = {index: lane for lane, index in enumerate(bytes_of_lanes)}
        for index in range(count):
            if index in place:
                value = output[bits * place[index] :][:8]
            else:
                value = Cat(output[bits * place[index + 1 + bit] + 8] for bit in range(8))
            m.d.comb += self.read_data.word_select(index, 8).eq(value)
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
