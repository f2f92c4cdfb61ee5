"""How much of a part a core takes: block RAM exactly, logic cells by a formula fitted to place-and-route results.

``python -m tritloom.boards.calibration`` measures what :data:`COEFFICIENTS` describe.
"""

from dataclasses import dataclass

from tritloom.boards.board import Board
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.parameters import SCALED_BITS, CoreParameters, stored_lanes
from tritloom.hw.arch.record import BIAS_BITS, MULTIPLIER_BITS, RECORD_BYTES, START_BITS

__all__ = [
    "BLOCK_SHAPES",
    "COEFFICIENTS",
    "Coefficients",
    "block_depth",
    "block_use",
    "blocks",
    "flip_flops",
    "logic_cells",
    "multipliers",
    "stored_bits",
]

BLOCK_SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "ice40": ((256, 16), (512, 8)),
    "ecp5": ((512, 32), (1024, 16), (2048, 8)),
    "gowin": ((512, 32), (1024, 16), (2048, 8)),
}
"""Words and bits of one block RAM in each shape in which single bytes can be written, as all of the core's memories are; the ninth
bit of a byte is left out (:func:`stored_bits`)."""

LINK_BUFFER = (1024, 8)
"""Words and bits of the memory that holds a frame."""


def blocks(shapes: tuple[tuple[int, int], ...], depth: int, width: int) -> int:
    """Block RAMs of a memory: the shape that needs the fewest, side by side and on top of each other."""
    return min(-(-width // bits) * -(-depth // words) for words, bits in shapes)


def block_depth(shapes: tuple[tuple[int, int], ...], depth: int, width: int) -> int:
    """The largest depth that takes no more block RAMs than ``depth``."""
    count = blocks(shapes, depth, width)
    return max(words * (count // -(-width // bits)) for words, bits in shapes)


def stored_bits(board: Board, width: int) -> int:
    """Bits, without ninth ones, that words of ``width`` bits take in block RAM (:func:`tritloom.hw.arch.parameters.stored_lanes`)."""
    return 8 * stored_lanes(-(-width // 8), ninth_bits=board.family != "ice40")


def _read_bytes(board: Board, parameters: CoreParameters) -> int:
    """Bytes of a record that a core reads. Synthesis leaves those out that hold only bits of the bias above the width of the sums; where nine
    bytes share eight lanes it cannot."""
    if board.family != "ice40":
        return RECORD_BYTES
    begin, end = START_BITS + MULTIPLIER_BITS + parameters.scaled_bits, START_BITS + MULTIPLIER_BITS + BIAS_BITS
    return RECORD_BYTES - max(0, end // 8 - -(-begin // 8))


def block_use(board: Board, parameters: CoreParameters) -> dict[str, int]:
    """Block RAMs of each memory of a core."""
    shapes, p = BLOCK_SHAPES[board.family], parameters
    banks = p.weight_banks
    return {
        "weights": 0
        if p.weight_storage == "spram"
        else banks * blocks(shapes, p.weight_words, stored_bits(board, p.weight_word_bits // banks)),
        "activations": blocks(shapes, p.activation_words, 8 * p.rows),
        "records": blocks(shapes, p.record_words, stored_bits(board, 8 * p.post_lanes * _read_bytes(board, p))),
        "program": blocks(shapes, p.program_words, stored_bits(board, 8 * PROGRAM_WORD_BYTES)),
        "link": blocks(shapes, *LINK_BUFFER),
        "loop steps": 0 if board.tables_in_logic else COEFFICIENTS[board.family].table_blocks,
    }


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Logic cells (nextpnr's count) of a core: the sum of these, each times what it is named after.

    ``base`` also covers link, sequencer and the first lane of the post unit, ``lane`` is each further one, with sums of 58 bits, and
    ``scaled_bit`` what each lane saves by each bit less; ``no_dsp`` is added for every lane where the part has no multipliers, ``tables``
    where the tables of the loop registers are in logic cells, else they take ``table_blocks`` block RAMs. ``accumulator_bit`` counts
    for each column, ``decoder`` for each byte of a trit5 weight word. ``fill`` is the part of the cells that a core may take: beyond it nextpnr finds no
    legal placement, or only a slow one. ``vector`` is the vector unit of one lane with the scalar unit, ``vector_lane`` each further lane. ``most`` bounds them on large parts whose placement is slow at any size: a build of
    8000 cells takes a Gowin part 14 minutes, one of 9400 half an hour.
    """

    fill: float
    most: int
    base: float
    lane: float
    no_dsp: float
    scaled_bit: float
    tables: float
    row: float
    accumulator_bit: float
    mac: float
    decoder: float
    vector: float
    vector_lane: float
    table_blocks: int


COEFFICIENTS: dict[str, Coefficients] = {
    "ice40": Coefficients(
        fill=0.95,
        most=1 << 20,
        base=3420,
        lane=1040,
        no_dsp=945,
        scaled_bit=10,
        tables=940,
        row=72,
        accumulator_bit=3.5,
        mac=23.0,
        decoder=17,
        vector=4600,
        vector_lane=2030,
        table_blocks=5,
    ),
    "ecp5": Coefficients(
        fill=0.9,
        most=1 << 20,
        base=2833,
        lane=700,
        no_dsp=0,
        scaled_bit=9,
        tables=0,
        row=70,
        accumulator_bit=1.55,
        mac=13.5,
        decoder=13,
        vector=3850,
        vector_lane=1700,
        table_blocks=0,
    ),
    "gowin": Coefficients(
        fill=0.65,
        most=8_600,
        base=2773,
        lane=700,
        no_dsp=0,
        scaled_bit=9,
        tables=0,
        row=70,
        accumulator_bit=4.3,
        mac=17.2,
        decoder=10,
        vector=3850,
        vector_lane=1700,
        table_blocks=0,
    ),
}


def logic_cells(board: Board, parameters: CoreParameters) -> int:
    """Estimated cells of a core, in the cells that :attr:`Board.logic_cell` names."""
    c, p = COEFFICIENTS[board.family], parameters
    decoders = p.weight_word_bytes if p.weight_encoding == "trit5" else 0
    return round(
        c.base
        + c.lane * (p.post_lanes - 1)
        + (0 if board.dsp else c.no_dsp * p.post_lanes)
        - c.scaled_bit * p.post_lanes * (SCALED_BITS - p.scaled_bits)
        + (c.tables if board.tables_in_logic else 0)
        + c.row * p.rows
        + c.accumulator_bit * p.columns * p.accumulator_bits
        + c.mac * p.macs_per_cycle
        + c.decoder * decoders
        + (c.vector + c.vector_lane * (p.vector_lanes - 1) if p.vector_lanes else 0)
    )


def flip_flops(parameters: CoreParameters) -> int:
    """Estimated flip-flops of a core; they depend on its structure more than on the family."""
    p = parameters
    return round(
        1890
        + 760 * (p.post_lanes - 1)
        - 7 * p.post_lanes * (SCALED_BITS - p.scaled_bits)
        + 69 * p.rows
        + 2 * p.columns * p.accumulator_bits
        + (8.5 if p.reduction == "chain" else 21) * p.macs_per_cycle
        + (1900 + 890 * (p.vector_lanes - 1) if p.vector_lanes else 0)
    )


def multipliers(parameters: CoreParameters) -> int:
    """Multiplier cells of a core: four partial products in each lane of the post unit, of which a 16-bit accumulator leaves two so small that
    they are made of logic. The vector unit has one of 18 bits in each lane, the scalar unit one of 16."""
    p = parameters
    return p.post_lanes * (2 if p.accumulator_bits == 16 else 4) + (p.vector_lanes + 1 if p.vector_lanes else 0)
