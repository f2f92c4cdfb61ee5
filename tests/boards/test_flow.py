"""The synthesis script on netlists that once broke it."""

import json

import pytest

from tritloom.boards import flow, get_board

_CELL = """
  cell {kind} ${name}
    parameter \\A_SIGNED 0
    parameter \\B_SIGNED 0
    parameter \\A_WIDTH 8
    parameter \\B_WIDTH 8
    parameter \\Y_WIDTH 8
    connect \\A \\word
    connect \\B \\word[0]
    connect \\Y {output}
  end
"""
_REGISTER = """
  cell $dff ${name}
    parameter \\WIDTH 8
    parameter \\CLK_POLARITY 1
    connect \\CLK \\clk
    connect \\D {data}
    connect \\Q {output}
  end
"""


def _netlist() -> str:
    """Sum and exclusive or of the registers ``word`` and ``word[0]``, 8 bits each: the wire of the one has the name of a bit of the other."""
    wires = "".join(f"  wire width 8 {kind} {name}\n" for kind, name in (
        ("input 2", "\\d"), ("input 3", "\\e"), ("output 4", "\\sum"), ("output 5", "\\mixed"), ("", "\\word"), ("", "\\word[0]"),
    ))  # fmt: skip
    cells = [
        _REGISTER.format(name="first", data="\\d", output="\\word"),
        _REGISTER.format(name="second", data="\\e", output="\\word[0]"),
        _CELL.format(kind="$add", name="adder", output="\\sum"),
        _CELL.format(kind="$xor", name="gates", output="\\mixed"),
    ]
    return f"module \\top\n  wire input 1 \\clk\n{wires}{''.join(cells)}end\n"


@pytest.mark.parametrize("name", ["icebreaker", "ulx3s-25f", "tang-nano-9k"])
def test_a_wire_may_have_the_name_of_a_bit(tmp_path, name):
    """yosys 0.70 alone stops with "Assert `count_id(wire->name) == 0' failed"; the other names stay."""
    (tmp_path / "top.il").write_text(_netlist())
    flow.synthesise(get_board(name), tmp_path)
    top = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]
    assert sorted(top["ports"]) == ["clk", "d", "e", "mixed", "sum"]
    assert "word" in top["netnames"] and "word[0]" not in top["netnames"]
