# amaranth: UnusedElaboratable=no
"""UART receiver and transmitter: bytes, timing, glitches, framing errors, overrun, divisors that are not powers of two."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.sim import Simulator

from tritloom.hw.link.uart import MIN_DIVISOR, UartReceiver, UartTransmitter

EXTREMES = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x7F, 0xFE]


def simulate(design, *benches) -> None:
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("divisor", [4, 5, 7, 16, 33])
def test_loopback_with_pauses(divisor):
    noise = random.Random(divisor)
    data = EXTREMES + list(noise.randbytes(12))
    pauses = [noise.choice([0, 0, noise.randrange(3 * divisor)]) for _ in data]
    top = Module()
    top.submodules.transmitter = transmitter = UartTransmitter(divisor)
    top.submodules.receiver = receiver = UartReceiver(divisor)
    top.d.comb += receiver.rx.eq(transmitter.tx)
    got = []

    async def put(ctx):
        for byte, pause in zip(data, pauses, strict=True):
            for _ in range(pause):
                await ctx.tick()
            ctx.set(transmitter.i.payload, byte)
            ctx.set(transmitter.i.valid, 1)
            await ctx.tick().until(transmitter.i.ready)
            ctx.set(transmitter.i.valid, 0)

    async def get(ctx):
        while len(got) < len(data):
            ctx.set(receiver.o.ready, 1)
            (byte,) = await ctx.tick().sample(receiver.o.payload).until(receiver.o.valid)
            got.append(byte)
            ctx.set(receiver.o.ready, 0)
            for _ in range(noise.randrange(5 * divisor)):
                await ctx.tick()
                assert not ctx.get(receiver.overrun)

    simulate(top, put, get)
    assert got == data


@pytest.mark.parametrize("divisor", [4, 6, 9])
def test_transmitter_waveform_is_exact(divisor):
    """Every bit lasts exactly the divisor, back to back, and the line rests high."""
    dut = UartTransmitter(divisor)
    data = [0x00, 0xFF, 0xC3]
    line = []

    async def put(ctx):
        for byte in data:
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def record(ctx):
        assert ctx.get(dut.tx) == 1
        for _ in range(10 * divisor * len(data) + 2 * divisor):
            await ctx.tick()
            line.append(ctx.get(dut.tx))

    simulate(dut, put, record)
    bits = [bit for byte in data for bit in (0, *(byte >> place & 1 for place in range(8)), 1)] + [1, 1]
    assert line == [bit for bit in bits for _ in range(divisor)]


async def drive(ctx, line, byte: int, period: float, *, stop: int = 1) -> None:
    """A byte on the line with a bit period that need not be a whole number of clocks."""
    elapsed = 0
    for index, bit in enumerate((0, *(byte >> place & 1 for place in range(8)), stop)):
        ctx.set(line, bit)
        until = round((index + 1) * period)
        await ctx.tick().repeat(until - elapsed)
        elapsed = until


@pytest.mark.parametrize("error", [-0.03, 0.0, 0.03])
def test_receiver_tolerates_clock_error(error):
    """Three per cent either way, bytes behind each other."""
    dut = UartReceiver(16)
    got = []

    async def put(ctx):
        for byte in EXTREMES:
            await drive(ctx, dut.rx, byte, 16 * (1 + error))
        await ctx.tick().repeat(32)

    async def get(ctx):
        ctx.set(dut.o.ready, 1)
        async for _, _, valid, byte in ctx.tick().sample(dut.o.valid, dut.o.payload):
            if valid:
                got.append(byte)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(put)
    simulator.add_testbench(get, background=True)
    simulator.run()
    assert got == EXTREMES


def test_glitches_framing_errors_and_break():
    """A low pulse shorter than half a bit is no start; a byte without stop bit is dropped; after a break the line must rise first."""
    dut = UartReceiver(8)
    got = []

    async def put(ctx):
        ctx.set(dut.o.ready, 1)
        for length in (1, 2, 3):
            ctx.set(dut.rx, 0)
            await ctx.tick().repeat(length)
            ctx.set(dut.rx, 1)
            await ctx.tick().repeat(100)
        await drive(ctx, dut.rx, 0x42, 8)
        await drive(ctx, dut.rx, 0x99, 8, stop=0)
        ctx.set(dut.rx, 1)
        await ctx.tick().repeat(8)
        await drive(ctx, dut.rx, 0x43, 8)
        ctx.set(dut.rx, 0)
        await ctx.tick().repeat(1000)
        ctx.set(dut.rx, 1)
        await ctx.tick().repeat(20)
        await drive(ctx, dut.rx, 0x44, 8)
        await ctx.tick().repeat(20)

    async def get(ctx):
        async for _, _, valid, byte in ctx.tick().sample(dut.o.valid, dut.o.payload):
            if valid:
                got.append(byte)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(put)
    simulator.add_testbench(get, background=True)
    simulator.run()
    assert got == [0x42, 0x43, 0x44]


def test_overrun_drops_the_new_byte_and_says_so():
    dut = UartReceiver(4)
    strobes = []

    async def put(ctx):
        for byte in (1, 2, 3):
            await drive(ctx, dut.rx, byte, 4)
        await ctx.tick().repeat(8)
        assert (ctx.get(dut.o.valid), ctx.get(dut.o.payload)) == (1, 1)
        ctx.set(dut.o.ready, 1)
        await ctx.tick()
        assert not ctx.get(dut.o.valid)
        await drive(ctx, dut.rx, 4, 4)
        await ctx.tick().repeat(8)
        ctx.set(dut.o.ready, 0)
        await drive(ctx, dut.rx, 5, 4)
        await ctx.tick().repeat(8)
        assert (ctx.get(dut.o.valid), ctx.get(dut.o.payload)) == (1, 5)

    async def watch(ctx):
        async for _, _, overrun in ctx.tick().sample(dut.overrun):
            strobes.append(overrun)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(put)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert sum(strobes) == 2


@pytest.mark.parametrize("block", [UartReceiver, UartTransmitter])
def test_divisor_is_checked_and_blocks_export(block):
    assert block(MIN_DIVISOR).divisor == MIN_DIVISOR
    with pytest.raises(ValueError, match=r"^Divisor must be at least 4, not 3$"):
        block(3)
    with pytest.raises(TypeError, match=r"^Divisor must be an integer, not 4\.0$"):
        block(4.0)
    assert "module" in rtlil.convert(block(104), emit_src=False)
