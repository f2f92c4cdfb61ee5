"""The core after synthesis against golden; how a netlist becomes Verilog; what cannot be had."""

import dataclasses

import numpy as np
import pytest

from tritloom.boards import get_board
from tritloom.boards.host import Host
from tritloom.compiler.schedule import memory_needs
from tritloom.compiler.schedule import schedule as make_schedule
from tritloom.errors import MissingToolError, UserError
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.sim import netlist
from tritloom.sim.backends import open_backend
from tritloom.sim.netlist import NetlistCore, core_netlist
from tritloom.sim.structural import cell_counts, structural_verilog


def small_core(program, **fields) -> CoreParameters:
    needs = memory_needs(program, rows=4, columns=4, weight_encoding="trit2")
    names = ("accumulator_bits", "weight_words", "activation_words", "record_words", "program_words")
    return CoreParameters(rows=4, columns=4, **{name: getattr(needs, name) for name in names}, **fields)


@pytest.mark.parametrize(
    ("name", "storage", "cells"),
    [
        # All that yosys maps differently: block RAM, single-port RAM, multipliers, lookup table memory, carry chains.
        ("ulx3s-25f", "block", {"DP16KD", "MULT18X18D", "TRELLIS_DPR16X4", "CCU2C", "LUT4", "TRELLIS_FF"}),
        ("icebreaker", "spram", {"SB_RAM40_4K", "SB_SPRAM256KA", "SB_MAC16", "SB_CARRY", "SB_LUT4"}),
        pytest.param("hx8k", "block", {"SB_RAM40_4K", "SB_CARRY", "SB_LUT4"}, marks=pytest.mark.place_and_route),
        pytest.param("tang-nano-9k", "block", {"SDPX9B", "MULT18X18", "RAM16SDP4", "ALU", "LUT4"}, marks=pytest.mark.place_and_route),
        pytest.param("tang-nano-20k", "block", {"SDPX9B", "MULT18X18", "RAM16SDP4", "ALU", "LUT4"}, marks=pytest.mark.place_and_route),
    ],
)
def test_a_network_on_the_netlist_of_each_family(program, codes, expected, name, storage, cells):
    schedule = make_schedule(program, small_core(program, weight_storage=storage, reduction=get_board(name).reduction))
    with open_backend("netlist", program, schedule, board=name, digest=bytes(range(8))) as backend:
        assert backend.name == "netlist"
        assert backend.details.startswith("netlist by ") and f"synth_{get_board(name).family}" in backend.details
        tensors = backend.trace(codes)
        outputs, cycles = backend.run({key: value[:1] for key, value in codes.items()})
    for tensor, values in expected.items():
        np.testing.assert_array_equal(tensors[tensor], values, err_msg=tensor)
    for tensor, values in outputs.items():
        np.testing.assert_array_equal(values, expected[tensor][:1])
    assert cycles == schedule.cycles
    assert cells <= core_netlist(get_board(name), schedule.parameters).cells.keys()


def test_the_simulated_board_has_no_netlist(program, schedule):
    with pytest.raises(
        UserError, match=r"^board 'sim' has no netlist, as it is only simulated: choose one with an FPGA, --board icebreaker for example$"
    ):
        open_backend("netlist", program, schedule, board="sim")


def test_without_yosys_the_install_command_is_named(monkeypatch, schedule):
    monkeypatch.setenv("YOSYS", "no-such-yosys")
    with pytest.raises(MissingToolError, match=r"^YOSYS is set to 'no-such-yosys', which is not an executable program$"):
        core_netlist(get_board("icebreaker"), schedule.parameters)


def test_a_netlist_is_made_once_for_each_script(monkeypatch, tmp_path, schedule):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    made = []

    def synthesise(board, folder):
        made.append(board.name)
        (folder / "top.json").write_text('{"modules": {"top": {"ports": {}, "cells": {}}}}')

    monkeypatch.setattr(netlist, "synthesise", synthesise)
    board = get_board("icebreaker")
    other = dataclasses.replace(board, synthesis=("-device", "u"))
    first = core_netlist(board, schedule.parameters)
    assert core_netlist(board, schedule.parameters) == first
    core_netlist(other, schedule.parameters)
    assert len(made) == 2
    assert str(first).endswith("synth_ice40, 0 cells")


def test_structural_verilog():
    cells = {
        "a": {
            "type": "LUT4",
            "parameters": {"INIT": "1010", "TEXT": "CLK", "LOOKS": "01 ", "N": 3},
            "connections": {"A": [2], "Z": [4], "B": []},
        },
        "$scope": {"type": "$scopeinfo", "parameters": {}, "connections": {}},
        "b$c": {"type": "\\odd type", "parameters": {}, "connections": {"D": [4, "x", "1", 3]}},
    }
    ports = {
        "in": {"direction": "input", "bits": [2, 3]},
        "out p": {"direction": "output", "bits": [4]},
        "tied": {"direction": "output", "bits": ["0"]},
    }
    design = {"modules": {"top": {"ports": ports, "cells": cells}}}
    assert structural_verilog(design) == (
        "module top (in, \\out p , tied);\n"
        "  input [1:0] in;\n  output \\out p ;\n  output tied;\n"
        "  wire n2;\n  wire n3;\n  wire n4;\n"
        "  assign {n3, n2} = in;\n  assign \\out p  = n4;\n  assign tied = 1'b0;\n"
        '  LUT4 #(.INIT(4\'b1010), .TEXT("CLK"), .LOOKS("01"), .N(3)) c0 (.A(n2), .Z(n4));\n'
        "  \\\\odd type  c1 (.D({n3, 1'b1, 1'bx, n4}));\n"
        "endmodule\n"
    )
    assert cell_counts(design) == {"LUT4": 1, "\\odd type": 1}


@pytest.mark.place_and_route
def test_wrong_cells_are_noticed(monkeypatch, program, codes, expected):
    """Multipliers whose product is wrong in one bit: some tensor differs."""
    schedule = make_schedule(program, small_core(program))
    good = core_netlist(get_board("ulx3s-25f"), schedule.parameters)
    broken = good.verilog.replace("product = a * b;", "product = a * b ^ 38'h10000;")
    assert broken != good.verilog
    monkeypatch.setattr(netlist, "core_netlist", lambda board, parameters, progress=None: dataclasses.replace(good, verilog=broken))
    host = Host(NetlistCore(get_board("ulx3s-25f"), schedule.parameters))
    host.load(schedule)
    wrong = 0
    for index in range(3):
        tensors, _ = host.trace(schedule, program, {key: values[index] for key, values in codes.items()})
        wrong += sum(int((tensors[name] != expected[name][index]).sum()) for name in expected)
    host.close()
    assert wrong > 0
