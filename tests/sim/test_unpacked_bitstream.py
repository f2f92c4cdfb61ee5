"""A bitstream simulated through the pins of its board against golden; the serial line in front of it; boards where that is impossible."""

import os

import numpy as np
import pytest
from test_netlist import small_core

from tritloom.compiler.schedule import schedule as make_schedule
from tritloom.errors import MissingToolError, UserError
from tritloom.sim import bitstream
from tritloom.sim.backends import open_backend
from tritloom.sim.bitstream import bench_verilog
from tritloom.sim.verilator import WRAPPER, NativeCore
from tritloom.sim.verilator_build import build_library


@pytest.mark.place_and_route
@pytest.mark.timeout(3600)
def test_a_network_on_a_bitstream(program, codes, expected):
    """Needs Project IceStorm (icebox_vlog)."""
    schedule = make_schedule(program, small_core(program))
    with open_backend("bitstream", program, schedule, board="hx8k") as backend:
        assert backend.details.startswith("top.bin at ") and backend.details.endswith(" MHz, unpacked by icebox_vlog")
        tensors = backend.trace(codes)
    for tensor, values in expected.items():
        np.testing.assert_array_equal(tensors[tensor], values, err_msg=tensor)


def test_the_serial_line_carries_every_byte_both_ways():
    """A line that comes back: what is sent is received, once a byte has passed whole."""
    divisor = 5
    core = NativeCore(build_library(bench_verilog("assign from_board = to_board;", divisor=divisor), WRAPPER, netlist=True))
    data = bytes([0xC0, *range(1, 0xC0), 0x00, 0xFF, 0xC0])
    assert core.exchange(data) == data
    assert core.clocks == pytest.approx(256 + 10 * divisor * len(data), rel=0.1)
    core.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sim", r"^board 'sim' has no bitstream, as it is only simulated: choose one with an FPGA, --board hx8k for example$"),
        (
            "ulx3s-25f",
            r"^a bitstream of ulx3s-25f cannot be simulated: no tool unpacks ECP5 to logic, only to configuration text; use netlist$",
        ),
        (
            "icebreaker",
            r"^a bitstream of icebreaker cannot be simulated: icebox_vlog unpacks neither multipliers nor .* UP5K; use netlist$",
        ),
        ("tang-nano-9k", r"^a bitstream of tang-nano-9k cannot be simulated: gowin_unpack gives block RAM without .*; use netlist$"),
    ],
)
def test_boards_whose_bitstreams_no_tool_unpacks(monkeypatch, program, schedule, name, message):
    monkeypatch.setattr(bitstream, "build", None)
    with pytest.raises(UserError, match=message):
        open_backend("bitstream", program, schedule, board=name)


def test_the_unpacker_is_looked_for_before_the_build(monkeypatch, program, schedule):
    monkeypatch.setattr(bitstream, "build", None)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("ICEBOX_VLOG", raising=False)
    with pytest.raises(
        MissingToolError, match=r"^icebox_vlog was not found: install Project IceStorm .*sudo apt install fpga-icestorm.*ICEBOX_VLOG"
    ):
        open_backend("bitstream", program, schedule, board="hx8k")
    monkeypatch.setenv("ICEBOX_VLOG", "no-such-program")
    with pytest.raises(MissingToolError, match=r"^no-such-program was not found"):
        open_backend("bitstream", program, schedule, board="hx8k")
