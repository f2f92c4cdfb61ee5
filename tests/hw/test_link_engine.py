# amaranth: UnusedElaboratable=no
"""The link engine against a Python model of it, with random stalls on both sides and every kind of damage."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.errors import UserError
from tritloom.hw.arch.link import (
    END,
    ERROR_OPCODE,
    ESC,
    MAX_DATA,
    REPLY,
    ErrorCode,
    Frame,
    FrameReader,
    LinkOpcode,
    Space,
    State,
    crc16,
    encode,
)
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.link.engine import READ_LATENCY, LinkEngine

PARAMETERS = CoreParameters(
    rows=4, columns=7, weight_encoding="trit5", weight_words=5, activation_words=300, record_words=64, program_words=9
)
"""Word sizes 4, 6, 16, 1 and 8 bytes; no depth but one is a power of two."""

SPACES = {Space.PROGRAM: (9, 8), Space.WEIGHTS: (5, 6), Space.RECORDS: (64, 16), Space.ACTIVATIONS: (1200, 1), Space.ARTEFACT: (1, 8)}
STATUS = {"state": State.STOPPED, "fault": 0xC0, "pc": 0xDBC0, "cycles": 0xFEDCBA9876}


def u(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def write(space: int, address: int, data: bytes, sequence: int = 7) -> Frame:
    return Frame(sequence, LinkOpcode.WRITE, u(space, 1) + u(address, 4) + data)


def read(space: int, address: int, count: int, sequence: int = 8) -> Frame:
    return Frame(sequence, LinkOpcode.READ, u(space, 1) + u(address, 4) + u(count, 2))


def start(pc: int, limit: int, clear: int, sequence: int = 9) -> Frame:
    return Frame(sequence, LinkOpcode.START, u(pc, 2) + u(limit, 2) + u(clear, 1))


def body(sequence: int, opcode: int, data: bytes, *, length: int | None = None, flip: int = 0) -> bytes:
    """A body that need not be legal: any length field, CRC changed by ``flip``."""
    head = bytes([sequence, opcode]) + u(len(data) if length is None else length, 2) + data
    return head + u(crc16(head) ^ flip, 2)


def wire(raw: bytes) -> bytes:
    stuffed = raw.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + stuffed + b"\xc0"


class Model:
    """What the engine must do with a frame when it has nothing else to do."""

    def __init__(self, status: dict[str, int]) -> None:
        self.status = dict(status)
        self.memory = {space: bytearray(depth * size) for space, (depth, size) in SPACES.items()}
        self.memory[Space.ACTIVATIONS][:] = activations()
        self.starts: list[tuple[int, int, int]] = []
        self.aborts = 0

    def receive(self, data: bytes) -> list[Frame]:
        """Replies to what stands on the wire, frame after frame."""
        return [self.reply(raw) for raw in data.split(bytes([END])) if raw]

    def reply(self, raw: bytes) -> Frame:
        content, damaged, position = bytearray(), False, 0
        while position < len(raw):
            if raw[position] != ESC:
                content.append(raw[position])
            else:
                position += 1
                pair = raw[position : position + 1]
                damaged |= pair not in (b"\xdc", b"\xdd")
                content += {b"\xdc": b"\xc0", b"\xdd": b"\xdb"}.get(pair, b"")
            position += 1
        frame = bytes(content)
        if not 6 <= len(frame) <= MAX_DATA + 6:
            return Frame(frame[0] if frame else 0, ERROR_OPCODE, u(ErrorCode.LENGTH, 1))
        if damaged or crc16(frame[:-2]) != int.from_bytes(frame[-2:], "little"):
            return Frame(frame[0], ERROR_OPCODE, u(ErrorCode.CRC, 1))
        answer = self.execute(frame[1], int.from_bytes(frame[2:4], "little"), frame[4:-2])
        if isinstance(answer, ErrorCode):
            return Frame(frame[0], ERROR_OPCODE, u(answer, 1))
        return Frame(frame[0], frame[1] | REPLY, answer)

    def execute(self, opcode: int, length: int, data: bytes) -> bytes | ErrorCode:
        if length != len(data):
            return ErrorCode.LENGTH
        if opcode not in set(LinkOpcode):
            return ErrorCode.OPCODE
        right = {LinkOpcode.WRITE: len(data) >= 5, LinkOpcode.READ: len(data) == 7, LinkOpcode.START: len(data) == 5}
        if not right.get(LinkOpcode(opcode), not data):
            return ErrorCode.LENGTH
        if opcode in right and self.status["state"] == State.RUNNING:
            return ErrorCode.BUSY
        if opcode == LinkOpcode.IDENTITY:
            return PARAMETERS.digest + bytes(self.memory[Space.ARTEFACT])
        if opcode == LinkOpcode.STATUS:
            return u(self.status["state"], 1) + u(self.status["fault"], 1) + u(self.status["pc"], 2) + u(self.status["cycles"], 8)
        if opcode == LinkOpcode.ABORT:
            self.aborts += 1
            return b""
        if opcode == LinkOpcode.START:
            pc, limit, clear = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little"), data[4] != 0
            if pc >= PARAMETERS.program_words:
                return ErrorCode.ARGUMENT
            self.starts.append((pc, limit, int(clear)))
            return b""
        space, address = data[0], int.from_bytes(data[1:5], "little")
        if opcode == LinkOpcode.READ:
            count = int.from_bytes(data[5:7], "little")
            if space != Space.ACTIVATIONS or count > MAX_DATA or (count and address + count > PARAMETERS.activation_bytes):
                return ErrorCode.ARGUMENT
            return bytes(self.memory[Space.ACTIVATIONS][address : address + count])
        if space not in SPACES:
            return ErrorCode.ARGUMENT
        depth, size = SPACES[Space(space)]
        payload = data[5:]
        if payload and address + -(-len(payload) // size) > depth:
            # A word that is not complete is never counted, but any byte outside the memory is.
            return ErrorCode.ARGUMENT
        if len(payload) % size:
            return ErrorCode.LENGTH
        self.memory[Space(space)][address * size : address * size + len(payload)] = payload
        return b""


def activations() -> bytes:
    return bytes((7 * index + 0xB0) & 0xFF for index in range(PARAMETERS.activation_bytes))


class Harness(wiring.Component):
    """The engine with a stand-in for the core around it: activations that can be read, a host that takes ``ready_level`` of 256 bytes.

    ``events`` is what a testbench has to look at in a clock: bit 0 a write, bit 1 a start, bit 2 an abort, bit 3 a byte sent.
    """

    def __init__(self, *, ready_level: int) -> None:
        self.engine = LinkEngine(PARAMETERS)
        self._ready_level = ready_level
        super().__init__(
            {"reset": In(1), "rx": In(stream.Signature(8)), "events": Out(4), "written": Out(44), "started": Out(33), "sent": Out(8)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.engine = engine = self.engine
        wiring.connect(m, wiring.flipped(self.rx), engine.rx)
        m.submodules.activations = store = memory.Memory(shape=8, depth=PARAMETERS.activation_bytes, init=list(activations()))
        write_port, read_port = store.write_port(), store.read_port()
        delayed = [Signal(8) for _ in range(READ_LATENCY - 1)]
        level = Signal(16, init=0xACE1)
        m.d.comb += [
            write_port.en.eq(engine.write_valid & (engine.write_space == Space.ACTIVATIONS)),
            write_port.addr.eq(engine.write_address), write_port.data.eq(engine.write_data), read_port.addr.eq(engine.read_address),
            engine.tx.ready.eq(level[8:] < self._ready_level),
            self.events.eq(Cat(engine.write_valid, engine.start, engine.abort, engine.tx.valid & engine.tx.ready)),
            self.written.eq(Cat(engine.write_commit, engine.write_space, engine.write_data, engine.write_address)),
            self.started.eq(Cat(engine.start_clear, engine.start_limit, engine.start_pc)), self.sent.eq(engine.tx.payload),
            engine.read_data.eq(delayed[-1]),
        ]  # fmt: skip
        m.d.sync += level.eq(level * 25173 + 13849)
        # A byte is there for one clock only.
        strobed = Signal()
        m.d.sync += [strobed.eq(engine.read_strobe), delayed[0].eq(Mux(strobed, read_port.data, level))]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(delayed)]
        return ResetInserter(self.reset)(m)


class Bench:
    """The harness, a record of what the engine does to the core, and the host's two byte streams."""

    def __init__(self, *, status: dict[str, int] = STATUS, seed: int = 0, rx_gap: float = 0.0, tx_ready: float = 1.0) -> None:
        self.dut = Harness(ready_level=round(256 * tx_ready))
        self.random = random.Random(seed)
        self.rx_gap, self.tx_ready = rx_gap, tx_ready
        self.model = Model(status)
        self.memory = Model(status).memory
        self.starts: list[tuple[int, int, int]] = []
        self.aborts = 0
        self.sent = bytearray()
        self.reader = FrameReader()

    async def watch(self, ctx) -> None:
        for name, value in self.model.status.items():
            ctx.set(getattr(self.dut.engine, name), value)
        word = bytearray()
        async for _, _, events, written, started, sent in ctx.tick().sample(
            self.dut.events, self.dut.written, self.dut.started, self.dut.sent
        ):
            if events & 1:
                commit, space, data, address = written & 1, Space(written >> 1 & 7), written >> 4 & 0xFF, written >> 12
                depth, size = SPACES[space]
                assert address < depth, f"write outside of {space.name}: {address}"
                word.append(data)
                assert commit == (len(word) == size), f"byte {len(word)} of a {size} byte word: commit is {commit}"
                if commit:
                    self.memory[space][address * size : (address + 1) * size] = word
                    word.clear()
            if events & 2:
                self.starts.append((started >> 17, started >> 1 & 0xFFFF, started & 1))
            self.aborts += events >> 2 & 1
            if events & 8:
                self.sent.append(sent)

    async def send(self, ctx, data: bytes) -> None:
        for byte in data:
            while self.random.random() < self.rx_gap:
                await ctx.tick()
            ctx.set(self.dut.rx.payload, byte)
            ctx.set(self.dut.rx.valid, 1)
            await ctx.tick()
            ctx.set(self.dut.rx.valid, 0)

    def replies(self) -> list[Frame]:
        frames = list(self.reader.feed(bytes(self.sent)))
        self.sent.clear()
        assert self.reader.damaged == 0
        return frames

    async def ask(self, ctx, data: bytes) -> list[Frame]:
        """Send short frames; replies until nothing has been sent for longer than the engine can be busy with one of them."""
        await self.send(ctx, data)
        before = -1
        while before != len(self.sent):
            before = len(self.sent)
            await ctx.tick().repeat(120 + round(20 / self.tx_ready))
        return self.replies()

    async def agree(self, ctx, data: bytes) -> None:
        """One frame, and exactly the model's reply to it, within a limit that covers both walks of the longest frame."""
        expected = self.model.receive(data)
        size = sum(len(encode(reply)) for reply in expected)
        await self.send(ctx, data)
        for _ in range(400):
            await ctx.tick().repeat(16)
            if len(self.sent) >= size:
                break
        await ctx.tick().repeat(round(40 / self.tx_ready))
        got = self.replies()
        assert got == expected, f"{data[:40].hex()}: got {got}, model says {expected}"

    def check(self) -> None:
        assert self.memory == self.model.memory
        assert self.starts == self.model.starts
        assert self.aborts == self.model.aborts

    def run(self, host: Callable) -> None:
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(self.watch, background=True)
        simulator.add_testbench(host)
        simulator.run()


@pytest.mark.parametrize("seed", range(2))
def test_every_opcode_and_limit(seed):
    bench = Bench(seed=seed, rx_gap=0.3 * seed, tx_ready=1.0 - 0.5 * seed)
    noise = random.Random(seed).randbytes

    async def host(ctx):
        frames = [
            Frame(0xC0, LinkOpcode.IDENTITY), write(Space.ARTEFACT, 0, b"\xc0\xdb\xdc\xdd\x00\x01\xfe\xff"), Frame(0xDB, LinkOpcode.IDENTITY),
            Frame(1, LinkOpcode.IDENTITY), Frame(0xFF, LinkOpcode.STATUS), Frame(0, LinkOpcode.ABORT), start(0, 0, 0), start(8, 0xFFFF, 1), start(9, 0, 0),
            start(0x1FF, 1, 0), start(1, 0xC0DB, 0x80), start(0xFFFF, 1, 1),
        ]  # fmt: skip
        for space, (depth, size) in SPACES.items():
            frames += [
                write(space, 0, noise(size)), write(space, depth - 1, noise(size)), write(space, depth, noise(size)), write(space, depth - 1, noise(2 * size)),
                write(space, 1 << 31, noise(size)), write(space, 0xFFFFFFFF, noise(2 * size)), write(space, 1 << 16, noise(size)), write(space, 0, b""),
                write(space, 0xFFFFFFFF, b""), write(space, 0, noise(size + 1)), write(space, 0, noise(2 * size - 1)),
            ]  # fmt: skip
        frames += [
            write(Space.RECORDS, 1, noise(63 * 16)), write(Space.RECORDS, 2, noise(63 * 16)), write(Space.ACTIVATIONS, 1, noise(1011)),
            write(Space.TABLES, 0, noise(4)), write(6, 0, b""), write(0x83, 0, b"1"), write(255, 0, noise(8)),
            read(Space.ACTIVATIONS, 0, 0), read(Space.ACTIVATIONS, 5000, 0), read(Space.ACTIVATIONS, 1199, 1), read(Space.ACTIVATIONS, 1200, 1),
            read(Space.ACTIVATIONS, 1199, 2), read(Space.ACTIVATIONS, 184, 1016), read(Space.ACTIVATIONS, 185, 1016), read(Space.ACTIVATIONS, 0, 1017),
            read(Space.ACTIVATIONS, 0, 1024), read(Space.ACTIVATIONS, 0, 0xFF01), read(Space.ACTIVATIONS, 0xFFFFFFFF, 1), read(Space.ACTIVATIONS, 0xFFFFFFFF, 4),
            read(Space.PROGRAM, 0, 4), read(Space.WEIGHTS, 0, 0), read(Space.ARTEFACT, 0, 8), read(0x13, 0, 1),
        ]  # fmt: skip
        for frame in frames:
            await bench.agree(ctx, encode(frame))
        await bench.agree(ctx, encode(Frame(0x14, LinkOpcode.IDENTITY, bytes(MAX_DATA))))
        for opcode in (0, 7, 0x81, 0x83, 0xC3, 0xFF):
            await bench.agree(ctx, encode(Frame(3, opcode, b"12345")))
        for opcode in LinkOpcode:
            for size in (0, 1, 4, 5, 6, 7, 8, 261, 263):
                if opcode != LinkOpcode.WRITE or size < 5:
                    await bench.agree(ctx, encode(Frame(4, opcode, bytes(size))))

    bench.run(host)
    bench.check()


def test_running_core_refuses_and_aborts():
    bench = Bench(status={**STATUS, "state": State.RUNNING})

    async def host(ctx):
        for frame in (
            write(Space.ACTIVATIONS, 0, b"1234"), write(Space.ACTIVATIONS, 1 << 30, b"1"), write(99, 0, b"1"), read(Space.ACTIVATIONS, 0, 4), start(0, 0, 1),
            Frame(1, LinkOpcode.STATUS), Frame(2, LinkOpcode.IDENTITY), Frame(3, LinkOpcode.ABORT), Frame(4, LinkOpcode.WRITE, b"12"), Frame(5, 0x33),
        ):  # fmt: skip
            await bench.agree(ctx, encode(frame))

    bench.run(host)
    bench.check()
    assert bench.aborts == 1 and not bench.starts


def test_status_is_one_moment():
    """The cycle counter moves on while the reply is sent; the reply must hold one value of it."""
    bench = Bench(status={**STATUS, "state": State.RUNNING}, tx_ready=0.3)

    async def host(ctx):
        async def count():
            for step in range(200):
                ctx.set(bench.dut.engine.cycles, 0x0101010101 * (step + 1))
                await ctx.tick()

        await bench.send(ctx, encode(Frame(1, LinkOpcode.STATUS)))
        await count()
        (reply,) = await bench.ask(ctx, b"")
        cycles = int.from_bytes(reply.data[4:], "little")
        assert cycles % 0x0101010101 == 0 and cycles > 0

    bench.run(host)


DAMAGED = {
    "bad CRC": wire(body(5, LinkOpcode.ABORT, b"", flip=0x0100)),
    "bad CRC low": wire(body(5, LinkOpcode.ABORT, b"", flip=1)),
    "length too small": wire(body(6, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + b"abc", length=7)),
    "length too large": wire(body(6, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + b"abc", length=9)),
    "length wrong by 256": wire(body(6, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + b"abc", length=8 + 256)),
    "length wrong in its highest bit": wire(body(6, LinkOpcode.ABORT, b"", length=0x8000)),
    "one byte": wire(b"\x11"),
    "five bytes": wire(body(0x12, LinkOpcode.ABORT, b"")[:5]),
    "cut": wire(body(0x13, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + bytes(40))[:-1]),
    "one too long": wire(body(0x15, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + bytes(MAX_DATA - 4))),
    "as long as the buffer": wire(body(0x16, LinkOpcode.WRITE, u(3, 1) + u(0, 4) + bytes(1024 - 11))),
    "twice the buffer": wire(body(0x17, LinkOpcode.ABORT, b"")[:-2] + bytes(2042) + body(0x17, LinkOpcode.ABORT, b"")),
    "escape before END": wire(body(0x18, LinkOpcode.ABORT, b""))[:-1] + bytes([ESC, END]),
    "escape alone": bytes([END, ESC, END]),
    "illegal escape inside": wire(body(0x19, LinkOpcode.ABORT, b""))[:3] + bytes([ESC, 0]) + wire(body(0x19, LinkOpcode.ABORT, b""))[3:],
    "two escapes": bytes([END]) + bytes([ESC, ESC]) + wire(body(0x1A, LinkOpcode.ABORT, b""))[1:],
    "empty": bytes([END] * 5),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_frame(name):
    """Each kind of damage gets its own answer, changes nothing, and the good frame directly behind it is executed."""
    bench = Bench(seed=3)
    good = encode(write(Space.ACTIVATIONS, 17, b"\xc0\xdb!"))

    async def host(ctx):
        await bench.agree(ctx, DAMAGED[name])
        await bench.agree(ctx, good)
        expected = bench.model.receive(DAMAGED[name]) + bench.model.receive(good)
        assert await bench.ask(ctx, DAMAGED[name] + good) == expected
        await bench.agree(ctx, encode(read(Space.ACTIVATIONS, 15, 6)))

    bench.run(host)
    bench.check()


@pytest.mark.parametrize("tx_ready", [1.0, 0.05])
@pytest.mark.parametrize("kind", ["random", "END", "ESC", "short frames", "zeros"])
def test_garbage_then_good_frame_without_pause(kind, tx_ready):
    """The good frame is answered exactly once, however busy the engine is with error replies; garbage changes nothing."""
    bench = Bench(seed=5, tx_ready=tx_ready)
    noise = random.Random(11)
    garbage = {
        "random": lambda size: noise.randbytes(size),
        "END": lambda size: bytes([END] * size),
        "ESC": lambda size: bytes([ESC] * size),
        "short frames": lambda size: bytes([3, END] * (size // 2) + [3]),
        "zeros": lambda size: bytes(size),
    }[kind]

    async def host(ctx):
        for size, sequence in ((1, 1), (2, 2), (7, 3), (40, 4), (301, 5), (10_000 if tx_ready == 1 else 1500, 6)):
            frame = write(Space.ACTIVATIONS, 3 * sequence, bytes([sequence, 0xC0, 0xDB]), sequence=0xA0 + sequence)
            expected = bench.model.receive(encode(frame))
            replies = await bench.ask(ctx, garbage(size) + encode(frame))
            assert [reply for reply in replies if reply.opcode != ERROR_OPCODE] == expected
            assert all(reply.data[0] in (ErrorCode.CRC, ErrorCode.LENGTH) for reply in replies if reply.opcode == ERROR_OPCODE)
            assert (len(replies) > 1) == (kind != "END")

    bench.run(host)
    bench.check()


def test_flood_of_good_frames():
    """Frames behind each other without pause: each is executed and answered or reported lost; none is executed in part."""
    bench = Bench(seed=9, tx_ready=0.4)
    frames = [write(Space.ACTIVATIONS, 4 * index, bytes([index] * 4), sequence=index) for index in range(1, 60)]

    async def host(ctx):
        replies = await bench.ask(ctx, b"".join(encode(frame) for frame in frames))
        done = [reply.sequence for reply in replies if reply.opcode == LinkOpcode.WRITE | REPLY]
        assert done[0] == 1 and done == sorted(set(done)) and len(done) > 5
        assert {reply.data[0] for reply in replies if reply.opcode == ERROR_OPCODE} == {ErrorCode.OVERRUN}
        for frame in frames:
            if frame.sequence in done:
                bench.model.receive(encode(frame))
        await bench.agree(ctx, encode(read(Space.ACTIVATIONS, 0, 256)))

    bench.run(host)
    bench.check()


def test_slow_transmitter_loses_nothing():
    """Replies full of escaped bytes through a transmitter that is rarely ready."""
    bench = Bench(seed=2, tx_ready=0.1)

    async def host(ctx):
        await bench.agree(ctx, encode(write(Space.ACTIVATIONS, 0, bytes([END, ESC, 0xDC, 0xDD] * 30))))
        for count in (1, 2, 3, 4, 5, 120):
            expected = bench.model.receive(encode(read(Space.ACTIVATIONS, 0, count)))
            assert await bench.ask(ctx, encode(read(Space.ACTIVATIONS, 0, count))) == expected

    bench.run(host)


def test_read_is_one_byte_a_clock():
    bench = Bench()

    async def host(ctx):
        await bench.agree(ctx, encode(write(Space.ACTIVATIONS, 0, bytes(1000))))
        await bench.send(ctx, encode(read(Space.ACTIVATIONS, 0, 1000)))
        await ctx.tick().repeat(2 * 1000 + 60)  # check walk, reply
        assert len(bench.sent) == 1008

    bench.run(host)


@pytest.mark.parametrize("cut", [1, 4, 9, 20, 60, 75, 100, 120, 130])
def test_reset_in_the_middle(cut):
    """A reset anywhere in a frame, in its execution or in its reply leaves no trace; the rest of the frame is garbage."""
    bench = Bench(seed=cut)
    first = encode(write(Space.ACTIVATIONS, 0, bytes([END] * 20)))

    async def host(ctx):
        await bench.send(ctx, first[:cut])
        await ctx.tick().repeat(max(1, cut - len(first)))
        ctx.set(bench.dut.reset, 1)
        await ctx.tick()
        ctx.set(bench.dut.reset, 0)
        bench.sent.clear()
        replies = await bench.ask(ctx, first[cut:])
        assert [reply.opcode for reply in replies] == [LinkOpcode.WRITE | REPLY] * (cut == 1) + [ERROR_OPCODE] * (1 < cut < len(first) - 1)
        assert await bench.ask(ctx, encode(Frame(0x42, LinkOpcode.IDENTITY))) == [
            Frame(0x42, LinkOpcode.IDENTITY | REPLY, PARAMETERS.digest + bytes(8))
        ]

    bench.run(host)


def addresses(space: int) -> st.SearchStrategy[int]:
    depth = SPACES.get(Space(space), (8, 1))[0] if space in set(Space) else 8
    return st.one_of(st.integers(0, depth + 1), st.integers(max(0, depth - 3), depth), st.integers(0, 2**32 - 1))


@st.composite
def bodies(draw) -> bytes:
    """Mostly legal bodies with arguments near the limits, and some damage."""
    opcode = draw(st.sampled_from([*LinkOpcode, LinkOpcode.WRITE, LinkOpcode.WRITE, LinkOpcode.READ]))
    data = b""
    if opcode in (LinkOpcode.WRITE, LinkOpcode.READ):
        space = draw(st.sampled_from([*Space, Space.ACTIVATIONS, 9]))
        data = u(space, 1) + u(draw(addresses(space)), 4)
        if opcode == LinkOpcode.READ:
            data += u(draw(st.one_of(st.integers(0, 40), st.integers(1010, 1030), st.integers(0, 65535))), 2)
        else:
            size = SPACES.get(Space(space), (1, 1))[1] if space in set(Space) else 1
            words = draw(st.integers(0, 6))
            data += draw(st.binary(min_size=words * size, max_size=words * size + draw(st.sampled_from([0, 0, 0, 1]))))
    elif opcode == LinkOpcode.START:
        data = u(draw(st.integers(0, 12)), 2) + draw(st.binary(min_size=3, max_size=3))
    raw = body(draw(st.integers(0, 255)), opcode, data)
    damage = draw(st.sampled_from(["none"] * 6 + ["flip", "cut", "grow", "opcode"]))
    if damage == "flip":
        place = draw(st.integers(0, 8 * len(raw) - 1))
        return bytes(byte ^ ((1 << place % 8) if index == place // 8 else 0) for index, byte in enumerate(raw))
    if damage == "cut":
        return raw[: draw(st.integers(0, len(raw) - 1))]
    if damage == "grow":
        return raw + draw(st.binary(min_size=1, max_size=4))
    if damage == "opcode":
        return body(raw[0], draw(st.integers(0, 255)), data)
    return raw


@settings(deadline=None, max_examples=20)
@given(st.lists(bodies(), min_size=1, max_size=20), st.integers(0, 2**32), st.sampled_from([0.0, 0.5]), st.sampled_from([1.0, 0.6]))
def test_random_frames_match_the_model(raws, seed, rx_gap, tx_ready):
    bench = Bench(seed=seed, rx_gap=rx_gap, tx_ready=tx_ready)

    async def host(ctx):
        for raw in raws:
            await bench.agree(ctx, wire(raw))

    bench.run(host)
    bench.check()


@pytest.mark.parametrize("fields", [{}, {"rows": 4, "columns": 1, "weight_words": 1, "activation_words": 1, "record_words": 1, "program_words": 1},
                                    {"rows": 64, "columns": 63, "weight_words": 1 << 22, "activation_words": 1 << 22, "program_words": 1 << 22}])  # fmt: skip
def test_exports(fields):
    text = rtlil.convert(LinkEngine(CoreParameters(**fields)), emit_src=False)
    assert all(f"\\{port}" in text for port in ("rx__payload", "tx__ready", "write_commit", "read_strobe", "cycles"))


def test_longest_weight_word_is_what_a_frame_carries():
    """64 x 64 trits of two bits make 1024 bytes; one column less fits."""
    assert LinkEngine(CoreParameters(rows=64, columns=63)).parameters.weight_word_bytes == 1008
    with pytest.raises(UserError, match=r"^the weight word must be at most 1011 bytes \(what a link frame carries\), not 1024$"):
        CoreParameters(rows=64, columns=64)
    with pytest.raises(TypeError, match=r"^Parameters must be CoreParameters, not 3$"):
        LinkEngine(3)
