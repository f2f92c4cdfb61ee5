"""Memory of weights in either encoding of trits, on block RAM or on the single-port RAM of the iCE40 UP5K."""

from collections.abc import Sequence

from amaranth.hdl import C, Cat, ClockSignal, Const, Instance, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.vendor import SiliconBluePlatform

from tritloom.hw.arch.parameters import SPRAM_BITS, SPRAM_WORDS, CoreParameters
from tritloom.hw.arch.trits import decode_trit5
from tritloom.hw.cell import TRIT_BITS
from tritloom.hw.memory.word import WordMemory, address_bits

__all__ = ["SinglePortMemory", "Trit5Decoder", "WeightMemory"]

_SPRAM_WIDTH = 16


class Trit5Decoder(wiring.Component):
    """A byte of five trits to five trit codes, combinational: :func:`tritloom.hw.arch.trits.decode_trit5`.

    Members
    -------
    byte : :py:`In(8)`
    trits : :py:`Out(ArrayLayout(2, 5))`
    """

    def __init__(self) -> None:
        super().__init__({"byte": In(8), "trits": Out(data.ArrayLayout(TRIT_BITS, 5))})

    def elaborate(self, platform) -> Module:
        m = Module()
        with m.Switch(self.byte):
            for byte, trits in enumerate(decode_trit5([[value] for value in range(243)], 5).tolist()):
                with m.Case(byte):
                    m.d.comb += self.trits.eq(Cat(C({0: 0b00, 1: 0b01, -1: 0b11}[trit], TRIT_BITS) for trit in trits))
        return m


class SinglePortMemory(wiring.Component):
    """Words of up to 64 bits in the single-port RAMs of the iCE40 UP5K; on any other platform a memory with the same timing.

    A word read is there :data:`tritloom.hw.memory.READ_LATENCY` clocks after its address. A write takes the port: nothing is read then.
    The ports are those of :class:`WordMemory`. ``init`` is ignored on iCE40, whose bitstream cannot hold contents of this RAM.
    """

    def __init__(self, *, width: int, depth: int, init: Sequence[int] = ()) -> None:
        if not 1 <= width <= SPRAM_BITS:
            raise ValueError(f"Width must be from 1 to {SPRAM_BITS}, not {width!r}")
        if not 1 <= depth <= SPRAM_WORDS:
            raise ValueError(f"Depth must be from 1 to {SPRAM_WORDS}, not {depth!r}")
        self._width, self._depth, self._init = width, depth, tuple(init)
        super().__init__({
            "read_address": In(address_bits(depth)), "read_data": Out(width),
            "write_enable": In(1), "write_address": In(address_bits(depth)), "write_data": In(width),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        address = Signal.like(self.read_address)
        word = Signal(self._width, reset_less=True)
        output = Signal(self._width)
        m.d.comb += [address.eq(Mux(self.write_enable, self.write_address, self.read_address)), self.read_data.eq(word)]
        m.d.sync += word.eq(output)
        if not isinstance(platform, SiliconBluePlatform):
            m.submodules.store = store = memory.Memory(shape=self._width, depth=self._depth, init=self._init)
            write, read = store.write_port(), store.read_port()
            m.d.comb += [
                write.en.eq(self.write_enable), write.addr.eq(address), write.data.eq(self.write_data),
                read.en.eq(~self.write_enable), read.addr.eq(address), output.eq(read.data),
            ]  # fmt: skip
            return m
        for index, low in enumerate(range(0, self._width, _SPRAM_WIDTH)):
            part = Signal(_SPRAM_WIDTH, name=f"part_{index}")
            m.submodules[f"ram_{index}"] = Instance(
                "SB_SPRAM256KA",
                i_CLOCK=ClockSignal(), i_CHIPSELECT=Const(1), i_STANDBY=Const(0), i_SLEEP=Const(0), i_POWEROFF=Const(1),
                i_ADDRESS=Cat(address, C(0, 14))[:14], i_WREN=self.write_enable, i_MASKWREN=Const(0xF, 4),
                i_DATAIN=Cat(self.write_data[low : low + _SPRAM_WIDTH], C(0, _SPRAM_WIDTH))[:_SPRAM_WIDTH], o_DATAOUT=part,
            )  # fmt: skip
            m.d.comb += output[low : low + _SPRAM_WIDTH].eq(part)
        return m


class WeightMemory(wiring.Component):
    """Words of ``rows * columns`` trits, stored in the core's encoding and read as trit codes.

    The trits are there :data:`tritloom.hw.memory.READ_LATENCY` clocks after the address, whatever the encoding; ``trit5`` has its decoders
    behind the output register, so the receiver must register them.

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
    write_address : :py:`In`
    write_data : in, as many bits as a stored word has
    """

    def __init__(self, parameters: CoreParameters, *, init: Sequence[int] = ()) -> None:
        self._parameters = p = parameters
        sizes = {"width": p.weight_word_bits, "depth": p.weight_words, "init": init}
        self._store = SinglePortMemory(**sizes) if p.weight_storage == "spram" else WordMemory(**sizes)
        super().__init__({
            "read_address": In(address_bits(p.weight_words)), "trits": Out(data.ArrayLayout(TRIT_BITS, p.rows * p.columns)),
            "write_enable": In(1), "write_address": In(address_bits(p.weight_words)), "write_data": In(p.weight_word_bits),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.store = store = self._store
        m.d.comb += [
            store.read_address.eq(self.read_address), store.write_enable.eq(self.write_enable),
            store.write_address.eq(self.write_address), store.write_data.eq(self.write_data),
        ]  # fmt: skip
        if self._parameters.weight_encoding == "trit2":
            m.d.comb += self.trits.eq(store.read_data)
            return m
        groups = []
        for index in range(self._parameters.weight_word_bits // 8):
            m.submodules[f"decoder_{index}"] = decoder = Trit5Decoder()
            m.d.comb += decoder.byte.eq(store.read_data.word_select(index, 8))
            groups.append(decoder.trits)
        m.d.comb += self.trits.eq(Cat(groups))
        return m
