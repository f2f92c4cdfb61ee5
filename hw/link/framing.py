"""Frame layer of the host link: byte stuffing, CRC, and the receiver that collects one frame in a buffer.

The frame format stands in :mod:`tritloom.hw.arch.link`.
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch import link

__all__ = ["BUFFER_DEPTH", "FRAME_START", "Crc16", "FrameByte", "FrameReceiver", "SlipDecoder", "SlipEncoder"]

BUFFER_DEPTH = 1024
FRAME_START = BUFFER_DEPTH - 6
"""Buffer address of a body's first byte. Six bytes of a body are not data, so the count that begins at -6 is both the write
address (modulo the depth) and, at the end of the frame, the number of data bytes."""

FrameByte = data.StructLayout({"data": 8, "end": 1})
"""What the encoder takes: a body byte, or with ``end`` a frame delimiter (``data`` is then ignored)."""


class Crc16(wiring.Component):
    """CRC-16/CCITT-FALSE of a byte a clock, the twin of :func:`tritloom.hw.arch.link.crc16`.

    Half the size of ``amaranth.lib.crc``: the polynomial folds a whole byte in three shifts, and the two controls never meet.

    Members
    -------
    start : :py:`In(1)`
        Begin again; has priority over ``valid``.
    valid : :py:`In(1)`, data : :py:`In(8)`
        A byte to add.
    crc : :py:`Out(16)`
        CRC of the bytes added until the clock before.
    """

    def __init__(self) -> None:
        super().__init__({"start": In(1), "valid": In(1), "data": In(8), "crc": Out(16, init=0xFFFF)})

    def elaborate(self, platform) -> Module:
        m = Module()
        high = self.crc[8:] ^ self.data
        folded = high ^ (high >> 4)
        with m.If(self.start):
            m.d.sync += self.crc.eq(0xFFFF)
        with m.Elif(self.valid):
            m.d.sync += self.crc.eq((self.crc[:8] << 8) ^ (folded << 12) ^ (folded << 5) ^ folded)
        return m


class SlipDecoder(wiring.Component):
    """Removes byte stuffing; combinational, apart from one flip-flop that remembers an escape byte.

    Members
    -------
    rx_valid : :py:`In(1)`, rx_data : :py:`In(8)`
        One received byte; the decoder takes a byte every clock.
    data : :py:`Out(8)`, data_valid : :py:`Out(1)`
        A byte of the body.
    end : :py:`Out(1)`
        A frame delimiter.
    damaged : :py:`Out(1)`
        An escape byte was followed by something else than the two legal bytes. May coincide with ``end``.
    """

    def __init__(self) -> None:
        super().__init__({"rx_valid": In(1), "rx_data": In(8), "data": Out(8), "data_valid": Out(1), "end": Out(1), "damaged": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        escaped = Signal()
        is_end, is_escape = self.rx_data == link.END, self.rx_data == link.ESC
        is_escaped_end, is_escaped_escape = self.rx_data == link.ESC_END, self.rx_data == link.ESC_ESC
        with m.If(self.rx_valid):
            m.d.sync += escaped.eq(is_escape & ~escaped)
        m.d.comb += self.end.eq(self.rx_valid & is_end)
        with m.If(escaped):
            m.d.comb += [
                self.data.eq(Mux(is_escaped_end, link.END, link.ESC)),
                self.data_valid.eq(self.rx_valid & (is_escaped_end | is_escaped_escape)),
                self.damaged.eq(self.rx_valid & ~(is_escaped_end | is_escaped_escape)),
            ]
        with m.Else():
            m.d.comb += [self.data.eq(self.rx_data), self.data_valid.eq(self.rx_valid & ~is_end & ~is_escape)]
        return m


class SlipEncoder(wiring.Component):
    """Adds byte stuffing. One byte a clock, two clocks for an escaped byte; latency two clocks.

    The first of them is a register, for bytes that come late in their clock.

    Members
    -------
    i : :py:`In(stream.Signature(FrameByte))`
    o : :py:`Out(stream.Signature(8))`
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(FrameByte)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform) -> Module:
        m = Module()
        held, waiting = Signal.like(self.i.payload, name="held"), Signal()
        byte = held.data
        second = Signal()  # the escape byte is out, its second byte must follow
        second_is_end = Signal()
        free = ~self.o.valid | self.o.ready
        m.d.comb += self.i.ready.eq(~waiting | (free & ~second))
        with m.If(self.i.ready):
            m.d.sync += [held.eq(self.i.payload), waiting.eq(self.i.valid)]
        with m.If(free):
            m.d.sync += self.o.valid.eq(waiting | second)
            with m.If(second):
                m.d.sync += [self.o.payload.eq(Mux(second_is_end, link.ESC_END, link.ESC_ESC)), second.eq(0)]
            with m.Elif(held.end):
                m.d.sync += self.o.payload.eq(link.END)
            with m.Else():
                stuffed = (byte == link.END) | (byte == link.ESC)
                m.d.sync += [
                    self.o.payload.eq(Mux(stuffed, link.ESC, byte)),
                    second.eq(waiting & stuffed),
                    second_is_end.eq(byte == link.END),
                ]
        return m


class FrameReceiver(wiring.Component):
    """Collects frame bodies, one at a time, in a buffer memory.

    Takes a byte every clock, for ever. A sound frame is announced by ``full`` in the clock after its closing delimiter and
    stays in the buffer until ``release``. Frames that end while another one is held are checked, but not stored. What is
    not stored raises an error that waits in ``error_*`` until ``error_taken``; a later error replaces one that still waits.
    Since errors need no buffer, garbage never costs the sound frame behind it.

    Members
    -------
    rx_valid : :py:`In(1)`, rx_data : :py:`In(8)`
        One received byte of the wire.
    full : :py:`Out(1)`, length : :py:`Out(16)`, release : :py:`In(1)`
        A frame with ``length`` bytes of data, correct CRC and length field is held.
    address : :py:`In(10)`, byte : :py:`Out(8)`
        Read port of the buffer, two clocks from address to byte; the body begins at :data:`FRAME_START`.
    error : :py:`Out(1)`, error_code : :py:`Out(3)`, error_sequence : :py:`Out(8)`, error_taken : :py:`In(1)`
        A damaged or lost frame waits for its error reply.
    """

    def __init__(self) -> None:
        super().__init__({
            "rx_valid": In(1), "rx_data": In(8),
            "full": Out(1), "length": Out(16), "release": In(1),
            "address": In(10), "byte": Out(8),
            "error": Out(1), "error_code": Out(3), "error_sequence": Out(8), "error_taken": In(1),
        })  # fmt: skip

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.decoder = decoder = SlipDecoder()
        m.submodules.crc = check = Crc16()
        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=BUFFER_DEPTH, init=[])
        write, read = buffer.write_port(), buffer.read_port()
        m.d.comb += [decoder.rx_valid.eq(self.rx_valid), decoder.rx_data.eq(self.rx_data), read.addr.eq(self.address)]
        m.d.sync += self.byte.eq(read.data)  # a register behind the block RAM keeps its slow output off the decoding logic

        count = Signal(11, init=-6 & 0x7FF)  # data bytes so far, less than zero within header and CRC
        too_long = count == link.MAX_DATA + 1
        last_two = Signal(16)  # may be the CRC, so it must not enter the CRC register yet
        sequence = Signal(8)
        damaged = Signal()
        blocked = Signal()
        m.d.comb += [
            write.addr.eq(count[:10]),
            write.data.eq(decoder.data),
            write.en.eq(decoder.data_valid & ~self.full & ~too_long),
            check.data.eq(last_two[:8]),
            check.valid.eq(decoder.data_valid & (count[1:] != (-6 & 0x7FF) >> 1)),
            check.start.eq(decoder.end),
        ]
        with m.If(decoder.damaged):
            m.d.sync += damaged.eq(1)
        with m.If(decoder.data_valid):
            m.d.sync += [last_two.eq(Cat(last_two[8:], decoder.data)), blocked.eq(blocked | self.full), count.eq(count + ~too_long)]
            with m.If(count == -6 & 0x7FF):
                m.d.sync += sequence.eq(decoder.data)
        # A frame whose beginning was not stored is lost, whatever its length field says.
        with m.If(write.en):
            with m.If(count == -4 & 0x7FF):
                m.d.sync += self.length[:8].eq(decoder.data)
            with m.If(count == -3 & 0x7FF):
                m.d.sync += self.length[8:].eq(decoder.data)

        with m.If(self.release):
            m.d.sync += self.full.eq(0)
        with m.If(self.error_taken):
            m.d.sync += self.error.eq(0)
        begun = (count != -6 & 0x7FF) | damaged | decoder.damaged
        with m.If(decoder.end):
            code = Signal(3)
            with m.If(count[10] | too_long):
                m.d.comb += code.eq(link.ErrorCode.LENGTH)
            with m.Elif(damaged | decoder.damaged | (check.crc != last_two)):
                m.d.comb += code.eq(link.ErrorCode.CRC)
            with m.Elif(blocked):
                m.d.comb += code.eq(link.ErrorCode.OVERRUN)
            with m.Elif(self.length != count):
                m.d.comb += code.eq(link.ErrorCode.LENGTH)
            with m.If(code == 0):
                m.d.sync += self.full.eq(1)
            with m.Elif(begun):
                m.d.sync += [self.error.eq(1), self.error_code.eq(code), self.error_sequence.eq(sequence)]
            m.d.sync += [count.eq(-6), damaged.eq(0), blocked.eq(0), sequence.eq(0)]
        return m
