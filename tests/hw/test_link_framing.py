"""Byte stuffing, CRC and frame receiver on their own."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from tritloom.hw.arch.link import END, ESC, ESC_END, ESC_ESC, MAX_DATA, ErrorCode, Frame, LinkOpcode, crc16, encode
from tritloom.hw.link.framing import BUFFER_DEPTH, FRAME_START, Crc16, FrameReceiver, SlipDecoder, SlipEncoder


def simulate(dut, *benches) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench)
    simulator.run()


def stuff(data: bytes) -> bytes:
    return data.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")


def test_crc_is_the_one_of_the_host():
    dut = Crc16()
    noise = random.Random(1)
    messages = [b"123456789", b"", b"\x00", b"\xff\xff", noise.randbytes(40)]

    async def bench(ctx):
        for message in messages:
            ctx.set(dut.start, 1)
            ctx.set(dut.valid, noise.randrange(2))  # has no effect
            await ctx.tick()
            ctx.set(dut.start, 0)
            for byte in message:
                ctx.set(dut.valid, 0)
                ctx.set(dut.data, noise.randrange(256))
                for _ in range(noise.randrange(3)):
                    await ctx.tick()
                ctx.set(dut.valid, 1)
                ctx.set(dut.data, byte)
                await ctx.tick()
            assert ctx.get(dut.crc) == crc16(message)

    simulate(dut, bench)
    assert crc16(messages[0]) == 0x29B1


@pytest.mark.parametrize("seed", range(3))
def test_encoder_stuffs_every_byte_with_stalls(seed):
    """All byte values and all pairs of special ones, frames of several lengths; without stalls exactly a byte a clock."""
    dut = SlipEncoder()
    noise = random.Random(seed)
    special = [END, ESC, ESC_END, ESC_ESC, 0]
    bodies = [
        bytes(range(256)),
        bytes(b for first in special for second in special for b in (first, second)),
        b"",
        bytes([END]),
        noise.randbytes(50),
    ]
    expected = b"".join(stuff(body) + bytes([END]) for body in bodies)
    got = bytearray()
    clocks = 0

    async def put(ctx):
        for byte in [item for body in bodies for item in (*body, None)]:
            while seed and noise.random() < 0.3:
                await ctx.tick()
            ctx.set(dut.i.payload.data, noise.randrange(256) if byte is None else byte)
            ctx.set(dut.i.payload.end, byte is None)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)

    async def get(ctx):
        nonlocal clocks
        held = None
        while len(got) < len(expected):
            ctx.set(dut.o.ready, seed == 0 or noise.random() < 0.6)
            _, _, valid, ready, byte = await ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload)
            assert held is None or (valid and byte == held), "output changed while it was not ready"
            held = byte if valid and not ready else None
            clocks += 1
            if valid and ready:
                got.append(byte)

    simulate(dut, put, get)
    assert got == expected
    assert seed or clocks == len(expected) + 2


def test_decoder_events():
    dut = SlipDecoder()
    wire = bytes([1, ESC, ESC_END, ESC, ESC_ESC, ESC_END, ESC_ESC, END, ESC, END, ESC, 7, ESC, ESC, 2])
    expected = [1, None, END, None, ESC, ESC_END, ESC_ESC, "end", None, "damaged end", None, "damaged", None, "damaged", 2]
    noise = random.Random(0)

    async def bench(ctx):
        for byte, event in zip(wire, expected, strict=True):
            ctx.set(dut.rx_valid, 0)
            for _ in range(noise.randrange(3)):
                ctx.set(dut.rx_data, noise.choice(wire))
                await ctx.delay(1e-8)
                assert not (ctx.get(dut.end) or ctx.get(dut.data_valid) or ctx.get(dut.damaged))
                await ctx.tick()
            ctx.set(dut.rx_valid, 1)
            ctx.set(dut.rx_data, byte)
            await ctx.delay(1e-8)
            marks = " ".join(name for name in ("damaged", "end") if ctx.get(getattr(dut, name)))
            got = marks or (ctx.get(dut.data) if ctx.get(dut.data_valid) else None)
            assert got == event, f"byte {byte:#x}: {got}, expected {event}"
            await ctx.tick()

    simulate(dut, bench)


def test_receiver_holds_one_frame_and_reports_the_rest():
    """Longest frame in the buffer, a second one lost while it is held, damage meanwhile, and a third one after the release."""
    dut = FrameReceiver()
    noise = random.Random(4)
    longest = Frame(0x21, LinkOpcode.WRITE, noise.randbytes(MAX_DATA))

    async def send(ctx, data: bytes) -> None:
        for byte in data:
            ctx.set(dut.rx_valid, 1)
            ctx.set(dut.rx_data, byte)
            await ctx.tick()
        ctx.set(dut.rx_valid, 0)
        await ctx.tick()

    async def contents(ctx, count: int) -> bytes:
        body = bytearray()
        for place in range(count):
            ctx.set(dut.address, (FRAME_START + place) % BUFFER_DEPTH)
            await ctx.tick().repeat(2)
            body.append(ctx.get(dut.byte))
        return bytes(body)

    async def strobe(ctx, signal) -> None:
        ctx.set(signal, 1)
        await ctx.tick()
        ctx.set(signal, 0)

    def body(frame: Frame) -> bytes:
        return bytes([frame.sequence, frame.opcode]) + len(frame.data).to_bytes(2, "little") + frame.data

    def error(ctx) -> tuple[int, int, int]:
        return ctx.get(dut.error), ctx.get(dut.error_code), ctx.get(dut.error_sequence)

    async def bench(ctx):
        await send(ctx, encode(longest))
        assert (ctx.get(dut.full), ctx.get(dut.length), ctx.get(dut.error)) == (1, MAX_DATA, 0)
        await send(ctx, encode(Frame(0x22, LinkOpcode.WRITE, bytes(20))))
        assert error(ctx) == (1, ErrorCode.OVERRUN, 0x22)
        await strobe(ctx, dut.error_taken)
        assert not ctx.get(dut.error)
        await send(ctx, encode(Frame(0x23, LinkOpcode.WRITE, bytes(20)))[:-3] + bytes([END]))
        assert error(ctx) == (1, ErrorCode.CRC, 0x23)
        assert (ctx.get(dut.full), ctx.get(dut.length)) == (1, MAX_DATA)
        assert await contents(ctx, 4 + MAX_DATA) == body(longest)

        # Released in the middle of a frame: what is missing at its beginning makes all of it lost.
        cut = encode(Frame(0x24, LinkOpcode.WRITE, bytes(20)))
        await send(ctx, cut[:9])
        await strobe(ctx, dut.release)
        await send(ctx, cut[9:])
        assert (ctx.get(dut.full), *error(ctx)) == (0, 1, ErrorCode.OVERRUN, 0x24)
        third = Frame(0x25, LinkOpcode.READ, bytes([END, ESC]))
        await send(ctx, encode(third))
        assert (ctx.get(dut.full), ctx.get(dut.length)) == (1, 2)
        assert await contents(ctx, 6) == body(third)

    simulate(dut, bench)


@pytest.mark.parametrize("block", [Crc16, SlipDecoder, SlipEncoder, FrameReceiver])
def test_exports(block):
    assert "module" in rtlil.convert(block(), emit_src=False)
