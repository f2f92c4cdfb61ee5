"""The scalar unit: 32 registers of 32 bits, an adder, a shifter, a multiplier, a divider and a root, three clocks an instruction."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.scalar import (
    ADDEND,
    ARGUMENT,
    COUNT,
    FACTOR,
    INDEX_A,
    INDEX_B,
    INDEX_O,
    OUT_SHIFT,
    REGISTER_BITS,
    REGISTERS,
    SHIFT,
    STATISTIC,
    STEP_A,
    STEP_B,
    Condition,
    ScalarOpcode,
)
from tritloom.hw.arch.timing import DIVIDE_CLOCKS, LOAD_CLOCKS, ROOT_CLOCKS
from tritloom.hw.memory import address_bits

__all__ = ["SPECIAL_REGISTERS", "ScalarUnit", "ScalarWord"]

SPECIAL_REGISTERS = {
    "step_a": STEP_A, "step_b": STEP_B, "shift": SHIFT, "factor": FACTOR, "out_shift": OUT_SHIFT, "addend": ADDEND,
    "index_a": INDEX_A, "index_b": INDEX_B, "index_o": INDEX_O, "count": COUNT,
}  # fmt: skip
"""Registers that other blocks see all the time, by name."""


def _length(value: Value) -> Value:
    """Number of bits of 32 bits, 0 to 32."""
    result: Value = Const(0, 6)
    for bit in range(REGISTER_BITS):
        result = Mux(value[bit], bit + 1, result)
    return result


class ScalarWord(data.StructLayout):
    """A scalar instruction, as it stands in the program."""

    def __init__(self) -> None:
        super().__init__({"opcode": 8, "target": 5, "left": 5, "right": 5, "by_immediate": 1, "unused": 8, "immediate": 32})


class ScalarUnit(wiring.Component):
    """Executes one scalar instruction after ``start``.

    The registers are read in the clock of ``start`` (0); their values are registered in clock 1, and the result is written in clock 2, that of ``finished``. MULTIPLY takes one
    clock more, DIVIDE, ROOT and LOAD as many as :mod:`tritloom.hw.arch.timing` says. Behind a result for INDEX_A the end is announced a clock later: the next instruction takes that register
    with its first word.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    start : :py:`In(1)`
    instruction : :py:`In(ScalarWord())`
        From the clock of ``start`` until ``finished``.
    flush : :py:`In(1)`
        Forget what is under way.
    statistic, argument : :py:`In(32)`
        The registers that the vector unit writes.
    nearly : :py:`Out(1)`
        ``finished`` two clocks later, or one where the result is for INDEX_A: the next instruction may be fetched.
    finished : :py:`Out(1)`
        The instruction's result is written.
    taken : :py:`Out(1)`
        With ``finished``: the branch is taken, to ``destination``.
    read : :py:`Out(1)`
        Read the memory at ``address``, whose word is ``word`` :data:`tritloom.hw.memory.READ_LATENCY` clocks later.
    store : :py:`Out(1)`
        Write ``stored`` to ``address``.
    step_a, step_b, shift, factor, out_shift, addend, index_a, index_b, index_o, count : :py:`Out(32)`
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        super().__init__({
            "start": In(1), "instruction": In(ScalarWord()), "flush": In(1),
            "statistic": In(32), "argument": In(32), "nearly": Out(1), "finished": Out(1), "taken": Out(1), "destination": Out(16),
            "read": Out(1), "store": Out(1), "address": Out(address_bits(p.activation_bytes)), "stored": Out(32), "word": In(32),
            **{name: Out(REGISTER_BITS) for name in SPECIAL_REGISTERS},
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        opcode = {kind: self.instruction.opcode == kind for kind in ScalarOpcode}
        m.submodules.registers = registers = memory.Memory(shape=REGISTER_BITS, depth=REGISTERS, init=[])
        write, read_left, read_right = registers.write_port(), registers.read_port(), registers.read_port()
        m.d.comb += [
            read_left.addr.eq(self.instruction.left), read_left.en.eq(1), read_right.en.eq(1),
            read_right.addr.eq(Mux(opcode[ScalarOpcode.STORE], self.instruction.target, self.instruction.right)),
        ]  # fmt: skip

        def seen(number: Value, port: Value) -> Value:
            return Mux(number == STATISTIC, self.statistic, Mux(number == ARGUMENT, self.argument, port))

        # Clock 1 and 2: operands. The address of LOAD and STORE has the immediate always.
        stages = Signal(4)
        m.d.sync += stages.eq(Mux(self.flush, 0, (stages << 1) | self.start))
        left, right, second = Signal(32, reset_less=True), Signal(32, reset_less=True), Signal(32, reset_less=True)
        from_right = seen(read_right.addr, read_right.data)
        m.d.sync += [
            left.eq(seen(self.instruction.left, read_left.data)),
            right.eq(from_right),
            second.eq(Mux(self.instruction.by_immediate, self.instruction.immediate, from_right)),
        ]

        # Clock 2: results of one clock.
        places, backwards = second[:5], Signal()
        m.d.comb += backwards.eq(second[-1])
        far = Mux(backwards, (~second[5:]).any() | (second[:5] == 0), second[5:].any())
        # One shifter for both directions: to the left by n is to the right by 32 - n of the value above 32 zeros.
        doubled = Mux(backwards, Cat(Const(0, 32), left), Cat(left, Const(0, 32)))
        shifted = Mux(far, 0, (doubled >> places)[:32])
        smaller = Signal()
        m.d.comb += smaller.eq(left.as_signed() < second.as_signed())
        product, quotient, loaded = Signal(32, reset_less=True), Signal(32, reset_less=True), Signal(32, reset_less=True)
        m.d.sync += product.eq(left[:16] * second[:16])
        value = Signal(32)
        with m.Switch(self.instruction.opcode):
            with m.Case(ScalarOpcode.SET):
                m.d.comb += value.eq(second)
            with m.Case(ScalarOpcode.ADD):
                m.d.comb += value.eq(left + second)
            with m.Case(ScalarOpcode.SUBTRACT):
                m.d.comb += value.eq(second - left)
            with m.Case(ScalarOpcode.MULTIPLY):
                m.d.comb += value.eq(product)
            with m.Case(ScalarOpcode.SHIFT_RIGHT):
                m.d.comb += value.eq(shifted)
            with m.Case(ScalarOpcode.LENGTH):
                m.d.comb += value.eq(_length(left) - second)
            with m.Case(ScalarOpcode.MINIMUM):
                m.d.comb += value.eq(Mux(smaller, left, second))
            with m.Case(ScalarOpcode.MAXIMUM):
                m.d.comb += value.eq(Mux(smaller, second, left))
            with m.Case(ScalarOpcode.KEEP):
                m.d.comb += value.eq(Mux(left.any(), second, 0))
            with m.Case(ScalarOpcode.LOAD):
                m.d.comb += value.eq(loaded)
            with m.Default():
                m.d.comb += value.eq(quotient)

        # DIVIDE: a bit of the quotient a clock, restoring. ROOT: a bit of the root a clock, two bits of the value.
        remainder, rest, steps = Signal(34, reset_less=True), Signal(32, reset_less=True), Signal(range(DIVIDE_CLOCKS + 1))
        dividing, rooting = opcode[ScalarOpcode.DIVIDE], opcode[ScalarOpcode.ROOT]
        trial, difference = Signal(34), Signal(signed(35))
        m.d.comb += [
            trial.eq(Mux(dividing, Cat(rest[-1], remainder[:33]), Cat(rest[-2:], remainder[:32]))),
            difference.eq(trial - Mux(dividing, left, Cat(Const(1, 2), quotient[:16]))),
        ]
        with m.If(stages[1] & (dividing | rooting)):
            m.d.sync += [remainder.eq(0), quotient.eq(0), rest.eq(Mux(dividing, second, left))]
            m.d.sync += steps.eq(Mux(dividing, DIVIDE_CLOCKS, ROOT_CLOCKS))
        with m.Elif(steps != 0):
            m.d.sync += [
                steps.eq(steps - 1), quotient.eq(Cat(~difference[-1], quotient[:31])), rest.eq(Mux(dividing, rest << 1, rest << 2)),
                remainder.eq(Mux(difference[-1], trial, difference[:34])),
            ]  # fmt: skip
        with m.If(self.flush):
            m.d.sync += steps.eq(0)

        # LOAD and STORE.
        waiting = Signal(LOAD_CLOCKS)
        m.d.sync += [
            self.address.eq(left + self.instruction.immediate), self.read.eq(stages[1] & opcode[ScalarOpcode.LOAD] & ~self.flush),
            self.store.eq(stages[1] & opcode[ScalarOpcode.STORE] & ~self.flush), self.stored.eq(right), loaded.eq(self.word),
            waiting.eq(Mux(self.flush, 0, (waiting << 1) | (stages[1] & opcode[ScalarOpcode.LOAD]))),
        ]  # fmt: skip

        # The end.
        longer = dividing | rooting | opcode[ScalarOpcode.LOAD] | opcode[ScalarOpcode.MULTIPLY]
        finished, usual, next_to_last = self.finished, Signal(), Signal()
        m.d.comb += [
            usual.eq(
                (self.start & ~longer) | (stages[0] & opcode[ScalarOpcode.MULTIPLY]) | (waiting[-3] & opcode[ScalarOpcode.LOAD])
                | ((steps == 2) & (dividing | rooting))
            ),
            self.nearly.eq(Mux(self.instruction.target == INDEX_A, next_to_last, usual)),
        ]  # fmt: skip
        m.d.sync += [next_to_last.eq(usual & ~self.flush), finished.eq(next_to_last & ~self.flush)]
        writes = ~(opcode[ScalarOpcode.STORE] | opcode[ScalarOpcode.BRANCH])
        m.d.comb += [write.addr.eq(self.instruction.target), write.data.eq(value), write.en.eq(finished & writes & ~self.flush)]
        for name, number in SPECIAL_REGISTERS.items():
            with m.If(finished & writes & (self.instruction.target == number)):
                m.d.sync += getattr(self, name).eq(value)

        meets = Signal()
        with m.Switch(self.instruction.target):
            for condition, test in {
                Condition.ALWAYS: Const(1),
                Condition.ZERO: left == 0,
                Condition.NOT_ZERO: left != 0,
                Condition.NEGATIVE: left[-1],
                Condition.NOT_NEGATIVE: ~left[-1],
            }.items():
                with m.Case(condition):
                    m.d.comb += meets.eq(test)
        m.d.comb += [self.taken.eq(opcode[ScalarOpcode.BRANCH] & meets), self.destination.eq(second)]
        return m
