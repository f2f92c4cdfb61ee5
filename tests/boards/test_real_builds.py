"""Real bitstreams: one small core in every test run, the packaged network on every board with ``-m place_and_route``."""

from importlib.resources import files

import pytest

from tritloom.boards import BOARDS, build, fit, get_board
from tritloom.boards.flow import bitstream_name, design_files, pack, place_and_route, read_report, set_clock, synthesise
from tritloom.compiler.frontend import lower
from tritloom.hw.arch.parameters import CoreParameters

HEADERS = {"ice40": bytes.fromhex("ff0000ff7eaa997e"), "ecp5": bytes.fromhex("ff00"), "gowin": b"1" * 64}
"""How the bitstreams of the three families begin: the iCE40's preamble, the ECP5's comment block, a run of ones in Gowin's text."""


SMALL = CoreParameters(
    rows=4,
    columns=1,
    accumulator_bits=16,
    weight_storage="spram",
    weight_words=256,
    activation_words=256,
    record_words=256,
    program_words=256,
)


def test_a_small_core_on_the_icebreaker(tmp_path):
    board, core = get_board("icebreaker"), SMALL
    for name, text in design_files(board, core).items():
        (tmp_path / name).write_text(text)
    synthesise(board, tmp_path)
    place_and_route(board, tmp_path, seed=1)
    fmax, cells = read_report(tmp_path)
    assert fmax is not None
    used = {name: count["used"] for name, count in cells.items()}
    assert (used["ICESTORM_SPRAM"], used["ICESTORM_PLL"], used["SB_IO"]) == (1, 1, 3)
    assert used["ICESTORM_LC"] < cells["ICESTORM_LC"]["available"] == board.logic_cells
    assert used["ICESTORM_RAM"] < cells["ICESTORM_RAM"]["available"] == board.blocks

    def packed() -> bytes:
        pack(board, tmp_path)
        return (tmp_path / bitstream_name(board)).read_bytes()

    as_routed = packed()
    assert as_routed.startswith(HEADERS["ice40"])
    assert len(as_routed) == 104_090
    setting = board.clock(fmax * 1e6)
    assert setting != board.typical_clock
    set_clock(board, tmp_path, setting)
    faster = packed()
    # Only the dividers change, a few bits and the checksum; set back, they give the routed design again.
    assert 0 < sum(one != other for one, other in zip(as_routed, faster, strict=True)) < 16
    set_clock(board, tmp_path, board.typical_clock)
    assert packed() == as_routed


@pytest.mark.place_and_route
@pytest.mark.timeout(1200)
def test_two_builds_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        build(get_board("icebreaker"), SMALL, tmp_path / name, seed=7, cache=False)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert "top.bin" in first and "nextpnr.log" in first
    assert first == second


@pytest.mark.place_and_route
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name, board in BOARDS.items() if board.family != "none"])
def test_the_packaged_network_on_every_board(tmp_path, name):
    board = get_board(name)
    model = files("tritloom.models.zoo").joinpath("digits_cnn_twn.onnx").read_bytes()
    program = lower(model, name="digits").program
    core = fit(board, program)
    result = build(board, core, tmp_path / "one", cache=False)
    assert result.clock_mhz <= result.fmax_mhz
    cells = result.utilisation[board.logic_cell]
    assert cells["used"] <= cells["available"] == board.logic_cells
    blocks = result.utilisation.get(board.block, {"used": 0, "available": board.blocks})
    assert blocks["used"] <= blocks["available"] == board.blocks
    assert result.bitstream.read_bytes().startswith(HEADERS[board.family])
