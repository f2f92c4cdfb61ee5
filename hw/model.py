"""NumPy twin of the core: the meaning of every instruction in exact integers, and its cycle count.

The gateware is tested against this model, and the scheduler's programs are run on it. Whole reductions are computed at once,
so a small network takes milliseconds; the clocks come from :func:`tritloom.hw.arch.timing.instruction_cycles`.

What the instruction set leaves open is fixed here as follows:

* Accumulators wrap at ``accumulator_bits`` in two's complement, scaled ones at ``scaled_bits`` (the compiler proves that they never do).
* ``y``, ``x`` and ``p`` wrap at 16 bits, ``a``, ``b`` and ``o`` at 32. ``a`` drops its low bits where a whole activation word is read, ``o`` where one is written.
* ``o_step`` and ``p_step`` of loops below ``reduce_loops`` are ignored (the scheduler writes 0).
* What an instruction reads is what memory held when the instruction began; an instruction must not read what it writes.
* Addresses beyond a memory are unspecified in gateware and raise :class:`ValueError` here. An element that ``padded``
  replaces or skips is not read, so its address does not count.
* Registers are zero at first and keep their values from run to run; STATISTIC and ARGUMENT are not written by scalar instructions.
* After HALT the state is IDLE, after ``limit`` instructions STOPPED with ``pc`` at the next one. ``pc`` stays at a HALT that was run,
  and at an instruction that faulted. An unknown opcode and a loop count outside 1 to 7 are the fault BAD_INSTRUCTION.
"""

from dataclasses import replace

import numpy as np

from tritloom.hw.arch import scalar
from tritloom.hw.arch.isa import COUNTED, HEADER_WORDS, LOOP_WORDS, NO_LOOP, PROGRAM_WORD_BYTES, Instruction, Opcode, disassemble
from tritloom.hw.arch.link import Fault, Space, State
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import BIAS_BITS, MULTIPLIER_BITS, RECORD_BYTES, SHIFT_BITS, START_BITS
from tritloom.hw.arch.scalar import Condition, Scalar, ScalarOpcode, as_signed
from tritloom.hw.arch.timing import instruction_cycles
from tritloom.hw.arch.trits import decode_trit2, decode_trit5
from tritloom.hw.arch.vector import NOT_WRITTEN, Lanes, Second, Statistic, VectorFunction
from tritloom.hw.vector.model import vector_results

__all__ = ["CoreModel", "walk"]

_CHUNK = 1 << 21
"""Activations gathered at once, to bound the memory that a large convolution takes."""
_ADDRESS, _RECORD = (1 << 32) - 1, (1 << 16) - 1
"""Masks of the address registers and of the record register."""


def _wrapped(values: np.ndarray, bits: int) -> np.ndarray:
    """Values (int64) in two's complement of ``bits``."""
    half = 1 << (bits - 1)
    return (values + half & 2 * half - 1) - half


def walk(instruction: Instruction, register: str, first: int, last: int) -> np.ndarray:
    """Offsets of a register over loops ``first`` to ``last - 1``, int64 (iterations,), innermost loop fastest.

    ``register`` is ``a``, ``b``, ``o``, ``p``, ``y`` or ``x``. The first value is 0, and nothing wraps. For ``o`` and ``p`` the loops below
    ``reduce_loops`` do not count.
    """
    strides, walked = [], 0
    for index, loop in enumerate(instruction.loops[:last]):
        if register in "op" and index < instruction.reduce_loops:
            strides.append(0)
            continue
        strides.append(getattr(loop, register + "_step") + walked)
        walked += strides[-1] * loop.last
    values = np.zeros(1, np.int64)
    for index in range(last - 1, first - 1, -1):
        values = (values[:, None] + strides[index] * np.arange(instruction.loops[index].last + 1)).ravel()
    return values


class CoreModel:
    """A core's memories and state, and :meth:`run`.

    Parameters
    ----------
    parameters
        Shape and memory sizes of the core. All memories are zero at first.

    Attributes
    ----------
    state, fault, pc, cycles
        As the link's STATUS reports them.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self.parameters = parameters
        self.state, self.fault, self.pc, self.cycles = State.IDLE, Fault.NONE, 0, 0
        self._memories = {
            Space.PROGRAM: np.zeros((parameters.program_words, PROGRAM_WORD_BYTES), np.uint8),
            Space.WEIGHTS: np.zeros((parameters.weight_words, parameters.weight_word_bytes), np.uint8),
            Space.RECORDS: np.zeros((parameters.record_words, parameters.record_word_bytes), np.uint8),
            Space.ACTIVATIONS: np.zeros((parameters.activation_bytes, 1), np.uint8),
            Space.ARTEFACT: np.zeros((1, 8), np.uint8),
        }
        self.registers = [0] * scalar.REGISTERS
        self._activations = self._memories[Space.ACTIVATIONS].reshape(-1).view(np.int8)

    def write(self, space: Space, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``: a byte address of activations, else a word address and whole words.

        Raises :class:`ValueError` when data is not whole words or leaves the memory.
        """
        if space not in self._memories:
            raise ValueError(f"memory space {int(space)} must be one that the core has")
        memory = self._memories[space]
        words = np.frombuffer(data, np.uint8)
        if len(words) % memory.shape[1]:
            raise ValueError(f"data for {space.name} must be whole words of {memory.shape[1]} bytes, not {len(words)} bytes")
        words = words.reshape(-1, memory.shape[1])
        self._check(space.name, address, len(words), len(memory))
        memory[address : address + len(words)] = words

    def read(self, address: int, count: int) -> bytes:
        """``count`` bytes of the activation memory. Raises :class:`ValueError` when they leave the memory."""
        self._check("ACTIVATIONS", address, count, len(self._activations))
        return self._activations[address : address + count].tobytes()

    def run(self, pc: int = 0, limit: int = 0, *, clear: bool = True) -> None:
        """Run from program word ``pc`` to HALT, or for ``limit`` instructions when that is above 0.

        ``clear`` zeroes :attr:`cycles` first. Raises :class:`ValueError` for an address beyond a memory.
        """
        self.state, self.fault, self.pc = State.RUNNING, Fault.NONE, pc
        if clear:
            self.cycles = 0
        done, previous = 0, None
        while self.state == State.RUNNING:
            instruction = self._fetch()
            if instruction is None:
                self.state, self.fault = State.FAULT, Fault.BAD_INSTRUCTION
                return
            if isinstance(instruction, Instruction):
                instruction = self.with_registers(instruction)
            self.cycles += instruction_cycles(instruction, self.parameters, previous)
            if instruction.opcode == Opcode.HALT:
                self.state = State.IDLE
                return
            self.pc += instruction.words
            self.execute(instruction)
            done, previous = done + 1, instruction
            if done == limit:
                self.state = State.STOPPED

    def execute(self, instruction: Instruction | Scalar) -> None:
        """Do one instruction on memories and registers. ``state`` and ``cycles`` stay as they are, and ``pc`` unless a branch is taken."""
        if isinstance(instruction, Scalar):
            self._scalar(instruction)
            return
        kinds = {Opcode.MATRIX: self._matrix, Opcode.POOL: self._pool, Opcode.ELEMENTWISE: self._elementwise, Opcode.VECTOR: self._vector}
        kinds[instruction.opcode](instruction)

    def with_registers(self, instruction: Instruction) -> Instruction:
        """The instruction with what it takes from registers."""
        values = {
            name: getattr(instruction, name) + self.registers[register] & _ADDRESS
            for name, flag, register in (
                ("a", instruction.index_a, scalar.INDEX_A),
                ("b", instruction.index_b, scalar.INDEX_B),
                ("o", instruction.index_o, scalar.INDEX_O),
            )
            if flag
        }
        loops, behind = [], False
        for loop in instruction.loops:
            if behind:
                steps = {"a_step": loop.a_step + self.registers[scalar.STEP_A], "b_step": loop.b_step + self.registers[scalar.STEP_B]}
                loop = replace(loop, **{name: as_signed(step) for name, step in steps.items()})
            behind = instruction.counted and loop.last == COUNTED
            loops.append(replace(loop, last=self.registers[scalar.COUNT] & 0xFFFF) if behind else loop)
        return replace(instruction, loops=tuple(loops), **values) if values or instruction.counted else instruction

    def _fetch(self) -> Instruction | Scalar | None:
        program = self._memories[Space.PROGRAM].view("<u8").reshape(-1)
        self._check("PROGRAM", self.pc, 1, len(program))
        header = int(program[self.pc])
        if header & 0xFF in set(ScalarOpcode) and self.parameters.vector_lanes:
            return Scalar.decode(header)
        if header & 0xFF not in set(Opcode) or (header & 0xFF == Opcode.VECTOR and not self.parameters.vector_lanes):
            return None
        if header & 0xFF == Opcode.HALT:
            return Instruction(opcode=Opcode.HALT)
        length = HEADER_WORDS + LOOP_WORDS * (header >> 8 & 15)
        self._check("PROGRAM", self.pc, length, len(program))
        try:
            return disassemble(program[self.pc : self.pc + length].tolist())[0]
        except ValueError:
            return None

    def _inside(self, instruction: Instruction, outer: slice) -> np.ndarray | None:
        """Mask (outer iterations, reduction iterations) of elements inside the input; ``None`` when all are."""
        if not instruction.padded:
            return None
        mask = np.ones(1, bool)
        for register, size in (("y", instruction.height), ("x", instruction.width)):
            start = getattr(instruction, register)
            position = start + self._outer(instruction, register)[outer, None] + self._reduction(instruction, register)
            position = (position + 0x8000 & 0xFFFF) - 0x8000
            mask = mask & (position >= 0) & (position < size)
        return mask

    @staticmethod
    def _outer(instruction: Instruction, register: str) -> np.ndarray:
        return walk(instruction, register, instruction.reduce_loops, len(instruction.loops))

    @staticmethod
    def _reduction(instruction: Instruction, register: str) -> np.ndarray:
        return walk(instruction, register, 0, instruction.reduce_loops)

    def _words(self, instruction: Instruction, outer: slice, mask: np.ndarray | None) -> np.ndarray:
        """Activation words of some outer iterations, int8 (outer, reduction, rows); masked ones are unspecified."""
        rows = self.parameters.rows
        addresses = instruction.a + self._outer(instruction, "a")[outer, None] + self._reduction(instruction, "a")
        words = (addresses & _ADDRESS) // rows
        if mask is not None:
            words = np.where(mask, words, 0)
        self._check_all("activation word", words, self.parameters.activation_words)
        return self._activations.reshape(-1, rows)[words]

    def _matrix(self, instruction: Instruction) -> None:
        rows, columns = self.parameters.rows, self.parameters.columns
        outer_b, reduction_b = instruction.b + self._outer(instruction, "b") & _ADDRESS, self._reduction(instruction, "b")
        factors, bound = self._plane_factors(instruction)
        exact = bound * rows * 128 < 1 << 53
        accumulators = np.empty((len(outer_b), columns), np.int64)
        weights: dict[int, np.ndarray] = {}
        step = max(1, _CHUNK // (len(reduction_b) * rows))
        for start in range(0, len(outer_b), step):
            outer = slice(start, start + step)
            mask = self._inside(instruction, outer)
            words = self._words(instruction, outer, mask)
            if mask is not None:
                words = np.where(mask[:, :, None], words, np.int8(instruction.pad_value))
            lanes = words.reshape(len(words), -1).astype(np.float64 if exact else np.int64)
            for first in np.unique(outer_b[outer]).tolist():
                if first not in weights:
                    trits = self._trits(first + reduction_b & _ADDRESS).reshape(-1, columns, rows) * factors[:, None, None]
                    weights[first] = np.ascontiguousarray(trits.transpose(0, 2, 1).reshape(-1, columns), lanes.dtype)
                chosen = np.flatnonzero(outer_b[outer] == first)
                accumulators[start + chosen] = lanes[chosen] @ weights[first]
        self._drain(instruction, _wrapped(accumulators, self.parameters.accumulator_bits))

    def _plane_factors(self, instruction: Instruction) -> tuple[np.ndarray, int]:
        """Power of three that later triplings give each reduction element (modulo 2**64), and their sum as a bound."""
        plane, count = instruction.plane_loop, instruction.reduce_loops
        counts = [loop.last + 1 for loop in instruction.loops[:count]]
        total = int(np.prod(counts, dtype=np.int64))
        if plane >= count:
            return np.ones(total, np.int64), total
        inner = int(np.prod(counts[:plane], dtype=np.int64))
        index = np.arange(total) // inner
        advances = index // counts[plane] * (counts[plane] - 1) + index % counts[plane]
        powers = [3 ** int(advances[-1] - value) for value in advances]
        return np.array([(power + (1 << 63)) % (1 << 64) - (1 << 63) for power in powers], np.int64), sum(powers)

    def _trits(self, words: np.ndarray) -> np.ndarray:
        """Decoded weight words, int64 (words, rows * columns)."""
        self._check_all("weight word", words, self.parameters.weight_words)
        decode = decode_trit2 if self.parameters.weight_encoding == "trit2" else decode_trit5
        return decode(self._memories[Space.WEIGHTS][words], self.parameters.rows * self.parameters.columns).astype(np.int64)

    def _drain(self, instruction: Instruction, accumulators: np.ndarray) -> None:
        """Requantise and store finished accumulators, int64 (outer, columns)."""
        columns = self.parameters.columns
        tile = instruction.tile_loop
        used = np.full(len(accumulators), instruction.last_columns)
        if tile != NO_LOOP:
            counts = [loop.last + 1 for loop in instruction.loops[instruction.reduce_loops :]]
            inner = int(np.prod(counts[: tile - instruction.reduce_loops], dtype=np.int64))
            index = np.arange(len(accumulators)) // inner % counts[tile - instruction.reduce_loops]
            used = np.where(index == counts[tile - instruction.reduce_loops] - 1, used, columns)
        row, column = np.nonzero(np.arange(columns) < used[:, None])
        values = accumulators[row, column]
        if instruction.raw:
            targets = (instruction.o + self._outer(instruction, "o")[row] + 4 * column)[:, None] + np.arange(4)
            codes = values.astype("<i4").view(np.int8).reshape(-1, 4)
        else:
            targets = instruction.o + self._outer(instruction, "o")[row] + column
            group, lane = np.divmod(column, self._lanes(instruction))
            word = instruction.p + self._outer(instruction, "p")[row] + group * instruction.records
            codes = self._requantise(instruction, word, lane, values)
        self._store(targets, codes)

    def _pool(self, instruction: Instruction) -> None:
        outer = self._outer(instruction, "o")
        reduction = len(self._reduction(instruction, "a"))
        results = np.empty((len(outer), self.parameters.rows), np.int8)
        step = max(1, _CHUNK // (reduction * self.parameters.rows))
        for start in range(0, len(outer), step):
            chunk = slice(start, start + step)
            mask = self._inside(instruction, chunk)
            words = self._words(instruction, chunk, mask)
            results[chunk] = (words if mask is None else np.where(mask[:, :, None], words, np.int8(-128))).max(axis=1)
        targets = (instruction.o + outer) // self.parameters.rows * self.parameters.rows
        self._store(targets[:, None] + np.arange(self.parameters.rows), results)

    def _elementwise(self, instruction: Instruction) -> None:
        count, lane = len(instruction.loops), np.arange(self._lanes(instruction))
        addresses = (instruction.a + walk(instruction, "a", 0, count))[:, None] + lane & _ADDRESS
        self._check_all("activation byte", addresses, self.parameters.activation_bytes)
        first, second = self._activations[addresses].astype(np.int64), None
        if instruction.two_operands:
            addresses = (instruction.b + walk(instruction, "b", 0, count))[:, None] + lane & _ADDRESS
            self._check_all("activation byte", addresses, self.parameters.activation_bytes)
            second = self._activations[addresses].astype(np.int64)
        codes = self._requantise(instruction, (instruction.p + walk(instruction, "p", 0, count))[:, None], lane, first, second)
        self._store((instruction.o + walk(instruction, "o", 0, count))[:, None] + lane, codes)

    def _vector(self, instruction: Instruction) -> None:
        function, registers = VectorFunction.decode(instruction.function), self.registers
        lanes = 1 if function.lanes == Lanes.ONE else self.parameters.vector_lanes
        results_at_once = 1 if function.lanes == Lanes.JOINED else lanes

        def elements(register: str, size: int, *, same: bool = False) -> np.ndarray:
            """Int64 (results, elements of a reduction)."""
            offsets = self._outer(instruction, register)[:, None] + self._reduction(instruction, register)
            addresses = getattr(instruction, register) + offsets
            if lanes > 1 and not same:
                self._check_multiples(register, addresses, lanes << size)
            addresses = addresses[:, None] + np.arange(lanes)[:, None] * (0 if same else 1 << size)
            return self._elements(addresses.reshape(len(offsets) * results_at_once, -1), size)

        first, second = elements("a", function.a_size, same=function.lanes == Lanes.SAME), None
        if function.second in (Second.FACTOR, Second.ADDEND, Second.SUBTRAHEND, Second.SHIFT):
            second = elements("b", function.b_size)
        elif function.second != Second.NONE:
            places = first & 0xFF if function.second == Second.POWER else first
            second = self._elements(instruction.b + (places << function.b_size), function.b_size)
        results, statistic, argument = vector_results(
            function, first, second, shift=registers[scalar.SHIFT], factor=registers[scalar.FACTOR],
            out_shift=registers[scalar.OUT_SHIFT], addend=as_signed(registers[scalar.ADDEND]),
        )  # fmt: skip
        if function.o_size != NOT_WRITTEN:
            targets = (instruction.o + self._outer(instruction, "o"))[:, None]
            stored = results.astype(f"<i{1 << function.o_size}").view(np.int8).reshape(len(targets), -1)
            if results_at_once > 1:
                self._check_multiples("o", targets, stored.shape[1])
            self._store(targets + np.arange(stored.shape[1]), stored)
        if statistic is not None:
            registers[scalar.STATISTIC] = statistic & _ADDRESS
            registers[scalar.ARGUMENT] = argument if function.statistic == Statistic.LARGEST else registers[scalar.ARGUMENT]

    @staticmethod
    def _check_multiples(register: str, addresses: np.ndarray, size: int) -> None:
        """Several lanes read and write within one word only."""
        if (addresses & size - 1).any():
            raise ValueError(f"VECTOR in several lanes must have multiples of {size} in {register}")

    def _elements(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Elements with sign of ``2**size`` bytes at byte addresses, int64 of the same shape."""
        addresses = addresses & _ADDRESS
        self._check_all("activation byte", addresses + (1 << size) - 1, self.parameters.activation_bytes)
        codes = self._activations.view(f"<i{1 << size}")
        return codes[addresses >> size].astype(np.int64)

    def _scalar(self, instruction: Scalar) -> None:
        registers = self.registers
        left = registers[instruction.left]
        second = instruction.immediate & _ADDRESS if instruction.right is None else registers[instruction.right]
        place = left + (instruction.immediate & _ADDRESS) & _ADDRESS
        if instruction.opcode == ScalarOpcode.BRANCH:
            if scalar.condition_holds(Condition(instruction.target), left):
                self.pc = second & 0xFFFF
        elif instruction.opcode == ScalarOpcode.STORE:
            value = np.array([registers[instruction.target]], "<u4").view(np.int8)
            self._store(place + np.arange(4), value)
        elif instruction.target not in (scalar.STATISTIC, scalar.ARGUMENT):
            load = instruction.opcode == ScalarOpcode.LOAD
            value = int(self._elements(np.array(place), 2)) if load else scalar.arithmetic(instruction.opcode, left, second)
            registers[instruction.target] = value & _ADDRESS

    def _lanes(self, instruction: Instruction) -> int:
        """Lanes of the post unit that an instruction uses."""
        return self.parameters.post_lanes if instruction.wide else 1

    def _requantise(
        self, instruction: Instruction, word: np.ndarray, lane: np.ndarray, values: np.ndarray, second: np.ndarray | None = None
    ) -> np.ndarray:
        """Codes (int8) of ``values``, by the records of their ``lane`` in the words that begin at ``word``; see :mod:`tritloom.hw.arch.record`.

        All arrays broadcast to the shape of ``values``.
        """
        word, lanes = word & _RECORD, self.parameters.post_lanes
        self._check_all("record", np.stack([word, word + max(1, instruction.records) - 1]), self.parameters.record_words)
        start, multiplier, bias, shift, half_even = self._record_fields()
        record = base = word * lanes + lane
        if second is not None:
            self._check_all("record", word + 1, self.parameters.record_words)
            total = multiplier[record] * values + bias[record] + multiplier[record + lanes] * second
        else:
            start = _wrapped(start, self.parameters.accumulator_bits)
            for piece in range(1, instruction.records):
                record = np.where(values >= start[base + piece * lanes], base + piece * lanes, record)
            total = multiplier[record] * values + bias[record]
        total = _wrapped(total, self.parameters.scaled_bits)
        amount = shift[record]
        ties = np.where(amount > 0, (1 << np.maximum(amount - 1, 0)) - 1 + (total >> amount & 1), 0)
        total = np.where(half_even[record] == 1, total + ties, total) >> amount
        return np.minimum(np.maximum(total, instruction.low), instruction.high).astype(np.int8)

    def _record_fields(self) -> list[np.ndarray]:
        """Every record of the memory, lane 0 of word 0 first, as int64 arrays: start, multiplier, bias, shift, half_even."""
        low, high = self._memories[Space.RECORDS].reshape(-1, RECORD_BYTES).view("<u8").T
        fields, position = [], 0
        for width, signed in ((START_BITS, True), (MULTIPLIER_BITS, True), (BIAS_BITS, True), (SHIFT_BITS, False), (1, False)):
            if position >= 64:
                value = high >> np.uint64(position - 64)
            elif position == 0:
                value = low
            else:
                value = low >> np.uint64(position) | high << np.uint64(64 - position)
            value = (value << np.uint64(64 - width)).view(np.int64)
            fields.append(value >> (64 - width) if signed else (value.view(np.uint64) >> np.uint64(64 - width)).astype(np.int64))
            position += width
        return fields

    def _store(self, targets: np.ndarray, values: np.ndarray) -> None:
        targets = targets & _ADDRESS
        self._check_all("activation byte", targets, self.parameters.activation_bytes)
        self._activations[targets.ravel()] = values.ravel()

    @staticmethod
    def _check(what: str, address: int, count: int, depth: int) -> None:
        if not (0 <= address and address + count <= depth):
            raise ValueError(f"{what} address {address} with {count} words must stay within {depth} words")

    @staticmethod
    def _check_all(what: str, addresses: np.ndarray, depth: int) -> None:
        if addresses.size and (addresses.min() < 0 or addresses.max() >= depth):
            bad = int(addresses.min() if addresses.min() < 0 else addresses.max())
            raise ValueError(f"{what} address must be from 0 to {depth - 1}, not {bad}")
