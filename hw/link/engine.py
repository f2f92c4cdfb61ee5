"""The core's end of the host link: executes frames on the core's memories and control signals, and replies.

Link frames, opcodes and error codes are defined in :mod:`tritloom.hw.arch.link`.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import ERROR_OPCODE, MAX_DATA, REPLY, ErrorCode, LinkOpcode, Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.link.framing import FRAME_START, Crc16, FrameReceiver, SlipEncoder

__all__ = ["READ_LATENCY", "LinkEngine"]

READ_LATENCY = 3
"""Clocks from ``read_strobe`` to ``read_data``."""

ARTEFACT_BYTES = 8
STATUS_BYTES = 12
WRITE_HEADER, READ_HEADER, START_HEADER = 5, 7, 5  # bytes of data in front of what is written, or all of it
ARGUMENTS = 4  # place in the body of the first argument byte


class LinkEngine(wiring.Component):
    """Receives frames, checks them completely, executes them, replies.

    A frame is walked twice: the first walk only checks, so that an illegal frame changes nothing, the second one acts. A
    WRITE of ``n`` bytes takes ``2 * n + 24`` clocks from the closing delimiter to the first byte of its reply; in the second
    walk it delivers one byte a clock. READ sends up to one byte a clock.

    Checks come in this order: LENGTH (fewer than 6 or more than 1022 bytes), CRC, LENGTH (the length field), OPCODE, LENGTH (not what the
    opcode needs), BUSY (WRITE, READ and START while
    the core runs), ARGUMENT (space, address range, count, ``pc`` outside the program memory), LENGTH (no whole number of words).
    A WRITE without bytes and a READ of 0 bytes are legal at any address. Any non-zero ``clear`` clears the cycle counter.

    One sound frame is held while an earlier reply is under way. A frame that begins before the engine has finished with the one that it
    holds is answered OVERRUN. Damaged frames are answered when the engine is idle; errors that come faster than they can be sent merge
    into the latest.

    Parameters
    ----------
    parameters
        The core's memories: their depths, and the bytes of a weight word.

    Members
    -------
    rx : :py:`In(stream.Signature(8))`
        Bytes from the host; always ready.
    tx : :py:`Out(stream.Signature(8))`
        Bytes to the host.
    write_valid, write_space, write_address, write_data, write_commit : out, 1, 3, 32, 8 and 1 bits
        One byte for memory ``write_space``, without back-pressure. ``write_address`` is the word (ACTIVATIONS: the byte). The bytes of a word
        come least significant first, ``write_commit`` marks the last one (ACTIVATIONS: every byte).
    read_strobe, read_address : out, 1 and 32 bits
        Read activation byte ``read_address``. Up to :data:`READ_LATENCY` strobes behind the last byte of a READ fetch bytes that are not used;
        their addresses may lie outside the memory.
    read_data : in, 8 bits
        The byte, exactly :data:`READ_LATENCY` clocks after the strobe.
    start, start_pc, start_limit, start_clear : out, 1, 16, 16 and 1 bits
        ``start`` is a strobe of one clock, the others are valid with it.
    abort : out, 1 bit
        Strobe of one clock.
    state, fault, pc, cycles : in, 2, 8, 16 and 40 bits
        The core's status; STATUS takes all four in the same clock.
    """

    rx: stream.Interface
    tx: stream.Interface

    def __init__(self, parameters: CoreParameters) -> None:
        if not isinstance(parameters, CoreParameters):
            raise TypeError(f"Parameters must be CoreParameters, not {parameters!r}")
        self._parameters = parameters
        super().__init__({
            "rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)),
            "write_valid": Out(1), "write_space": Out(3), "write_address": Out(32), "write_data": Out(8), "write_commit": Out(1),
            "read_strobe": Out(1), "read_address": Out(32), "read_data": In(8),
            "start": Out(1), "start_pc": Out(16), "start_limit": Out(16), "start_clear": Out(1), "abort": Out(1),
            "state": In(2), "fault": In(8), "pc": In(16), "cycles": In(40),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def _spaces(self) -> dict[Space, tuple[int, int]]:
        """Addresses and bytes of a word of each space that can be written."""
        p = self._parameters
        return {
            Space.PROGRAM: (p.program_words, PROGRAM_WORD_BYTES),
            Space.WEIGHTS: (p.weight_words, p.weight_word_bytes),
            Space.RECORDS: (p.record_words, p.record_word_bytes),
            Space.ACTIVATIONS: (p.activation_bytes, 1),
            Space.ARTEFACT: (1, ARTEFACT_BYTES),
        }

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.receiver = receiver = FrameReceiver()
        m.submodules.encoder = encoder = SlipEncoder()
        m.submodules.crc = crc = Crc16()
        m.d.comb += [self.rx.ready.eq(1), receiver.rx_valid.eq(self.rx.valid), receiver.rx_data.eq(self.rx.payload)]
        wiring.connect(m, encoder.o, wiring.flipped(self.tx))

        byte = receiver.byte
        position = Signal(10)
        index = Signal(4)  # place of `byte` in the body, up to the last argument
        acting = Signal()  # second walk
        sequence = Signal(8)
        opcode = Signal(8)
        arguments = Signal(40)
        space, address = arguments[:8], arguments[8:]
        failed = Signal()
        code = Signal(3)
        remaining = Signal(10)  # bytes of the walk or of the reply
        artefact = Signal(8 * ARTEFACT_BYTES)
        status = Signal(72)  # status bytes to send, the next one lowest
        m.d.comb += receiver.address.eq(position)
        m.d.sync += position.eq(position + 1)

        # Range and word checks; one comparator for all spaces.
        spaces = self._spaces()
        address_bits = max(depth for depth, _ in spaces.values()).bit_length()
        depth = Signal(address_bits)
        last_offset = Signal(range(max(2, *(size for _, size in spaces.values()))))
        known_space = Signal()
        with m.Switch(space):
            for which, (words, size) in spaces.items():
                with m.Case(which):
                    m.d.comb += [depth.eq(words), last_offset.eq(size - 1), known_space.eq(1)]
        offset = Signal.like(last_offset)
        last_of_word = offset == last_offset
        outside = (address[address_bits:] != 0) | (address[:address_bits] >= depth)
        illegal = Signal()
        is_read = opcode == LinkOpcode.READ
        illegal_space = Mux(is_read, space != Space.ACTIVATIONS, ~known_space)
        running = self.state == State.RUNNING

        m.d.comb += [
            self.write_space.eq(space), self.write_address.eq(address), self.write_data.eq(byte), self.write_commit.eq(last_of_word),
            self.start_pc.eq(arguments[:16]), self.start_limit.eq(arguments[16:32]), self.start_clear.eq(arguments[32:].any()),
        ]  # fmt: skip

        # The length of a frame stands long before it is looked at; compared in the same clock it would be the core's longest path.
        empty = Signal()
        rights = {which: Signal(name=f"right_{which.name}") for which in (LinkOpcode.WRITE, LinkOpcode.READ, LinkOpcode.START)}
        m.d.sync += [
            empty.eq(receiver.length == 0),
            rights[LinkOpcode.WRITE].eq(receiver.length >= WRITE_HEADER),
            rights[LinkOpcode.READ].eq(receiver.length == READ_HEADER),
            rights[LinkOpcode.START].eq(receiver.length == START_HEADER),
        ]

        def fail(why) -> None:
            m.d.comb += receiver.release.eq(1)
            m.d.sync += [failed.eq(1), code.eq(why), remaining.eq(1)]
            m.next = "SEND START"

        def reply(length) -> None:
            m.d.comb += receiver.release.eq(1)
            m.d.sync += remaining.eq(length)
            m.next = "SEND START"

        def send(value, then: str, *, end: int = 0, covered: int = 0) -> None:
            m.d.comb += [encoder.i.valid.eq(1), encoder.i.payload.data.eq(value), encoder.i.payload.end.eq(end)]
            with m.If(encoder.i.ready):
                m.d.comb += [crc.valid.eq(covered), crc.data.eq(value)]
                m.next = then

        def dispatch() -> None:
            """After the fixed part of the header: check the length and the state of the core, act where there are no arguments."""
            with m.Switch(opcode):
                with m.Case(LinkOpcode.IDENTITY, LinkOpcode.STATUS, LinkOpcode.ABORT):
                    with m.If(~empty):
                        fail(ErrorCode.LENGTH)
                    with m.Elif(opcode == LinkOpcode.IDENTITY):
                        reply(2 * ARTEFACT_BYTES)
                    with m.Elif(opcode == LinkOpcode.STATUS):
                        m.d.sync += status.eq(Cat(self.state, C(0, 6), self.fault, self.pc, self.cycles))
                        reply(STATUS_BYTES)
                    with m.Else():
                        m.d.comb += self.abort.eq(1)
                        reply(0)
                for which, right in rights.items():
                    with m.Case(which):
                        with m.If(~right):
                            fail(ErrorCode.LENGTH)
                        with m.Elif(running):
                            fail(ErrorCode.BUSY)
                        with m.Else():
                            m.d.sync += remaining.eq(receiver.length)
                with m.Default():
                    fail(ErrorCode.OPCODE)

        # One adder steps the address, one counts down; the states only say when.
        step = Signal(signed(3))
        consume = Signal()
        counter = address[:address_bits]
        m.d.sync += [counter.eq(counter + step), remaining.eq(remaining - consume)]

        in_flight = Signal(READ_LATENCY)
        m.d.comb += self.read_address.eq(counter)
        m.d.sync += in_flight.eq(Cat(self.read_strobe, in_flight[:-1]))

        with m.FSM(name="control"):
            with m.State("IDLE"):
                m.d.sync += [position.eq(FRAME_START), index.eq(0), acting.eq(0), failed.eq(0)]
                with m.If(receiver.full):
                    m.next = "FETCH"
                with m.Elif(receiver.error):
                    m.d.comb += receiver.error_taken.eq(1)
                    m.d.sync += [failed.eq(1), sequence.eq(receiver.error_sequence), code.eq(receiver.error_code), remaining.eq(1)]
                    m.next = "SEND START"

            with m.State("FETCH"):
                m.next = "FETCHING"
            with m.State("FETCHING"):
                m.d.sync += [illegal.eq(0), offset.eq(0)]
                m.next = "HEADER"

            with m.State("HEADER"):
                m.d.sync += index.eq(index + 1)
                with m.Switch(index):
                    with m.Case(0):
                        m.d.sync += sequence.eq(byte)
                    with m.Case(1):
                        m.d.sync += opcode.eq(byte)
                    with m.Case(2):
                        dispatch()
                    for place in range(5):
                        with m.Case(ARGUMENTS + place):
                            m.d.sync += arguments.word_select(place, 8).eq(byte)
                            m.d.comb += consume.eq(1)  # leaves the length of what is written behind the arguments
                            if place == 4:
                                with m.If(opcode == LinkOpcode.WRITE):
                                    m.next = "WALK"
                                with m.Elif(opcode == LinkOpcode.START):
                                    m.next = "START"
                    with m.Case(ARGUMENTS + 5):
                        m.d.sync += remaining[:8].eq(byte)
                    with m.Case(ARGUMENTS + 6):
                        m.d.sync += [remaining[8:].eq(byte), illegal.eq(byte[2:] != 0)]
                        m.next = "WALK"
                        with m.If(acting):
                            m.d.comb += receiver.release.eq(1)
                            m.next = "SEND START"

            with m.State("WALK"):
                with m.If(remaining != 0):
                    m.d.comb += [self.write_valid.eq(acting), consume.eq(1), step.eq(last_of_word)]
                    m.d.sync += [
                        illegal.eq(illegal | outside | (is_read & (remaining > MAX_DATA))),
                        offset.eq(Mux(last_of_word, 0, offset + 1)),
                    ]
                with m.Elif(acting):
                    reply(0)
                with m.Elif(illegal | illegal_space):
                    fail(ErrorCode.ARGUMENT)
                with m.Elif(offset != 0):
                    fail(ErrorCode.LENGTH)
                with m.Else():
                    m.d.sync += [position.eq(FRAME_START), index.eq(0), acting.eq(1)]
                    m.next = "FETCH"

            with m.State("START"):
                with m.If(self.start_pc >= self._parameters.program_words):
                    fail(ErrorCode.ARGUMENT)
                with m.Else():
                    m.d.comb += self.start.eq(1)
                    reply(0)

            with m.State("SEND START"):
                m.d.comb += crc.start.eq(1)
                send(0, "SEND SEQUENCE", end=1)
            with m.State("SEND SEQUENCE"):
                send(sequence, "SEND OPCODE", covered=1)
            with m.State("SEND OPCODE"):
                send(Mux(failed, ERROR_OPCODE, opcode | REPLY), "SEND LENGTH LOW", covered=1)
            with m.State("SEND LENGTH LOW"):
                send(remaining[:8], "SEND LENGTH HIGH", covered=1)
            with m.State("SEND LENGTH HIGH"):
                send(remaining[8:], "SEND DATA", covered=1)

            with m.State("SEND DATA"):
                # The first byte of IDENTITY is sent with remaining = 16, the ninth with 8.
                digest = Signal(8)
                with m.Switch(remaining[:3]):
                    for place, value in enumerate(self._parameters.digest):
                        with m.Case(-place % 8):
                            m.d.comb += digest.eq(value)
                # Up to 8 of at most 16; in table cells, because the carry chain of a comparison would be in the longest path.
                from_artefact = ~remaining[4] & ~(remaining[3] & remaining[:3].any())
                value, valid = Signal(8), Signal()
                m.d.comb += valid.eq(remaining != 0)
                with m.If(failed):
                    m.d.comb += value.eq(code)
                with m.Elif(is_read):
                    m.d.comb += [value.eq(self.read_data), valid.eq(in_flight[-1] & (remaining != 0))]
                with m.Elif(opcode == LinkOpcode.STATUS):
                    m.d.comb += value.eq(status[:8])
                with m.Elif(from_artefact):
                    m.d.comb += value.eq(artefact[:8])
                with m.Else():
                    m.d.comb += value.eq(digest)

                # READ keeps the memory's pipeline full. When the encoder cannot take a byte, that one and the ones behind it are read again.
                with m.If(is_read & ~failed):
                    with m.If(in_flight[-1] & ~encoder.i.ready):
                        m.d.comb += step.eq(-READ_LATENCY)
                        m.d.sync += in_flight.eq(0)
                    with m.Else():
                        m.d.comb += [self.read_strobe.eq(1), step.eq(1)]
                m.d.comb += [
                    encoder.i.valid.eq(valid), encoder.i.payload.data.eq(value),
                    consume.eq(valid & encoder.i.ready), crc.valid.eq(consume), crc.data.eq(value),
                ]  # fmt: skip
                with m.If(consume):
                    m.d.sync += status.eq(status >> 8)
                    with m.If(from_artefact & (opcode == LinkOpcode.IDENTITY) & ~failed):
                        m.d.sync += artefact.eq(artefact.rotate_right(8))
                with m.If(remaining == 0):
                    m.d.sync += in_flight.eq(0)
                    m.next = "SEND CRC LOW"

            with m.State("SEND CRC LOW"):
                send(crc.crc[:8], "SEND CRC HIGH")
            with m.State("SEND CRC HIGH"):
                send(crc.crc[8:], "SEND END")
            with m.State("SEND END"):
                send(0, "IDLE", end=1)

        with m.If(self.write_valid & (space == Space.ARTEFACT)):
            m.d.sync += artefact.eq(Cat(artefact[8:], byte))
        return m
