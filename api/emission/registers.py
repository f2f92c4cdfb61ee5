"""The register map: everything that a host must know of a core to load and run it, as plain JSON values."""

from typing import Any

from tritloom.errors import UserError
from tritloom.hw.arch import link
from tritloom.hw.arch.isa import ISA_VERSION, PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import LinkOpcode, Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.link.uart import MIN_DIVISOR

__all__ = ["SCHEMA_VERSION", "TOP", "register_map"]

SCHEMA_VERSION = 1

TOP = "tritloom_core"
"""Name of the top module."""

_PORTS = (
    ("clk", "input", "all registers take their values at its rising edge"),
    ("rst", "input", "synchronous reset, high for at least one clock; the memories keep their contents"),
    ("rx", "input", "serial line from the host, may change at any time; high when idle"),
    ("tx", "output", "serial line to the host; high when idle"),
)

_ARTEFACT_BYTES = 8

_FRAME = (("sequence", 1), ("opcode", 1), ("length", 2), ("data", None), ("crc", 2))
"""Fields of a frame's body with their bytes; ``None`` stands for as many as there are."""

_LAYOUTS: dict[LinkOpcode, tuple[tuple[tuple[str, int | None], ...], tuple[tuple[str, int | None], ...]]] = {
    LinkOpcode.IDENTITY: ((), (("core_digest", 8), ("artefact_digest", _ARTEFACT_BYTES))),
    LinkOpcode.STATUS: ((), (("state", 1), ("fault", 1), ("pc", 2), ("cycles", 8))),
    LinkOpcode.WRITE: ((("space", 1), ("address", 4), ("bytes", None)), ()),
    LinkOpcode.READ: ((("space", 1), ("address", 4), ("count", 2)), (("bytes", None),)),
    LinkOpcode.START: ((("pc", 2), ("limit", 2), ("clear", 1)), ()),
    LinkOpcode.ABORT: ((), ()),
}
"""Data of the request and of its reply, as the table in :mod:`tritloom.hw.arch.link` says it."""


def register_map(parameters: CoreParameters, *, divisor: int) -> dict[str, Any]:
    """Contents of ``regmap.json``: ports, serial line, frames, opcodes, memories and parameters of a core.

    It depends on the core only, not on what is loaded. All integers of more than a byte are little endian on the link.

    Parameters
    ----------
    parameters
        The core.
    divisor
        Clocks in a bit of the serial line. Raises :class:`UserError` when it is below :data:`tritloom.hw.link.uart.MIN_DIVISOR`.
    """
    if divisor < MIN_DIVISOR:
        raise UserError(f"the divisor of the serial line must be at least {MIN_DIVISOR} clocks a bit, not {divisor}")
    return {
        "schema": SCHEMA_VERSION,
        "module": TOP,
        "ports": [{"name": name, "direction": direction, "width": 1, "meaning": meaning} for name, direction, meaning in _PORTS],
        "serial": {"divisor": divisor, "data_bits": 8, "parity": "none", "stop_bits": 1},
        "frame": {
            "delimiter": link.END,
            "escape": link.ESC,
            "escaped_delimiter": link.ESC_END,
            "escaped_escape": link.ESC_ESC,
            "byte_order": "little",
            "body": _fields(_FRAME),
            "maximum_data": link.MAX_DATA,
            "reply_bit": link.REPLY,
            "error_opcode": link.ERROR_OPCODE,
            "crc": {
                "name": "CRC-16/CCITT-FALSE",
                "width": 16,
                "polynomial": 0x1021,
                "initial": link.crc16(b""),
                "reflected": False,
                "final_xor": 0,
                "check": link.crc16(b"123456789"),
            },
        },
        "opcodes": {
            code.name: {"code": int(code), "request": _fields(request), "reply": _fields(reply)}
            for code, (request, reply) in _LAYOUTS.items()
        },
        "error_codes": {code.name: int(code) for code in link.ErrorCode},
        "states": {state.name: int(state) for state in link.State},
        "faults": {fault.name: int(fault) for fault in link.Fault},
        "spaces": _spaces(parameters),
        "core": {"isa": ISA_VERSION, "digest": parameters.digest.hex(), "parameters": parameters.to_json()},
    }


def _fields(fields: tuple[tuple[str, int | None], ...]) -> list[dict[str, Any]]:
    return [{"name": name, "bytes": size} for name, size in fields]


def _spaces(parameters: CoreParameters) -> dict[str, dict[str, Any]]:
    """Memories that the link reaches: an address counts words of ``word_bytes`` bytes, least significant byte first."""
    shapes = {
        Space.PROGRAM: (PROGRAM_WORD_BYTES, parameters.program_words),
        Space.WEIGHTS: (parameters.weight_word_bytes, parameters.weight_words),
        Space.RECORDS: (parameters.record_word_bytes, parameters.record_words),
        Space.ACTIVATIONS: (1, parameters.activation_bytes),
        Space.ARTEFACT: (_ARTEFACT_BYTES, 1),
    }
    return {
        space.name: {"code": int(space), "word_bytes": size, "words": words, "readable": space is Space.ACTIVATIONS}
        for space, (size, words) in shapes.items()
    }
