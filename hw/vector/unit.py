"""The vector unit: operands from the memory, lanes of shift, multiply, accumulate, shift, add and limit, results and their statistic; an element of each lane a clock."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS, VECTOR_ELEMENT_BYTES, CoreParameters
from tritloom.hw.arch.scalar import REGISTER_BITS
from tritloom.hw.arch.vector import NOT_WRITTEN, Lanes, Second, Statistic
from tritloom.hw.memory import ActivationWrite, address_bits
from tritloom.hw.vector.lane import (
    EXPONENT_BITS,
    LARGEST_SHIFT,
    LEFTMOST,
    TERM_STAGE,
    FunctionLayout,
    VectorControls,
    VectorLane,
)

__all__ = ["VectorElement", "VectorUnit", "replicated"]


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
    moved = value + LEFTMOST
    return Mux(moved < 0, 0, Mux(moved > LARGEST_SHIFT + LEFTMOST, LARGEST_SHIFT + LEFTMOST, moved))[:6]


def _elements(group: Value, offset: Value, size: Value, count: int) -> list[Value]:
    """The element at ``offset`` for lane 0, and for the others those behind it, of ``2**size`` bytes with sign; an offset of several lanes is a multiple of their bytes."""
    narrow = group.word_select(offset[2:], 32) if count > 1 else group
    byte, half = narrow.word_select(offset[:2], 8).as_signed(), narrow.word_select(offset[1], 16).as_signed()
    found = [Mux(size == 0, byte, Mux(size == 1, half, narrow.as_signed()))]
    lane_bits = len(offset) - 2
    for lane in range(1, count):
        parts = [group.word_select(offset[lane_bits + log :], count * 8 << log).word_select(lane, 8 << log).as_signed() for log in range(2)]
        found.append(Mux(size == 0, parts[0], Mux(size == 1, parts[1], group.word_select(lane, 32).as_signed())))
    return found


class VectorUnit(wiring.Component):
    """Computes what :mod:`tritloom.hw.arch.vector` says.

    Operands come from the memory as groups of four bytes for each lane: that of operand A in clock 0, that of B in clock 1 (FACTOR, ADDEND, SHIFT) or 5 (TABLE, POWER), whose
    address the unit gives in clock 3. ``element`` belongs to A's group two clocks before the operands meet: see :data:`tritloom.hw.arch.timing.VECTOR_STAGES`. A result
    is on ``write`` :func:`tritloom.hw.arch.timing.vector_pipeline` clocks and one after the operands have met.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    function : :py:`In(FunctionLayout())`
        Static.
    controls : :py:`In(VectorControls())`
        Static.
    group : :py:`In(32 * lanes)`
        Four bytes of the memory for each lane, in the clock in which it answers.
    offset : :py:`In(2 + log2(lanes))`
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
        The byte address of a result, :func:`tritloom.hw.arch.timing.vector_pipeline` clocks after its last operands have met, and whether the instruction ends with it.
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
        group = VECTOR_ELEMENT_BYTES * p.vector_lanes
        address = address_bits(p.activation_bytes)
        super().__init__({
            "function": In(FunctionLayout()), "controls": In(VectorControls()), "group": In(8 * group), "offset": In(address_bits(group)), "second": In(1),
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
        count = self._parameters.vector_lanes
        f, controls = self.function, self.controls
        is_table, is_power = f.second == Second.TABLE, f.second == Second.POWER
        looks_up, several = Signal(), Signal()  # `several`: every lane has a result
        m.d.comb += [looks_up.eq(is_table | is_power), several.eq((f.lanes == Lanes.EACH) | (f.lanes == Lanes.SAME) if count > 1 else 0)]

        # Operands: group, element.
        group, offset, second, reading = (
            Signal.like(self.group, reset_less=True),
            Signal.like(self.offset, reset_less=True),
            Signal(),
            Signal(),
        )
        m.d.sync += [group.eq(self.group), offset.eq(self.offset), second.eq(self.second), reading.eq(self.reading)]
        size, same = Mux(second, f.b_size, f.a_size), (f.lanes == Lanes.SAME) & ~second
        elements, kept, sources = [], [], _elements(group, offset, size, count)
        for lane, source in enumerate(sources):
            elements.append(Signal(signed(32), name=f"element_of_{lane}", reset_less=True))
            kept.append(Signal(signed(32), name=f"kept_of_{lane}", reset_less=True))
            m.d.sync += [elements[lane].eq(Mux(same, sources[0], source) if lane else source), kept[lane].eq(elements[lane])]
        element, element_first = elements[0], Signal()
        m.d.sync += element_first.eq(reading & ~second)

        # A table's entry is read as a second operand: the address leaves a clock after the element was there.
        place = Mux(is_power, element[:8], element)
        m.d.sync += [
            self.table.eq(element_first & looks_up & ~self.flush),
            self.table_address.eq(self.base + Mux(f.b_size == 0, place, Mux(f.b_size == 1, place << 1, place << 2))),
        ]
        octaves = element >> 8
        amount = Mux(octaves >= 0, 0, Mux(octaves < -LARGEST_SHIFT, LARGEST_SHIFT, -octaves))[:6]
        power_shift = Signal(6, reset_less=True)
        m.d.sync += power_shift.eq(amount)
        for stage in range(4):
            later = Signal(6, name=f"power_shift_{stage}", reset_less=True)
            m.d.sync += later.eq(power_shift)
            power_shift = later

        # Meeting: by how much the values are shifted. Those that differ in it, and tables, are for the first lane alone.
        places, shift = Signal(6, reset_less=True), Signal(signed(EXPONENT_BITS))
        m.d.comb += shift.eq(Mux(f.shifted & ~looks_up, controls.shift, 0))
        with m.If(f.second == Second.SHIFT):
            m.d.sync += places.eq(_limited_shift(shift - element[:EXPONENT_BITS].as_signed()))
        with m.Else():
            m.d.sync += places.eq(Mux(is_power, power_shift + LEFTMOST, _limited_shift(shift)))

        # The element's place in its reduction travels along: clock 0 is the one in which the operands meet.
        term_clocks = int(count > 1)
        under_way = [self.element]
        for stage in range(TERM_STAGE + term_clocks):
            under_way.append(Signal(VectorElement, name=f"element_{stage + 1}"))
            m.d.sync += under_way[-1].eq(under_way[-2])
            with m.If(self.flush):
                m.d.sync += under_way[-1].add.eq(0)
        lanes = []
        for index in range(count):
            m.submodules[f"lane_{index}"] = lane = VectorLane(term_clocks=term_clocks)
            value = Signal(signed(32), name=f"value_of_{index}", reset_less=True)
            m.d.sync += value.eq(Mux((f.second == Second.NONE) | (looks_up if index == 0 else 0), elements[index], kept[index]))
            m.d.comb += [
                lane.function.eq(f), lane.controls.eq(controls), lane.value.eq(value), lane.places.eq(places), lane.second.eq(elements[index]),
                lane.add.eq(under_way[-1].add), lane.first.eq(under_way[-1].first),
            ]  # fmt: skip
            lanes.append(lane)
        if count == 1:
            m.d.comb += lanes[0].addition.eq(lanes[0].term)
        else:
            joined = sum((lane.term for lane in lanes[1:]), lanes[0].term)
            for index, lane in enumerate(lanes):
                m.d.sync += lane.addition.eq(Mux(f.lanes == Lanes.JOINED, joined, lane.term) if index == 0 else lane.term)

        # Results: `limited` is there with its command.
        limited = [lane.limited for lane in lanes]
        self._write(m, limited, several)
        m.d.sync += self.done.eq(self.command_valid & self.command_final & ~self.flush)
        self._count(m, limited, several)
        return m

    def _write(self, m: Module, limited: list[Value], several: Value) -> None:
        """The bytes of a result, or of those of all lanes, and where they go in their word."""
        f, count = self.function, len(limited)
        group_bits, lane_bits = len(self.offset), len(self.offset) - 2
        byte_bits = address_bits(self._parameters.rows)
        valid = self.command_valid & (f.o_size != NOT_WRITTEN) & ~self.flush
        address = Mux(self.store, self.store_address, self.command_address)
        stored = Mux(self.store, self.store_data, replicated(limited[0], f.o_size)).replicate(count)
        width = Mux(self.store, 2, f.o_size)
        within = Mux(width == 0, Const(1, 4) << address[:2], Mux(width == 1, Const(3, 4) << (address[1] << 1), 15))[:4]
        if count > 1:
            together = several & ~self.store
            narrow, wide = Cat(Mux(address[2:group_bits] == part, within, 0) for part in range(count)), []
            for size in range(3):
                parts = 4 >> size
                data_of_all = Cat(value[: 8 << size] for value in limited).replicate(parts)
                chosen = Cat((address[lane_bits + size : group_bits] == part).replicate(count << size) for part in range(parts))
                wide.append((data_of_all, chosen))
            data_of_all, chosen = (Mux(f.o_size == 0, wide[0][part], Mux(f.o_size == 1, wide[1][part], wide[2][part])) for part in range(2))
            stored, within = Mux(together, data_of_all, stored), Mux(together, chosen, narrow)
        m.d.sync += [self.writing.eq(valid | self.store), self.write.mask.eq(0), self.write.address.eq(address[byte_bits:])]
        for index in range(self._parameters.rows):
            m.d.sync += self.write.lanes[index].eq(stored.word_select(index % (4 * count), ACTIVATION_BITS))
            with m.If(valid | self.store):
                m.d.sync += self.write.mask[index].eq(within[index % (4 * count)] & (address[group_bits:byte_bits] == index // (4 * count)))

    def _count(self, m: Module, limited: list[Value], several: Value) -> None:
        """The statistic; of several lanes a clock goes by in which two halves of them have one each."""
        f, count = self.function, len(limited)
        counts, fresh = Signal(), Signal()
        m.d.sync += counts.eq(self.command_valid & (f.statistic != Statistic.NONE) & ~self.flush)
        candidates: list[tuple[Value, Value]] = []
        for index, value in enumerate(limited):
            measured = Signal(signed(33), name=f"measured_{index}", reset_less=True)
            m.d.sync += measured.eq(Mux((f.statistic == Statistic.MAGNITUDE) & value[-1], -value, value))
            candidates.append((measured, Const(index, address_bits(count))))
        (best, place), others, step = candidates[0], Const(0), Const(1)
        if count > 1:
            counted, together, halves = Signal(), Signal(), []
            for half in (0, 1):
                joined, its_place = self._half(m, candidates[half * count // 2 : (half + 1) * count // 2], half)
                halves.append(
                    (
                        Signal(signed(33), name=f"half_{half}", reset_less=True),
                        Signal(address_bits(count), name=f"place_{half}", reset_less=True),
                    )
                )
                m.d.sync += [halves[half][0].eq(Mux(several, joined, candidates[0][0])), halves[half][1].eq(Mux(several, its_place, 0))]
            m.d.sync += [counted.eq(counts & ~self.flush), together.eq(several)]
            (first, first_place), (second, second_place) = halves
            exceeds = together & (second > first)
            best, place, others = Mux(exceeds, second, first), Mux(exceeds, second_place, first_place), Mux(together, second, 0)
            counts, step = counted, Mux(together, count, 1)
            candidates = halves  # without several lanes both are the same
        number = Signal(REGISTER_BITS // 2)
        largest = Signal(signed(33), reset_less=True)
        added = candidates[0][0] + others
        with m.If(self.begin):
            m.d.sync += [fresh.eq(1), number.eq(0)]
        with m.If(counts):
            m.d.sync += [fresh.eq(0), number.eq(number + step)]
            with m.If(f.statistic == Statistic.SUM):
                m.d.sync += largest.eq(Mux(fresh, 0, largest) + added)
            with m.Elif(fresh | Cat(candidate > largest for candidate, _ in candidates[:2]).any()):
                m.d.sync += largest.eq(best)
                with m.If(f.statistic == Statistic.LARGEST):
                    m.d.sync += self.argument.eq(number + place)
        m.d.comb += self.statistic.eq(largest)

    def _half(self, m: Module, candidates: list[tuple[Value, Value]], half: int) -> tuple[Value, Value]:
        """The sum of some results, or the largest one, the first of equals, and its place."""
        total = sum((value for value, _ in candidates[1:]), candidates[0][0])
        level = 0
        while len(candidates) > 1:
            level, pairs, candidates = level + 1, list(zip(candidates[::2], candidates[1::2], strict=True)), []
            for index, ((left, left_place), (right, right_place)) in enumerate(pairs):
                name, exceeds = f"{half}_{level}_{index}", right > left
                value, place = Signal(signed(33), name=f"larger_{name}"), Signal.like(left_place, name=f"place_of_{name}")
                m.d.comb += [value.eq(Mux(exceeds, right, left)), place.eq(Mux(exceeds, right_place, left_place))]
                candidates.append((value, place))
        return Mux(self.function.statistic == Statistic.SUM, total, candidates[0][0]), candidates[0][1]
