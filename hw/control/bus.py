"""How the words of an instruction reach the registers that hold its fields."""

from amaranth.hdl import Module, Shape, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import Out

from tritloom.hw.arch.isa import FIELDS, HEADER_WORDS, LOOP_FIELDS, LOOP_WORDS, PROGRAM_WORD_BYTES, Field

__all__ = ["InstructionBus", "field_register", "field_value", "step_table"]

LOOP_INDEX_BITS = 3
"""Width of a loop's number; loops are 0 to 6, innermost first."""


class InstructionBus(wiring.Signature):
    """One word of an instruction a clock, from the fetch unit to everybody who keeps fields of it.

    Members
    -------
    word : 64 bits
    header : a bit for each header word
        ``word`` is that word.
    loop : a bit for each word of a loop
        ``word`` is that word of loop ``index``.
    index : 3 bits
    """

    def __init__(self) -> None:
        super().__init__(
            {"word": Out(8 * PROGRAM_WORD_BYTES), "header": Out(HEADER_WORDS), "loop": Out(LOOP_WORDS), "index": Out(LOOP_INDEX_BITS)}
        )


def field_value(word: Value, place: Field) -> Value:
    """A field of the word that holds it."""
    value = word[place.bit : place.bit + place.width]
    return value.as_signed() if place.signed else value


def field_register(m: Module, bus: wiring.PureInterface, name: str, *, width: int | None = None) -> Signal:
    """A register that holds header field ``name``, or its low ``width`` bits, from the clock after its word until the next instruction."""
    place = FIELDS[name]
    width = place.width if width is None else min(width, place.width)
    register = Signal(Shape(width, place.signed), name=name)
    with m.If(bus.header[place.word]):
        m.d.sync += register.eq(field_value(bus.word, place))
    return register


def step_table(m: Module, bus: wiring.PureInterface, name: str, *, width: int, index: Value, enable: Value) -> Value:
    """The low ``width`` bits of loop field ``name`` of loop ``index``, one clock after ``enable``; they stay until the next one."""
    place = LOOP_FIELDS[name]
    width = min(width, place.width)
    m.submodules[f"{name}s"] = table = memory.Memory(shape=width, depth=1 << LOOP_INDEX_BITS, init=[])
    write, read = table.write_port(), table.read_port()
    m.d.comb += [
        write.en.eq(bus.loop[place.word]), write.addr.eq(bus.index), write.data.eq(field_value(bus.word, place)),
        read.addr.eq(index), read.en.eq(enable),
    ]  # fmt: skip
    return read.data.as_signed() if place.signed else read.data
