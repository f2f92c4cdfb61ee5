"""Results: registers ``o`` and ``p`` of an instruction, and the walk over the results of a reduction and their pieces."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.isa import FIELDS
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.control.bus import LOOP_INDEX_BITS, InstructionBus, field_value, step_table
from tritloom.hw.memory import address_bits
from tritloom.hw.post import ResultCommand, lane_bits

__all__ = ["ResultWalker"]


class ResultWalker(wiring.Component):
    """Gives the post unit a command for every piece of every result of a reduction, one a clock from the clock after ``start``.

    The next reduction may start in the clock of the last command.

    Parameters
    ----------
    parameters : :class:`CoreParameters`

    Members
    -------
    bus : :py:`In(InstructionBus())`
    prepare : :py:`In(1)`
        The clock before ``start``, in which ``index`` is the loop that advances after this reduction.
    index : :py:`In(3)`
    start : :py:`In(1)`
        A reduction's results begin.
    final : :py:`In(1)`
        With ``start``: the instruction ends with them.
    last_column, last_piece : in
        With ``start``: number of its results and of their pieces, minus one.
    last_lane : in
        With ``start``: number of the lanes that the last command of a ``wide`` instruction uses, minus one.
    raw : :py:`In(1)`
        A result has four bytes. Static.
    wide : :py:`In(1)`
        A command stands for a result of each lane. Static.
    flush : :py:`In(1)`
        Forget the walk.
    command : :py:`Out(ResultCommand(parameters))`
    record : out
        Record address, with ``command``.
    """

    def __init__(self, parameters: CoreParameters) -> None:
        self._parameters = p = parameters
        super().__init__({
            "bus": In(InstructionBus()), "prepare": In(1), "index": In(LOOP_INDEX_BITS), "start": In(1), "final": In(1),
            "last_column": In(FIELDS["last_columns"].width), "last_piece": In(address_bits(p.record_words)), "last_lane": In(lane_bits(p)),
            "raw": In(1), "wide": In(1), "flush": In(1),
            "command": Out(ResultCommand(p)), "record": Out(address_bits(p.record_words)),
        })  # fmt: skip

    @property
    def parameters(self) -> CoreParameters:
        return self._parameters

    def elaborate(self, platform) -> Module:
        m = Module()
        command = self.command
        registers = {}
        for name, width in (("o", len(command.address)), ("p", len(self.record))):
            place = FIELDS[name]
            registers[name] = register = Signal(width, name=name)
            step = step_table(m, self.bus, f"{name}_step", width=width, index=self.index, enable=self.prepare)
            with m.If(self.bus.header[place.word]):
                m.d.sync += register.eq(field_value(self.bus.word, place))
            with m.Elif(self.start):
                m.d.sync += register.eq(register + step)

        columns, pieces, final = Signal.like(self.last_column), Signal.like(self.last_piece), Signal()
        lane, last_lane = Signal(lane_bits(self._parameters)), Signal(lane_bits(self._parameters))
        m.d.comb += [
            command.last.eq(pieces == 0), command.final.eq(final & (columns == 0) & (pieces == 0)),
            command.lane.eq(Mux(self.wide, Mux(columns == 0, last_lane, -1), lane)),
        ]  # fmt: skip
        m.d.sync += self.record.eq(self.record + 1)
        with m.If(self.start):
            m.d.sync += [
                command.valid.eq(1), command.first.eq(1), command.address.eq(registers["o"]), self.record.eq(registers["p"]),
                columns.eq(self.last_column), pieces.eq(self.last_piece), final.eq(self.final),
                lane.eq(0), last_lane.eq(self.last_lane),
            ]  # fmt: skip
        with m.Elif(pieces != 0):
            m.d.sync += [command.first.eq(0), pieces.eq(pieces - 1)]
        with m.Else():
            m.d.sync += [
                command.first.eq(1), command.address.eq(command.address + Mux(self.raw, 4, Mux(self.wide, self._parameters.post_lanes, 1))),
                lane.eq(lane + 1), columns.eq(columns - 1), pieces.eq(self.last_piece),
            ]  # fmt: skip
            with m.If(columns == 0):
                m.d.sync += command.valid.eq(0)
        with m.If(self.flush):
            m.d.sync += command.valid.eq(0)
        return m
