"""Which core fits a board and a model: the shape of the array, the encoding of the weights, and the depth of every memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tritloom.boards.area import BLOCK_SHAPES, BYTE_SHAPES, block_depth, block_use, logic_cells
from tritloom.boards.board import Board
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Needs, memory_needs, schedule, sim_parameters
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.parameters import SPRAM_BITS, CoreParameters

__all__ = ["fit", "fitting_cores"]

_ROWS = (4, 8, 16, 32, 64)
_COLUMNS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_ACCUMULATOR_BITS = (16, 20, 24, 28, 32)
"""Widths on offer; few, so that one bitstream serves many models."""

_LOGIC_FILL = 0.92
"""Part of the logic cells that a core may take; nextpnr finds no legal or no fast placement in the last few per cent."""

_SPRAM_WORDS = 16384


@dataclass(frozen=True)
class _Shortage:
    """The memory or logic that is missing; ``ratio`` orders shortages by how far away the core is from fitting."""

    ratio: float
    sentence: str


def fit(board: Board, program: Program, *, array: tuple[int, int] | None = None) -> CoreParameters:
    """The core for a board that runs ``program`` in the fewest clocks; of several as fast the one with the smallest array.

    ``array`` (rows, columns) is taken instead of the best shape when it fits. Every memory is as deep as its block RAMs allow, so that
    a bitstream also serves other models. For the simulated board the array is fixed.

    Raises :class:`ModelError` with one sentence when nothing fits (what is short, how much is needed and available, which board
    would do), and :class:`UserError` for an array that no core can have.
    """
    return next(iter(fitting_cores(board, program, array=array)))


def fitting_cores(board: Board, program: Program, *, array: tuple[int, int] | None = None) -> list[CoreParameters]:
    """All cores of :func:`fit` that are worth a try, best first: a later one is smaller, for when the best cannot be routed."""
    if board.family == "none":
        if array is not None:
            raise UserError(f"board {board.name!r} has a fixed array; choose a board with an FPGA to set one")
        return [sim_parameters(program)]
    fitting, shortages = _survey(board, program, array)
    if not fitting:
        short = min(shortages, key=lambda shortage: shortage.ratio)
        raise ModelError(f"{short.sentence}; {_alternative(board, program, array)}")
    fitting.sort(key=lambda core: (schedule(program, core).cycles, core.macs_per_cycle, core.rows))
    best = [fitting[0]]
    for core in fitting[1:]:
        if core.macs_per_cycle < best[-1].macs_per_cycle:
            best.append(core)
    return best


def _survey(board: Board, program: Program, array: tuple[int, int] | None) -> tuple[list[CoreParameters], list[_Shortage]]:
    fitting: list[CoreParameters] = []
    shortages: list[_Shortage] = []
    needs: dict[tuple[int, int, str], Needs] = {}
    for bare in _shapes(board, array):
        short = _logic_shortage(board, program, bare)
        if short is None:
            shape = (bare.rows, bare.columns, bare.weight_encoding)
            if shape not in needs:
                needs[shape] = memory_needs(program, rows=bare.rows, columns=bare.columns, weight_encoding=bare.weight_encoding)
            core, short = _with_memories(board, program, bare, needs[shape])
            if core is not None:
                short = _logic_shortage(board, program, core)
            if core is not None and short is None:
                fitting.append(core)
                continue
        if short is not None:
            shortages.append(short)
    return fitting, shortages


def _shapes(board: Board, array: tuple[int, int] | None) -> Iterator[CoreParameters]:
    """Cores with every array and way of keeping weights that the board has, memories as yet of one word."""
    smallest = {"weight_words": 1, "activation_words": 1, "record_words": 1, "program_words": 1, "accumulator_bits": 16}
    for rows in _ROWS if array is None else (array[0],):
        for columns in _COLUMNS if array is None else (array[1],):
            for encoding in ("trit2", "trit5"):
                core = CoreParameters(rows=rows, columns=columns, weight_encoding=encoding, **smallest)
                yield core
                if board.spram and core.weight_word_bits <= SPRAM_BITS:
                    yield replace(core, weight_storage="spram")


def _with_memories(board: Board, program: Program, core: CoreParameters, needs: Needs) -> tuple[CoreParameters | None, _Shortage | None]:
    """The core with memories for ``needs``, or what is short."""
    where = f"on a {core.rows}x{core.columns} array of {board.name}"
    if core.weight_storage == "spram" and needs.weight_words > _SPRAM_WORDS:
        ratio = needs.weight_words / _SPRAM_WORDS
        return None, _Shortage(ratio, f"model {program.name!r} needs {needs.weight_words} weight words {where}, which holds {_SPRAM_WORDS}")
    bits = next((bits for bits in _ACCUMULATOR_BITS if bits >= needs.accumulator_bits), needs.accumulator_bits)
    sized = replace(
        core,
        accumulator_bits=bits,
        weight_words=max(1, needs.weight_words),
        activation_words=max(1, needs.activation_words),
        record_words=max(1, needs.record_words),
        program_words=needs.program_words,
    )
    use = block_use(board, sized)
    total = sum(use.values())
    if total > board.blocks:
        largest = ", ".join(f"{count} for {name}" for name, count in sorted(use.items(), key=lambda item: -item[1])[:3])
        return None, _Shortage(
            total / board.blocks, f"model {program.name!r} needs {total} block RAMs {where}, which has {board.blocks} ({largest})"
        )
    return _deepened(board, sized), None


def _deepened(board: Board, core: CoreParameters) -> CoreParameters:
    """Every memory as deep as the block RAMs that it takes anyway."""
    whole, lanes = BLOCK_SHAPES[board.family], BYTE_SHAPES[board.family]
    return replace(
        core,
        weight_words=_SPRAM_WORDS if core.weight_storage == "spram" else block_depth(whole, core.weight_words, core.weight_word_bits),
        activation_words=block_depth(lanes, core.activation_words, 8 * core.rows),
        record_words=block_depth(whole, core.record_words, 128),
        program_words=block_depth(whole, core.program_words, 32),
    )


def _logic_shortage(board: Board, program: Program, core: CoreParameters) -> _Shortage | None:
    cells, limit = logic_cells(board, core), int(board.logic_cells * _LOGIC_FILL)
    if cells <= limit:
        return None
    return _Shortage(
        cells / limit,
        f"model {program.name!r} needs a core of about {cells} logic cells with a {core.rows}x{core.columns} array on {board.name}, "
        f"which has room for {limit}",
    )


def _alternative(board: Board, program: Program, array: tuple[int, int] | None) -> str:
    """What to do instead: a board that would hold the model, or a smaller array."""
    from tritloom.boards import BOARDS

    if array is not None and _survey(board, program, None)[0]:
        return f"leave the array out, or choose a smaller one than {array[0]}x{array[1]}"
    others = sorted(
        (other for other in BOARDS.values() if other.family != "none" and other is not board), key=lambda other: other.price_usd
    )
    for other in others:
        if _survey(other, program, array)[0]:
            return f"it fits {other.name}"
    return "no board holds it; the board sim does" if array is None else "no board holds it with this array"
