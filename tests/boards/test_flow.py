"""The clock generator's dividers in routed designs: small texts in the form that nextpnr writes."""

import json
from fractions import Fraction

import pytest

from tritloom.boards import get_board
from tritloom.boards.flow import set_clock
from tritloom.errors import BuildError

ECP5 = """\
.tile_group MIB_R50C2:PLL0_LL MIB_R50C3:BANKREF8
word: CLKI_DIV 0000000
word: CLKFB_DIV 0000000
word: CLKOP_DIV 0011111
word: CLKOP_CPHASE 0011111
word: CLKOP_FPHASE 000
word: CLKOS_DIV 0010011
word: CLKOS_CPHASE 0010011
word: CLKOS2_DIV 0000111
enum: MODE EHXPLLL
"""


@pytest.mark.parametrize("mhz", [40, 62.5, 97.7, 101.899, 133])
def test_ecp5(tmp_path, mhz):
    board = get_board("ulx3s-25f")
    (tmp_path / "top.config").write_text(ECP5)
    setting = board.clock(Fraction(mhz) * 1_000_000)
    set_clock(board, tmp_path, setting)
    text = (tmp_path / "top.config").read_text()
    words = {line.split()[1]: int(line.split()[2], 2) for line in text.splitlines() if line.startswith("word: ")}
    assert Fraction(25_000_000 * (words["CLKOP_DIV"] + 1), (words["CLKI_DIV"] + 1) * (words["CLKOS_DIV"] + 1)) == setting.frequency
    assert (words["CLKOP_CPHASE"], words["CLKOS_CPHASE"]) == (words["CLKOP_DIV"], words["CLKOS_DIV"])
    kept = [
        index
        for index, line in enumerate(ECP5.splitlines())
        if not line.startswith(("word: CLKI_D", "word: CLKOP_D", "word: CLKOP_C", "word: CLKOS_"))
    ]
    assert [text.splitlines()[index] for index in kept] == [ECP5.splitlines()[index] for index in kept]
    set_clock(board, tmp_path, board.clock(40e6))
    assert (tmp_path / "top.config").read_text() == ECP5


@pytest.mark.parametrize("text", [ECP5 + ECP5, ECP5.replace("word: CLKOS_DIV 0010011\n", "")])
def test_ecp5_with_another_number_of_clock_generators(tmp_path, text):
    (tmp_path / "top.config").write_text(text)
    with pytest.raises(BuildError, match=r"^nextpnr's configuration of ulx3s-25f has [02] words 'CLK\w+' instead of 1$"):
        set_clock(get_board("ulx3s-25f"), tmp_path, get_board("ulx3s-25f").clock(50e6))
    assert (tmp_path / "top.config").read_text() == text


@pytest.mark.parametrize("mhz", [27, 64.8, 90, 110])
def test_gowin(tmp_path, mhz):
    board = get_board("tang-nano-20k")
    cell = {"type": "rPLL", "parameters": {"FCLKIN": "27", "ODIV_SEL": f"{32:032b}", "IDIV_SEL": f"{8:032b}", "FBDIV_SEL": f"{12:032b}"}}
    (tmp_path / "routed.json").write_text(
        json.dumps({"modules": {"top": {"cells": {"pll": cell, "lut": {"type": "LUT4", "parameters": {}}}}}})
    )
    setting = board.clock(mhz * 1e6)
    set_clock(board, tmp_path, setting)
    cells = json.loads((tmp_path / "routed.json").read_text())["modules"]["top"]["cells"]
    codes = {name: int(cells["pll"]["parameters"][name], 2) for name in ("ODIV_SEL", "IDIV_SEL", "FBDIV_SEL")}
    assert Fraction(27_000_000 * (codes["FBDIV_SEL"] + 1), codes["IDIV_SEL"] + 1) == setting.frequency
    assert codes["ODIV_SEL"] == setting.post
    assert cells["pll"]["parameters"]["FCLKIN"] == "27"
    assert cells["lut"] == {"type": "LUT4", "parameters": {}}


def test_gowin_without_a_clock_generator(tmp_path):
    (tmp_path / "routed.json").write_text(json.dumps({"modules": {"top": {"cells": {}}}}))
    with pytest.raises(BuildError, match=r"^nextpnr's netlist of tang-nano-20k has 0 clock generators instead of 1$"):
        set_clock(get_board("tang-nano-20k"), tmp_path, get_board("tang-nano-20k").clock(50e6))
