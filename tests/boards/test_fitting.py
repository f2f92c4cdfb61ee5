"""Which core fits: invented programs on the real boards' limits, and the block RAM counts of yosys against the area model."""

import itertools
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.boards import BOARDS, fit, fitting_cores, get_board
from tritloom.boards.area import BLOCK_SHAPES, block_depth, block_use, blocks, logic_cells, stored_bits
from tritloom.boards.toolchain import run_yosys
from tritloom.compiler.ir.program import Convolution, HostOp, InputSpec, OutputSpec, Program, Proof, StepFunction, Tensor, Window
from tritloom.compiler.schedule import memory_needs, schedule, sim_parameters
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import START_MIN, Record
from tritloom.hw.memory import ActivationMemory, WordMemory

FPGA_BOARDS = [name for name, board in BOARDS.items() if board.family != "none"]


def dense(*sizes: int, pieces: int = 1, bound: int = 30_000) -> Program:
    """Dense layers of random ternary weights: ``sizes`` features one after the other, accumulators up to ``bound``."""
    rng = np.random.default_rng(0)
    tensors = {
        f"t{index}": Tensor(name=f"t{index}", shape=(size, 1, 1), bits=8, low=-128, high=127, scale=(Fraction(1),))
        for index, size in enumerate(sizes)
    }
    operations = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        # A table of its own for each channel, so that none is shared.
        records = tuple(
            tuple(Record(start=START_MIN + piece, multiplier=1, bias=1000 * index + channel, shift=4) for piece in range(pieces))
            for channel in range(outputs)
        )
        step = StepFunction(records=records, low=-128, high=127, proof=Proof(exact=True, reachable=1))
        weights = rng.integers(-1, 2, (outputs, inputs, 1, 1)).astype(np.int16)
        operations.append(
            Convolution(
                name=f"dense{index}", output=f"t{index + 1}", input=f"t{index}", weights=weights, planes=1, window=Window(), step=step,
                acc_low=-bound, acc_high=bound,
            )
        )  # fmt: skip
    quantise, last = HostOp(kind="Quantize", attributes={"scale": 1.0, "zero_point": 0}), f"t{len(sizes) - 1}"
    given = InputSpec(name="x", shape=("N", sizes[0]), dtype="float32", tensor="t0", prologue=(quantise,))
    result = OutputSpec(name="y", shape=("N", sizes[-1]), dtype="float32", tensor=last, epilogue=(HostOp(kind="Dequantize"),))
    return Program(name="dense", tensors=tensors, operations=tuple(operations), inputs=(given,), outputs=(result,))


def test_the_area_model_is_near_what_was_measured():
    """The stored figures are nextpnr's: ``python -m tritloom.boards.calibration -o docs/benchmarks/area.json``."""
    stored = json.loads((Path(__file__).parents[2] / "docs/benchmarks/area.json").read_text())["cores"]
    assert {get_board(entry["board"]).family for entry in stored} == {"ice40", "ecp5", "gowin"}
    for entry in stored:
        board, core = get_board(entry["board"]), CoreParameters.from_json(entry["core"])
        assert abs(logic_cells(board, core) / entry["cells"] - 1) < 0.02, (entry["board"], core, entry["cells"], logic_cells(board, core))
        # yosys may make a remainder of few bits out of tables.
        assert entry["blocks"] <= sum(block_use(board, core).values()) <= entry["blocks"] + 1, (entry["board"], core, entry["blocks"])


@pytest.mark.parametrize("name", FPGA_BOARDS)
def test_the_core_holds_the_program_and_the_part_holds_the_core(name):
    board, program = get_board(name), dense(64, 40, 10)
    core = fit(board, program)
    needs = memory_needs(program, rows=core.rows, columns=core.columns, weight_encoding=core.weight_encoding, post_lanes=core.post_lanes)
    for field in ("weight_words", "activation_words", "record_words", "program_words", "accumulator_bits", "scaled_bits"):
        assert getattr(core, field) >= getattr(needs, field)
    assert sum(block_use(board, core).values()) <= board.blocks
    assert logic_cells(board, core) <= board.logic_cells
    schedule(program, core)


@pytest.mark.parametrize("name", FPGA_BOARDS)
def test_later_cores_are_smaller(name):
    sizes = [core.macs_per_cycle for core in fitting_cores(get_board(name), dense(64, 40, 10))]
    assert len(sizes) == 4
    assert all(later <= 0.8 * size for size, later in itertools.pairwise(sizes))


def test_no_core_that_fits_has_fewer_clocks_times_root_of_cells():
    board, program = get_board("ulx3s-25f"), dense(100, 64, 64, 10)

    def score(core: CoreParameters) -> float:
        return schedule(program, core).cycles * logic_cells(board, core) ** 0.5

    chosen = score(fit(board, program))
    for rows, columns in ((16, 16), (32, 16), (64, 8), (8, 32), (64, 2)):
        assert chosen <= score(fit(board, program, array=(rows, columns)))


@pytest.mark.parametrize("dsps,bound,lanes", [(28, 30_000, 4), (7, 30_000, 2), (3, 30_000, 1), (8, 40_000, 2)])
def test_every_lane_of_the_post_unit_needs_multipliers(dsps, bound, lanes):
    """Two for accumulators of 16 bits, four for wider ones."""
    board = replace(get_board("ulx3s-25f"), dsps=dsps)
    assert fit(board, dense(100, 64, 64, 10, bound=bound), array=(16, 32)).post_lanes == lanes


def test_a_larger_part_is_never_slower():
    program = dense(784, 128, 128, 10)
    cycles = [schedule(program, fit(get_board(name), program)).cycles for name in ("icebreaker", "tang-nano-9k", "ulx3s-25f", "ulx3s-85f")]
    assert cycles[0] > cycles[1] > cycles[2]
    assert cycles[3] <= 1.1 * cycles[2]


def test_weights_of_the_icebreaker_go_to_its_single_port_memory():
    core = fit(get_board("icebreaker"), dense(784, 64, 10))
    assert (core.weight_storage, core.weight_words) == ("spram", 16384)


def test_accumulators_are_as_wide_as_needed_in_steps_of_four():
    board = get_board("ulx3s-25f")
    assert fit(board, dense(16, 8, bound=32767)).accumulator_bits == 16
    assert fit(board, dense(16, 8, bound=32768)).accumulator_bits == 20


def test_one_bitstream_serves_models_of_nearly_the_same_size():
    board = get_board("ulx3s-25f")
    assert fit(board, dense(64, 40, 10), array=(16, 16)) == fit(board, dense(60, 40, 12), array=(16, 16))


def test_the_simulated_board_is_sized_by_the_scheduler():
    program = dense(64, 40, 10)
    assert fit(get_board("sim"), program) == sim_parameters(program)
    with pytest.raises(UserError, match=r"^board 'sim' has a fixed array; choose a board with an FPGA to set one$"):
        fit(get_board("sim"), program, array=(8, 8))


def test_an_array_that_is_asked_for_is_taken():
    core = fit(get_board("ulx3s-25f"), dense(64, 40, 10), array=(8, 3))
    assert (core.rows, core.columns) == (8, 3)


@pytest.mark.parametrize("array", [(7, 4), (8, 0), (128, 4), (8, 65)])
def test_an_array_that_no_core_can_have(array):
    with pytest.raises(UserError, match=r"^(rows|columns) must be "):
        fit(get_board("ulx3s-25f"), dense(64, 10), array=array)


def test_an_array_that_is_too_large_says_so():
    with pytest.raises(
        ModelError,
        match=r"^model 'dense' needs a core of about \d+ logic cells with a 64x32 array on ulx3s-25f, which has room for \d+; "
        r"leave the array out, or choose a smaller one than 64x32$",
    ):
        fit(get_board("ulx3s-25f"), dense(64, 40, 10), array=(64, 32))


def test_a_model_that_is_too_large_names_what_is_short_and_the_board_that_would_do():
    with pytest.raises(
        ModelError, match=r"^model 'dense' needs \d+ block RAMs on a \d+x\d+ array of hx8k, which has 32 \(\d+ for weights, "
    ) as failure:
        fit(get_board("hx8k"), dense(784, 64, 64, 10))
    named = str(failure.value).rpartition("it fits ")[2]
    fit(get_board(named), dense(784, 64, 64, 10))


def test_a_model_that_no_board_holds():
    with pytest.raises(ModelError, match=r"; no board holds it; the board sim does$"):
        fit(get_board("ulx3s-85f"), dense(2000, 2000, 2000, 10))


def pictures(size: int) -> Program:
    """One 3x3 convolution of 8 channels to 8 on square pictures."""
    step = StepFunction(
        records=((Record(start=START_MIN, multiplier=1, bias=0, shift=4),),) * 8, low=-128, high=127, proof=Proof(exact=True, reachable=1)
    )
    tensors = {
        name: Tensor(name=name, shape=(8, size - border, size - border), bits=8, low=-128, high=127, scale=(Fraction(1),))
        for name, border in (("t0", 0), ("t1", 2))
    }
    operation = Convolution(
        name="look", output="t1", input="t0", weights=np.ones((8, 8, 3, 3), np.int16), planes=1, window=Window(kernel=(3, 3)), step=step, acc_low=-9216, acc_high=9216,
    )  # fmt: skip
    given = InputSpec(name="x", shape=("N", 8, size, size), dtype="float32", tensor="t0", prologue=(HostOp(kind="Quantize"),))
    result = OutputSpec(name="y", shape=("N", 8, size - 2, size - 2), dtype="float32", tensor="t1", epilogue=(HostOp(kind="Dequantize"),))
    return Program(name="pictures", tensors=tensors, operations=(operation,), inputs=(given,), outputs=(result,))


@pytest.mark.parametrize(
    ("size", "remedy"),
    [(64, "it fits tang-nano-20k"), (200, "no board holds it; the board sim does"), (1100, "no board holds it; the board sim does")],
)
def test_a_picture_that_is_too_large_says_how_many_bytes_are_lacking_and_where(size, remedy):
    with pytest.raises(ModelError) as failure:
        fit(get_board("hx8k"), pictures(size))
    needed = 8 * (size**2 + (size - 2) ** 2)
    found = re.fullmatch(
        rf"model 'pictures' needs {needed} bytes of activation memory \(layer 'look' has {needed} in use at once\), (\d+) more than the (\d+) that "
        r"fit beside the rest on a \d+x\d+ array of hx8k \(\d+ block RAMs, hx8k has 32\); "
        rf"declare smaller inputs with --shape where the model allows it; {remedy}",
        str(failure.value),
    )
    assert found is not None, str(failure.value)
    lacking, room = map(int, found.groups())
    assert lacking + room == needed
    # The room that is named is there, and one row of pixels more is not.
    largest = max(size for size in range(3, 64) if 8 * (size**2 + (size - 2) ** 2) <= room)
    fit(get_board("hx8k"), pictures(largest))
    with pytest.raises(ModelError, match="bytes of activation memory"):
        fit(get_board("hx8k"), pictures(largest + 4))


def test_too_many_weights_for_the_single_port_memory_are_a_shortage_of_words():
    with pytest.raises(
        ModelError, match=r"^model 'dense' needs (about )?\d+ weight words on a \d+x\d+ array of icebreaker, which holds 16384; it fits "
    ):
        fit(get_board("icebreaker"), dense(2000, 800, 10))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(BLOCK_SHAPES)), st.integers(1, 20_000), st.integers(1, 600))
def test_deepest_memory_of_as_many_blocks(family, depth, width):
    shapes = BLOCK_SHAPES[family]
    deepest = block_depth(shapes, depth, width)
    assert deepest >= depth
    assert blocks(shapes, deepest, width) == blocks(shapes, depth, width)
    assert blocks(shapes, deepest + 1, width) > blocks(shapes, depth, width)


class _Holder(wiring.Component):
    """A component one level down, where no wire of the top has a private name, which abc9 would not survive."""

    def __init__(self, inner):
        self._inner = inner
        super().__init__(inner.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = self._inner
        wiring.connect(m, wiring.flipped(self), self._inner)
        return m


BLOCK_CELLS = {"ice40": ("SB_RAM40_4K",), "ecp5": ("DP16KD", "PDPW16KD"), "gowin": ("SDPX9B", "SDPB", "DPX9B", "DPB", "SPX9", "SP")}


@pytest.mark.parametrize("family", BLOCK_SHAPES)
@pytest.mark.parametrize(
    ("component", "depth", "width"),
    [
        (lambda: WordMemory(width=128, depth=256), 256, 128),
        (lambda: WordMemory(width=384, depth=512), 512, 384),  # a bank of 768 multiply-accumulates: 11 blocks with ninth bits
        (lambda: WordMemory(width=56, depth=700), 700, 56),
        (lambda: ActivationMemory(rows=8, depth=512), 512, 64),
        (lambda: ActivationMemory(rows=16, depth=1024), 1024, 128),
    ],
)
def test_yosys_takes_no_more_blocks_than_the_model_says(tmp_path, family, component, depth, width):
    board = next(board for board in BOARDS.values() if board.family == family)
    made = component()
    if isinstance(made, WordMemory):
        width = stored_bits(board, width)
    (tmp_path / "top.il").write_text(rtlil.convert(_Holder(made), name="top", emit_src=False, platform=board.make_platform()))
    run_yosys(
        f"read_rtlil top.il\nproc\nmemory_nordff\nopt_clean\nsynth_{family} -no-rw-check -top top -run :map_ffram\ntee -o stat.json stat -json\n",
        cwd=tmp_path,
    )
    cells = json.loads((tmp_path / "stat.json").read_text())["design"]["num_cells_by_type"]
    assert sum(cells.get(cell, 0) for cell in BLOCK_CELLS[family]) <= blocks(BLOCK_SHAPES[family], depth, width)


def test_block_use_of_a_core():
    core = CoreParameters(
        rows=8, columns=4, accumulator_bits=16, weight_words=512, activation_words=512, record_words=256, program_words=300
    )
    assert block_use(get_board("icebreaker"), core) == {
        "weights": 8, "activations": 8, "records": 8, "program": 8, "link": 2, "loop steps": 5,
    }  # fmt: skip
    assert block_use(get_board("icebreaker"), replace(core, weight_storage="spram"))["weights"] == 0
    assert block_use(get_board("ulx3s-25f"), core) == {
        "weights": 2, "activations": 2, "records": 4, "program": 2, "link": 1, "loop steps": 0,
    }  # fmt: skip
