"""The table of tensors of a GGUF file, version 2 or 3, little endian: the format of llama.cpp (docs/gguf.md in ggml-org/ggml).

Read here and not by the package ``gguf``, because that one follows what a damaged file says of its own length without end, and does not know ``I2_S``;
the tests compare with it.
"""

import struct
from dataclasses import dataclass

import numpy as np

from tritloom.errors import ModelError

__all__ = ["BF16", "F16", "F32", "I2_S", "TQ1_0", "TQ2_0", "Entry", "entries"]

F32, F16, BF16, TQ1_0, TQ2_0, I2_S = 0, 1, 30, 34, 35, 36
"""Numbers of types in the file."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value by its type."""

_TEXT, _ARRAY = 8, 9
_BLOCKS = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), TQ1_0: (256, 54), TQ2_0: (256, 66)}
"""Weights and bytes of a block by type."""

MOST_TENSORS, MOST_VALUES, MOST_TEXTS, MOST_AXES = 1_000_000, 1_000_000, 10_000_000, 4
"""More than any model has, so that a damaged file does not take minutes."""


@dataclass(frozen=True)
class Entry:
    """One tensor: ``shape`` outermost axis first, ``kind`` the number of its type, ``data`` its bytes; empty for types that are not read."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: np.ndarray


class _Cursor:
    """Reads forward, and never beyond the end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0

    def skip(self, count: int) -> np.ndarray:
        if count > len(self.data) - self.at:
            raise ModelError(
                f"the GGUF file is cut short or damaged: it has {len(self.data)} bytes, and needs {self.at + count} already for its header"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.skip(struct.calcsize(form)).tobytes())[0]

    def text(self) -> str:
        return self.skip(self.number("<Q")).tobytes().decode("utf-8", "replace")

    def value(self, kind: int) -> bytes:
        """A metadata value, and its bytes if it is a plain number."""
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _SIZES:
                self.skip(_SIZES[inner] * count)
            elif inner == _TEXT and count <= MOST_TEXTS:
                for _ in range(count):
                    self.text()
            else:
                raise ModelError(f"the GGUF file has a metadata array of {count} elements of the type {inner}, which is not read")
        elif kind in _SIZES:
            return self.skip(_SIZES[kind]).tobytes()
        else:
            raise ModelError(f"the GGUF file has a metadata value of the type {kind}, which is not known")
        return b""


def entries(data: np.ndarray) -> list[Entry]:
    """Every tensor of a file's bytes, uint8 (N,).

    Raises :class:`ModelError` for another format, another version, and sizes that the bytes do not bear out.
    """
    cursor = _Cursor(data)
    if cursor.skip(4).tobytes() != b"GGUF":
        raise ModelError("the file is no GGUF file: it does not begin with these letters")
    if (version := cursor.number("<I")) not in (2, 3):
        raise ModelError(f"the GGUF file has version {version}; versions 2 and 3 in little endian are read")
    count, values = cursor.number("<Q"), cursor.number("<Q")
    if count > MOST_TENSORS or values > MOST_VALUES:
        raise ModelError(f"the GGUF file claims {count} tensors and {values} metadata values; it is damaged")
    alignment = 32
    for _ in range(values):
        key = cursor.text()
        kind = cursor.number("<I")
        found = cursor.value(kind)
        if key == "general.alignment":
            alignment = int.from_bytes(found, "little") if len(found) == 4 else 0
            if alignment == 0 or alignment % 8:
                raise ModelError("the GGUF file has an alignment that is no multiple of 8")
    headers = [_header(cursor) for _ in range(count)]
    start = -(-cursor.at // alignment) * alignment
    return [Entry(name, shape, kind, _data(data, name, shape, kind, start + offset)) for name, shape, kind, offset in headers]


def _header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = cursor.text(), cursor.number("<I")
    if axes > MOST_AXES:
        raise ModelError(f"tensor {name!r} has {axes} axes; GGUF files have at most {MOST_AXES}")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
    return name, shape, cursor.number("<I"), cursor.number("<Q")


def _data(data: np.ndarray, name: str, shape: tuple[int, ...], kind: int, start: int) -> np.ndarray:
    """The bytes of a tensor; of I2_S with the scale behind the weights."""
    count = 1
    for size in shape:
        count *= size
    if kind == I2_S:
        size = count // 4 + 4
    elif kind in _BLOCKS:
        block, width = _BLOCKS[kind]
        if shape and shape[-1] % block:
            raise ModelError(f"tensor {name!r} has rows of {shape[-1]} weights, no multiple of its blocks of {block}")
        size = count // block * width
    else:
        size = 0
    if start + size > len(data):
        raise ModelError(f"tensor {name!r} is cut short: it ends at byte {start + size} of a file of {len(data)}")
    return data[start : start + size]
