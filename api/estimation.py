"""Cycles, multiply-accumulates and size of a compiled model on a board, without any tool."""

from dataclasses import dataclass

from tritloom.boards import get_board
from tritloom.boards.area import logic_cells
from tritloom.compiled import DEFAULT_BOARD, CompiledModel
from tritloom.compiler.ir.loop import Loop

__all__ = ["Estimate", "LayerEstimate", "estimate"]


@dataclass(frozen=True)
class LayerEstimate:
    """One layer. ``macs`` counts a multiply-accumulate once however many digit planes it takes; ``utilisation`` is 0 to 1."""

    name: str
    cycles: int
    macs: int
    utilisation: float


@dataclass(frozen=True)
class Estimate:
    """``cycles`` is what the core counts for one inference, of a language model for the last token that its caches hold. ``cells`` are estimated LUTs, ``clock_mhz`` the
    board's usual clock; both are ``None`` for the simulated board. ``first_token`` and ``further_token`` are the cycles of a language model's first token, and how many more
    each token takes than the one before; ``first_trip`` and ``further_trip`` those of a model with a loop that makes one trip, and how many more each other one takes, where ``cycles``
    are those of all that the loop may make. ``None`` for another model."""

    board: str
    cycles: int
    macs: int
    layers: tuple[LayerEstimate, ...]
    cells: int | None
    clock_mhz: float | None
    first_token: int | None = None
    further_token: int | None = None
    first_trip: int | None = None
    further_trip: int | None = None

    @property
    def inferences_per_second(self) -> float | None:
        return None if self.clock_mhz is None else self.clock_mhz * 1e6 / self.cycles


def estimate(model: CompiledModel, *, board: str = DEFAULT_BOARD) -> Estimate:
    """Estimate one inference. Raises :class:`UserError` for an unknown board, :class:`ModelError` when the model does not fit it."""
    found = get_board(board)
    plan = model.schedule(board)
    layers = tuple(LayerEstimate(layer.name, layer.cycles, layer.macs, float(layer.utilisation)) for layer in plan.layers)
    simulated = found.family == "none"
    first = plan.cycles_at(0) if model.program.states else None
    loops = [operation.name for operation in model.program.operations if isinstance(operation, Loop)]
    trips = [plan.cycles_of(dict.fromkeys(loops, count)) for count in (1, 2)] if loops else None
    return Estimate(
        board=found.name,
        cycles=plan.cycles,
        macs=plan.macs,
        layers=layers,
        cells=None if simulated else logic_cells(found, plan.parameters),
        clock_mhz=None if simulated else found.expected_mhz(plan.parameters),
        first_token=first,
        further_token=None if first is None else plan.cycles_at(1) - first,
        first_trip=None if trips is None else trips[0],
        further_trip=None if trips is None else trips[1] - trips[0],
    )
