"""Operations on blocks to instructions of the vector and scalar units.

Beside its tensors a program has in the activation memory: a *peak* for each pixel of a block, the largest magnitude of its elements, which every operation
that normalises needs and the one that writes the block knows; tables; and scratch space for one operation at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.block import (
    BlockOperation,
    BlockProduct,
    BlockSum,
    Curve,
    Lookup,
    Norm,
    Position,
    Quantise,
    Rectify,
    Rotate,
    Store,
    View,
)
from tritloom.compiler.ir.program import Operation, Program
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.compiler.schedule.emit import ZERO, Emitter, Pair
from tritloom.compiler.schedule.layout import Placement
from tritloom.compiler.schedule.nest import Axis, affine_prefix
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import (
    ADDEND,
    ARGUMENT,
    FACTOR,
    INDEX_A,
    INDEX_B,
    INDEX_O,
    OUT_SHIFT,
    SHIFT,
    STATISTIC,
    Condition,
    Scalar,
    ScalarOpcode,
)
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, VectorFunction

__all__ = ["BlockLowering", "Generation", "Memory"]

WORD_BYTES = 4
_SIZES = {1: 0, 2: 1, 4: 2}
_LARGEST_OUT_SHIFT = 62
_LARGEST_FACTOR = (1 << 16) - 1
"""Of the scalar unit's products."""

PEAK, RIGHT = 1, 2
VALUE, OTHER, SPARE, SPARE_2, DEVIATION = (3, 4), (5, 6), 7, 8, (9, 10)


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
        """Address of ``size`` bytes."""
        address = self._next
        self._next += -(-size // WORD_BYTES) * WORD_BYTES
        return address

    def table(self, values: np.ndarray, width: int) -> int:
        """Address of little-endian integers of ``width`` bytes, stored once for all who ask for the same."""
        data = np.ascontiguousarray(values, f"<i{width}").tobytes()
        if data not in self._tables:
            self._tables[data] = self.reserve(len(data))
            self.contents.append((self._tables[data], data))
        return self._tables[data]


class BlockLowering:
    """Lowers the operations of one program in their order.

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
        self._scratch: dict[str, tuple[int, int]] = {}

    def lower(self, operation: BlockOperation) -> list[Instruction | Scalar]:
        """Instructions of one operation. Raises :class:`ModelError` for one that the core cannot do."""
        from tritloom.compiler.schedule.attention import attend

        emitter = Emitter(f"layer {operation.name!r}")
        handlers: dict[type, Callable[..., None]] = {
            Position: self._position, Lookup: self._lookup, Norm: self._norm, Quantise: self._quantise, Rectify: self._rectify,
            Hadamard: self._hadamard, QuantiseByDeviation: self._quantise_by_deviation, BlockProduct: self._product, BlockSum: self._sum, Curve: self._curve, Rotate: self._rotate, Store: self._store, View: self._view,
        }  # fmt: skip
        if type(operation) in handlers:
            handlers[type(operation)](operation, emitter)
        else:
            attend(self, operation, emitter)
        return emitter.instructions

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

    def measure(self, operation: Operation) -> list[Instruction | Scalar]:
        """Peaks of a tensor that the array has written, where an operation on blocks reads it."""
        emitter = Emitter(f"layer {operation.name!r}")
        name = operation.output
        if any(isinstance(reader, BlockOperation) and name in reader.inputs for reader in self._program.operations):
            for pixel in range(self._pixels(name)):
                function = VectorFunction(o_size=NOT_WRITTEN, statistic=Statistic.MAGNITUDE)
                emitter.vector(function, self.channels(name, a=name), a=self.address(name, pixel))
                self.keep_peak(emitter, name, pixel)
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

    def _pixels(self, name: str) -> int:
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
        return _SIZES[self._placements[name].element_bytes]

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
            self._peaks[name] = self._memory.reserve(WORD_BYTES * self._pixels(name))
        return self._peaks[name] + WORD_BYTES * pixel

    def keep_peak(self, emitter: Emitter, name: str, pixel: int) -> None:
        """The statistic of the instruction before becomes a pixel's peak."""
        emitter.store(STATISTIC, self.peak(name, pixel))

    def normalise(self, emitter: Emitter, name: str, pixel: int, right: int = RIGHT) -> None:
        """Registers PEAK and ``right``: the largest magnitude, and by how much the elements are shifted."""
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
        if stride > _LARGEST_FACTOR:
            raise ModelError(f"layer {operation.name!r} steps by {stride} bytes; the core multiplies addresses by at most {_LARGEST_FACTOR}")
        emitter.load(PEAK, self.address(number))
        emitter.scalar(ScalarOpcode.MULTIPLY, register, PEAK, stride)

    # ---- operations ---------------------------------------------------------------------------------------------------

    def _position(self, operation: Position, emitter: Emitter) -> None:
        emitter.load(PEAK, self.address(operation.input))
        emitter.add(PEAK, PEAK, 1)
        emitter.scalar(ScalarOpcode.MINIMUM, PEAK, PEAK, operation.capacity)
        emitter.store(PEAK, self.address(operation.output))

    def _lookup(self, operation: Lookup, emitter: Emitter) -> None:
        table = np.asarray(operation.table)
        if len(table) > _LARGEST_FACTOR:
            raise ModelError(f"layer {operation.name!r} has {len(table)} rows; the core finds one of at most {_LARGEST_FACTOR}")
        self.index(operation, emitter, INDEX_A, operation.input, 2 * table.shape[1])
        function = VectorFunction(a_size=1, statistic=Statistic.MAGNITUDE)
        axes = [Axis(count=table.shape[1], strides={"a": 2, "o": 4})]
        emitter.vector(function, axes, a=self.table(table, 2), o=self.address(operation.output), index_a=True)
        self.keep_peak(emitter, operation.output, 0)

    def _power(self, emitter: Emitter, name: str, pixel: int) -> None:
        """Registers RIGHT and SHIFT for a pixel, and in VALUE the sum of its squares as a scale."""
        dropped = blockfloat.norm_shift(self._placements[name].shape[0])
        self.normalise(emitter, name, pixel)
        emitter.move(SHIFT, RIGHT)
        squares = VectorFunction(
            a_size=self.size(name), o_size=NOT_WRITTEN, shifted=True, factor=Factor.ITSELF, out_shift=dropped, statistic=Statistic.SUM
        )
        emitter.vector(squares, self.channels(name, reduces=True, a=name), a=self.address(name, pixel))
        emitter.scale_of(VALUE, STATISTIC, None, SPARE, dropped)

    def _hadamard(self, operation: Hadamard, emitter: Emitter) -> None:
        """The normalised elements, then sums and differences of pairs that lie 1, 2, 4, ... apart, from one place to the other and back."""
        name, out, count = operation.input, operation.output, self._placements[operation.input].shape[0]
        spare = self.scratch("butterflies", WORD_BYTES * count)
        passes = operation.size.bit_length() - 1
        for pixel in range(self._pixels(name)):
            self.normalise(emitter, name, pixel)
            emitter.move(SHIFT, RIGHT)
            places = (self.address(out, pixel), spare)
            source = places[passes % 2]
            function = VectorFunction(a_size=self.size(name), shifted=True, statistic=Statistic.MAGNITUDE)
            emitter.vector(
                function, [Axis(count=count, strides={"a": 1 << self.size(name), "o": 4})], a=self.address(name, pixel), o=source
            )
            for step in range(passes):
                source, target, distance = places[(passes - step) % 2], places[(passes - step - 1) % 2], WORD_BYTES << step
                strides = [{register: stride for register in "abo"} for stride in (WORD_BYTES, 2 * distance)]
                axes = [Axis(count=1 << step, strides=strides[0]), Axis(count=count >> (step + 1), strides=strides[1])]
                for second, offset in ((Second.ADDEND, 0), (Second.SUBTRAHEND, distance)):
                    function = VectorFunction(second=second, statistic=Statistic.MAGNITUDE)
                    emitter.vector(function, axes, a=source, b=source + distance, o=target + offset)
                    if not offset:
                        emitter.move(SPARE, STATISTIC)
                emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, right=STATISTIC)
            emitter.store(SPARE, self.peak(out, pixel))
            self.scale(emitter, VALUE, operation.input_scale, pixel, RIGHT)
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))

    def _quantise_by_deviation(self, operation: QuantiseByDeviation, emitter: Emitter) -> None:
        name, out, levels = operation.input, operation.output, operation.levels
        count = self._placements[name].shape[0]
        steps = self.scratch("levels", WORD_BYTES * count)
        # The outermost level, 2**bits - 1.
        bits = ((levels // 2 if levels % 2 else levels - 1) + 1).bit_length() - 1
        if (1 << bits) - 1 != (levels // 2 if levels % 2 else levels - 1):
            raise ModelError(
                f"layer {operation.name!r}: the core quantises to 3, 7, 15, ... or to 2, 4, 8, ... levels, not to {levels}; run the model in golden"
            )
        for pixel in range(self._pixels(name)):
            self._power(emitter, name, pixel)
            power, deviation = VALUE, DEVIATION
            emitter.root_reciprocal(OTHER, power, (SPARE, SPARE_2))
            emitter.product(deviation, power, OTHER, SPARE)
            emitter.add(deviation[1], deviation[1], right=RIGHT)
            emitter.add(deviation[1], deviation[1], -blockfloat.NOTHING)
            emitter.scalar(ScalarOpcode.KEEP, deviation[1], power[0], right=deviation[1])
            emitter.add(deviation[1], deviation[1], blockfloat.NOTHING)
            self.scale(emitter, power, operation.input_scale, pixel)
            emitter.product(deviation, deviation, power, SPARE)
            emitter.store_pair(deviation, self.address(operation.output_scale, pixel))
            emitter.product_constant(OTHER, OTHER, operation.ratio, SPARE)
            emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, OTHER[1], 0)
            emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
            emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, _LARGEST_OUT_SHIFT)
            codes = VectorFunction(
                a_size=self.size(name), o_size=0 if levels % 2 else 2, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER,
                rounded=bool(levels % 2), bits=bits if levels % 2 else bits + 2, low=Low.SYMMETRIC if levels % 2 else Low.TWO,
            )  # fmt: skip
            target = self.address(out, pixel)
            if levels % 2:
                emitter.move(FACTOR, OTHER[0])
                emitter.vector(codes, self.channels(name, a=name, o=out), a=self.address(name, pixel), o=target)
                continue
            # ceil(t) = -floor(-t), and the code is 2 ceil(t) - 1.
            emitter.scalar(ScalarOpcode.SUBTRACT, FACTOR, OTHER[0], 0)
            axes = [Axis(count=count, strides={"a": 1 << self.size(name), "o": 4})]
            emitter.vector(codes, axes, a=self.address(name, pixel), o=steps)
            emitter.set(FACTOR, -2)
            emitter.set(ADDEND, -1)
            odd = VectorFunction(o_size=0, factor=Factor.REGISTER, addend=True, bits=bits, low=Low.SYMMETRIC)
            emitter.vector(odd, [Axis(count=count, strides={"a": 4, "o": 1})], a=steps, o=target)

    def _norm(self, operation: Norm, emitter: Emitter) -> None:
        if operation.centre or operation.bias is not None:
            raise ModelError(f"layer {operation.name!r}: the core has no centring and no bias in a norm; run the model in golden")
        name, out = operation.input, operation.output
        gain = self.table(operation.gain, 2)
        for pixel in range(self._pixels(name)):
            self._power(emitter, name, pixel)
            if operation.epsilon[0]:
                self.scale(emitter, OTHER, operation.input_scale, pixel, RIGHT)
                emitter.reciprocal(OTHER, OTHER, SPARE)
                _square(emitter, OTHER)
                emitter.product_constant(OTHER, OTHER, operation.epsilon, SPARE)
                emitter.sum(VALUE, VALUE, OTHER, (SPARE, SPARE_2))
            emitter.root_reciprocal(VALUE, VALUE, (SPARE, SPARE_2))
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))
            products = VectorFunction(
                a_size=self.size(name), b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
            )
            axes = self.channels(name, a=name, o=out, b_bytes=2)
            emitter.vector(products, axes, a=self.address(name, pixel), b=gain, o=self.address(out, pixel))
            self.keep_peak(emitter, out, pixel)

    def _quantise(self, operation: Quantise, emitter: Emitter) -> None:
        name = operation.input
        for pixel in range(self._pixels(name)):
            self.quantised(emitter, name, operation.input_scale, pixel)
            function = VectorFunction(
                a_size=self.size(name), o_size=0, shifted=True, factor=Factor.REGISTER, out_shift=blockfloat.RATIO_BITS, rounded=True, bits=7,
                low=Low.SYMMETRIC,
            )  # fmt: skip
            axes = self.channels(name, a=name, o=operation.output)
            emitter.vector(function, axes, a=self.address(name, pixel), o=self.address(operation.output, pixel))
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))

    def quantised(self, emitter: Emitter, name: str, input_scale: str, pixel: int) -> None:
        """Registers SHIFT and FACTOR for codes of a pixel, and their scale in VALUE."""
        top, exponent = VALUE
        self.normalise(emitter, name, pixel)
        emitter.move(SHIFT, RIGHT)
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, top, PEAK, right=RIGHT)
        emitter.scalar(ScalarOpcode.DIVIDE, FACTOR, top, blockfloat.LEVELS << blockfloat.RATIO_BITS)
        emitter.scale_of(VALUE, top, RIGHT, SPARE, -blockfloat.NOTHING)
        emitter.scalar(ScalarOpcode.KEEP, exponent, top, right=exponent)
        emitter.add(exponent, exponent, blockfloat.NOTHING)
        self.scale(emitter, OTHER, input_scale, pixel)
        emitter.product(VALUE, VALUE, OTHER, SPARE)

    def _rectify(self, operation: Rectify, emitter: Emitter) -> None:
        name, out = operation.input, operation.output
        for pixel in range(self._pixels(name)):
            function = VectorFunction(a_size=self.size(name), o_size=self.size(out), low=Low.ZERO, statistic=Statistic.MAGNITUDE)
            emitter.vector(function, self.channels(name, a=name, o=out), a=self.address(name, pixel), o=self.address(out, pixel))
            self.keep_peak(emitter, out, pixel)

    def _right(self, operation: BlockProduct | BlockSum, emitter: Emitter, pixel: int) -> tuple[int, Pair, int]:
        """The right operand: address, its registers (normalised scale), and its element's size; register SPARE_2 holds its shift."""
        if operation.table is not None:
            values, right = blockfloat.normalise(np.asarray(operation.table, np.int64), 0)
            emitter.set(SPARE_2, 0)
            emitter.set_pair(OTHER, (1 << 15, -15 + int(right[0])))
            return self.table(values, 2), OTHER, 1
        self.normalise(emitter, operation.right, pixel, SPARE_2)
        self.scale(emitter, OTHER, operation.right_scale, pixel, SPARE_2)
        return self.address(operation.right, pixel), OTHER, self.size(operation.right)

    def _product(self, operation: BlockProduct, emitter: Emitter) -> None:
        name, out = operation.left, operation.output
        square = operation.table is None and (name, operation.left_scale) == (operation.right, operation.right_scale)
        for pixel in range(self._pixels(name)):
            function, b = VectorFunction(a_size=self.size(name), shifted=True, factor=Factor.ITSELF, statistic=Statistic.MAGNITUDE), 0
            if square:
                self.normalise(emitter, name, pixel)
                self.scale(emitter, VALUE, operation.left_scale, pixel, RIGHT)
                _square(emitter, VALUE)
            else:
                address, _, size = self._right(operation, emitter, pixel)
                # A factor from the memory has 16 bits: the right operand is normalised first.
                b = self.scratch("factors", 2 * self._placements[name].shape[0])
                emitter.move(SHIFT, SPARE_2)
                axes = [Axis(count=self._placements[name].shape[0], strides={"a": 1 << size, "o": 2})]
                emitter.vector(VectorFunction(a_size=size, o_size=1, shifted=True, bits=15), axes, a=address, o=b)
                self.normalise(emitter, name, pixel)
                self.scale(emitter, VALUE, operation.left_scale, pixel, RIGHT)
                emitter.product(VALUE, VALUE, OTHER, SPARE)
                function = VectorFunction(
                    a_size=self.size(name),
                    b_size=1,
                    shifted=True,
                    second=Second.FACTOR,
                    factor=Factor.OPERAND,
                    statistic=Statistic.MAGNITUDE,
                )
            emitter.move(SHIFT, RIGHT)
            axes = self.channels(name, a=name, o=out, b_bytes=2)
            emitter.vector(function, axes, a=self.address(name, pixel), b=b, o=self.address(out, pixel))
            self.keep_peak(emitter, out, pixel)
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))

    def _sum(self, operation: BlockSum, emitter: Emitter) -> None:
        out, places = operation.output, SPARE
        for pixel in range(self._pixels(operation.left)):
            address, right, size = self._right(operation, emitter, pixel)
            emitter.product_constant(right, right, operation.right_constant, SPARE)
            self.normalise(emitter, operation.left, pixel)
            self.scale(emitter, VALUE, operation.left_scale, pixel, RIGHT)
            emitter.product_constant(VALUE, VALUE, operation.left_constant, SPARE)
            exponent = PEAK
            emitter.scalar(ScalarOpcode.MAXIMUM, exponent, VALUE[1], right=right[1])
            emitter.add(exponent, exponent, 1)
            parts = (
                (self.address(operation.left, pixel), self.size(operation.left), RIGHT, VALUE),
                (address, size, SPARE_2, right),
            )
            for index, (first, width, shift, pair) in enumerate(parts):
                emitter.move(SHIFT, shift)
                emitter.move(FACTOR, pair[0])
                emitter.scalar(ScalarOpcode.SUBTRACT, places, pair[1], right=exponent)
                emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, places, _LARGEST_OUT_SHIFT)
                function = VectorFunction(
                    a_size=width, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER,
                    second=Second.ADDEND if index else Second.NONE, statistic=Statistic.MAGNITUDE,
                )  # fmt: skip
                target = self.address(out, pixel)
                axes = [Axis(count=self._placements[out].shape[0], strides={"a": 1 << width, "b": 4 * index, "o": 4})]
                emitter.vector(function, axes, a=first, b=target * index, o=target)
            self.keep_peak(emitter, out, pixel)
            emitter.set(VALUE[0], 1 << 15)
            emitter.add(VALUE[1], exponent, -15)
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))

    def _curve(self, operation: Curve, emitter: Emitter) -> None:
        name, out = operation.input, operation.output
        half = len(operation.table) // 2
        table, channels = self.table(operation.table, 2), self._placements[name].shape[0]
        steps = self.scratch("factors", 2 * channels)
        for pixel in range(self._pixels(name)):
            self.normalise(emitter, name, pixel)
            emitter.move(SHIFT, RIGHT)
            self.scale(emitter, VALUE, operation.input_scale, pixel, RIGHT)
            emitter.product_constant(VALUE, VALUE, operation.constant, SPARE)
            emitter.move(FACTOR, VALUE[0])
            emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, VALUE[1], -blockfloat.CURVE_BITS)
            emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
            emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, _LARGEST_OUT_SHIFT)
            index = VectorFunction(
                a_size=self.size(name), o_size=1, shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True,
                bits=half.bit_length() - 1,
            )  # fmt: skip
            emitter.vector(index, [Axis(count=channels, strides={"a": 1 << self.size(name), "o": 2})], a=self.address(name, pixel), o=steps)
            lookup = VectorFunction(a_size=1, b_size=1, second=Second.TABLE, statistic=Statistic.MAGNITUDE)
            emitter.vector(
                lookup, [Axis(count=channels, strides={"a": 2, "o": 4})], a=steps, b=table + 2 * half, o=self.address(out, pixel)
            )
            self.keep_peak(emitter, out, pixel)

    def _rotate(self, operation: Rotate, emitter: Emitter) -> None:
        name, out = operation.input, operation.output
        cosine, sine = (np.asarray(part, np.int64) for part in (operation.cosine, operation.sine))
        half = cosine.shape[1]
        # A row holds what the first and the second element of a pair are multiplied by, for the first result and for the second one.
        table = self.table(np.stack([cosine, -sine, sine, cosine], axis=1), 2)
        self.index(operation, emitter, INDEX_B, operation.position, 8 * half)
        element = self._placements[name].element_bytes
        pair, following = (element, 2 * element) if operation.interleaved else (half * element, element)
        results = (4, 8) if operation.interleaved else (4 * half, 4)
        axes = [
            Axis(count=2, reduces=True, strides={"a": pair, "b": 2 * half}),
            Axis(count=half, strides={"a": following, "b": 2, "o": results[1]}),
            Axis(count=2, strides={"b": 4 * half, "o": results[0]}),
        ]
        function = VectorFunction(
            a_size=self.size(name), b_size=1, shifted=True, second=Second.FACTOR, factor=Factor.OPERAND, statistic=Statistic.MAGNITUDE
        )
        for pixel in range(self._pixels(name)):
            self.normalise(emitter, name, pixel)
            emitter.move(SHIFT, RIGHT)
            emitter.vector(function, axes, a=self.address(name, pixel), b=table, o=self.address(out, pixel), index_b=True)
            self.keep_peak(emitter, out, pixel)
            self.scale(emitter, VALUE, operation.input_scale, pixel, RIGHT)
            emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))

    def _store(self, operation: Store, emitter: Emitter) -> None:
        source, target = self._placements[operation.input], self._placements[operation.output]
        if target.address != self._placements[operation.cache].address:
            raise ModelError(f"layer {operation.name!r}: the core changes a cache in place, but {operation.cache!r} is no state")
        self.index(operation, emitter, INDEX_O, operation.position, target.pixel_bytes)
        width = source.element_bytes
        axes = [
            Axis(count=source.shape[0], strides={"a": width, "o": width}),
            Axis(count=source.shape[1], strides={"a": source.pixel_bytes * source.shape[2], "o": target.pixel_bytes * target.shape[2]}),
        ]
        emitter.vector(VectorFunction(a_size=_SIZES[width], o_size=_SIZES[width]), axes, a=source.address, o=target.address, index_o=True)

    def _view(self, operation: View, emitter: Emitter) -> None:
        source, target = self._placements[operation.input], self._placements[operation.output]
        places = _addresses(source)[np.asarray(operation.index).ravel()].reshape(target.shape)
        function = VectorFunction(a_size=self.size(operation.input), o_size=self.size(operation.output), statistic=Statistic.MAGNITUDE)
        for pixel in range(self._pixels(operation.output)):
            row, column = divmod(pixel, target.shape[2])
            rest = np.stack([places[:, row, column], np.arange(target.shape[0]) * target.element_bytes], axis=1)
            loops, covered = affine_prefix(rest)
            if covered < len(rest):
                raise ModelError(
                    f"layer {operation.name!r} gathers its elements in several runs; the core takes a regular transpose or reshape"
                )
            axes = [Axis(count=count, strides={"a": int(stride[0]), "o": int(stride[1])}) for count, stride in loops]
            emitter.vector(function, axes, a=int(rest[0, 0]), o=self.address(operation.output, pixel))
            self.keep_peak(emitter, operation.output, pixel)
        if operation.output_scale:
            self.scale(emitter, VALUE, operation.input_scale, 0)
            for pixel in range(self._pixels(operation.output)):
                emitter.store_pair(VALUE, self.address(operation.output_scale, pixel))


def _square(emitter: Emitter, pair: Pair) -> None:
    """A scale times itself."""
    emitter.product(pair, pair, pair, SPARE)


def _addresses(place: Placement) -> np.ndarray:
    """Byte address of every element in (C, H, W) order, int64."""
    channels, height, width = place.shape
    pixels = np.arange(height * width) * place.pixel_bytes
    return (place.address + pixels + np.arange(channels)[:, None] * place.element_bytes).ravel()
