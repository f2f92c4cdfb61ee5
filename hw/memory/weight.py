"""Memory of weights in either encoding of trits, on block RAM or on the single-port RAM of the iCE40 UP5K."""

from collections.abc import Sequence

from amaranth.hdl import C, Cat, ClockSignal, Const, Instance, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.vendor import SiliconBluePlatform

from tritloom.hw.arch.parameters import SPRAM_BITS, SPRAM_WORDS, CoreParameters
from tritloom.hw.arch.reduction import row_delay
from tritloom.hw.cell import TRIT_BITS
from tritloom.hw.memory.word import WordMemory, address_bits, read_registered

__all__ = ["SinglePortMemory", "Trit5Decoder", "WeightMemory"]

_SPRAM_WIDTH = 16


class Trit5Decoder(wiring.Component):
    """A byte of five trits to five trit codes, combinational: :mod:`tritloom.hw.arch.trits`.

    Members
    -------
    byte : :py:`In(8)`
    trits : :py:`Out(ArrayLayout(2, 5))`
    """

    def __init__(self) -> None:
        super().__init__({"byte": In(8), "trits": Out(data.ArrayLayout(TRIT_BITS, 5))})

    def elaborate(self, platform) -> Module:
        m = Module()
        byte = self.byte
        # Which digits are 2 is told by pairs of ones; see the reference for the code. A digit's bits are at most one.
        both = byte[2:5].all()
        rest = Cat(byte[:2], Mux(both, byte[5:8], byte[2:5]))
        fifth_two = ~both & byte[5:7].all()
        low_pair, high_pair = rest[:2].all(), rest[2:4].all()
        first = Mux(low_pair, rest[2:4], rest[:2])
        digits = [
            Cat(first[0] & ~first[1], first[1]),
            Mux(low_pair, rest[4], Mux(high_pair, 2, rest[2:4])),
            Mux(low_pair | high_pair, 2, rest[4]),
            Mux(both, 2, Mux(fifth_two, byte[7], byte[5:7])),
            Mux(both | fifth_two, 2, byte[7]),
        ]
        for trit, digit in zip(self.trits, digits, strict=True):
            m.d.comb += trit.eq(Cat(digit[:2].any(), digit[1]))  # 2 is minus one
        return m


class SinglePortMemory(wiring.Component):
    """Words of up to 8 bytes in the single-port RAMs of the iCE40 UP5K; on any other platform a memory with the same timing.

    A word read is there :data:`tritloom.hw.memory.READ_LATENCY` clocks after its address, unless a byte is written meanwhile: reads and writes share a
    port. The ports are those of :class:`WordMemory`. ``init`` is ignored on iCE40, whose bitstream cannot hold contents of this RAM.
    """

    def __init__(self, *, width: int, depth: int, init: Sequence[int] = ()) -> None:
        if not 8 <= width <= SPRAM_BITS or width % 8:
            raise ValueError(f"Width must be a multiple of 8 up to {SPRAM_BITS}, not {width!r}")
        if not 1 <= depth <= SPRAM_WORDS:
            raise ValueError(f"Depth must be from 1 to {SPRAM_WORDS}, not {depth!r}")
        self._width, self._depth, self._init = width, depth, tuple(init)
        super().__init__({
            "read_address": In(address_bits(depth)), "read_data": Out(width),
            "write_enable": In(1), "write_address": In(address_bits(depth)), "write_lane": In(address_bits(width // 8)), "write_byte": In(8),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        address, held, output = Signal.like(self.read_address), Signal.like(self.read_address), Signal(self._width)
        mask = Signal(self._width // 8)
        m.d.comb += [address.eq(Mux(self.write_enable, self.write_address, held)), mask.eq(self.write_enable << self.write_lane)]
        read_registered(m, platform, address=self.read_address, port_address=held, port_data=output, data=self.read_data)
        if not isinstance(platform, SiliconBluePlatform):
            m.submodules.store = store = memory.Memory(shape=self._width, depth=self._depth, init=self._init)
            write, read = store.write_port(granularity=8), store.read_port()
            m.d.comb += [
                write.en.eq(mask), write.addr.eq(address), write.data.eq(self.write_byte.replicate(self._width // 8)),
                read.en.eq(~self.write_enable), read.addr.eq(address), output.eq(read.data),
            ]  # fmt: skip
            return m
        for index, low in enumerate(range(0, self._width, _SPRAM_WIDTH)):
            part = Signal(_SPRAM_WIDTH, name=f"part_{index}")
            nibbles = Cat(lane.replicate(2) for lane in mask[low // 8 :][:2])
            m.submodules[f"ram_{index}"] = Instance(
                "SB_SPRAM256KA",
                i_CLOCK=ClockSignal(), i_CHIPSELECT=Const(1), i_STANDBY=Const(0), i_SLEEP=Const(0), i_POWEROFF=Const(1),
                i_ADDRESS=Cat(address, C(0, 14))[:14], i_WREN=self.write_enable, i_MASKWREN=Cat(nibbles, C(0, 4))[:4],
                i_DATAIN=self.write_byte.replicate(2), o_DATAOUT=part,
            )  # fmt: skip
            m.d.comb += output[low : low + _SPRAM_WIDTH].eq(part)
        return m


class WeightMemory(wiring.Component):
    """Words of ``rows * columns`` trits, stored in the core's encoding and read as trit codes.

    The trits of row ``r`` are there ``READ_LATENCY + row_delay(r)`` clocks after the address (:mod:`tritloom.hw.memory`,
    :func:`tritloom.hw.arch.reduction.row_delay`), whatever the encoding; ``trit5`` has its decoders behind the output register of the
    memory, so the receiver must register undelayed trits. Delays of ``trit2`` are made by reading later: every stage of a chain has a
    memory of its own with the bytes of its rows.

    Parameters
    ----------
    parameters : :class:`CoreParameters`
    init : sequence of :class:`int`
        First words as they are stored; the rest is zero.

    Members
    -------
    read_address : :py:`In`
    trits : :py:`Out(ArrayLayout(2, rows * columns))`
    write_enable : :py:`In(1)`
    write_address, write_lane : :py:`In`
    write_byte : :py:`In(8)`
        As :class:`WordMemory`.
    """

    def __init__(self, parameters: CoreParameters, *, init: Sequence[int] = ()) -> None:
        self._parameters = p = parameters
        kind = SinglePortMemory if p.weight_storage == "spram" else WordMemory
        count = p.weight_banks
        self._banks = [
            kind(width=p.weight_word_bits // count, depth=p.weight_words, init=[_bytes_of_bank(word, bank, count) for word in init])
            for bank in range(count)
        ]
        super().__init__({
            "read_address": In(address_bits(p.weight_words)), "trits": Out(data.ArrayLayout(TRIT_BITS, p.rows * p.columns)),
            "write_enable": In(1), "write_address": In(address_bits(p.weight_words)),
            "write_lane": In(address_bits(p.weight_word_bytes)), "write_byte": In(8),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        p = self._parameters
        count = len(self._banks)
        lane_bits = (count - 1).bit_length()
        address = self.read_address
        for index, bank in enumerate(self._banks):
            m.submodules[f"bank_{index}"] = bank
            if p.reduction == "chain" and p.weight_encoding == "trit2":
                later = Signal.like(address, name=f"address_{index}", reset_less=True)
                m.d.sync += later.eq(address)
                address = later
            m.d.comb += [
                bank.read_address.eq(address), bank.write_address.eq(self.write_address), bank.write_byte.eq(self.write_byte),
                bank.write_enable.eq(self.write_enable & (self.write_lane[:lane_bits] == index)),
                bank.write_lane.eq(self.write_lane[lane_bits:]),
            ]  # fmt: skip
        word = Cat(
            self._banks[index % count].read_data.word_select(index // count, 8)
            for index in range(count * -(-len(self._banks[0].read_data) // 8))
        )
        if p.weight_encoding == "trit2":
            m.d.comb += self.trits.eq(word)
            return m
        groups = []
        for index in range(p.weight_word_bytes):
            m.submodules[f"decoder_{index}"] = decoder = Trit5Decoder()
            m.d.comb += decoder.byte.eq(word.word_select(index, 8))
            groups.append(decoder.trits)
        decoded = Signal.like(self.trits)
        m.d.comb += decoded.eq(Cat(groups))
        for row in range(p.rows):
            trits = Cat(decoded[column * p.rows + row] for column in range(p.columns))
            for stage in range(row_delay(row, p.rows, p.reduction)):
                later = Signal(len(trits), name=f"trits_{row}_{stage}", reset_less=True)
                m.d.sync += later.eq(trits)
                trits = later
            m.d.comb += Cat(self.trits[column * p.rows + row] for column in range(p.columns)).eq(trits)
        return m


def _bytes_of_bank(word: int, bank: int, count: int) -> int:
    """Every ``count``-th byte of a word, from byte ``bank`` on."""
    return int.from_bytes(word.to_bytes(-(-word.bit_length() // (8 * count)) * count, "little")[bank::count], "little")
