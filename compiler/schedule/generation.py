"""The loop over tokens around a language model's program: the prompt, the choice of the next token, the states."""

from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.block import Position
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule.blocks import LARGEST_OUT_SHIFT, OTHER, PEAK, RIGHT, SPARE, SPARE_2, VALUE, WORD_BYTES, BlockLowering
from tritloom.compiler.schedule.emit import ZERO, Emitter
from tritloom.compiler.schedule.nest import Axis
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import Instruction
from tritloom.hw.arch.scalar import ADDEND, ARGUMENT, COUNT, FACTOR, OUT_SHIFT, SHIFT, STATISTIC, Condition, Scalar, ScalarOpcode
from tritloom.hw.arch.vector import NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Second, Statistic, VectorFunction

__all__ = ["Generation", "GenerationLowering"]

CHOSEN, PLACE, LIMIT, DRAWN = 9, 10, 11, 12
"""Registers: the next token, a byte offset in a list of candidates, their number times four, and what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Byte addresses of what a core needs to generate tokens by itself: 32-bit words with the number of tokens of the prompt, the number of tokens to
    run (0: one token, which the host writes), and the tokens one after the other. ``position`` is the tensor that counts them. What draws a token
    (:mod:`tritloom.compiler.golden.sampling`): four times the number of the largest logits that it is drawn among (0: the largest one is taken), the constant, two words, and the state."""

    prompt: int
    total: int
    choices: int
    constant: int
    state: int
    tokens: int
    position: str
    capacity: int


class GenerationLowering:
    """What stands before and behind the operations of a program, and behind its end.

    ``generation`` says where the tokens of a language model are; it is ``None`` for another program.
    """

    def __init__(self, lowering: BlockLowering, program: Program) -> None:
        self._lowering, self._program = lowering, program
        self.generation = self._generation()
        self._back = 0

    def _generation(self) -> Generation | None:
        program = self._program
        positions = [operation for operation in program.operations if isinstance(operation, Position)]
        states = {state.tensor for state in program.states}
        if len(program.inputs) != 1 or len(program.outputs) != 1 or len(positions) != 1 or positions[0].input not in states:
            return None
        index = program.outputs[0].index
        if index is not None and not np.array_equal(np.asarray(index).ravel(), np.arange(np.asarray(index).size)):
            return None
        words = self._lowering.reserve(WORD_BYTES * (positions[0].capacity + 7))
        return Generation(
            prompt=words,
            total=words + WORD_BYTES,
            choices=words + 2 * WORD_BYTES,
            constant=words + 3 * WORD_BYTES,
            state=words + 5 * WORD_BYTES,
            tokens=words + 6 * WORD_BYTES,
            position=positions[0].input,
            capacity=positions[0].capacity,
        )

    def begin(self) -> list[Instruction | Scalar]:
        """What every program starts with: where several tokens are asked for, the next one is that of its number."""
        emitter = self._lowering.emitter("the start")
        emitter.set(ZERO, 0)
        if self.generation is not None:
            place, token = self.generation, self._lowering.address(self._program.inputs[0].tensor)
            self._load_token_place(emitter, 0)
            emitter.load(RIGHT, token)
            emitter.load(SPARE, place.total)
            # token + (total ? asked - token : 0): without a branch every run of a layer has the same instructions.
            emitter.scalar(ScalarOpcode.SUBTRACT, PEAK, RIGHT, right=PEAK)
            emitter.scalar(ScalarOpcode.KEEP, PEAK, SPARE, right=PEAK)
            emitter.add(PEAK, PEAK, right=RIGHT)
            emitter.store(PEAK, token)
        return emitter.instructions

    def end(self) -> list[Instruction | Scalar]:
        """Behind the last operation: the next token follows where the prompt has ended, the states go on, and the program begins again while tokens are asked for."""
        # How long it is does not depend on where the drawing of a token begins, behind the HALT.
        length = sum(instruction.words for instruction in self._end(0))
        return self._end(self._lowering.word + length + 1)

    def _end(self, drawing: int) -> list[Instruction | Scalar]:
        emitter = self._lowering.emitter("the end")
        if self.generation is not None:
            self._go_on(self.generation, emitter, drawing)
        self._advance(emitter)
        if self.generation is not None:
            emitter.load(PEAK, self._lowering.address(self.generation.position))
            emitter.load(RIGHT, self.generation.total)
            emitter.scalar(ScalarOpcode.SUBTRACT, PEAK, PEAK, right=RIGHT)
            emitter.add(PEAK, PEAK, -1)
            emitter.scalar(ScalarOpcode.BRANCH, Condition.NOT_NEGATIVE, PEAK, 0)
        return emitter.instructions

    def _go_on(self, place: Generation, emitter: Emitter, drawing: int) -> None:
        function = VectorFunction(a_size=self._logit_size, o_size=NOT_WRITTEN, statistic=Statistic.LARGEST)
        logits = self._lowering.address(self._program.outputs[0].tensor)
        emitter.vector(function, [Axis(count=self._logits, strides={"a": 1 << self._logit_size})], a=logits)
        emitter.move(CHOSEN, ARGUMENT)
        self._count_generated(place, emitter)
        emitter.load(LIMIT, place.choices)
        emitter.scalar(ScalarOpcode.KEEP, LIMIT, SPARE, right=LIMIT)
        emitter.scalar(ScalarOpcode.BRANCH, Condition.NOT_ZERO, LIMIT, drawing)
        self._back = emitter.word
        self._load_token_place(emitter, 1)
        self._count_generated(place, emitter)
        emitter.scalar(ScalarOpcode.SUBTRACT, RIGHT, PEAK, right=CHOSEN)
        emitter.scalar(ScalarOpcode.KEEP, RIGHT, SPARE, right=RIGHT)
        emitter.add(PEAK, PEAK, right=RIGHT)
        emitter.scalar(ScalarOpcode.STORE, PEAK, SPARE_2)

    def _count_generated(self, place: Generation, emitter: Emitter) -> None:
        """Register SPARE: the number of the next token less the last one of the prompt, 0 inside of it."""
        emitter.load(RIGHT, self._lowering.address(place.position))
        emitter.load(SPARE, place.prompt)
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, SPARE, right=RIGHT)
        emitter.add(SPARE, SPARE, 2)
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 0)

    def drawing(self) -> list[Instruction | Scalar]:
        """Behind the HALT, where only a run that draws tokens comes: a token by the rule of :class:`tritloom.compiler.golden.sampling.Sampler`, and back.

        Each candidate costs a pass over the logits; the clocks are not those that the schedule says.
        """
        if self.generation is None:
            return []
        place, lowering, emitter = self.generation, self._lowering, self._lowering.emitter("the drawing of a token")
        logits, names, weights = (lowering.reserve(WORD_BYTES * self._logits) for _ in range(3))
        self._candidates(emitter, logits, names, weights)
        self._weights(emitter, place, weights)
        # A number of 16 bits times the sum of the weights.
        emitter.load(SPARE, place.state)
        emitter.scalar(ScalarOpcode.MULTIPLY, SPARE_2, SPARE, blockfloat.RANDOM_MULTIPLIER)
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, SPARE, SPARE, 16)
        emitter.add(SPARE, SPARE, right=SPARE_2)
        emitter.store(SPARE, place.state)
        emitter.scalar(ScalarOpcode.LENGTH, RIGHT, STATISTIC, 16)
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, DRAWN, STATISTIC, right=RIGHT)
        emitter.scalar(ScalarOpcode.MULTIPLY, DRAWN, DRAWN, right=SPARE)
        emitter.scalar(ScalarOpcode.SUBTRACT, RIGHT, RIGHT, 16)
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, DRAWN, DRAWN, right=RIGHT)
        emitter.set(PLACE, 0)
        top = emitter.word
        emitter.scalar(ScalarOpcode.LOAD, SPARE, PLACE, weights)
        emitter.scalar(ScalarOpcode.SUBTRACT, DRAWN, SPARE, right=DRAWN)
        emitter.scalar(ScalarOpcode.LOAD, CHOSEN, PLACE, names)
        emitter.add(PLACE, PLACE, WORD_BYTES)
        emitter.scalar(ScalarOpcode.BRANCH, Condition.NOT_NEGATIVE, DRAWN, top)
        emitter.scalar(ScalarOpcode.BRANCH, Condition.ALWAYS, ZERO, self._back)
        return emitter.instructions

    @property
    def _logits(self) -> int:
        spec = self._program.outputs[0]
        return self._program.tensors[spec.tensor].shape[0] if spec.index is None else len(spec.index)

    @property
    def _logit_size(self) -> int:
        return self._lowering.size(self._program.outputs[0].tensor)

    def _candidates(self, emitter: Emitter, logits: int, names: int, values: int) -> None:
        """The largest logits and their numbers, each taken out of a copy."""
        axes = [Axis(count=self._logits, strides={"a": 1 << self._logit_size, "o": WORD_BYTES})]
        source = self._lowering.address(self._program.outputs[0].tensor)
        emitter.vector(VectorFunction(a_size=self._logit_size), axes, a=source, o=logits)
        emitter.set(SPARE_2, -(1 << 31))
        emitter.set(PLACE, 0)
        top = emitter.word
        largest = VectorFunction(o_size=NOT_WRITTEN, statistic=Statistic.LARGEST)
        emitter.vector(largest, [Axis(count=self._logits, strides={"a": WORD_BYTES})], a=logits)
        emitter.scalar(ScalarOpcode.STORE, STATISTIC, PLACE, values)
        emitter.scalar(ScalarOpcode.STORE, ARGUMENT, PLACE, names)
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, SPARE, ARGUMENT, -2)
        emitter.scalar(ScalarOpcode.STORE, SPARE_2, SPARE, logits)
        emitter.add(PLACE, PLACE, WORD_BYTES)
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, PLACE, right=LIMIT)
        emitter.scalar(ScalarOpcode.BRANCH, Condition.NOT_ZERO, SPARE, top)

    def _weights(self, emitter: Emitter, place: Generation, values: int) -> None:
        """Powers of two in place of the values; their sum is the STATISTIC."""
        lowering, spec = self._lowering, self._program.outputs[0]
        each = [Axis(count=0, strides={"a": WORD_BYTES, "o": WORD_BYTES})]
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, COUNT, LIMIT, 2)
        emitter.add(COUNT, COUNT, -1)
        emitter.load(SPARE, values)
        emitter.scalar(ScalarOpcode.SUBTRACT, ADDEND, SPARE, 0)
        emitter.counted(VectorFunction(addend=True, statistic=Statistic.MAGNITUDE), each, a=values, o=values)
        emitter.scalar(ScalarOpcode.LENGTH, RIGHT, STATISTIC, blockfloat.BLOCK_BITS)
        emitter.move(SHIFT, RIGHT)
        lowering.scale(emitter, VALUE, spec.scale_tensor, RIGHT)
        emitter.load_pair(OTHER, place.constant)
        emitter.product(VALUE, VALUE, OTHER, SPARE)
        emitter.move(FACTOR, VALUE[0])
        emitter.scalar(ScalarOpcode.SUBTRACT, SPARE, VALUE[1], 1 - blockfloat.EXPONENT_STEPS.bit_length())
        emitter.scalar(ScalarOpcode.MAXIMUM, SPARE, SPARE, 1)
        emitter.scalar(ScalarOpcode.MINIMUM, OUT_SHIFT, SPARE, LARGEST_OUT_SHIFT)
        steps = VectorFunction(shifted=True, factor=Factor.REGISTER, out_shift=OUT_SHIFT_REGISTER, rounded=True, bits=30)
        emitter.counted(steps, each, a=values, o=values)
        powers = VectorFunction(second=Second.POWER, statistic=Statistic.SUM)
        emitter.counted(powers, each, a=values, b=lowering.table(blockfloat.POWERS, WORD_BYTES), o=values)

    def _load_token_place(self, emitter: Emitter, offset: int) -> None:
        """Registers SPARE_2, the address of the token ``offset`` behind the present one, and PEAK, that token."""
        assert self.generation is not None
        emitter.load(SPARE_2, self._lowering.address(self.generation.position))
        emitter.scalar(ScalarOpcode.SHIFT_RIGHT, SPARE_2, SPARE_2, -2)
        emitter.add(SPARE_2, SPARE_2, self.generation.tokens + WORD_BYTES * offset)
        emitter.scalar(ScalarOpcode.LOAD, PEAK, SPARE_2)

    def _advance(self, emitter: Emitter) -> None:
        """The states that do not change in place take their following values."""
        for state in self._program.states:
            source, target = self._lowering.placement(state.following), self._lowering.placement(state.tensor)
            if source.address == target.address:
                continue
            for offset in range(0, source.bytes, WORD_BYTES):
                emitter.load(PEAK, source.address + offset)
                emitter.store(PEAK, target.address + offset)
