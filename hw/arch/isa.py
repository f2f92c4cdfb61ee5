"""The instruction set: one table that the assembler, the gateware's decoder and ``docs/isa.md`` are made from.

A program is a sequence of 64-bit little-endian words, of which the core fetches one a clock. An instruction is a header of :data:`HEADER_WORDS` words followed
by :data:`LOOP_WORDS` words for each of its ``loops`` nested loops, innermost first. ``HALT`` is a single word.

**Loop nest.** Each compute instruction walks a nest of up to :data:`MAX_LOOPS` loops with its address registers
``a``, ``b``, ``o``, ``p`` and the coordinates ``y``, ``x``. After each element the sequencer advances the innermost loop
``j`` that is not at its last iteration, sets every loop below ``j`` back to its first, and adds the ``*_step`` fields of
loop ``j`` to the registers. A step is therefore a stride minus what the finished inner loops had added
(:func:`loop_steps`). Loops below ``reduce_loops`` form the reduction of one output; ``o`` and ``p`` move only with
the loops from ``reduce_loops`` upwards.

**MATRIX.** For each element: read activation word ``a`` (byte address, a multiple of ``rows``), or ``pad_value`` in every
lane when ``padded`` and not (0 <= y < height and 0 <= x < width); read weight word ``b``; add the ``columns`` dot
products to the accumulators. The first element of a reduction clears them. When the loop ``plane_loop`` advances, the
accumulators are tripled before the next element is added (digit planes, most significant first; one extra clock). After
the last element of a reduction accumulator ``c`` of the first ``n`` columns goes to the post unit, where ``n`` is
``last_columns`` when loop ``tile_loop`` is in its last iteration or ``tile_loop`` is 15, else ``columns``. Its records are those
of lane 0 in the ``records`` words of record memory from ``p + c * records`` on; its code is written to byte ``o + c``, or, with
``raw``, the accumulator itself as four little-endian bytes to ``o + 4 * c`` (``o`` a multiple of 4; no record is read).

**Lanes.** A core has ``post_lanes`` lanes behind its accumulators, and a word of record memory has a record for each. An instruction
that is not ``wide`` uses lane 0 alone, one result a clock. With ``wide`` all lanes work at once: a MATRIX (not ``raw``, every value of
``o`` a multiple of ``post_lanes``) sends accumulators ``c`` to ``c + post_lanes - 1`` together, their records are the lanes
of the ``records`` words from ``p + c / post_lanes * records`` on; an ELEMENTWISE (every value of ``a``, ``b`` and ``o`` a multiple of ``post_lanes``)
does for each element what is said below with ``post_lanes`` bytes, and with the lanes of the ``records`` words from ``p`` on.

**POOL.** For each element: read activation word ``a``; keep the lane-wise signed maximum over the reduction. Elements that
fall outside when ``padded`` are skipped (a reduction with none inside gives -128). The word is written to ``o``
(a multiple of ``rows``). ``b`` and ``p`` are not used.

**ELEMENTWISE.** ``reduce_loops`` is 0. For each element: read the byte at ``a`` and, with ``two_operands``, the byte at ``b``;
the post unit computes the code from ``records`` records at ``p`` (see :mod:`tritloom.hw.arch.record`) and writes it to byte ``o``.

**VECTOR.** For each element: read the elements ``a`` and ``b`` (byte addresses), and do with them what ``function`` says (:mod:`tritloom.hw.arch.vector`); the result of
a reduction is written to ``o``. ``records`` is 1, ``p`` is not used.

**Scalar instructions** (opcodes from 0x80 on, one word each) compute with registers of 32 bits, load, store and branch: :mod:`tritloom.hw.arch.scalar`. With
``index_a``, ``index_b`` or ``index_o`` an instruction of any kind adds a register to its ``a``, ``b`` or ``o``; with ``counted`` the loops
with a ``last`` of 65535 take register COUNT instead, and the loop behind such a one adds the registers STEP_A and STEP_B to its ``a_step`` and ``b_step``.

A core without vector unit stops at VECTOR and scalar instructions with the fault ``bad instruction``, as for any unknown opcode, and has no registers.

An instruction is fetched while the results of the previous one are finished, and begins when the last of them is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tritloom.hw.arch.scalar import Scalar, ScalarOpcode

__all__ = [
    "FIELDS", "HEADER_WORDS", "ISA_VERSION", "Instruction", "LOOP_FIELDS", "LOOP_WORDS", "Loop", "MAX_LOOPS", "NO_LOOP", "Opcode",
    "COUNTED", "PROGRAM_WORD_BYTES", "assemble", "disassemble", "loop_steps",
]  # fmt: skip

ISA_VERSION = 4
PROGRAM_WORD_BYTES = 8
MAX_LOOPS = 7
COUNTED = 65535
"""``last`` of a loop of a ``counted`` instruction that takes register COUNT."""

NO_LOOP = 15
"""Value of ``plane_loop`` and ``tile_loop`` when the instruction has no such loop."""


class Opcode(IntEnum):
    HALT = 0x00
    MATRIX = 0x01
    POOL = 0x02
    ELEMENTWISE = 0x03
    VECTOR = 0x40


@dataclass(frozen=True)
class Field:
    """Place of a field: word index, lowest bit, width, and whether it is two's complement."""

    word: int
    bit: int
    width: int
    signed: bool
    meaning: str


FIELDS: dict[str, Field] = {
    "opcode": Field(0, 0, 8, False, "operation"),
    "loops": Field(0, 8, 4, False, "number of loops that follow, 1 to 7"),
    "reduce_loops": Field(0, 12, 4, False, "innermost loops that form the reduction"),
    "plane_loop": Field(0, 16, 4, False, "loop over digit planes, 15 if none"),
    "tile_loop": Field(0, 20, 4, False, "loop over tiles of columns, 15 if none"),
    "raw": Field(0, 24, 1, False, "write 32-bit accumulators instead of codes"),
    "two_operands": Field(0, 25, 1, False, "ELEMENTWISE adds a second operand"),
    "padded": Field(0, 26, 1, False, "check y and x against height and width"),
    "wide": Field(0, 27, 1, False, "use all lanes of the post unit"),
    "index_a": Field(0, 28, 1, False, "add register INDEX_A to a"),
    "index_b": Field(0, 29, 1, False, "add register INDEX_B to b"),
    "index_o": Field(0, 30, 1, False, "add register INDEX_O to o"),
    "counted": Field(0, 31, 1, False, "take counts from register COUNT"),
    "a": Field(0, 32, 32, False, "first byte address of operand A"),
    "b": Field(1, 0, 32, False, "first weight word (MATRIX) or byte address of operand B"),
    "y": Field(1, 32, 16, True, "first row coordinate"),
    "x": Field(1, 48, 16, True, "first column coordinate"),
    "height": Field(2, 0, 16, False, "rows of the input"),
    "width": Field(2, 16, 16, False, "columns of the input"),
    "function": Field(2, 0, 32, False, "VECTOR: what is computed, in place of height and width"),
    "last_columns": Field(2, 32, 8, False, "columns of the last tile"),
    "pad_value": Field(2, 40, 8, True, "code read outside the input"),
    "low": Field(2, 48, 8, True, "smallest code written"),
    "high": Field(2, 56, 8, True, "largest code written"),
    "p": Field(3, 0, 16, False, "first word of records"),
    "records": Field(3, 16, 16, False, "records per channel"),
    "o": Field(3, 32, 32, False, "first byte address of the result"),
}
HEADER_WORDS = 4

_FLAGS = ("raw", "two_operands", "padded", "wide", "index_a", "index_b", "index_o", "counted")

LOOP_FIELDS: dict[str, Field] = {
    "last": Field(0, 0, 16, False, "iterations minus one"),
    "p_step": Field(0, 16, 16, True, "added to p, in words of records"),
    "a_step": Field(0, 32, 32, True, "added to a, in bytes"),
    "b_step": Field(1, 0, 32, True, "added to b, in weight words or bytes"),
    "o_step": Field(1, 32, 32, True, "added to o, in bytes"),
    "y_step": Field(2, 0, 16, True, "added to y"),
    "x_step": Field(2, 16, 16, True, "added to x"),
}
LOOP_WORDS = 3


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One loop as the sequencer reads it; all ``*_step`` values are already net of the inner loops."""

    last: int
    p_step: int = 0
    a_step: int = 0
    b_step: int = 0
    o_step: int = 0
    y_step: int = 0
    x_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction; ``loops`` are innermost first. Field meanings: :data:`FIELDS`."""

    opcode: Opcode
    loops: tuple[Loop, ...] = ()
    reduce_loops: int = 0
    plane_loop: int = NO_LOOP
    tile_loop: int = NO_LOOP
    raw: bool = False
    two_operands: bool = False
    padded: bool = False
    wide: bool = False
    index_a: bool = False
    index_b: bool = False
    index_o: bool = False
    counted: bool = False
    a: int = 0
    b: int = 0
    o: int = 0
    p: int = 0
    records: int = 1
    y: int = 0
    x: int = 0
    height: int = 0
    width: int = 0
    function: int = 0
    last_columns: int = 0
    pad_value: int = 0
    low: int = -128
    high: int = 127
    comment: str = field(default="", compare=False)

    @property
    def words(self) -> int:
        """Length in program memory, in program words."""
        return 1 if self.opcode == Opcode.HALT else HEADER_WORDS + LOOP_WORDS * len(self.loops)


def loop_steps(strides: list[int], counts: list[int]) -> list[int]:
    """Steps of one register for loops innermost first: ``stride[j] - sum_{i<j} stride[i] * (count[i] - 1)``."""
    steps, walked = [], 0
    for stride, count in zip(strides, counts, strict=True):
        steps.append(stride - walked)
        walked += stride * (count - 1)
    return steps


def _pack(fields: dict[str, Field], values: dict[str, int], words: int, where: str) -> list[int]:
    packed = [0] * words
    for name, place in fields.items():
        value = int(values[name])
        low, high = (-(1 << (place.width - 1)), (1 << (place.width - 1)) - 1) if place.signed else (0, (1 << place.width) - 1)
        if not low <= value <= high:
            raise ValueError(f"{where}: field {name} must be from {low} to {high}, not {value}")
        packed[place.word] |= (value & ((1 << place.width) - 1)) << place.bit
    return packed


def _unpack(fields: dict[str, Field], words: Sequence[int]) -> dict[str, int]:
    values = {}
    for name, place in fields.items():
        value = (words[place.word] >> place.bit) & ((1 << place.width) - 1)
        values[name] = value - (1 << place.width) if place.signed and value >> (place.width - 1) else value
    return values


def _fields_of(opcode: int) -> dict[str, Field]:
    """Header fields that an instruction has."""
    other = {"height", "width"} if opcode == Opcode.VECTOR else {"function"}
    return {name: place for name, place in FIELDS.items() if name not in other}


def assemble(program: Sequence[Instruction | Scalar]) -> list[int]:
    """Encode instructions into program words, 64-bit integers. Raises :class:`ValueError` for a value that does not fit its field."""
    words: list[int] = []
    for index, instruction in enumerate(program):
        where = f"instruction {index} ({instruction.opcode.name})"
        if isinstance(instruction, Scalar):
            words.append(instruction.encode())
            continue
        if instruction.opcode == Opcode.HALT:
            words.append(int(Opcode.HALT))
            continue
        if not 1 <= len(instruction.loops) <= MAX_LOOPS:
            raise ValueError(f"{where}: loops must be from 1 to {MAX_LOOPS}, not {len(instruction.loops)}")
        fields = _fields_of(instruction.opcode)
        values = {name: getattr(instruction, name) for name in fields if name != "loops"}
        words += _pack(fields, {**values, "loops": len(instruction.loops)}, HEADER_WORDS, where)
        for loop in instruction.loops:
            words += _pack(LOOP_FIELDS, {name: getattr(loop, name) for name in LOOP_FIELDS}, LOOP_WORDS, where)
    return words


def disassemble(words: Sequence[int]) -> list[Instruction | Scalar]:
    """Inverse of :func:`assemble`. Raises :class:`ValueError` at an unknown opcode or a cut instruction."""
    program: list[Instruction | Scalar] = []
    position = 0
    while position < len(words):
        opcode = words[position] & 0xFF
        if opcode in set(ScalarOpcode):
            program.append(Scalar.decode(words[position]))
            position += 1
            continue
        if opcode not in set(Opcode):
            raise ValueError(f"word {position}: unknown opcode {opcode:#04x}")
        if opcode == Opcode.HALT:
            program.append(Instruction(opcode=Opcode.HALT))
            position += 1
            continue
        header: dict[str, Any] = _unpack(
            _fields_of(opcode), [*words[position : position + HEADER_WORDS], *[0] * HEADER_WORDS][:HEADER_WORDS]
        )
        count = header.pop("loops")
        end = position + HEADER_WORDS + LOOP_WORDS * count
        if end > len(words) or not 1 <= count <= MAX_LOOPS:
            raise ValueError(f"word {position}: instruction is cut or has {count} loops")
        loops = tuple(
            Loop(**_unpack(LOOP_FIELDS, words[start : start + LOOP_WORDS])) for start in range(position + HEADER_WORDS, end, LOOP_WORDS)
        )
        flags = {name: bool(header.pop(name)) for name in _FLAGS}
        program.append(Instruction(opcode=Opcode(header.pop("opcode")), loops=loops, **flags, **header))
        position = end
    return program
