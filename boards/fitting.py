"""Which core fits a board and a model: the shape of the array, the encoding of the weights, and the depth of every memory."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

from tritloom.boards.area import (
    BLOCK_SHAPES,
    COEFFICIENTS,
    block_depth,
    block_use,
    blocks,
    flip_flops,
    logic_cells,
    multipliers,
    stored_bits,
)
from tritloom.boards.board import Board
from tritloom.compiler.ir.program import Convolution, Program
from tritloom.compiler.schedule import Needs, check_core, has_blocks, memory_needs, schedule, sim_parameters
from tritloom.compiler.schedule.plan import LARGEST_MEMORY, SMALLER_INPUTS, activation_shortage
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.parameters import SCALED_BITS, SPRAM_BITS, VECTOR_ELEMENT_BYTES, VECTOR_LANES, CoreParameters

__all__ = ["fit", "fitting_cores", "unbounded_core"]

_ROWS = (4, 8, 16, 32, 64)
_COLUMNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LANES = (1, 2, 4)
_ACCUMULATOR_BITS = (16, 20, 24, 28, 32)
"""Widths on offer; few, so that one bitstream serves many models."""
_SCALED_BITS = (36, 40, 44, 48, SCALED_BITS)

_CANDIDATES = 32
"""Cores whose exact number of clocks decides."""

_FALLBACKS, _SMALLER = 3, 0.8
"""Cores to try after one that cannot be routed, and the part of its array that they may have."""

_HOPELESS = 1.5
"""So many times the part's memory is beyond any saving, such as weight words that are equal and stored once."""

_SPRAM_WORDS = 16384


@dataclass(frozen=True)
class _Shortage:
    """What is missing for one core, and how far away it is from fitting: needed over available."""

    logic: bool
    ratio: float
    sentence: str


def fit(board: Board, program: Program, *, array: tuple[int, int] | None = None) -> CoreParameters:
    """The core for a board with the least clocks times square root of logic cells: twice the cells must save 30 % of the clocks.

    A larger core also runs at a lower clock and takes longer to build. ``array`` (rows, columns) is taken instead of the best shape when it fits. Every memory is as deep as its block RAMs allow, so that
    a bitstream also serves other models. For the simulated board the array is fixed.

    Raises :class:`ModelError` with one sentence when nothing fits (what is short, how much is needed and available, which board
    would do), and :class:`UserError` for an array that no core can have.
    """
    return next(fitting_cores(board, program, array=array))


def fitting_cores(board: Board, program: Program, *, array: tuple[int, int] | None = None) -> Iterator[CoreParameters]:
    """The core of :func:`fit`, then a few smaller ones, for when it cannot be placed and routed. Raises like :func:`fit`."""
    check_core(program)
    if board.family == "none":
        if array is not None:
            raise UserError(f"board {board.name!r} has a fixed array; choose a board with an FPGA to set one")
        yield sim_parameters(program)
        return
    fitting, shortages = _survey(board, program, array, _CANDIDATES)
    if not fitting:
        # Memory is what stands in the way when some array would fit the logic.
        short = min(shortages, key=lambda shortage: (shortage.logic, shortage.ratio))
        raise ModelError(f"{short.sentence}; {_alternative(board, program, array)}")

    def cost(core: CoreParameters) -> float:
        return schedule(program, core).cycles * math.sqrt(logic_cells(board, core))

    # Shapes are compared with as many lanes of the vector unit as they hold, then the best one with fewer.
    best = min((_lane_choices(board, program, core)[-1] for core in fitting), key=cost)
    first = min(_lane_choices(board, program, best), key=cost)
    yield first
    macs = first.macs_per_cycle
    for _ in range(_FALLBACKS):
        smaller, _ = _survey(board, program, array, 1, below=round(macs * _SMALLER))
        if smaller:
            macs = smaller[0].macs_per_cycle
            yield [core for core in _lane_choices(board, program, smaller[0]) if core.vector_lanes <= first.vector_lanes][-1]


def unbounded_core(board: Board, program: Program) -> CoreParameters:
    """The core with the fastest array that fits the logic of the part, and memories for the program whether the part has them or not.

    Raises :class:`UserError` for the simulated board, :class:`ModelError` where no array fits or the program is beyond what a core can address.
    """
    check_core(program)
    if board.family == "none":
        raise UserError(f"board {board.name!r} has no memory of its own; choose a board with an FPGA")
    shapes = [core for core in _shapes(board, None, vector_lanes=int(has_blocks(program))) if core.weight_storage == "block"]
    for core in sorted(shapes, key=lambda core: (_rough_cycles(program, core), logic_cells(board, core))):
        if _logic_shortage(board, program, core) is None:
            shape = {"rows": core.rows, "columns": core.columns, "weight_encoding": core.weight_encoding, "post_lanes": core.post_lanes}
            needs = asdict(memory_needs(program, **shape))
            return replace(core, **{field: max(value, getattr(core, field)) for field, value in needs.items()})
    raise ModelError(f"no core with a vector unit fits {board.name}; choose a larger board")


def _survey(
    board: Board, program: Program, array: tuple[int, int] | None, enough: int, *, below: int = 1 << 30
) -> tuple[list[CoreParameters], list[_Shortage]]:
    """Cores that fit, the first ``enough`` in the order of their estimated speed, and what is short for the others.

    Arrays of more than ``below`` cells are left out.
    """
    fitting: list[CoreParameters] = []
    shortages: list[_Shortage] = []
    needs: dict[tuple[int, int, str, int], Needs] = {}
    shapes = [core for core in _shapes(board, array, vector_lanes=int(has_blocks(program))) if core.macs_per_cycle <= below]
    for bare in sorted(shapes, key=lambda core: _rough_cycles(program, core)):
        short = _logic_shortage(board, program, bare) or _hopeless(board, program, bare)
        core = None
        if short is None:
            shape = (bare.rows, bare.columns, bare.weight_encoding, bare.post_lanes)
            if shape not in needs:
                rows, columns, encoding, lanes = shape
                needs[shape] = memory_needs(program, rows=rows, columns=columns, weight_encoding=encoding, post_lanes=lanes)
            core, short = _with_memories(board, program, bare, needs[shape])
        if core is not None:
            short = _logic_shortage(board, program, core)
        if short is not None:
            shortages.append(short)
        elif core is not None:
            fitting.append(core)
            if len(fitting) == enough:
                break
    return fitting, shortages


def _lane_choices(board: Board, program: Program, core: CoreParameters) -> list[CoreParameters]:
    """The core with every number of lanes of the vector unit that fits, fewest first; as it is without one."""
    if not core.vector_lanes:
        return [core]
    choices = [replace(core, vector_lanes=lanes) for lanes in VECTOR_LANES if 0 < lanes * VECTOR_ELEMENT_BYTES <= core.rows]
    return [choice for choice in choices if _logic_shortage(board, program, choice) is None]


def _shapes(board: Board, array: tuple[int, int] | None, *, vector_lanes: int) -> list[CoreParameters]:
    """Cores with every array and way of keeping weights that the board has, memories as yet of one word."""
    smallest = CoreParameters(
        rows=4,
        columns=1,
        accumulator_bits=16,
        scaled_bits=_SCALED_BITS[0],
        reduction=board.reduction,
        vector_lanes=vector_lanes,
        weight_words=1,
        activation_words=1,
        record_words=1,
        program_words=1,
    )
    cores: list[CoreParameters] = []
    refusal: UserError | None = None
    for rows in _ROWS if array is None else (array[0],):
        for columns in _COLUMNS if array is None else (array[1],):
            for encoding, lanes in product(("trit2", "trit5"), _LANES):
                if lanes > 1 and (columns % lanes or lanes > rows):
                    continue
                try:
                    core = replace(smallest, rows=rows, columns=columns, weight_encoding=encoding, post_lanes=lanes)
                except UserError as error:  # no such core, or its weight word is too long in this encoding
                    refusal = refusal or error
                    continue
                cores.append(core)
                if board.spram and core.weight_word_bits <= SPRAM_BITS:
                    cores.append(replace(core, weight_storage="spram"))
    if not cores and refusal is not None:
        raise refusal
    return cores


def _rough_cycles(program: Program, core: CoreParameters) -> int:
    """Clocks of the matrix operations: a tile of outputs takes the longer one of its reduction and of its results."""
    cycles = 0
    for operation in program.walk():
        if isinstance(operation, Convolution):
            outputs, inputs, height, width = operation.weights.shape
            _, rows, columns = program.tensors[operation.output].shape
            reduction = operation.planes * -(-(inputs * height * width) // core.rows)
            results = min(core.columns, outputs)
            if operation.step is not None:
                results = -(-results // core.post_lanes) * operation.step.pieces
            cycles += rows * columns * -(-outputs // core.columns) * max(reduction, results)
    return cycles


def _hopeless(board: Board, program: Program, core: CoreParameters) -> _Shortage | None:
    """A model whose weights alone are far beyond the part is refused before its memory images are made, which may take minutes."""
    # Loops may apply the same weights in several places.
    layers = [operation for operation in program.walk() if isinstance(operation, Convolution)]
    trits = sum({operation.weights.tobytes(): operation.weights.size * operation.planes for operation in layers}.values())
    words = -(-trits // core.macs_per_cycle)
    where = f"on a {core.rows}x{core.columns} array of {board.name}"
    if core.weight_storage == "spram":
        if words > _HOPELESS * _SPRAM_WORDS:
            return _Shortage(
                False, words / _SPRAM_WORDS, f"model {program.name!r} needs about {words} weight words {where}, which holds {_SPRAM_WORDS}"
            )
        return None
    count = blocks(BLOCK_SHAPES[board.family], words, stored_bits(board, core.weight_word_bits))
    if count > _HOPELESS * board.blocks:
        sentence = f"model {program.name!r} needs about {count} block RAMs for its weights {where}, which has {board.blocks}"
        return _Shortage(False, count / board.blocks, sentence)
    return None


def _with_memories(board: Board, program: Program, core: CoreParameters, needs: Needs) -> tuple[CoreParameters | None, _Shortage | None]:
    """The core with memories for ``needs``, or what is short."""
    where = f"on a {core.rows}x{core.columns} array of {board.name}"
    if core.weight_storage == "spram" and needs.weight_words > _SPRAM_WORDS:
        ratio = needs.weight_words / _SPRAM_WORDS
        return None, _Shortage(
            False, ratio, f"model {program.name!r} needs {needs.weight_words} weight words {where}, which holds {_SPRAM_WORDS}"
        )
    bits = next((bits for bits in _ACCUMULATOR_BITS if bits >= needs.accumulator_bits), needs.accumulator_bits)
    sized = replace(
        core,
        accumulator_bits=bits,
        scaled_bits=next(width for width in _SCALED_BITS if width >= needs.scaled_bits),
        # What no core can address is beyond every part as well, and is refused below.
        weight_words=min(max(1, needs.weight_words), LARGEST_MEMORY),
        activation_words=min(max(1, needs.activation_words), LARGEST_MEMORY),
        record_words=max(1, needs.record_words),
        program_words=needs.program_words,
    )
    use = block_use(board, sized)
    total = sum(use.values())
    if total > board.blocks:
        largest = ", ".join(f"{count} for {name}" for name, count in sorted(use.items(), key=lambda item: -item[1])[:3])
        sentence = f"model {program.name!r} needs {total} block RAMs {where}, which has {board.blocks} ({largest})"
        if use["activations"] == max(use.values()):
            free = max(0, board.blocks - total + use["activations"])
            room = core.rows * max(words * (free // -(-8 * core.rows // bits)) for words, bits in BLOCK_SHAPES[board.family])
            short = activation_shortage(program, core.rows, core.rows * needs.activation_words, room, "fit beside the rest")
            sentence = f"{short} {where} ({total} block RAMs, {board.name} has {board.blocks}); {SMALLER_INPUTS}"
        return None, _Shortage(False, total / board.blocks, sentence)
    return _deepened(board, sized), None


def _deepened(board: Board, core: CoreParameters) -> CoreParameters:
    """Every memory as deep as the block RAMs that it takes anyway."""
    shapes = BLOCK_SHAPES[board.family]
    return replace(
        core,
        weight_words=_SPRAM_WORDS
        if core.weight_storage == "spram"
        else block_depth(shapes, core.weight_words, stored_bits(board, core.weight_word_bits // core.weight_banks)),
        activation_words=block_depth(shapes, core.activation_words, 8 * core.rows),
        record_words=block_depth(shapes, core.record_words, stored_bits(board, 8 * core.record_word_bytes)),
        program_words=block_depth(shapes, core.program_words, stored_bits(board, 8 * PROGRAM_WORD_BYTES)),
    )


def _logic_shortage(board: Board, program: Program, core: CoreParameters) -> _Shortage | None:
    fill, most = COEFFICIENTS[board.family].fill, COEFFICIENTS[board.family].most
    needs = [(logic_cells(board, core), min(most, int(fill * board.logic_cells)), "logic cells")]
    if board.flip_flops:
        needs.append((flip_flops(core), int(fill * board.flip_flops), "flip-flops"))
    if board.dsps:
        needs.append((multipliers(core), board.dsps, "multipliers"))
    needed, limit, noun = max(needs, key=lambda need: need[0] / need[1])
    if needed <= limit:
        return None
    sentence = f"model {program.name!r} needs a core of about {needed} {noun} with a {core.rows}x{core.columns} array on {board.name}"
    return _Shortage(True, needed / limit, f"{sentence}, which has room for {limit}")


def _alternative(board: Board, program: Program, array: tuple[int, int] | None) -> str:
    """What to do instead: a board that would hold the model, or a smaller array."""
    from tritloom.boards import BOARDS

    if array is not None and _survey(board, program, None, 1)[0]:
        return f"leave the array out, or choose a smaller one than {array[0]}x{array[1]}"
    others = sorted(
        (other for other in BOARDS.values() if other.family != "none" and other is not board), key=lambda other: other.price_usd
    )
    for other in others:
        if _survey(other, program, array, 1)[0]:
            return f"it fits {other.name}"
    return "no board holds it; the board sim does" if array is None else "no board holds it with this array"
