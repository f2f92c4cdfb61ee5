"""What the instructions of programs with blocks share: places in memory, peaks and tables.

Beside its tensors a program has in the activation memory: a *peak* for each pixel of a block, the largest magnitude of its elements, which every operation
that normalises needs and the one that writes the block knows; tables; and scratch space for one operation at a time.
"""

import numpy as np

from tritloom.compiler.ir.block import (
    BlockOperation,
)
from tritloom.compiler.ir.program import Operation, Program
from tritloom.compiler.schedule.emit import LARGEST_FACTOR, Emitter, Pair, Place
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import (
    STATISTIC,
    Scalar,
    ScalarOpcode,
)
from tritloom.hw.arch.vector import NOT_WRITTEN, Statistic, VectorFunction

__all__ = [
    "DEVIATION",
    "ELEMENT_SIZES",
    "LARGEST_OUT_SHIFT",
    "OTHER",
    "PEAK",
    "RIGHT",
    "SPARE",
    "SPARE_2",
    "VALUE",
    "WORD_BYTES",
    "BlockLowering",
    "Memory",
]

WORD_BYTES = 4
LANES_BYTES = 32
"""Bytes that the lanes of a vector unit take at once, at most."""

ELEMENT_SIZES = {1: 0, 2: 1, 4: 2}
"""Sizes of VECTOR by bytes of an element."""

LARGEST_OUT_SHIFT = 62
"""Beyond it nothing but the sign of a result would be left."""

PEAK, RIGHT, VALUE, OTHER, SPARE, SPARE_2, DEVIATION = 1, 2, (3, 4), (5, 6), 7, 8, (9, 10)
"""Registers of the operations on blocks: the largest magnitude of a pixel and the shift that normalises it, scales, and others."""


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
        self.word = 0
        """Program word of the next instruction; who puts the parts together keeps it."""
        self._peaks: dict[str, int] = {}
        self._measured: set[str] = set()
        self._scratch: dict[str, tuple[int, int]] = {}
        self._held: dict[str, object] = {}

    def measured(self, operation: Operation) -> list[Instruction | Scalar]:
        """Peaks of a tensor that the array has written, where an operation on blocks reads it."""
        emitter, name = self.emitter(f"layer {operation.name!r}"), operation.output
        if any(isinstance(reader, BlockOperation) and name in reader.inputs for reader in self._program.operations):
            for _ in emitter.each_pixel(self.pixels(name)):
                self.measure(emitter, name)
        return emitter.instructions

    def emitter(self, where: str) -> Emitter:
        """For the next instructions."""
        return Emitter(where, self.word)

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

    def place(self, name: str) -> Place:
        """The first channel of every pixel."""
        return Place(self.address(name), self._placements[name].pixel_bytes)

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

    def reserve(self, size: int) -> int:
        """Address of space that nothing else uses."""
        return self._memory.reserve(size)

    def holds(self, name: str, contents: object) -> bool:
        """Whether an operation before has left ``contents`` (names and constants that say what was computed) in scratch space; from now on they are there."""
        held = self._held.get(name) == contents
        self._held[name] = contents
        return held

    def forget_held(self) -> None:
        """What scratch space holds is not known where the trips of a loop meet."""
        self._held.clear()

    def table(self, values: np.ndarray, width: int) -> int:
        return self._memory.table(values, width)

    def range(self, name: str) -> tuple[int, int]:
        """The smallest and the largest element that can occur."""
        tensor = self._program.tensors[name]
        return tensor.low, tensor.high

    def _peak(self, name: str) -> Place:
        """The peaks of all pixels."""
        if name not in self._peaks:
            self._peaks[name] = self._memory.reserve(WORD_BYTES * self.pixels(name))
        return Place(self._peaks[name], WORD_BYTES)

    def keep_peak(self, emitter: Emitter, name: str, register: int = STATISTIC) -> None:
        """A register, the statistic of the instruction before, becomes the pixel's peak; so it must for each pixel of ``name``."""
        emitter.store(register, self._peak(name))
        self._measured.add(name)

    def forget_peak(self, name: str) -> None:
        """``name`` was written by something that knows no peaks."""
        self._measured.discard(name)

    def measure(self, emitter: Emitter, name: str) -> None:
        """The pixel's peak by a pass of its own."""
        function = VectorFunction(a_size=self.size(name), o_size=NOT_WRITTEN, statistic=Statistic.MAGNITUDE)
        emitter.vector(function, self.channels(name, a=name), a=self.place(name))
        self.keep_peak(emitter, name)

    def normalise(self, emitter: Emitter, name: str, right: int = RIGHT) -> None:
        """Registers PEAK and ``right``: the largest magnitude of the pixel, and by how much its elements are shifted."""
        # What lacks peaks at the first pixel lacks them at the others, where their instructions are written out.
        if name not in self._measured or name in emitter.measuring:
            emitter.measuring.add(name)
            self.measure(emitter, name)
        emitter.load(PEAK, self._peak(name))
        emitter.scalar(ScalarOpcode.LENGTH, right, PEAK, blockfloat.BLOCK_BITS)

    def scale(self, emitter: Emitter, pair: Pair, name: str, right: int | None = None) -> None:
        """The scale of the pixel, of elements that were shifted to the right by a register; 1 where the tensor has none."""
        if name:
            emitter.load_pair(pair, self.place(name))
        else:
            emitter.set_pair(pair, (1 << 15, -15))
        if right is not None:
            emitter.add(pair[1], pair[1], right=right)

    def index(self, operation: Operation, emitter: Emitter, register: int, number: Place, stride: int) -> None:
        """A register becomes the number at a place times a stride in bytes."""
        if stride > LARGEST_FACTOR:
            raise ModelError(f"layer {operation.name!r} steps by {stride} bytes; the core multiplies addresses by at most {LARGEST_FACTOR}")
        emitter.load(PEAK, number)
        emitter.scalar(ScalarOpcode.MULTIPLY, register, PEAK, stride)
