"""Writes instructions of the vector and scalar units, with the phrases that scales are computed with."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tritloom.compiler.schedule.nest import Axis, build
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import COUNTED, Instruction, Loop, Opcode, loop_steps
from tritloom.hw.arch.scalar import INDEX_A, INDEX_B, INDEX_O, Condition, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import VectorFunction

__all__ = ["LARGEST_FACTOR", "ZERO", "Emitter", "Pair", "Place"]

ZERO = 0
"""A register that is 0 in every program."""

PIXEL, PEAK_OFFSET, SCALE_OFFSET, OFFSET = 16, 17, 18, 19
"""Registers of a loop over pixels: the pixel, four and eight times it, and a product of it."""

_OFFSETS = {4: PEAK_OFFSET, 8: SCALE_OFFSET}

WRITTEN_OUT = 4
"""Pixels up to which the instructions of each are written down one after the other, instead of as a loop."""

LARGEST_FACTOR = (1 << 16) - 1
"""Of the scalar unit's products."""

Pair = tuple[int, int]
"""Registers of a mantissa and an exponent."""


class Place(NamedTuple):
    """Byte address of what an instruction reads or writes at the first pixel, and by how much it lies further on at every other one."""

    address: int
    stride: int = 0

    def behind(self, distance: int) -> "Place":
        """The place some bytes further on."""
        return Place(self.address + distance, self.stride)


class Emitter:
    """Collects the instructions of one layer. Registers are numbers; constants are immediates.

    Parameters
    ----------
    where
        Names the layer in errors.
    first_word
        Program word of the first instruction.
    """

    def __init__(self, where: str, first_word: int) -> None:
        self._where, self._first_word = where, first_word
        self.instructions: list[Instruction | Scalar] = []
        self.measuring: set[str] = set()
        """Tensors whose largest magnitudes are found on the way, at each pixel."""
        self._pixel: int | None = 0
        """The pixel that is worked at, ``None`` where it is that in register PIXEL."""
        self._indices: dict[int, int] = {}
        """Strides whose product with the pixel the index registers hold."""

    @property
    def word(self) -> int:
        """Program word of the next instruction."""
        return self._first_word + sum(instruction.words for instruction in self.instructions)

    def branch_back(self, condition: Condition, register: int, word: int, trips: int) -> None:
        """A loop of ``trips`` trips from ``word`` to here."""
        branch = Scalar(opcode=ScalarOpcode.BRANCH, target=condition, left=register, immediate=word, trips=trips)
        self.instructions.append(branch)

    def each_pixel(self, count: int, *, written_out: bool = False) -> Iterator[int]:
        """Every pixel, or the first one for a loop over them all: what is emitted in between is for one pixel, and a :class:`Place` means that pixel's.

        A loop costs six instructions and about 30 clocks a pixel, and those that its addresses need.
        """
        if count <= WRITTEN_OUT or written_out:
            for pixel in range(count):
                self._pixel = pixel
                yield pixel
        else:
            for register in (PIXEL, PEAK_OFFSET, SCALE_OFFSET):
                self.set(register, 0)
            top, self._pixel = self.word, None
            self._indices.clear()
            yield 0
            for register, step in ((PIXEL, 1), (PEAK_OFFSET, 4), (SCALE_OFFSET, 8)):
                self.add(register, register, step)
            self.scalar(ScalarOpcode.SUBTRACT, OFFSET, PIXEL, count)
            self.branch_back(Condition.NOT_ZERO, OFFSET, top, count)
        self._pixel = 0

    def _offset(self, register: int, stride: int) -> None:
        """A register becomes a multiple of the pixel."""
        if not 0 <= stride <= LARGEST_FACTOR:
            raise ModelError(f"{self._where} steps by {stride} bytes; the core multiplies addresses by at most {LARGEST_FACTOR}")
        self.scalar(ScalarOpcode.MULTIPLY, register, PIXEL, stride)

    def _based(self, place: int | Place) -> tuple[int, int]:
        """Register and immediate of an address."""
        place = Place(place) if isinstance(place, int) else place
        if self._pixel is not None:
            return ZERO, place.address + self._pixel * place.stride
        if not place.stride:
            return ZERO, place.address
        if place.stride not in _OFFSETS:
            self._offset(OFFSET, place.stride)
        return _OFFSETS.get(place.stride, OFFSET), place.address

    def _indexed(self, register: int, place: int | Place, asked: bool) -> tuple[int, bool]:
        """Address of an operand, and whether the index register is added to it."""
        place = Place(place) if isinstance(place, int) else place
        if self._pixel is not None or not place.stride:
            return place.address + (self._pixel or 0) * place.stride, asked
        if asked:
            raise ModelError(f"{self._where} finds its operand by a number and by the pixel; the core has one register for both")
        if self._indices.get(register) != place.stride:
            self._offset(register, place.stride)
            self._indices[register] = place.stride
        return place.address, True

    def scalar(self, opcode: ScalarOpcode, target: int, left: int = ZERO, second: int = 0, *, right: int | None = None) -> None:
        """``target = opcode(left, second)``; ``right`` is a register in place of the constant ``second``."""
        self.instructions.append(Scalar(opcode=opcode, target=target, left=left, right=right, immediate=second))

    def set(self, target: int, value: int) -> None:
        self.scalar(ScalarOpcode.SET, target, ZERO, value)

    def move(self, target: int, source: int) -> None:
        self.scalar(ScalarOpcode.SET, target, ZERO, right=source)

    def add(self, target: int, left: int, value: int = 0, *, right: int | None = None) -> None:
        self.scalar(ScalarOpcode.ADD, target, left, value, right=right)

    def load(self, target: int, place: int | Place) -> None:
        register, address = self._based(place)
        self.scalar(ScalarOpcode.LOAD, target, register, address)

    def store(self, source: int, place: int | Place) -> None:
        register, address = self._based(place)
        self.scalar(ScalarOpcode.STORE, source, register, address)

    def load_pair(self, pair: Pair, place: int | Place) -> None:
        base, address = self._based(place)
        for offset, register in zip((0, 4), pair, strict=True):
            self.scalar(ScalarOpcode.LOAD, register, base, address + offset)

    def store_pair(self, pair: Pair, place: int | Place) -> None:
        base, address = self._based(place)
        for offset, register in zip((0, 4), pair, strict=True):
            self.scalar(ScalarOpcode.STORE, register, base, address + offset)

    def set_pair(self, pair: Pair, value: tuple[int, int]) -> None:
        for register, part in zip(pair, value, strict=True):
            self.set(register, part)

    def scale_of(self, result: Pair, value: int, exponent: int | None, spare: int, constant: int = 0) -> None:
        """:func:`tritloom.hw.arch.blockfloat.scale_of` of a register and the sum of an exponent register and a constant. ``result[0]`` may be ``value``, ``result[1]`` ``exponent``."""
        self.scalar(ScalarOpcode.LENGTH, spare, value, blockfloat.MANTISSA_BITS)
        self.scalar(ScalarOpcode.SHIFT_RIGHT, result[0], value, right=spare)
        if exponent is not None:
            self.add(result[1], exponent, right=spare)
            spare = result[1]
        if constant or exponent is None:
            self.add(result[1], spare, constant)

    def product(self, result: Pair, left: Pair, right: Pair, spare: int) -> None:
        """:func:`tritloom.hw.arch.blockfloat.scale_product`."""
        self.scalar(ScalarOpcode.MULTIPLY, result[0], left[0], right=right[0])
        self.add(result[1], left[1], right=right[1])
        self.scale_of(result, result[0], result[1], spare)

    def product_constant(self, result: Pair, left: Pair, right: tuple[int, int], spare: int) -> None:
        """The same with a constant scale."""
        self.scalar(ScalarOpcode.MULTIPLY, result[0], left[0], right[0])
        self.add(result[1], left[1], right[1])
        self.scale_of(result, result[0], result[1], spare)

    def reciprocal(self, result: Pair, scale: Pair, spare: int) -> None:
        """:func:`tritloom.hw.arch.blockfloat.reciprocal`."""
        self.scalar(ScalarOpcode.DIVIDE, result[0], scale[0], 1 << 31)
        self.scalar(ScalarOpcode.SUBTRACT, result[1], scale[1], -31)
        self.scale_of(result, result[0], result[1], spare)

    def sum(self, result: Pair, left: Pair, right: Pair, spare: Sequence[int]) -> None:
        """:func:`tritloom.hw.arch.blockfloat.scale_sum`; two spare registers."""
        exponent, places = spare
        self.scalar(ScalarOpcode.MAXIMUM, exponent, left[1], right=right[1])
        for pair in (left, right):
            self.scalar(ScalarOpcode.SUBTRACT, places, pair[1], right=exponent)
            self.scalar(ScalarOpcode.SHIFT_RIGHT, pair[0], pair[0], right=places)
        self.add(result[0], left[0], right=right[0])
        self.scale_of((result[0], result[1]), result[0], exponent, places)

    def root_reciprocal(self, result: Pair, scale: Pair, spare: Sequence[int]) -> None:
        """:func:`tritloom.hw.arch.blockfloat.root_reciprocal`; two spare registers. Exponents are above ``-2**20``."""
        half, odd = spare
        offset = 1 << 20
        self.add(odd, scale[1], offset)
        self.scalar(ScalarOpcode.SHIFT_RIGHT, half, odd, 1)
        self.add(result[1], half, right=half)
        self.scalar(ScalarOpcode.SUBTRACT, odd, result[1], right=odd)
        self.add(result[1], odd, -16)
        self.scalar(ScalarOpcode.SHIFT_RIGHT, result[0], scale[0], right=result[1])
        self.scalar(ScalarOpcode.ROOT, result[0], result[0])
        self.add(result[1], half, right=odd)
        self.add(result[1], result[1], -(offset >> 1) - 8)
        self.reciprocal(result, result, half)

    def vector(
        self, function: VectorFunction, axes: list[Axis], *, a: int | Place, b: int | Place = 0, o: int | Place = 0,
        index_a: bool = False, index_b: bool = False, index_o: bool = False,
    ) -> None:  # fmt: skip
        """A VECTOR over a nest of loops, innermost first. Addresses are bytes; ``index_a`` and its like add the index register that the caller has set."""
        fields: dict[str, int | bool] = {}
        for name, register, place, asked in (("a", INDEX_A, a, index_a), ("b", INDEX_B, b, index_b), ("o", INDEX_O, o, index_o)):
            fields[name], fields["index_" + name] = self._indexed(register, place, asked)
        self.instructions.append(build(Opcode.VECTOR, axes, self._where, function=function.encode(), **fields))

    def counted(self, function: VectorFunction, axes: Sequence[Axis], *, a: int, b: int = 0, o: int = 0) -> None:
        """A VECTOR whose loop of ``count`` 0 takes register COUNT. The loop behind that one has registers STEP_A and STEP_B added to its steps, which must take back
        what COUNT iterations have added; COUNT times nothing is added where they are 0."""
        counts = [axis.count or 1 for axis in axes]
        steps = {register: loop_steps([axis.stride(register) for axis in axes], counts) for register in "abo"}
        loops = tuple(
            Loop(last=axis.count - 1 if axis.count else COUNTED, **{f"{register}_step": steps[register][index] for register in "abo"})
            for index, axis in enumerate(axes)
        )
        self.instructions.append(
            Instruction(
                opcode=Opcode.VECTOR, loops=loops, reduce_loops=sum(axis.reduces for axis in axes), counted=True, a=a, b=b, o=o,
                function=function.encode(),
            )
        )  # fmt: skip
