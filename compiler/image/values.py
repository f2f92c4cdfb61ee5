"""Values of an artefact's JSON: arrays as ``.npy`` entries beside it, and decoders that check type and range of what they read."""

import io
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = [
    "ArrayReader",
    "ArrayWriter",
    "Malformed",
    "boolean",
    "fraction",
    "integer",
    "mapping",
    "number",
    "sequence",
    "shortened",
    "text",
]

DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")

_INT64 = 1 << 63


class Malformed(ValueError):
    """A value that is not what the format says; the message says which."""


# ---- arrays ---------------------------------------------------------------------------------------------------------


class ArrayWriter:
    """Collects arrays as ``.npy`` entries ``arrays/00000.npy`` ...; equal arrays are stored once."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Reference to put in JSON. Raises :class:`TypeError` for a dtype that the format does not have."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)
        if array.dtype.str not in DTYPES:
            raise TypeError(f"array dtype must be one of {DTYPES}, not {array.dtype.str}")
        data = _npy_header(array.dtype.str, array.shape) + array.tobytes()
        if data not in self._names:
            self._names[data] = f"arrays/{len(self._names):05}.npy"
            self.entries[self._names[data]] = data
        return {"array": self._names[data], "dtype": array.dtype.str, "shape": list(array.shape)}


class ArrayReader:
    """Inverse of :class:`ArrayWriter`: :attr:`unused` holds the names of entries that no reference has named yet."""

    def __init__(self, entries: dict[str, bytes]) -> None:
        self._entries = entries
        self.unused = set(entries)

    def get(self, reference: Any) -> np.ndarray:
        fields_ = mapping(
            reference, {"array": text, "dtype": text, "shape": lambda value: sequence(value, lambda size: integer(size, 0, 1 << 40))}
        )
        name, dtype, shape = fields_["array"], fields_["dtype"], fields_["shape"]
        if name not in self._entries or dtype not in DTYPES or len(shape) > 8:
            raise Malformed(f"array {name!r} of dtype {dtype!r} does not exist")
        data, header = self._entries[name], _npy_header(dtype, shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if len(data) != len(header) + size or not data.startswith(header):
            raise Malformed(f"array {name!r} is not of dtype {dtype!r} and shape {shape}")
        self.unused.discard(name)
        return np.frombuffer(data, dtype, offset=len(header)).reshape(shape).copy()


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    return buffer.getvalue()


# ---- decoders of plain values -----------------------------------------------------------------------------------------


def integer(value: Any, low: int = -_INT64, high: int = _INT64 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Malformed(f"{shortened(value)} is not an integer from {low} to {high}")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 10000:
        raise Malformed(f"{shortened(value)} is not a string")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"{shortened(value)} is not true or false")
    return value


def number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < math.inf:
        raise Malformed(f"{shortened(value)} is not a number")
    return float(value)


def fraction(value: Any) -> Fraction:
    numerator, slash, denominator = text(value).partition("/")
    digits = numerator.removeprefix("-")
    if (
        not slash
        or not (digits.isascii() and digits.isdigit() and denominator.isascii() and denominator.isdigit())
        or len(value) > 4000
        or not int(denominator)
    ):
        raise Malformed(f"{shortened(value)} is not a fraction")
    return Fraction(int(numerator), int(denominator))


def sequence(value: Any, item: Callable[[Any], Any], length: int | None = None) -> tuple[Any, ...]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Malformed(f"{shortened(value)} is not a list{'' if length is None else f' of {length}'}")
    return tuple(item(entry) for entry in value)


def mapping(value: Any, decoders: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """A JSON object with exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(decoders):
        raise Malformed(f"{shortened(value)} is not an object with the keys {', '.join(decoders)}")
    result = {}
    for key, decoder in decoders.items():
        try:
            result[key] = decoder(value[key])
        except Malformed as error:
            raise Malformed(f"{key}: {error}") from None
    return result


def shortened(value: Any) -> str:
    shown = ascii(value) if not isinstance(value, (dict, list)) else type(value).__name__
    return shown if len(shown) <= 40 else shown[:37] + "..."
