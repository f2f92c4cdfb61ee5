"""The core: link, memories, sequencer, array and post unit. Bytes in, bytes out; everything else stays inside."""

from collections.abc import Mapping, Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import Space, State
from tritloom.hw.arch.parameters import ACTIVATION_BITS, CoreParameters
from tritloom.hw.array import TernaryMesh
from tritloom.hw.control import Sequencer
from tritloom.hw.control.fetch import FETCH_REGISTERS
from tritloom.hw.link.engine import LinkEngine
from tritloom.hw.memory import READ_LATENCY, ActivationMemory, ActivationWrite, ByteLoader, WeightMemory, WordMemory, address_bits
from tritloom.hw.post import LaneMaximum, PostUnit, lane_bits
from tritloom.hw.vector import ScalarUnit, VectorUnit

__all__ = ["Core"]


class Core(wiring.Component):
    """The whole machine behind its link.

    Parameters
    ----------
    parameters : :class:`CoreParameters`
    contents : mapping of :class:`Space` to sequence of :class:`int`, or None
        Initial words of the program, weight, record and activation memories, for simulators; the rest is zero.

    Members
    -------
    rx : :py:`In(stream.Signature(8))`
        Link bytes from the host (:mod:`tritloom.hw.arch.link`).
    tx : :py:`Out(stream.Signature(8))`
        Link bytes to the host.
    """

    rx: stream.Interface
    tx: stream.Interface

    def __init__(self, parameters: CoreParameters, *, contents: Mapping[Space, Sequence[int]] | None = None) -> None:
        self._parameters = p = parameters
        first = {space: (contents or {}).get(space, ()) for space in Space}
        for space in contents or {}:
            if space not in (Space.PROGRAM, Space.WEIGHTS, Space.RECORDS, Space.ACTIVATIONS):
                raise ValueError(f"Contents must be of the program, weights, records or activations, not {space!r}")
        self._program = WordMemory(width=8 * PROGRAM_WORD_BYTES, depth=p.program_words, init=first[Space.PROGRAM])
        self._records = WordMemory(width=8 * p.record_word_bytes, depth=p.record_words, init=first[Space.RECORDS])
        self._weights = WeightMemory(p, init=first[Space.WEIGHTS])
        self._activations = ActivationMemory(rows=p.rows, depth=p.activation_words, init=first[Space.ACTIVATIONS])
        super().__init__({"rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8))})

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.link = link = LinkEngine(p)
        m.submodules.sequencer = sequencer = Sequencer(p)
        m.submodules.mesh = mesh = TernaryMesh(
            rows=p.rows, columns=p.columns, accumulator_bits=p.accumulator_bits, reduction=p.reduction, lanes=p.post_lanes
        )  # fmt: skip
        m.submodules.maximum = maximum = LaneMaximum(rows=p.rows)
        m.submodules.post = post = PostUnit(p)
        m.submodules.program = program = self._program
        m.submodules.records = records = self._records
        m.submodules.weights = weights = self._weights
        m.submodules.activations = activations = self._activations
        wiring.connect(m, wiring.flipped(self.rx), link.rx)
        wiring.connect(m, link.tx, wiring.flipped(self.tx))
        m.d.comb += [
            getattr(sequencer, name).eq(getattr(link, name)) for name in ("start", "start_pc", "start_limit", "start_clear", "abort")
        ]
        m.d.comb += [getattr(link, name).eq(getattr(sequencer, name)) for name in ("state", "fault", "pc", "cycles")]

        # The link fills the memories.
        m.submodules.loader = loader = ByteLoader(
            spaces=(Space.PROGRAM, Space.WEIGHTS, Space.RECORDS, Space.ACTIVATIONS),
            lane_bits=address_bits(max(p.record_word_bytes, p.weight_word_bytes)),
        )
        m.d.comb += [
            loader.valid.eq(link.write_valid), loader.space.eq(link.write_space), loader.address.eq(link.write_address),
            loader.byte.eq(link.write_data), loader.commit.eq(link.write_commit),
        ]  # fmt: skip
        for space, memory in ((Space.PROGRAM, program), (Space.WEIGHTS, weights), (Space.RECORDS, records)):
            m.d.comb += [
                memory.write_enable.eq(loader.enable_of(space)), memory.write_address.eq(loader.write_address),
                memory.write_lane.eq(loader.write_lane), memory.write_byte.eq(loader.write_byte),
            ]  # fmt: skip
        byte_bits = address_bits(p.rows)
        from_host = Signal(ActivationWrite(rows=p.rows, depth=p.activation_words))
        m.d.comb += from_host.address.eq(loader.write_address[byte_bits:])
        for lane in range(p.rows):
            m.d.comb += [
                from_host.mask[lane].eq(loader.enable_of(Space.ACTIVATIONS) & (loader.write_address[:byte_bits] == lane)),
                from_host.lanes[lane].eq(loader.write_byte),
            ]
        vector = scalar = None
        if p.vector_lanes:
            m.submodules.vector, m.submodules.scalar = vector, scalar = VectorUnit(p), ScalarUnit(p)
        results = Mux(vector.writing, vector.write.as_value(), post.write.as_value()) if vector is not None else post.write.as_value()
        # The host never writes while the core runs.
        m.d.comb += activations.write.eq(Mux(loader.enable_of(Space.ACTIVATIONS), from_host.as_value(), results))

        # Reads: the sequencer's while it runs, else the host's. Three clocks after the address, `read_bytes` begins with the addressed byte;
        # behind it are the other ones for the lanes of the post unit, which count when the address is a multiple of their number.
        # A clock late is soon enough for who reads: neither does in the first clocks of its turn.
        address, read, running = Signal.like(sequencer.activation), Signal(), Signal()
        m.d.sync += running.eq(sequencer.state == State.RUNNING)
        m.d.comb += [
            address.eq(Mux(running, sequencer.activation, link.read_address)), read.eq(link.read_strobe | sequencer.read),
            activations.read_address.eq(address[byte_bits:]), weights.read_address.eq(sequencer.weight),
            program.read_address.eq(sequencer.program_address), sequencer.program_data.eq(program.read_data),
            records.read_address.eq(sequencer.record), post.record.eq(records.read_data),
        ]  # fmt: skip
        if vector is not None and scalar is not None:
            with m.If(vector.table):
                m.d.comb += address.eq(vector.table_address)
            with m.If(scalar.read):
                m.d.comb += address.eq(scalar.address)
        lane, reading = address[:byte_bits], read
        for stage in range(READ_LATENCY):
            later_lane, later_reading = Signal(byte_bits, name=f"lane_{stage + 1}"), Signal(name=f"reading_{stage + 1}")
            m.d.sync += [later_lane.eq(lane), later_reading.eq(reading)]
            lane, reading = later_lane, later_reading
        read_bytes = Signal(data.ArrayLayout(signed(ACTIVATION_BITS), p.post_lanes), reset_less=True)
        width, shared = len(read_bytes.as_value()), lane_bits(p)
        group = activations.read_data.as_value()
        if p.post_lanes < p.rows:
            group = group.word_select(lane[shared:], width)
        first = group.word_select(lane[:shared], ACTIVATION_BITS) if shared else group
        with m.If(reading):
            m.d.sync += read_bytes.eq(Cat(first, group[ACTIVATION_BITS:]))
        m.d.comb += [link.read_data.eq(read_bytes[0]), post.bytes.eq(read_bytes)]

        if vector is not None and scalar is not None:
            operand = Signal(2)
            second = [Signal(2, name=f"operand_{stage}") for stage in range(READ_LATENCY)]
            m.d.comb += operand.eq(Cat(vector.table | sequencer.second, vector.table | (sequencer.read & sequencer.vector)))
            m.d.sync += [later.eq(earlier) for later, earlier in zip(second, [operand, *second], strict=False)]
            self._connect_vector(m, sequencer, vector, scalar)
            m.d.comb += [
                vector.group.eq(activations.read_data.as_value().word_select(lane[len(vector.offset) :], len(vector.group))),
                vector.offset.eq(lane[: len(vector.offset)]),
                Cat(vector.second, vector.reading).eq(second[-1]),
                scalar.word.eq(activations.read_data.as_value().word_select(lane[2:], 32)),
            ]

        # Operands, array, results.
        for row in range(p.rows):
            m.d.comb += mesh.activations[row].eq(Mux(sequencer.inside, activations.read_data[row], sequencer.pad))
        operands = Signal.like(mesh.activations, name="operands", reset_less=True)
        m.d.sync += operands.eq(mesh.activations)
        m.d.comb += [
            mesh.trits.eq(weights.trits), mesh.command.eq(sequencer.mesh), mesh.flush.eq(sequencer.flush), mesh.shift.eq(post.shift),
            maximum.word.eq(operands), maximum.valid.eq(sequencer.compare), maximum.clear.eq(sequencer.compare_first),
            post.command.eq(sequencer.command), post.flush.eq(sequencer.flush), post.raw.eq(sequencer.raw), post.wide.eq(sequencer.wide), post.pool.eq(sequencer.pool),
            post.elementwise.eq(sequencer.elementwise), post.two_operands.eq(sequencer.two_operands),
            post.low.eq(sequencer.low), post.high.eq(sequencer.high),
            post.drained.eq(mesh.drained), post.maximum.eq(maximum.maximum), sequencer.done.eq(post.done),
        ]  # fmt: skip
        if vector is not None:
            with m.If(sequencer.vector):
                m.d.comb += [sequencer.done.eq(vector.done), post.command.valid.eq(0)]
        return m

    @staticmethod
    def _connect_vector(m: Module, sequencer: Sequencer, vector: VectorUnit, scalar: ScalarUnit) -> None:
        m.d.comb += [
            scalar.start.eq(sequencer.scalar_start), scalar.instruction.eq(sequencer.scalar), scalar.flush.eq(sequencer.flush),
            scalar.statistic.eq(vector.statistic), scalar.argument.eq(vector.argument),
            sequencer.scalar_nearly.eq(scalar.nearly), sequencer.scalar_finished.eq(scalar.finished),
            sequencer.scalar_taken.eq(scalar.taken), sequencer.scalar_destination.eq(scalar.destination),
            *(getattr(sequencer, name).eq(getattr(scalar, name)) for name in FETCH_REGISTERS),
            vector.function.eq(sequencer.function), vector.element.eq(sequencer.element), vector.begin.eq(sequencer.begin),
            vector.base.eq(sequencer.table), vector.flush.eq(sequencer.flush),
            *(getattr(vector.controls, name).eq(getattr(scalar, name)) for name in ("shift", "factor", "out_shift", "addend")),
            vector.command_valid.eq(sequencer.command.valid & sequencer.vector), vector.command_address.eq(sequencer.command.address),
            vector.command_final.eq(sequencer.command.final),
            vector.store.eq(scalar.store), vector.store_address.eq(scalar.address), vector.store_data.eq(scalar.stored),
        ]  # fmt: skip
