"""The array: one tile a column behind shared operand registers, and the register that hands finished sums on."""

from collections.abc import Callable

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.hw.arch.parameters import ACTIVATION_BITS
from tritloom.hw.array.tile import TernaryTile, tile_latency
from tritloom.hw.cell import TRIT_BITS, TernaryCell

__all__ = ["MeshCommand", "TernaryMesh", "mesh_latency"]


def mesh_latency(rows: int) -> int:
    """Clocks from the operands of a reduction's last element to the clock in which ``drained`` shows accumulator 0."""
    return tile_latency(rows) + 3


class MeshCommand(data.Struct):
    """What happens with the operands of a clock."""

    add: 1
    """Add their products."""
    clear: 1
    """With ``add``: to zero instead of to the accumulators."""
    triple: 1
    """Multiply the accumulators by three instead."""
    last: 1
    """With ``add``: the accumulators are finished; hand them to the drain register."""


class TernaryMesh(wiring.Component):
    """``columns`` tiles that share their activations, and a drain register.

    Operands and command of clock ``t`` are registered, walk through the tiles, and are in the accumulators in clock
    ``t + tile_latency(rows) + 2``. The next reduction may follow at once: when ``last`` arrives, all accumulators are copied to the
    drain register, which shows accumulator 0 from clock ``t + mesh_latency(rows)`` on, and the next one in the clock after each
    ``shift``. A copy wins over a shift in the same clock.

    Parameters
    ----------
    rows, columns, accumulator_bits : :class:`int`
        See :class:`tritloom.hw.arch.parameters.CoreParameters`.
    cell : callable
        Makes the cell, see :class:`TernaryTile`.

    Members
    -------
    activations : :py:`In(ArrayLayout(signed(8), rows))`
    trits : :py:`In(ArrayLayout(2, rows * columns))`
        Trit ``column * rows + row`` multiplies activation ``row`` into accumulator ``column``.
    operands : :py:`Out(ArrayLayout(signed(8), rows))`
        ``activations`` one clock later.
    command : :py:`In(MeshCommand)`
    flush : :py:`In(1)`
        Forget every command that is under way.
    shift : :py:`In(1)`
    drained : :py:`Out(signed(accumulator_bits))`
    """

    def __init__(self, *, rows: int, columns: int, accumulator_bits: int, cell: Callable[[], wiring.Component] = TernaryCell) -> None:
        if columns < 1:
            raise ValueError(f"Columns must be at least 1, not {columns!r}")
        self._rows, self._columns = rows, columns
        self._tiles = [TernaryTile(rows=rows, accumulator_bits=accumulator_bits, cell=cell) for _ in range(columns)]
        super().__init__({
            "activations": In(data.ArrayLayout(signed(ACTIVATION_BITS), rows)), "trits": In(data.ArrayLayout(TRIT_BITS, rows * columns)),
            "operands": Out(data.ArrayLayout(signed(ACTIVATION_BITS), rows)), "command": In(MeshCommand), "flush": In(1), "shift": In(1), "drained": Out(signed(accumulator_bits)),
        })  # fmt: skip

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def columns(self) -> int:
        return self._columns

    def elaborate(self, platform) -> Module:
        m = Module()
        activations = Signal.like(self.activations, reset_less=True)
        trits = Signal.like(self.trits, reset_less=True)
        m.d.sync += [activations.eq(self.activations), trits.eq(self.trits)]
        m.d.comb += self.operands.eq(activations)

        command = self.command
        for stage in range(1 + tile_latency(self._rows)):
            following = Signal(MeshCommand, name=f"command_{stage + 1}")
            m.d.sync += following.eq(command)
            with m.If(self.flush):
                m.d.sync += following.eq(0)
            command = following
        finished = Signal()
        m.d.sync += finished.eq(command.last & ~self.flush)

        drain = []
        for column, tile in enumerate(self._tiles):
            m.submodules[f"tile_{column}"] = tile
            m.d.comb += [
                tile.activations.eq(activations),
                tile.trits.eq(Cat(trits[column * self._rows + row] for row in range(self._rows))),
                tile.add.eq(command.add), tile.clear.eq(command.clear), tile.triple.eq(command.triple),
            ]  # fmt: skip
            drain.append(Signal.like(tile.accumulator, name=f"drain_{column}", reset_less=True))
        for column, tile in enumerate(self._tiles):
            with m.If(finished):
                m.d.sync += drain[column].eq(tile.accumulator)
            with m.Elif(self.shift):
                m.d.sync += drain[column].eq(drain[min(column + 1, self._columns - 1)])
        m.d.comb += self.drained.eq(drain[0])
        return m
