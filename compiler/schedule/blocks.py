"""What the instructions of programs with blocks share: places in memory, peaks, tables, and the loop over tokens around them all.

Beside its tensors a program has in the activation memory: a *peak* for each pixel of a block, the largest magnitude of its elements, which every operation
that normalises needs and the one that writes the block knows; tables; and scratch space for one operation at a time.
"""

from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.block import (
    BlockOperation,
    Position,
)
from tritloom.compiler.ir.program import Operation, Program
from tritloom.compiler.schedule.emit import ZERO, Emitter, Pair
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import (
    ARGUMENT,
    STATISTIC,
    Condition,
    Scalar,
    ScalarOpcode,
)
from tritloom.hw.arch.vector import NOT_WRITTEN, Statistic, VectorFunction

__all__ = ["ELEMENT_SIZES", "LARGEST_FACTOR", "LARGEST_OUT_SHIFT", "WORD_BYTES", "BlockLowering", "Generation", "Memory"]

WORD_BYTES = 4
LANES_BYTES = 32
"""Bytes that the lanes of a vector unit take at once, at most."""

ELEMENT_SIZES = {1: 0, 2: 1, 4: 2}
"""Sizes of VECTOR by bytes of an element."""

LARGEST_OUT_SHIFT = 62
"""Beyond it nothing but the sign of a result would be left."""

LARGEST_FACTOR = (1 << 16) - 1
"""Of the scalar unit's products."""

PEAK, RIGHT = 1, 2
SPARE, SPARE_2 = 7, 8


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Byte addresses of what a core needs to generate tokens by itself: 32-bit words with the number of tokens of the prompt, the number of tokens to
    run (0: one token, which the host writes), and the tokens one after the other. ``position`` is the tensor that counts them."""

    prompt: int
    total: int
    tokens: int
    position: str
    capacity: int


class Memory:
    """Bytes behind the tensors: tables, which are loaded once, and space that programs use.

    Parameters
    ----------
    first
        First byte address, a multiple of 4.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._tables: dict[bytes, int] = {}
        self.contents: list[tuple[int, bytes]] = []
        """Address and bytes of each table."""

    @property
    def end(self) -> int:
        return self._next

    def reserve(self, size: int) -> int:
        """Address of ``size`` bytes, a multiple of :data:`LANES_BYTES` where there are as many."""
        step = LANES_BYTES if size >= LANES_BYTES else WORD_BYTES
        address = -(-self._next // step) * step
        self._next = address + -(-size // WORD_BYTES) * WORD_BYTES
        return address

    def table(self, values: np.ndarray, width: int) -> int:
        """Address of little-endian integers of ``width`` bytes, stored once for all who ask for the same."""
        data = np.ascontiguousarray(values, f"<i{width}").tobytes()
        if data not in self._tables:
            self._tables[data] = self.reserve(len(data))
            self.contents.append((self._tables[data], data))
        return self._tables[data]


class BlockLowering:
    """What :func:`tritloom.compiler.schedule.block_operations.lower_block` needs of one program, whose operations come in their order.

    Parameters
    ----------
    program, placements
        The integer program and the place of each tensor.
    memory
        Takes tables, peaks and scratch space.
    """

    def __init__(self, *, program: Program, placements: dict[str, Placement], memory: Memory) -> None:
        self._program, self._placements, self._memory = program, placements, memory
        self.generation = self._generation()
        """Where the tokens of a language model are, ``None`` for another program."""
        self._peaks: dict[str, int] = {}
        self._measured: set[tuple[str, int]] = set()
        self._scratch: dict[str, tuple[int, int]] = {}

    def begin(self) -> list[Instruction | Scalar]:
        """What every program starts with: where several tokens are asked for, the next one is that of its number."""
        emitter = Emitter("the start")
        emitter.set(ZERO, 0)
        if self.generation is not None:
            place, token = self.generation, self.address(self._program.inputs[0].tensor)
            self._load_token_place(emitter, 0)
            emitter.load(RIGHT, token)
            emitter.load(SPARE, place.total)
            # token + (total ? asked - token : 0): without a branch every run of a layer has the same instructions.
            emitter.scalar(ScalarOpcode.SUBTRACT, PEAK, RIGHT, right=PEAK)
            emitter.scalar(ScalarOpcode.KEEP, PEAK, SPARE, right=PEAK)
            emitter.add(PEAK, PEAK, right=RIGHT)
            emitter.store(PEAK, token)
        return emitter.instructions

    def measured(self, operation: Operation) -> list[Instruction | Scalar]:
        """Peaks of a tensor that the array has written, where an operation on blocks reads it."""
        emitter, name = Emitter(f"layer {operation.name!r}"), operation.output
        if any(isinstance(reader, BlockOperation) and name in reader.inputs for reader in self._program.operations):
            for pixel in range(self.pixels(name)):
                self.measure(emitter, name, pixel)
        return emitter.instructions

    def _load_token_place(self, emitter: Emitter, offset: int) -> None:
        """Registers SPARE_2, the address of the token ``offset`` behind the present one, and PEAK, that token."""
        assert self.generation is not None
        emitter.load(SPARE_2, self.address(self.generation.position))
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, SPARE_2, SPARE_2, -2)
        emitter.add(SPARE_2, SPARE_2, self.generation.tokens + WORD_BYTES * offset)
        emitter.scalar(ScalarOpcode.LOAD, PEAK, SPARE_2)

    def go_on(self) -> list[Instruction | Scalar]:
        """Behind the last operation: the likeliest token follows where the prompt has ended, and the program begins again while tokens are asked for."""
        emitter = Emitter("the end")
        if self.generation is None:
            return []
        place, logits = self.generation, self._program.outputs[0]
        function = VectorFunction(a_size=self.size(logits.tensor), o_size=NOT_WRITTEN, statistic=Statistic.LARGEST)
        count = self._placements[logits.tensor].shape[0] if logits.index is None else len(logits.index)
        emitter.vector(function, [Axis(count=count, strides={"a": 1 << self.size(logits.tensor)})], a=self.address(logits.tensor))
        self._load_token_place(emitter, 1)
        emitter.load(RIGHT, self.address(place.position))
        emitter.load(SPARE, place.prompt)
        # The number of the next token less the last one of the prompt: not above 0 inside of it.
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, SPARE, right=RIGHT)
        emitter.add(SPARE, SPARE, 2)
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 0)
        emitter.scalar(ScalarOpcode.SUBTRACT, RIGHT, PEAK, right=ARGUMENT)
        emitter.scalar(ScalarOpcode.KEEP, RIGHT, SPARE, right=RIGHT)
        emitter.add(PEAK, PEAK, right=RIGHT)
        emitter.scalar(ScalarOpcode.STORE, PEAK, SPARE_2)
        return emitter.instructions

    def repeat(self) -> list[Instruction | Scalar]:
        """At the very end: back to the first word while the next token has a number below the total."""
        emitter = Emitter("the end")
        if self.generation is None:
            return []
        emitter.load(PEAK, self.address(self.generation.position))
        emitter.load(RIGHT, self.generation.total)
        emitter.scalar(ScalarOpcode.SUBTRACT, PEAK, PEAK, right=RIGHT)
        emitter.add(PEAK, PEAK, -1)
        emitter.scalar(ScalarOpcode.BRANCH, Condition.NOT_NEGATIVE, PEAK, 0)
        return emitter.instructions

    def advance(self) -> list[Instruction | Scalar]:
        """The states that do not change in place take their following values."""
        emitter = Emitter("the end")
        for state in self._program.states:
            source, target = self._placements[state.following], self._placements[state.tensor]
            if source.address == target.address:
                continue
            for offset in range(0, source.bytes, WORD_BYTES):
                emitter.load(PEAK, source.address + offset)
                emitter.store(PEAK, target.address + offset)
        return emitter.instructions

    def _generation(self) -> "Generation | None":
        program = self._program
        positions = [operation for operation in program.operations if isinstance(operation, Position)]
        states = {state.tensor for state in program.states}
        if len(program.inputs) != 1 or len(program.outputs) != 1 or len(positions) != 1 or positions[0].input not in states:
            return None
        index = program.outputs[0].index
        if index is not None and not np.array_equal(np.asarray(index).ravel(), np.arange(np.asarray(index).size)):
            return None
        words = self._memory.reserve(WORD_BYTES * (positions[0].capacity + 3))
        return Generation(
            prompt=words,
            total=words + WORD_BYTES,
            tokens=words + 2 * WORD_BYTES,
            position=positions[0].input,
            capacity=positions[0].capacity,
        )

    # ---- places -------------------------------------------------------------------------------------------------------

    def pixels(self, name: str) -> int:
        _, height, width = self._placements[name].shape
        return height * width

    def placement(self, name: str) -> Placement:
        return self._placements[name]

    def address(self, name: str, pixel: int = 0) -> int:
        """Byte address of the first channel of a pixel."""
        place = self._placements[name]
        return place.address + pixel * place.pixel_bytes

    def size(self, name: str) -> int:
        """Logarithm of the bytes of an element."""
        return ELEMENT_SIZES[self._placements[name].element_bytes]

    def channels(self, name: str, *, reduces: bool = False, a: str = "", b: str = "", o: str = "", b_bytes: int = 0) -> list[Axis]:
        """The loop over the channels of ``name``, with the strides of the tensors given; ``b_bytes`` is the stride of a table."""
        strides = {register: self._placements[tensor].element_bytes for register, tensor in (("a", a), ("b", b), ("o", o)) if tensor}
        if b_bytes:
            strides["b"] = b_bytes
        return [Axis(count=self._placements[name].shape[0], reduces=reduces, strides=strides)]

    def scratch(self, name: str, size: int) -> int:
        """Address of scratch space, the same for every operation that asks by this name."""
        address, room = self._scratch.get(name, (0, 0))
        if size > room:
            address = self._memory.reserve(size)
            self._scratch[name] = address, size
        return address

    def table(self, values: np.ndarray, width: int) -> int:
        return self._memory.table(values, width)

    def peak(self, name: str, pixel: int) -> int:
        """Address of the peak of a pixel."""
        if name not in self._peaks:
            self._peaks[name] = self._memory.reserve(WORD_BYTES * self.pixels(name))
        return self._peaks[name] + WORD_BYTES * pixel

    def keep_peak(self, emitter: Emitter, name: str, pixel: int, register: int = STATISTIC) -> None:
        """A register, the statistic of the instruction before, becomes a pixel's peak."""
        emitter.store(register, self.peak(name, pixel))
        self._measured.add((name, pixel))

    def measure(self, emitter: Emitter, name: str, pixel: int) -> None:
        """The peak of a pixel by a pass of its own."""
        function = VectorFunction(a_size=self.size(name), o_size=NOT_WRITTEN, statistic=Statistic.MAGNITUDE)
        emitter.vector(function, self.channels(name, a=name), a=self.address(name, pixel))
        self.keep_peak(emitter, name, pixel)

    def normalise(self, emitter: Emitter, name: str, pixel: int, right: int = RIGHT) -> None:
        """Registers PEAK and ``right``: the largest magnitude, and by how much the elements are shifted."""
        if (name, pixel) not in self._measured:
            self.measure(emitter, name, pixel)
        emitter.load(PEAK, self.peak(name, pixel))
        emitter.scalar(ScalarOpcode.LENGTH, right, PEAK, blockfloat.BLOCK_BITS)

    def scale(self, emitter: Emitter, pair: Pair, name: str, pixel: int, right: int | None = None) -> None:
        """The scale of a pixel, of elements that were shifted to the right by a register; 1 where the tensor has none."""
        if name:
            emitter.load_pair(pair, self.address(name, pixel))
        else:
            emitter.set_pair(pair, (1 << 15, -15))
        if right is not None:
            emitter.add(pair[1], pair[1], right=right)

    def index(self, operation: Operation, emitter: Emitter, register: int, number: str, stride: int) -> None:
        """A register becomes the number in a tensor times a stride in bytes."""
        if stride > LARGEST_FACTOR:
            raise ModelError(f"layer {operation.name!r} steps by {stride} bytes; the core multiplies addresses by at most {LARGEST_FACTOR}")
        emitter.load(PEAK, self.address(number))
        emitter.scalar(ScalarOpcode.MULTIPLY, register, PEAK, stride)
