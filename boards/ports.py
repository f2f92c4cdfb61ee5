"""Serial ports on USB, and the boards that they probably belong to."""

import os
import re
import stat
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tritloom.errors import MissingToolError

__all__ = ["SerialPort", "serial_ports"]

_FTDI = 0x0403
_TWO_PORTS, _ONE_PORT = 0x6010, 0x6015
"""Product numbers of FTDI's FT2232 (or a chip that acts as one) and FT231X. On the former the first port programs the FPGA, the second is
the serial port."""

_KNOWN: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (_TWO_PORTS, r"iCEBreaker", ("icebreaker",)),
    (_TWO_PORTS, r"20K", ("tang-nano-20k",)),
    (_TWO_PORTS, r"Sipeed|JTAG Debugger|USB Debugger", ("tang-nano-9k", "tang-nano-20k")),
    (_TWO_PORTS, r"Dual RS232|Lattice", ("hx8k", "icebreaker")),
    (_ONE_PORT, r"ULX3S.*\b25[FK]", ("ulx3s-25f",)),
    (_ONE_PORT, r"ULX3S.*\b85[FK]", ("ulx3s-85f",)),
    (_ONE_PORT, r"ULX3S", ("ulx3s-25f", "ulx3s-85f")),
)
"""USB product number, what the device calls itself or its maker, and the boards that it may be; the first line that fits counts."""


@dataclass(frozen=True, kw_only=True)
class SerialPort:
    """A serial port on USB.

    Parameters
    ----------
    device
        What :class:`tritloom.boards.host.SerialTransport` opens, such as ``/dev/ttyUSB1``.
    usb
        Vendor and product number, such as ``0403:6010``.
    product
        What the device calls itself; empty if nothing.
    boards
        Names of the boards that it may be; none for a port that looks like no board of ours.
    programs
        Whether it is the port of such a board that programs the FPGA, and not the one that talks to the core.
    fix
        What to do before this user may open it; empty when it may be opened.
    """

    device: str
    usb: str
    product: str
    boards: tuple[str, ...]
    programs: bool
    fix: str


def serial_ports() -> list[SerialPort]:
    """All serial ports on USB, by device name. Raises :class:`MissingToolError` without pyserial."""
    try:
        list_ports: Any = import_module("serial.tools.list_ports")
    except ImportError:
        raise MissingToolError("pyserial is not installed: pip install 'tritloom[board]'") from None
    return [_described(port) for port in sorted(list_ports.comports()) if port.vid is not None]


def _described(port: Any) -> SerialPort:
    product = port.product or ""
    boards: tuple[str, ...] = ()
    if port.vid == _FTDI:
        called = f"{port.manufacturer or ''} {product}"
        found = (names for number, pattern, names in _KNOWN if number == port.pid and re.search(pattern, called, re.IGNORECASE))
        boards = next(found, ())
    # Linux appends the number of the interface to the place on the bus: 1-4:1.0.
    first = (port.location or "").endswith(":1.0")
    return SerialPort(
        device=port.device,
        usb=f"{port.vid:04x}:{port.pid:04x}",
        product=product,
        boards=boards,
        programs=bool(boards) and port.pid == _TWO_PORTS and first,
        fix=_fix(port.device, port.vid),
    )


def _fix(device: str, vendor: int) -> str:
    """How this user gets to open a device; systems other than Unix ask for nothing."""
    if os.name != "posix" or os.access(device, os.R_OK | os.W_OK):
        return ""
    grp, pwd = import_module("grp"), import_module("pwd")
    try:
        status = os.stat(device)
        group = grp.getgrgid(status.st_gid)
        user = pwd.getpwuid(os.getuid()).pw_name
    except (OSError, KeyError):
        return "it has gone, or its owner is unknown: plug it in again"
    if status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        if user in group.gr_mem:
            return f"log out and in again: user {user} has been in group {group.gr_name} only since"
        return f"sudo usermod -aG {group.gr_name} {user}, then log out and in again"
    rule = f'SUBSYSTEM=="tty", ATTRS{{idVendor}}=="{vendor:04x}", MODE="0666"'
    return f"put the line {rule} into /etc/udev/rules.d/70-tritloom.rules, run sudo udevadm control --reload, then plug it in again"
