"""Writes instructions of the vector and scalar units, with the phrases that scales are computed with."""

from collections.abc import Sequence

from tritloom.compiler.schedule.nest import Axis, build
from tritloom.hw.arch import blockfloat
from tritloom.hw.arch.isa import COUNTED, Instruction, Loop, Opcode, loop_steps
from tritloom.hw.arch.scalar import Scalar, ScalarOpcode
from tritloom.hw.arch.vector import VectorFunction

__all__ = ["Emitter", "Pair", "ZERO"]

ZERO = 0
"""A register that is 0 in every program."""

Pair = tuple[int, int]
"""Registers of a mantissa and an exponent."""


class Emitter:
    """Collects the instructions of one layer. Registers are numbers; constants are immediates."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.instructions: list[Instruction | Scalar] = []

    def scalar(self, opcode: ScalarOpcode, target: int, left: int = ZERO, second: int = 0, *, right: int | None = None) -> None:
        """``target = opcode(left, second)``; ``right`` is a register in place of the constant ``second``."""
        self.instructions.append(Scalar(opcode=opcode, target=target, left=left, right=right, immediate=second))

    def set(self, target: int, value: int) -> None:
        self.scalar(ScalarOpcode.SET, target, ZERO, value)

    def move(self, target: int, source: int) -> None:
        self.scalar(ScalarOpcode.SET, target, ZERO, right=source)

    def add(self, target: int, left: int, value: int = 0, *, right: int | None = None) -> None:
        self.scalar(ScalarOpcode.ADD, target, left, value, right=right)

    def load(self, target: int, address: int) -> None:
        self.scalar(ScalarOpcode.LOAD, target, ZERO, address)

    def store(self, source: int, address: int) -> None:
        self.scalar(ScalarOpcode.STORE, source, ZERO, address)

    def load_pair(self, pair: Pair, address: int) -> None:
        for offset, register in zip((0, 4), pair, strict=True):
            self.load(register, address + offset)

    def store_pair(self, pair: Pair, address: int) -> None:
        for offset, register in zip((0, 4), pair, strict=True):
            self.store(register, address + offset)

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
        self, function: VectorFunction, axes: list[Axis], *, a: int, b: int = 0, o: int = 0, index_a: bool = False, index_b: bool = False, index_o: bool = False
    ) -> None:  # fmt: skip
        """A VECTOR over a nest of loops, innermost first. Addresses are bytes."""
        self.instructions.append(
            build(
                Opcode.VECTOR,
                axes,
                self._where,
                function=function.encode(),
                a=a,
                b=b,
                o=o,
                index_a=index_a,
                index_b=index_b,
                index_o=index_o,
            )
        )

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
