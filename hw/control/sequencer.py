"""Sequencer: fetches instructions, issues their elements, starts their results, and keeps the core's state."""

from amaranth.hdl import Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES, Opcode
from tritloom.hw.arch.link import Fault, State
from tritloom.hw.arch.parameters import ACTIVATION_BITS, CoreParameters
from tritloom.hw.arch.scalar import REGISTER_BITS, ScalarOpcode
from tritloom.hw.arch.timing import OPERAND_STAGE, VECTOR_STAGES, fetch_delay, start_stage, vector_delay, vector_pipeline
from tritloom.hw.arch.vector import Second
from tritloom.hw.array import MeshCommand
from tritloom.hw.control.bus import LOOP_INDEX_BITS, field_register
from tritloom.hw.control.fetch import FETCH_REGISTERS, Fetch
from tritloom.hw.control.nest import LoopNest
from tritloom.hw.control.operands import OperandAddresses
from tritloom.hw.control.results import ResultWalker
from tritloom.hw.memory import address_bits
from tritloom.hw.post import ResultCommand, lane_bits
from tritloom.hw.vector import VectorElement
from tritloom.hw.vector.lane import FunctionLayout
from tritloom.hw.vector.scalar import ScalarWord

__all__ = ["Sequencer"]

CYCLE_BITS = 40
_SMALLEST = -(1 << (ACTIVATION_BITS - 1))


class _Element(data.Struct):
    """An element under way: ``add`` is an element, ``triple`` a tripling; the rest is as in :class:`LoopNest`."""

    add: 1
    triple: 1
    first: 1
    last: 1
    final: 1
    tail: 1
    index: LOOP_INDEX_BITS


class Sequencer(wiring.Component):
    """Runs the program; with a vector unit also scalar instructions, which wait for the results that are under way. An element issued in stage 0 has its addresses on the ports in stage 1 and its operands in stage ``OPERAND_STAGE``.

    The last element of a reduction waits until the post unit has been given every command of the reduction before it, so
    that a reduction of ``n`` results of ``r`` pieces is followed by the next one at least ``n * r`` clocks later.

    The next instruction is fetched when the last element has been issued. Its fields of stage 0 are in use by nobody else then. What
    finishes the results (mode, bounds, counts of results and pieces) is copied when an instruction begins, and ``o`` and ``p`` come late
    enough in an instruction, :func:`tritloom.hw.arch.timing.fetch_delay`.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    start, start_pc, start_limit, start_clear, abort : in, 1, 16, 16, 1 and 1 bits
        From the link. START is ignored while the core runs. ABORT makes the core idle one clock later, and nothing more is written.
    state, fault, pc, cycles : out, 2, 8, 16 and 40 bits
        To the link. ``pc`` stays at a HALT or a bad instruction.
    program_address, program_data : out, and in, 64 bits
    read : :py:`Out(1)`
        ``activation`` is read. Stage 1.
    activation : out
        Byte address. Stage 1, second operands one clock later.
    weight : out
        Word address. Stage 1.
    inside, pad : :py:`Out(1)`, :py:`Out(signed(8))`
        The activation word counts, else ``pad`` in every lane. Stage ``OPERAND_STAGE``.
    mesh : :py:`Out(MeshCommand)`
        Stage ``OPERAND_STAGE``.
    compare, compare_first : :py:`Out(1)`
        The word goes into the maximum; it is the first of its reduction. Stage ``OPERAND_STAGE + 1``.
    flush : :py:`Out(1)`
        Everything under way is void.
    command : :py:`Out(ResultCommand(parameters))`
    record : out
        Address, with ``command``.
    raw, wide, pool, elementwise, two_operands, low, high : out
        Mode of the post unit.
    done : :py:`In(1)`
        The post unit writes the instruction's last result in the next clock, or the vector unit has written it.
    vector, function : out
        The instruction is a VECTOR, and its function.
    element : :py:`Out(VectorElement)`
        In the clock in which the vector unit has its operands.
    second : :py:`Out(1)`
        ``activation`` is the address of a second operand.
    table : out
        Byte address ``b``.
    scalar : :py:`Out(ScalarWord())`
        The scalar instruction that begins with ``scalar_start`` and ends with ``scalar_finished``, which ``scalar_nearly`` announces; with the former
        ``scalar_taken`` and ``scalar_destination`` say where the program goes on.
    index_a, index_b, index_o, step_a, step_b, count : :py:`In(32)`
        Registers of the scalar unit.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        super().__init__({
            "start": In(1), "start_pc": In(16), "start_limit": In(16), "start_clear": In(1), "abort": In(1),
            "state": Out(2), "fault": Out(8), "pc": Out(16), "cycles": Out(CYCLE_BITS),
            "program_address": Out(address_bits(p.program_words)), "program_data": In(8 * PROGRAM_WORD_BYTES),
            "read": Out(1), "activation": Out(address_bits(p.activation_bytes)), "weight": Out(address_bits(p.weight_words)),
            "inside": Out(1), "pad": Out(signed(ACTIVATION_BITS)), "mesh": Out(MeshCommand), "compare": Out(1), "compare_first": Out(1),
            "flush": Out(1), "command": Out(ResultCommand(p)), "record": Out(address_bits(p.record_words)),
            "raw": Out(1), "wide": Out(1), "pool": Out(1), "elementwise": Out(1), "two_operands": Out(1),
            "low": Out(signed(ACTIVATION_BITS)), "high": Out(signed(ACTIVATION_BITS)), "done": In(1),
            "vector": Out(1), "function": Out(FunctionLayout()), "element": Out(VectorElement), "second": Out(1), "table": Out(address_bits(p.activation_bytes)),
            "begin": Out(1), "scalar_start": Out(1), "scalar": Out(ScalarWord()), "scalar_nearly": In(1), "scalar_finished": In(1), "scalar_taken": In(1), "scalar_destination": In(16),
            **{name: In(REGISTER_BITS) for name in FETCH_REGISTERS},
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.fetch = fetch = Fetch(address_bits=len(self.program_address), registers=p.vector_lanes > 0)
        m.submodules.nest = nest = LoopNest()
        m.submodules.operands = operands = OperandAddresses(p)
        m.submodules.results = results = ResultWalker(p)
        bus = fetch.bus
        aborting = Signal()  # the link's strobe comes late in the clock, and much depends on it
        m.d.sync += aborting.eq(self.abort)
        for unit in (nest, operands, results):
            m.d.comb += [member.eq(getattr(bus, name)) for name, member in (
                ("word", unit.bus.word), ("header", unit.bus.header), ("loop", unit.bus.loop), ("index", unit.bus.index))]  # fmt: skip
        m.d.comb += [
            fetch.pc.eq(self.pc), fetch.data.eq(self.program_data), self.program_address.eq(fetch.address),
            self.flush.eq(aborting), fetch.flush.eq(self.flush), results.flush.eq(self.flush),
            *(getattr(fetch, name).eq(getattr(self, name)) for name in FETCH_REGISTERS),
        ]  # fmt: skip

        # The instruction's mode, as fetched and, from the clock of its first element on, as it stays until the last result.
        begin, matrix = self.begin, Signal()
        opcode = field_register(m, bus, "opcode", width=7 if p.vector_lanes else 2)
        is_matrix, is_pool, is_elementwise = (opcode == kind for kind in (Opcode.MATRIX, Opcode.POOL, Opcode.ELEMENTWISE))
        raw = field_register(m, bus, "raw") & is_matrix
        wide = field_register(m, bus, "wide") & ~is_pool if p.post_lanes > 1 else Const(0)
        records, last_columns = field_register(m, bus, "records"), field_register(m, bus, "last_columns")
        tail, full = last_columns - 1, Const(p.columns - 1, Shape.cast(range(p.columns)))
        last_piece, tail_column, full_column = (
            Signal.like(results.last_piece, name="last_piece"),
            Signal.like(results.last_column, name="tail_column"),
            Signal.like(results.last_column, name="full_column"),
        )
        tail_lane, skipped = Signal.like(results.last_lane, name="tail_lane"), lane_bits(p)
        fetched = [
            (matrix, is_matrix), (self.pool, is_pool), (self.elementwise, is_elementwise), (self.raw, raw), (self.wide, wide),
            (self.two_operands, field_register(m, bus, "two_operands") & is_elementwise),
            (self.low, field_register(m, bus, "low")), (self.high, field_register(m, bus, "high")),
            (last_piece, Mux(raw | is_pool | (records == 0), 0, records - 1)),
            (tail_column, Mux(is_matrix, Mux(wide, tail >> skipped, tail), 0)), (full_column, Mux(is_matrix, Mux(wide, full >> skipped, full), 0)),
            (tail_lane, Mux(is_matrix, tail[:skipped], -1)),
        ]  # fmt: skip
        if p.vector_lanes:
            fetched += [(self.vector, opcode == Opcode.VECTOR), (self.function, field_register(m, bus, "function"))]
        with m.If(begin):
            m.d.sync += [kept.eq(value) for kept, value in fetched]
        m.d.comb += self.pad.eq(Mux(self.pool, _SMALLEST, field_register(m, bus, "pad_value")))

        # Whether the vector unit reads pairs of operands, or looks its second ones up; either takes two clocks an element.
        pairs, looks_up = Signal(), Signal()
        if p.vector_lanes:
            second = self.function.second
            m.d.comb += [
                looks_up.eq(self.vector & ((second == Second.TABLE) | (second == Second.POWER))),
                pairs.eq(self.vector & (second != Second.NONE) & ~looks_up),
            ]

        # Stage 0: issue.
        running, tripled, busy, paused = Signal(), Signal(), Signal(), Signal()
        element = Signal(_Element)
        m.d.comb += [
            element.triple.eq(running & nest.triple & matrix & ~tripled),
            element.add.eq(running & ~element.triple & ~(nest.last & busy) & ~paused),
            element.first.eq(nest.first), element.last.eq(element.add & nest.last), element.final.eq(element.add & nest.final),
            element.tail.eq(nest.tail), element.index.eq(nest.index),
            nest.step.eq(element.add), operands.step.eq(element.add), operands.index.eq(nest.index), operands.two_operands.eq(self.two_operands | pairs),
            self.second.eq(operands.second), self.table.eq(operands.table),
        ]  # fmt: skip
        m.d.sync += [tripled.eq((tripled | element.triple) & ~element.add), paused.eq(element.add & (pairs | looks_up))]
        # `busy` is (columns != 0) | (pieces != 0), kept in a register of its own: the issue waits for nothing else that is slow.
        columns, pieces = Signal.like(full_column, name="columns_left"), Signal.like(last_piece, name="pieces_left")
        ending = Mux(columns == 0, pieces <= 1, (columns == 1) & (pieces == 0) & (last_piece == 0))
        several = Mux(nest.tail, tail_column != 0, full_column != 0) | (last_piece != 0)
        m.d.sync += busy.eq(Mux(element.last, several, busy & ~ending))
        with m.If(element.last):
            m.d.sync += [columns.eq(Mux(nest.tail, tail_column, full_column)), pieces.eq(last_piece)]
        with m.Elif(pieces != 0):
            m.d.sync += pieces.eq(pieces - 1)
        with m.Elif(columns != 0):
            m.d.sync += [columns.eq(columns - 1), pieces.eq(last_piece)]

        # Later stages.
        stages = [element]
        slow, fast = start_stage(Opcode.MATRIX, p), start_stage(Opcode.POOL, p)
        longest = vector_delay(Second.TABLE, p) if p.vector_lanes else 0
        for stage in range(max(slow, OPERAND_STAGE + 1, longest)):
            stages.append(Signal(_Element, name=f"stage_{stage + 1}"))
            m.d.sync += stages[-1].eq(stages[-2])
            with m.If(self.flush):
                m.d.sync += [stages[-1].add.eq(0), stages[-1].triple.eq(0), stages[-1].last.eq(0)]
        at = stages[OPERAND_STAGE]
        inside = [operands.inside]
        for stage in range(2, OPERAND_STAGE + 1):
            inside.append(Signal(name=f"inside_{stage}"))
            m.d.sync += inside[-1].eq(inside[-2])
        m.d.comb += [
            self.activation.eq(operands.activation), self.weight.eq(operands.weight), self.read.eq(stages[1].add | operands.second),
            self.inside.eq(inside[-1]),
            self.mesh.add.eq(at.add & matrix), self.mesh.triple.eq(at.triple), self.mesh.last.eq(at.last & matrix),
            self.compare.eq(stages[OPERAND_STAGE + 1].add & self.pool), self.compare_first.eq(stages[OPERAND_STAGE + 1].first),
        ]  # fmt: skip
        start, before_start = Signal(_Element), Signal(_Element)
        starts = [(matrix, stages[slow], stages[slow - 1]), (Const(1), stages[fast], stages[fast - 1])]
        if p.vector_lanes:
            last = self._vector_stages(m, stages, pairs, looks_up)
            starts.insert(0, (self.vector, last[-1], last[-2]))
        for chosen, at_start, before in reversed(starts):
            with m.If(chosen):
                m.d.comb += [start.eq(at_start), before_start.eq(before)]
        m.d.comb += [
            results.prepare.eq(before_start.last), results.index.eq(before_start.index),
            results.start.eq(start.last & ~self.flush), results.final.eq(start.final),
            results.last_column.eq(Mux(start.tail, tail_column, full_column)), results.last_piece.eq(last_piece), results.raw.eq(self.raw),
            results.last_lane.eq(Mux(start.tail, tail_lane, -1)), results.wide.eq(self.wide),
            self.command.eq(results.command), self.record.eq(results.record),
        ]  # fmt: skip

        # State. `verdict` is what follows the results that are under way: another instruction, or the state in which the core stops.
        limit, last_one, final, outstanding = Signal(Shape(16)), Signal(), Signal(), Signal()
        m.d.sync += last_one.eq(limit == 1)
        verdict = Signal.like(self.state)
        with m.If(self.state == State.RUNNING):
            m.d.sync += self.cycles.eq(self.cycles + 1)
        with m.If(fetch.word & ~fetch.halt & ~fetch.bad):
            m.d.sync += self.pc.eq(self.pc + 1)
        if p.vector_lanes:
            with m.If(fetch.scalar):
                m.d.sync += self.scalar.eq(bus.word)
            with m.If(self.scalar_finished & self.scalar_taken & (self.state != State.IDLE)):
                m.d.sync += self.pc.eq(self.scalar_destination)
        with m.If(element.final):
            m.d.sync += outstanding.eq(1)
        with m.Elif(self.done):
            m.d.sync += outstanding.eq(0)

        def heed_abort() -> None:
            with m.If(aborting):
                m.d.sync += [columns.eq(0), pieces.eq(0), busy.eq(0), tripled.eq(0), outstanding.eq(0)]
                m.d.sync += [self.state.eq(State.IDLE), self.fault.eq(Fault.NONE)]
                m.next = "IDLE"

        delay = fetch_delay(p)
        with m.FSM(name="phase"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        self.state.eq(State.RUNNING),
                        self.fault.eq(Fault.NONE),
                        self.pc.eq(self.start_pc),
                        limit.eq(self.start_limit),
                    ]
                    with m.If(self.start_clear):
                        m.d.sync += self.cycles.eq(0)
                    m.next = "FETCH"
                heed_abort()
            with m.State("FETCH"):
                m.d.comb += fetch.go.eq(1)
                m.d.sync += verdict.eq(State.RUNNING)
                m.next = "LOAD"
                heed_abort()
            with m.State("LOAD"):
                with m.If(fetch.halt):
                    m.d.sync += verdict.eq(State.IDLE)
                with m.If(fetch.bad):
                    m.d.sync += verdict.eq(State.FAULT)
                with m.If(fetch.ending | fetch.halt | fetch.bad):
                    m.next = "WAIT"
                if p.vector_lanes:
                    with m.If(fetch.scalar):
                        m.next = "HOLD"
                        with m.If(~outstanding | self.done):
                            m.next = "SCALAR"
                heed_abort()
            with m.State("WAIT"):
                with m.If((~outstanding | self.done) & (nest.ready | (verdict != State.RUNNING))):
                    m.d.sync += [self.state.eq(verdict), self.fault.eq(Mux(verdict == State.FAULT, Fault.BAD_INSTRUCTION, Fault.NONE))]
                    m.d.comb += begin.eq(1)
                    m.next = "IDLE"
                    with m.If(verdict == State.RUNNING):
                        m.next = "RUN"
                heed_abort()
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                with m.If(element.final):
                    with m.If(limit != 0):
                        m.d.sync += limit.eq(limit - 1)
                    m.next = "DELAY" if delay else "FETCH"
                    if p.vector_lanes:
                        with m.If(self.vector):
                            m.next = "DELAY"
                    with m.If(limit == 1):
                        m.d.sync += verdict.eq(State.STOPPED)
                        m.next = "WAIT"
                heed_abort()
            if delay or p.vector_lanes:
                waited = stages[delay].final
                if p.vector_lanes:
                    taps = [stages[vector_delay(kind, p)].final for kind in (Second.TABLE, Second.FACTOR, Second.NONE)]
                    waited = Mux(self.vector, Mux(looks_up, taps[0], Mux(pairs, taps[1], taps[2])), waited)
                with m.State("DELAY"):
                    with m.If(waited):
                        m.next = "FETCH"
                    heed_abort()
            if p.vector_lanes:
                with m.State("HOLD"):
                    with m.If(~outstanding | self.done):
                        m.next = "SCALAR"
                    heed_abort()
                # The next instruction is fetched in the last two clocks of a scalar one, unless that is a branch.
                branches = self.scalar.opcode == ScalarOpcode.BRANCH
                with m.State("SCALAR"):
                    m.d.comb += [self.scalar_start.eq(1), fetch.go.eq(self.scalar_nearly & ~branches & ~last_one)]
                    m.d.sync += final.eq(last_one)
                    with m.If(limit != 0):
                        m.d.sync += limit.eq(limit - 1)
                    m.next = "COMPUTE"
                    with m.If(self.scalar_nearly):
                        m.next = "COMPUTED"
                    heed_abort()
                with m.State("COMPUTE"):
                    m.d.comb += fetch.go.eq(self.scalar_nearly & ~branches & ~final)
                    with m.If(self.scalar_nearly):
                        m.next = "COMPUTED"
                    heed_abort()
                with m.State("COMPUTED"):
                    with m.If(final):
                        m.d.sync += [self.state.eq(State.STOPPED), self.fault.eq(Fault.NONE)]
                        m.next = "IDLE"
                    with m.Elif(branches):
                        m.next = "BRANCH"
                    with m.Else():
                        m.next = "LOAD"
                    heed_abort()
                with m.State("BRANCH"):
                    m.next = "FETCH"
                    heed_abort()
        return m

    def _vector_stages(self, m: Module, stages: list, pairs: Signal, looks_up: Signal) -> list:
        """The element whose operands meet in the vector unit, and what becomes of it up to the clock before its result's command."""
        taps = [stages[VECTOR_STAGES[kind]].as_value() for kind in (Second.TABLE, Second.FACTOR, Second.NONE)]
        met = Signal(_Element, name="met")
        m.d.comb += met.eq(Mux(looks_up, taps[0], Mux(pairs, taps[1], taps[2])))
        m.d.comb += [self.element.add.eq(met.add & self.vector), self.element.first.eq(met.first), self.element.last.eq(met.last)]
        later = [met]
        for stage in range(vector_pipeline(self._parameters) - 1):
            later.append(Signal(_Element, name=f"met_{stage + 1}"))
            m.d.sync += later[-1].eq(later[-2])
            with m.If(self.flush | ~self.vector):
                m.d.sync += later[-1].last.eq(0)
        return later
