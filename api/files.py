"""Reading and writing the user's files: arrays by name, TOML tables, and output files that are whole or absent."""

import os
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import IO, Any

import numpy as np

from tritloom.errors import UserError

__all__ = ["LARGEST_ARRAY_FILE", "parse_toml", "read_arrays", "read_bytes", "replacing", "write_arrays", "write_bytes"]

LARGEST_ARRAY_FILE = 4 << 30
"""Bytes that the arrays of one input file may take in memory."""

_LONGEST_TEXT = 2000
"""Characters of a key or a string, as of names in models."""

_TOO_LARGE = "{} has an integer of more than 64 bits with its sign"

_SUSPICIOUS, _MOST_INFLATION = 1 << 28, 100
"""Arrays of more bytes than this may not be so many times larger than the file."""


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """Contents of a file. Raises :class:`UserError` naming ``what`` the file was meant to be when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{what} {os.fspath(path)!r} cannot be read: {error.strerror or error}") from error


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises :class:`UserError`, naming ``origin``, for another text and for one that no settings look like.

    That is nesting deeper than Python's stack, integers beyond 64 bits, keys and strings of more than 2000 characters.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{origin} is nested too deeply for a file of settings") from error
    except ValueError as error:  # int() refuses thousands of digits
        raise UserError(_TOO_LARGE.format(origin)) from error
    waiting: list[Any] = [tables]
    while waiting:
        match waiting.pop():
            case dict() as table:
                waiting += [*table, *table.values()]
            case list() as array:
                waiting += array
            case str() as found if len(found) > _LONGEST_TEXT:
                raise UserError(f"{origin} has a key or a string of {len(found)} characters; at most {_LONGEST_TEXT} are read")
            case int() as number if not -(1 << 63) <= number < 1 << 63:
                raise UserError(_TOO_LARGE.format(origin))
    return tables


def read_arrays(path: str | os.PathLike[str], what: str = "array file") -> dict[str, np.ndarray]:
    """Every array of an ``.npz`` file by name. Never unpickles.

    Raises :class:`UserError` when the file is absent, is no ``.npz`` file, is damaged, or holds Python objects.
    """
    shown = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > LARGEST_ARRAY_FILE:
                raise UserError(f"{what} {shown!r} holds {size} bytes of arrays; at most {LARGEST_ARRAY_FILE} are read")
            stored = Path(path).stat().st_size
            if size > _SUSPICIOUS and size > _MOST_INFLATION * stored:
                raise UserError(
                    f"{what} {shown!r} would unfold from {stored} to {size} bytes, which arrays of samples do not; write it with numpy.savez, uncompressed"
                )
            arrays = {}
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    name = entry.filename.removesuffix(".npy")
                    arrays[name] = _read_array(stream, entry.file_size)
    except OSError as error:
        raise UserError(f"{what} {shown!r} cannot be read: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # what zipfile, its decompressors and NumPy raise for damaged files is not written down anywhere
        reason = str(error).splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} {shown!r} is not a readable .npz file ({reason}); write one with numpy.savez(path, name=array)") from error
    if not arrays:
        raise UserError(f"{what} {shown!r} holds no arrays; write one with numpy.savez(path, name=array)")
    return arrays


def _read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """One ``.npy`` member; its header may not promise more bytes than the member holds."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    count = 1
    for length in shape:
        count *= length
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError("an array is shorter than its header says")
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("an array is cut short")
    array = np.frombuffer(data, dtype=dtype, count=count)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block succeeds and is removed when it fails.

    Raises :class:`UserError` when the folder cannot be written.
    """
    target = Path(path)
    try:
        handle, name = mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"output file {os.fspath(path)!r} cannot be written: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"output file {os.fspath(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or none."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file: stored, fixed dates, any array name; a whole file or none."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
