"""The vector unit: one lane of shift, multiply, accumulate, shift, add and limit; an element a clock."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS, CoreParameters
from tritloom.hw.arch.scalar import REGISTER_BITS
from tritloom.hw.arch.vector import FUNCTION_BITS, NOT_WRITTEN, OUT_SHIFT_REGISTER, Factor, Low, Second, Statistic, function_fields
from tritloom.hw.memory import ActivationWrite, address_bits

__all__ = ["FunctionLayout", "VectorElement", "VectorUnit", "VectorControls", "replicated"]

FACTOR_BITS, PRODUCT_BITS, SUM_BITS = 18, 36, 48
EXPONENT_BITS = 16
_LEFTMOST = 16
"""Places by which operand A can be shifted to the left."""

_LARGEST_SHIFT = 47
_SUM_STAGE = 4
"""Clocks from the meeting of an element's operands to its product."""


class FunctionLayout(data.StructLayout):
    """Fields of the function word."""

    def __init__(self) -> None:
        fields = {name: width for name, (_, width) in function_fields().items()}
        super().__init__({**fields, "unused": FUNCTION_BITS - sum(fields.values())})


class VectorControls(data.StructLayout):
    """The registers that a vector instruction uses."""

    def __init__(self) -> None:
        super().__init__({"shift": signed(EXPONENT_BITS), "factor": signed(FACTOR_BITS), "out_shift": 6, "addend": signed(REGISTER_BITS)})


class VectorElement(data.Struct):
    """An element under way; ``first`` and ``last`` of its reduction."""

    add: 1
    first: 1
    last: 1


def replicated(value: Value, size: Value) -> Value:
    """32 bits with an element in every place that it can be written to."""
    return Mux(size == 0, value[:8].replicate(4), Mux(size == 1, value[:16].replicate(2), value[:32]))


def _limited_shift(value: Value) -> Value:
    """``value + 16`` from 0 to 63."""
    moved = value + _LEFTMOST
    return Mux(moved < 0, 0, Mux(moved > _LARGEST_SHIFT + _LEFTMOST, _LARGEST_SHIFT + _LEFTMOST, moved))[:6]


class VectorUnit(wiring.Component):
    """Computes what :mod:`tritloom.hw.arch.vector` says.

    Operands come from the memory as groups of four bytes: that of operand A in clock 0, that of B in clock 1 (FACTOR, ADDEND, SHIFT) or 5 (TABLE, POWER), whose
    address the unit gives in clock 3. ``element`` belongs to A's group two clocks before the operands meet: see :data:`tritloom.hw.arch.timing.VECTOR_STAGES`. A result
    is on ``write`` :data:`tritloom.hw.arch.timing.VECTOR_PIPELINE` clocks and one after the operands have met.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    function : :py:`In(FunctionLayout())`
        Static.
    controls : :py:`In(VectorControls())`
        Static.
    group : :py:`In(32)`
        Four bytes of the memory, in the clock in which it answers.
    offset : :py:`In(2)`
        The addressed byte of them.
    second : :py:`In(1)`
        The group is that of a second operand.
    element : :py:`In(VectorElement)`
        In the clock in which its operands meet.
    reading : :py:`In(1)`
        The group is an operand.
    begin : :py:`In(1)`
        Before the first element of an instruction: the statistic starts anew.
    base : in
        ``b``, byte address of the table. Static.
    table, table_address : out
        Read this byte. Every second clock at most.
    command_valid, command_address, command_final : in
        The byte address of a result, :data:`tritloom.hw.arch.timing.VECTOR_PIPELINE` clocks after its last operands have met, and whether the instruction ends with it.
    store, store_address, store_data : in
        Write four bytes, in the next clock.
    write, writing : out
        A write of the activation memory, and that there is one.
    done : :py:`Out(1)`
        The last result has been written, and the statistic is there three clocks later.
    statistic, argument : :py:`Out(32)`
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        address = address_bits(p.activation_bytes)
        super().__init__({
            "function": In(FunctionLayout()), "controls": In(VectorControls()), "group": In(32), "offset": In(2), "second": In(1),
            "element": In(VectorElement), "begin": In(1), "base": In(address), "table": Out(1), "table_address": Out(address), "flush": In(1),
            "reading": In(1), "command_valid": In(1), "command_address": In(address), "command_final": In(1),
            "store": In(1), "store_address": In(address), "store_data": In(32),
            "write": Out(ActivationWrite(rows=p.rows, depth=p.activation_words)), "writing": Out(1), "done": Out(1),
            "statistic": Out(REGISTER_BITS), "argument": Out(REGISTER_BITS),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        f, controls = self.function, self.controls
        is_table, is_power = f.second == Second.TABLE, f.second == Second.POWER
        looks_up = Signal()
        m.d.comb += looks_up.eq(is_table | is_power)

        # Operands: group, element.
        group, offset, second, reading = Signal(32, reset_less=True), Signal(2, reset_less=True), Signal(), Signal()
        m.d.sync += [group.eq(self.group), offset.eq(self.offset), second.eq(self.second), reading.eq(self.reading)]
        element, element_first = Signal(signed(32), reset_less=True), Signal()
        size = Mux(second, f.b_size, f.a_size)
        byte, half = group.word_select(offset, 8).as_signed(), group.word_select(offset[1], 16).as_signed()
        m.d.sync += [element.eq(Mux(size == 0, byte, Mux(size == 1, half, group.as_signed()))), element_first.eq(reading & ~second)]
        kept = Signal(signed(32), reset_less=True)
        m.d.sync += kept.eq(element)

        # A table's entry is read as a second operand: the address leaves a clock after the element was there.
        place = Mux(is_power, element[:8], element)
        m.d.sync += [
            self.table.eq(element_first & looks_up & ~self.flush),
            self.table_address.eq(self.base + Mux(f.b_size == 0, place, Mux(f.b_size == 1, place << 1, place << 2))),
        ]
        octaves = element >> 8
        amount = Mux(octaves >= 0, 0, Mux(octaves < -_LARGEST_SHIFT, _LARGEST_SHIFT, -octaves))[:6]
        power_shift = Signal(6, reset_less=True)
        m.d.sync += power_shift.eq(amount)
        for stage in range(4):
            later = Signal(6, name=f"power_shift_{stage}", reset_less=True)
            m.d.sync += later.eq(power_shift)
            power_shift = later

        # Meeting: the value, by how much it is shifted, and the second operand.
        value, places = Signal(signed(32), reset_less=True), Signal(6, reset_less=True)
        seconds = [element]
        for stage in range(7):
            seconds.append(Signal(signed(32), name=f"second_{stage + 1}", reset_less=True))
            m.d.sync += seconds[-1].eq(seconds[-2])
        shift = Signal(signed(EXPONENT_BITS))
        m.d.comb += shift.eq(Mux(f.shifted & ~looks_up, controls.shift, 0))
        with m.If(f.second == Second.SHIFT):
            m.d.sync += places.eq(_limited_shift(shift - element[:EXPONENT_BITS].as_signed()))
        with m.Else():
            m.d.sync += places.eq(Mux(is_power, power_shift + _LEFTMOST, _limited_shift(shift)))
        m.d.sync += value.eq(Mux((f.second == Second.NONE) | looks_up, element, kept))

        # x = value >> (places - 16), in two steps.
        wide = Signal(signed(32 + _LEFTMOST))
        m.d.comb += wide.eq(value << _LEFTMOST)
        coarse, fine = Signal(signed(32 + 7), reset_less=True), Signal(3, reset_less=True)
        m.d.sync += [coarse.eq(wide >> (places & 0b111000)), fine.eq(places[:3])]
        x = Signal(signed(32))
        m.d.comb += x.eq(coarse >> fine)
        left, right, passed = (
            Signal(signed(FACTOR_BITS), reset_less=True),
            Signal(signed(FACTOR_BITS), reset_less=True),
            Signal(signed(32), reset_less=True),
        )
        m.d.sync += [
            left.eq(x), passed.eq(x),
            right.eq(Mux(f.factor == Factor.ITSELF, x, Mux(f.factor == Factor.OPERAND, seconds[2], controls.factor))),
        ]  # fmt: skip
        product, through = Signal(signed(PRODUCT_BITS), reset_less=True), Signal(signed(32), reset_less=True)
        m.d.sync += [product.eq(left * right), through.eq(passed)]

        # The element's place in its reduction travels along: clock 0 is the one in which the operands meet.
        elements = [self.element]
        for stage in range(_SUM_STAGE):
            elements.append(Signal(VectorElement, name=f"element_{stage + 1}"))
            m.d.sync += elements[-1].eq(elements[-2])
            with m.If(self.flush):
                m.d.sync += elements[-1].add.eq(0)
        total = Signal(signed(SUM_BITS), reset_less=True)
        with m.If(elements[_SUM_STAGE].add):
            m.d.sync += total.eq(Mux(elements[_SUM_STAGE].first, 0, total) + Mux(f.factor == Factor.ONE, through, product))

        # r = (total >> out_shift) + rounding + addend; the bit that rounds is kept below the lowest one.
        out_places = Signal(6, reset_less=True)
        m.d.sync += out_places.eq(Mux(f.out_shift == OUT_SHIFT_REGISTER, controls.out_shift, f.out_shift))
        above, above_fine = Signal(signed(SUM_BITS + 1), reset_less=True), Signal(signed(SUM_BITS + 1), reset_less=True)
        doubled = Cat(Const(0, 1), total).as_signed()
        m.d.sync += [above.eq(doubled >> (out_places & 0b111000)), above_fine.eq(above >> out_places[:3])]
        # A difference is the sum with the complement, and with the carry that rounding has no use for then.
        subtracts = f.second == Second.SUBTRAHEND
        addend = Mux(f.second == Second.ADDEND, seconds[7], Mux(subtracts, ~seconds[7], Mux(f.addend, controls.addend, 0)))
        result = Signal(signed(SUM_BITS + 1), reset_less=True)
        m.d.sync += result.eq(above_fine[1:].as_signed() + addend + ((above_fine[0] & f.rounded) | subtracts))

        # Limits.
        beyond = Signal(SUM_BITS + 1, reset_less=True)  # the bits that a result within the limits repeats its sign in
        m.d.sync += beyond.eq(Const(-1, SUM_BITS + 1) << f.bits)
        negative = result[-1]
        over = ~negative & (result & beyond).any()
        under = negative & ((~result & beyond).any() | ((f.low == Low.SYMMETRIC) & ~(result & ~beyond).any()) | (f.low == Low.ZERO))
        lowest = Mux(f.low == Low.ZERO, 0, Mux(f.low == Low.SYMMETRIC, beyond | 1, beyond))
        limited = Signal(signed(32), reset_less=True)
        m.d.sync += limited.eq(Mux(over, ~beyond, Mux(under, lowest, result))[:32].as_signed())

        # Results: `limited` is there with its command.
        byte_bits = address_bits(self._parameters.rows)
        valid = self.command_valid & (f.o_size != NOT_WRITTEN) & ~self.flush
        address = Mux(self.store, self.store_address, self.command_address)
        stored = Mux(self.store, self.store_data, replicated(limited, f.o_size))
        width = Mux(self.store, 2, f.o_size)
        within = Mux(width == 0, Const(1, 4) << address[:2], Mux(width == 1, Const(3, 4) << (address[1] << 1), 15))[:4]
        m.d.sync += [self.writing.eq(valid | self.store), self.write.mask.eq(0), self.write.address.eq(address[byte_bits:])]
        for index in range(self._parameters.rows):
            m.d.sync += self.write.lanes[index].eq(stored.word_select(index % 4, ACTIVATION_BITS))
            with m.If(valid | self.store):
                m.d.sync += self.write.mask[index].eq(within[index % 4] & (address[2:byte_bits] == index // 4))
        m.d.sync += self.done.eq(self.command_valid & self.command_final & ~self.flush)

        # Statistic.
        measured, counts, fresh = Signal(signed(33), reset_less=True), Signal(), Signal()
        m.d.sync += [
            measured.eq(Mux((f.statistic == Statistic.MAGNITUDE) & limited[-1], -limited, limited)),
            counts.eq(self.command_valid & (f.statistic != Statistic.NONE) & ~self.flush),
        ]
        number = Signal(REGISTER_BITS // 2)
        largest = Signal(signed(33), reset_less=True)
        with m.If(self.begin):
            m.d.sync += [fresh.eq(1), number.eq(0)]
        with m.If(counts):
            m.d.sync += [fresh.eq(0), number.eq(number + 1)]
            with m.If(f.statistic == Statistic.SUM):
                m.d.sync += largest.eq(Mux(fresh, 0, largest) + measured)
            with m.Elif(fresh | (measured > largest)):
                m.d.sync += largest.eq(measured)
                with m.If(f.statistic == Statistic.LARGEST):
                    m.d.sync += self.argument.eq(number)
        m.d.comb += self.statistic.eq(largest)
        return m
