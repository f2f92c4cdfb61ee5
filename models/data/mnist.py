"""MNIST, and whatever has its form, from files that the user has: IDX as published, plain or gzip-compressed, or one ``.npz``.

A folder holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each maybe with ``.gz``. An ``.npz`` holds
``images`` uint8 (N, 28, 28) and ``labels`` (N,), and the last tenth is held out; or ``x_train``, ``y_train``, ``x_test``, ``y_test``, as Keras has it.
"""

import zlib
from pathlib import Path

import numpy as np

from tritloom.errors import UserError
from tritloom.files import read_arrays, read_bytes
from tritloom.models.data.pictures import Pictures

__all__ = ["HELD_OUT", "load", "read_idx"]

CLASSES = 10
HELD_OUT = 10
"""One row in so many, the last ones, is held out where the file has no test rows."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_GZIP = b"\x1f\x8b"
_LARGEST = 1 << 30


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzip-compressed or not, in the machine's byte order. Raises :class:`UserError` when the file is not one."""
    content = read_bytes(path, "IDX file")
    if content.startswith(_GZIP):
        try:
            unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
            content = unpacker.decompress(content, _LARGEST)
        except zlib.error as error:
            raise UserError(f"IDX file {str(path)!r} is damaged: its gzip data do not unpack") from error
        if not unpacker.eof:
            raise UserError(f"IDX file {str(path)!r} is damaged: its gzip data are cut short, or hold more than {_LARGEST} bytes")
    axes = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * axes
    if len(content) < max(start, 8) or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise UserError(f"{str(path)!r} is no IDX file: it does not begin like one")
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    kind = np.dtype(_IDX_TYPES[content[2]])
    expected = kind.itemsize
    for length in shape:
        expected *= length
    if len(content) - start != expected:
        raise UserError(f"IDX file {str(path)!r} holds {len(content) - start} bytes of data where its header promises {expected}")
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def load(path: Path, name: str = "mnist") -> Pictures:
    """Images (N, 1, 28, 28) from 0 to 1 and labels. Raises :class:`UserError` for absent or unfit files."""
    if path.is_dir():
        parts = [read_idx(_found(path, f"{part}-{kind}-ubyte")) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        source = f"{name}, its training rows"
    else:
        arrays = read_arrays(path, f"{name} file")
        if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
            parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
            source = f"{name}, its training rows"
        elif {"images", "labels"} <= arrays.keys():
            images, labels = arrays["images"], arrays["labels"]
            if images.ndim == 0 or labels.ndim == 0 or len(images) < HELD_OUT:
                raise UserError(f"{name} file {str(path)!r} needs at least {HELD_OUT} rows")
            cut = len(images) - len(images) // HELD_OUT
            parts = [images[:cut], labels[:cut], images[cut:], labels[cut:]]
            source = f"{name}, {path.name}, rows 0..{cut - 1}"
        else:
            raise UserError(
                f"{name} file {str(path)!r} must hold images and labels, or x_train, y_train, x_test and y_test; it holds {', '.join(sorted(arrays))}"
            )
    for images, labels in ((parts[0], parts[1]), (parts[2], parts[3])):
        _check(path, name, images, labels)
    pixels = [part.astype(np.float32)[:, None] / np.float32(255) for part in (parts[0], parts[2])]
    return Pictures(
        source, pixels[0], parts[1].astype(np.int64), pixels[1], parts[3].astype(np.int64), classes=CLASSES, step=1 / 127, whole=False
    )


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"folder {str(folder)!r} holds neither {name} nor {name}.gz")


def _check(path: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise UserError(f"{name} images of {str(path)!r} must be uint8 (N, 28, 28), not {images.dtype} {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "ui":
        raise UserError(f"{name} labels of {str(path)!r} must be {len(images)} integers, not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise UserError(f"{name} labels of {str(path)!r} must lie in 0..9, not in {labels.min()}..{labels.max()}")
