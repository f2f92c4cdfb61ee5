# amaranth: UnusedElaboratable=no
"""Memories: timing, initial contents, byte lanes, both encodings, and the loader."""

import re

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Fragment
from amaranth.vendor import SiliconBluePlatform

from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters, stored_lanes
from tritloom.hw.arch.reduction import REDUCTIONS, row_delay
from tritloom.hw.arch.trits import decode_trit5, encode_trits
from tritloom.hw.memory import READ_LATENCY, ActivationMemory, ByteLoader, Trit5Decoder, WeightMemory, WordMemory
from tritloom.hw.memory.weight import SinglePortMemory

CODES = {0: 0b00, 1: 0b01, -1: 0b11}


async def write_word(ctx, memory, address: int, word: int) -> None:
    ctx.set(memory.write_enable, 1)
    ctx.set(memory.write_address, address)
    for lane in range(memory.parameters.weight_word_bytes if isinstance(memory, WeightMemory) else len(memory.read_data) // 8):
        ctx.set(memory.write_lane, lane)
        ctx.set(memory.write_byte, word >> 8 * lane & 0xFF)
        await ctx.tick()
    ctx.set(memory.write_enable, 0)


class _Ice40(SiliconBluePlatform):
    device, package, resources, connectors, toolchain = "iCE40UP5K", "SG48", [], [], "IceStorm"


@pytest.mark.parametrize("kind,platform", [(WordMemory, None), (WordMemory, _Ice40()), (SinglePortMemory, None)])
@pytest.mark.parametrize("width,depth", [(8, 1), (40, 5), (64, 8)])
def test_word_memory_reads_two_clocks_later(simulate, kind, platform, width, depth):
    rng = np.random.default_rng(width)
    words = [int.from_bytes(rng.bytes(8), "little") % (1 << width) for _ in range(depth)]
    memory = kind(width=width, depth=depth, init=words[: depth // 2])

    async def bench(ctx) -> None:
        for address in range(depth // 2, depth):
            await write_word(ctx, memory, address, words[address])
        addresses = [*range(depth), *rng.integers(0, depth, 10).tolist()]
        for clock in range(len(addresses) + READ_LATENCY):
            if clock >= READ_LATENCY:
                assert ctx.get(memory.read_data) == words[addresses[clock - READ_LATENCY]], clock
            ctx.set(memory.read_address, addresses[min(clock, len(addresses) - 1)])
            await ctx.tick()

    simulate(Fragment.get(memory, platform), bench)


@pytest.mark.parametrize("width", [8, 64, 72, 80, 144, 152, 232])
def test_nine_bytes_fit_eight_lanes_of_nine_bits(simulate, width):
    """Words written over others, and words that were there from the start."""
    rng = np.random.default_rng(width)
    words = [int.from_bytes(rng.bytes(width // 8), "little") for _ in range(4)]
    memory = WordMemory(width=width, depth=4, init=[words[0], words[2], words[1]], ninth_bits=True)
    count = width // 8
    assert stored_lanes(count, ninth_bits=True) == count - count // 9

    async def bench(ctx) -> None:
        for address in (1, 3, 2):
            await write_word(ctx, memory, address, words[address])
        for address in range(4):
            ctx.set(memory.read_address, address)
            await ctx.tick().repeat(READ_LATENCY)
            assert ctx.get(memory.read_data) == words[address], address

    simulate(memory, bench)


@pytest.mark.parametrize("platform", [None, _Ice40()])
@pytest.mark.parametrize("rows,depth", [(4, 1), (8, 7)])
def test_activation_memory_writes_single_bytes(simulate, rows, depth, platform):
    rng = np.random.default_rng(rows)
    expected = rng.integers(0, 256, (depth, rows))
    init = [int.from_bytes(bytes(word.tolist()), "little") for word in expected]
    memory = ActivationMemory(rows=rows, depth=depth, init=init)

    async def bench(ctx) -> None:
        for _ in range(40):
            word, mask, values = int(rng.integers(depth)), rng.integers(0, 2, rows), rng.integers(0, 256, rows)
            ctx.set(memory.write, {"address": word, "mask": int((mask << np.arange(rows)).sum()), "lanes": values.tolist()})
            await ctx.tick()
            expected[word] = np.where(mask, values, expected[word])
        ctx.set(memory.write.mask, 0)
        for word in range(depth):
            ctx.set(memory.read_address, word)
            await ctx.tick().repeat(READ_LATENCY)
            assert [ctx.get(memory.read_data[lane]) for lane in range(rows)] == expected[word].tolist()

    simulate(Fragment.get(memory, platform), bench)


def test_trit5_decoder_equals_formula_for_every_byte(simulate):
    decoder = Trit5Decoder()

    async def bench(ctx) -> None:
        for byte in range(256):
            ctx.set(decoder.byte, byte)
            want = [CODES[trit] for trit in decode_trit5(np.array([[byte]], np.uint8), 5)[0].tolist()]
            assert [ctx.get(decoder.trits[index]) for index in range(5)] == want, byte

    simulate(decoder, bench, clocked=False)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("storage", ["block", "spram"])
@pytest.mark.parametrize("encoding,rows,columns", [("trit2", 4, 3), ("trit5", 4, 3), ("trit2", 16, 2), ("trit5", 16, 2), ("trit2", 8, 1)])
def test_weight_memory_gives_trit_codes_when_each_row_needs_them(simulate, encoding, rows, columns, storage, reduction):
    parameters = CoreParameters(
        rows=rows, columns=columns, weight_words=6, weight_encoding=encoding, weight_storage=storage, reduction=reduction
    )
    trits = np.random.default_rng(3).integers(-1, 2, (6, rows * columns))
    words = [int.from_bytes(bytes(word), "little") for word in encode_trits(trits, encoding)]
    memory = WeightMemory(parameters, init=words[:3])

    async def bench(ctx) -> None:
        for address in range(3, 6):
            await write_word(ctx, memory, address, words[address])
        for clock in range(6 + READ_LATENCY + 5):
            for row in range(rows):
                address = clock - READ_LATENCY - row_delay(row, rows, reduction)
                if 0 <= address < 6:
                    for column in range(columns):
                        index = column * rows + row
                        assert ctx.get(memory.trits[index]) == CODES[int(trits[address, index])], (clock, row, column)
            ctx.set(memory.read_address, min(clock, 5))
            await ctx.tick()

    simulate(memory, bench)


def test_loader_counts_the_bytes_of_each_word(simulate):
    widths = {Space.PROGRAM: 4, Space.WEIGHTS: 7, Space.ACTIVATIONS: 1}
    loader = ByteLoader(spaces=widths, lane_bits=3)
    rng = np.random.default_rng(5)

    async def bench(ctx) -> None:
        for _ in range(12):
            space = list(widths)[rng.integers(3)]
            data, address = rng.bytes(widths[space]), int(rng.integers(1 << 32))
            for index, byte in enumerate(data):
                ctx.set(loader.valid, 1)
                ctx.set(loader.space, space)
                ctx.set(loader.address, address)
                ctx.set(loader.byte, byte)
                ctx.set(loader.commit, index == len(data) - 1)
                await ctx.tick()
                assert ctx.get(loader.enables) == 1 << list(widths).index(space)
                assert [ctx.get(port) for port in (loader.write_address, loader.write_lane, loader.write_byte)] == [address, index, byte]
                ctx.set(loader.valid, 0)
                if rng.random() < 0.3:  # the link may pause inside a word
                    await ctx.tick().repeat(2)
                    assert ctx.get(loader.enables) == 0

    simulate(loader, bench)


def test_single_port_memory_is_made_of_the_parts_own_ram_on_ice40_only():
    design = {platform: rtlil.convert(SinglePortMemory(width=40, depth=16384), platform=platform) for platform in (None, _Ice40())}
    assert [text.count("SB_SPRAM256KA") > 0 for text in design.values()] == [False, True]
    assert list(design.values())[1].count("cell \\SB_SPRAM256KA") == 3


@pytest.mark.parametrize("component", [
    WordMemory(width=32, depth=9, init=[1, 2]), ActivationMemory(rows=4, depth=5), Trit5Decoder(), SinglePortMemory(width=64, depth=3),
    WeightMemory(CoreParameters(rows=4, columns=3, weight_encoding="trit5", weight_words=9)), ByteLoader(spaces=[Space.PROGRAM], lane_bits=2),
])  # fmt: skip
def test_exports(exports, component):
    exports(component)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: WordMemory(width=8, depth=1, init=[1, 2]), "Initial contents must be at most 1 words, not 2"),
        (lambda: ActivationMemory(rows=4, depth=1, init=[1, 2]), "Initial contents must be at most 1 words, not 2"),
        (lambda: WordMemory(width=12, depth=1), "Width must be a multiple of 8, not 12"),
        (lambda: SinglePortMemory(width=72, depth=1), "Width must be a multiple of 8 up to 64, not 72"),
        (lambda: SinglePortMemory(width=64, depth=16385), "Depth must be from 1 to 16384, not 16385"),
    ],
)
def test_refused_sizes(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
