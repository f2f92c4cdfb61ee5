"""Frames of the host link: the same bytes over UART, a simulator's byte port, or a pipe.

A frame on the wire is ``END body END`` with SLIP byte stuffing (RFC 1055): ``END`` 0xC0, inside the body 0xC0 becomes
0xDB 0xDC and 0xDB becomes 0xDB 0xDD. An END therefore always ends whatever garbage came before it, and an empty body
is ignored. The body is::

    sequence  u8        chosen by the host, repeated in the reply
    opcode    u8
    length    u16 LE    bytes of data
    data      length bytes
    crc       u16 LE    CRC-16/CCITT-FALSE (polynomial 0x1021, start 0xFFFF) over everything before it

The reply carries ``opcode | 0x80``. A frame that is damaged, of wrong length, too long, of unknown opcode or with illegal arguments
changes nothing and is answered by opcode 0xFF with one byte, an :class:`ErrorCode`; its sequence is that of the
frame where it could be read, else 0.

======== ========================================== ===========================================
opcode   data                                       reply data
======== ========================================== ===========================================
IDENTITY none                                       core digest (8 bytes), artefact digest (8 bytes)
STATUS   none                                       state u8, fault u8, pc u16, cycles u64
WRITE    space u8, address u32, bytes               none
READ     space u8, address u32, count u16           ``count`` bytes
START    pc u16, limit u16, clear u8                none
ABORT    none                                       none
======== ========================================== ===========================================

START runs from program word ``pc`` until HALT, or, with ``limit`` above 0, for that many instructions, and then stops with
``pc`` at the next one; ``clear`` zeroes the cycle counter first. The counter counts clocks in state RUNNING. WRITE, START and
READ of activations while the core runs are answered BUSY.
"""

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from tritloom.errors import LinkError

__all__ = [
    "END", "ESC", "ESC_END", "ESC_ESC", "ERROR_OPCODE", "ErrorCode", "Fault", "Frame", "FrameReader", "LinkOpcode", "MAX_DATA", "MAX_WRITE", "REPLY", "Space", "State",
    "crc16", "encode",
]  # fmt: skip

END, ESC, ESC_END, ESC_ESC = 0xC0, 0xDB, 0xDC, 0xDD
REPLY = 0x80
ERROR_OPCODE = 0xFF
MAX_DATA = 1016
"""Largest ``length`` of a frame; the whole body, CRC included, fits a buffer of 1024 bytes."""

MAX_WRITE = MAX_DATA - 5
"""Bytes that one WRITE carries behind space and address; a memory word must not be longer."""


class LinkOpcode(IntEnum):
    IDENTITY = 0x01
    STATUS = 0x02
    WRITE = 0x03
    READ = 0x04
    START = 0x05
    ABORT = 0x06


class Space(IntEnum):
    """Memory spaces. ACTIVATIONS is addressed in bytes, the others in whole words of their own width.

    TABLES is reserved for the vector unit. ARTEFACT is one word of 8 bytes: the digest of what is loaded.
    Only ACTIVATIONS can be read back.
    """

    PROGRAM = 0
    WEIGHTS = 1
    RECORDS = 2
    ACTIVATIONS = 3
    ARTEFACT = 4
    TABLES = 5


class State(IntEnum):
    IDLE = 0
    RUNNING = 1
    STOPPED = 2
    FAULT = 3


class Fault(IntEnum):
    NONE = 0
    BAD_INSTRUCTION = 1


class ErrorCode(IntEnum):
    CRC = 1
    LENGTH = 2
    OPCODE = 3
    ARGUMENT = 4
    BUSY = 5
    OVERRUN = 6


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE; ``crc16(b"123456789") == 0x29B1``."""
    return binascii.crc_hqx(data, 0xFFFF)


@dataclass(frozen=True)
class Frame:
    sequence: int
    opcode: int
    data: bytes = b""


def encode(frame: Frame) -> bytes:
    """Bytes on the wire for a frame, both END bytes included. Raises :class:`LinkError` when the data is too long."""
    if len(frame.data) > MAX_DATA:
        raise LinkError(f"frame data must be at most {MAX_DATA} bytes, not {len(frame.data)}")
    body = bytes([frame.sequence, frame.opcode]) + len(frame.data).to_bytes(2, "little") + frame.data
    body += crc16(body).to_bytes(2, "little")
    stuffed = body.replace(bytes([ESC]), bytes([ESC, ESC_ESC])).replace(bytes([END]), bytes([ESC, ESC_END]))
    return bytes([END]) + stuffed + bytes([END])


class FrameReader:
    """Turns a byte stream into frames; damaged frames are dropped and counted in :attr:`damaged`."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        for byte in data:
            if byte != END:
                self._raw.append(byte)
                if len(self._raw) > 4 * MAX_DATA:
                    self._raw.clear()
                    self.damaged += 1
                continue
            raw = bytes(self._raw)
            self._raw.clear()
            if not raw:
                continue
            body = raw.replace(bytes([ESC, ESC_END]), bytes([END])).replace(bytes([ESC, ESC_ESC]), bytes([ESC]))
            if (
                len(body) < 6
                or crc16(body[:-2]) != int.from_bytes(body[-2:], "little")
                or int.from_bytes(body[2:4], "little") != len(body) - 6
            ):
                self.damaged += 1
                continue
            yield Frame(body[0], body[1], body[4:-2])
