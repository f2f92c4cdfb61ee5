"""What a model would take that is larger than the memories of a board: an estimate with weights and activations in the board's SDRAM.

No core has an SDRAM controller yet. The clocks of the core are exact, for memories as large as the model needs; what the SDRAM adds is a model of it.
"""

from dataclasses import dataclass

from tritloom.boards import get_board
from tritloom.boards.area import logic_cells
from tritloom.boards.fitting import unbounded_core
from tritloom.compiled import CompiledModel
from tritloom.compiler.ir.program import Convolution
from tritloom.compiler.schedule import schedule
from tritloom.compiler.schedule.flat import flattened
from tritloom.errors import UserError

__all__ = ["EFFICIENCY", "StreamedEstimate", "estimate_streamed"]

EFFICIENCY = 0.8
"""Part of the clocks in which an SDRAM delivers a word; the others open rows and refresh."""


@dataclass(frozen=True)
class StreamedEstimate:
    """An inference on a ``rows`` x ``columns`` array, all trips of its loops made.

    ``cycles`` are the core's, were its memories large enough; ``streamed_cycles`` take the longer one of computing and fetching for each layer, which double-buffered tiles would.
    ``compute_bound`` are the clocks of the multiply-accumulates on a full array, ``bandwidth_bound`` those in which ``stream_bytes`` pass the SDRAM: each layer's encoded weights
    once each time that it runs, and where ``activation_bytes`` are more than the part holds also what it reads and writes.
    """

    board: str
    rows: int
    columns: int
    cells: int
    clock_mhz: float
    macs: int
    cycles: int
    streamed_cycles: int
    compute_bound: int
    bandwidth_bound: int
    stream_bytes: int
    weight_bytes: int
    activation_bytes: int
    board_bytes: int

    @property
    def seconds(self) -> float:
        return self.streamed_cycles / (self.clock_mhz * 1e6)


def estimate_streamed(model: CompiledModel, *, board: str) -> StreamedEstimate:
    """Estimate one inference with the board's SDRAM. Raises :class:`UserError` for a board without one, :class:`ModelError` for a model that no core can run."""
    found = get_board(board)
    if not found.sdram_bits:
        raise UserError(f"board {found.name!r} has no SDRAM; choose ulx3s-25f, ulx3s-85f or tang-nano-20k")
    core = unbounded_core(found, model.program)
    plan, program = schedule(model.program, core), flattened(model.program)
    bytes_a_clock = found.sdram_bits / 8 * EFFICIENCY
    # A byte has a ninth bit in these block RAMs, which a core cannot use.
    board_bytes = found.blocks * found.block_bits // 9
    spilled = plan.parameters.activation_bytes + len(plan.weights) > board_bytes
    total, streamed = 0, 0.0
    for layer, operation in zip(plan.layers, program.operations, strict=True):
        moved = 0
        if isinstance(operation, Convolution):
            trits = operation.weights.size * operation.planes
            moved += -(-trits // (core.rows * core.columns)) * core.weight_word_bytes
        if spilled:
            names = {*operation.inputs, *operation.outputs}
            moved += sum(plan.placements[name].bytes for name in names if name in plan.placements)
        total += moved * layer.times
        streamed += max(layer.cycles, moved * layer.times / bytes_a_clock)
    return StreamedEstimate(
        board=found.name,
        rows=core.rows,
        columns=core.columns,
        cells=logic_cells(found, core),
        clock_mhz=found.expected_mhz(core),
        macs=plan.macs,
        cycles=plan.cycles,
        streamed_cycles=round(streamed),
        compute_bound=-(-plan.macs // core.macs_per_cycle),
        bandwidth_bound=round(total / bytes_a_clock),
        stream_bytes=total,
        weight_bytes=plan.weights.size,
        activation_bytes=plan.parameters.activation_bytes,
        board_bytes=board_bytes,
    )
