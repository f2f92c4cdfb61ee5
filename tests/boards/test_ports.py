"""Serial ports: which board, which of two ports, and why one may not be opened."""

import grp
import os
import pwd
import sys
from types import SimpleNamespace

import pytest
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from tritloom.boards import BOARDS
from tritloom.boards.ports import serial_ports
from tritloom.errors import MissingToolError


def _port(device="/dev/ttyUSB0", vid=0x0403, pid=0x6010, product=None, manufacturer=None, location=None) -> ListPortInfo:
    port = ListPortInfo(device)
    port.vid, port.pid, port.product, port.manufacturer, port.location = vid, pid, product, manufacturer, location
    return port


def _attach(monkeypatch, *found, access=True) -> None:
    monkeypatch.setattr(list_ports, "comports", lambda: list(found))
    monkeypatch.setattr(os, "access", lambda path, mode: access)


@pytest.mark.parametrize(
    ("port", "boards"),
    [
        (_port(manufacturer="1BitSquared", product="iCEBreaker V1.0e"), ("icebreaker",)),
        (_port(manufacturer="Lattice", product="Lattice FTUSB Interface Cable"), ("hx8k", "icebreaker")),
        (_port(manufacturer="FTDI", product="Dual RS232-HS"), ("hx8k", "icebreaker")),
        (_port(manufacturer="SIPEED", product="20K's FRIEND"), ("tang-nano-20k",)),
        (_port(manufacturer="SIPEED", product="USB Debugger"), ("tang-nano-9k", "tang-nano-20k")),
        (_port(product="JTAG Debugger"), ("tang-nano-9k", "tang-nano-20k")),
        (_port(pid=0x6015, product="ULX3S FPGA 25K v3.0.3"), ("ulx3s-25f",)),
        (_port(pid=0x6015, product="ULX3S FPGA 85K v3.0.8"), ("ulx3s-85f",)),
        (_port(pid=0x6015, product="ULX3S FPGA 45K v3.0.8"), ("ulx3s-25f", "ulx3s-85f")),
        (_port(pid=0x6015, product="FT231X USB UART"), ()),
        (_port(pid=0x6015, product="iCEBreaker V1.0e"), ()),
        (_port(vid=0x10C4, product="iCEBreaker V1.0e"), ()),
        (_port(), ()),
    ],
)
def test_board_of_a_port(monkeypatch, port, boards):
    _attach(monkeypatch, port)
    (found,) = serial_ports()
    assert found.boards == boards and set(boards) <= set(BOARDS)
    assert found.fix == ""


def test_order_and_programming_port(monkeypatch):
    """Ports are ordered by number, not by letter; ports of the machine itself are left out."""
    product = "20K's FRIEND"
    _attach(
        monkeypatch,
        _port("/dev/ttyUSB10", product=product, location="1-4:1.1"),
        _port("/dev/ttyUSB9", product=product, location="1-4:1.0"),
        _port("/dev/ttyS0", vid=None, pid=None),
        _port("/dev/ttyUSB11", product="other", location="1-5:1.0"),
        _port("/dev/ttyUSB12", pid=0x6015, product="ULX3S FPGA 25K v3.0.3", location="1-6:1.0"),
    )
    found = serial_ports()
    assert [port.device for port in found] == ["/dev/ttyUSB9", "/dev/ttyUSB10", "/dev/ttyUSB11", "/dev/ttyUSB12"]
    assert [port.programs for port in found] == [True, False, False, False]
    assert found[0].usb == "0403:6010" and found[0].product == product


def _closed(monkeypatch, *, mode: int, gid: int, members: list[str]) -> str:
    _attach(monkeypatch, _port(), access=False)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (
        SimpleNamespace(st_mode=mode, st_gid=gid) if path == "/dev/ttyUSB0" else stat(path, **options)
    ))  # fmt: skip
    monkeypatch.setattr(grp, "getgrgid", lambda number: SimpleNamespace(gr_name="dialout", gr_mem=members))
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ada"))
    return serial_ports()[0].fix


def test_a_closed_port_names_its_group(monkeypatch):
    assert _closed(monkeypatch, mode=0o20660, gid=20, members=["eve"]) == "sudo usermod -aG dialout ada, then log out and in again"


def test_a_member_since_the_login_logs_in_again(monkeypatch):
    fix = _closed(monkeypatch, mode=0o20660, gid=20, members=["eve", "ada"])
    assert fix == "log out and in again: user ada has been in group dialout only since"


@pytest.mark.parametrize(("mode", "gid"), [(0o20600, 20), (0o20640, 20), (0o20660, 0)])
def test_a_port_of_root_alone_needs_a_rule(monkeypatch, mode, gid):
    fix = _closed(monkeypatch, mode=mode, gid=gid, members=[])
    assert 'put the line SUBSYSTEM=="tty", ATTRS{idVendor}=="0403", MODE="0666" into /etc/udev/rules.d/' in fix


def test_a_port_that_has_gone(monkeypatch):
    _attach(monkeypatch, _port("/dev/no-such-port"), access=False)
    assert serial_ports()[0].fix == "it has gone, or its owner is unknown: plug it in again"


def test_without_pyserial(monkeypatch):
    monkeypatch.setitem(sys.modules, "serial.tools.list_ports", None)
    with pytest.raises(MissingToolError, match=r"^pyserial is not installed: pip install 'tritloom\[board\]'$"):
        serial_ports()
