"""Checkpoints of ternary models: Hugging Face folders or ``.safetensors`` files, and GGUF files.

Every matrix must be ternary, but for embeddings and output heads, which published models keep in floats; vectors (gains, biases) are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tritloom.errors import MissingToolError, ModelError, UserError
from tritloom.files import read_bytes
from tritloom.models.checkpoints import gguf
from tritloom.models.checkpoints.tensors import LeftOut, TernaryTensor, from_floats, from_hugging_face, from_i2s, from_tq1, from_tq2

__all__ = ["I2S_GROUPS", "KEPT", "read_checkpoint"]

KEPT = ("embed", "embd", "lm_head", "output.weight", "norm")
"""Parts of the names of tensors that models keep in floats."""

I2S_GROUPS = {"x86": 32, "arm": 16}
"""Bytes of an I2_S block by the processor that the file was made on."""

LONGEST_NAME = 2000

_FLOATS = {"F64", "F32", "F16", "BF16"}
_GGUF_FLOATS = {gguf.F32: ("F32", np.dtype("<f4")), gguf.F16: ("F16", np.dtype("<f2")), gguf.BF16: ("BF16", np.dtype(ml_dtypes.bfloat16))}


def read_checkpoint(path: Path, *, only: Sequence[str] = (), i2s: str | None = None) -> Iterator[TernaryTensor | LeftOut]:
    """Every tensor of a checkpoint, ternary or left out, in the order of the file.

    Parameters
    ----------
    path
        A ``.safetensors`` or ``.gguf`` file, or a folder of the former with its ``config.json``.
    only
        Patterns of names such as ``*.q_proj.*``; what fits none is left out, what fits must be ternary.
    i2s
        ``x86`` or ``arm``, for GGUF files with I2_S, which do not say how they are packed.

    Raises :class:`ModelError` for a file that is damaged or not ternary, naming the tensor and what was found, :class:`UserError` for a path that cannot be read and for
    what the file leaves open, :class:`MissingToolError` without the package ``safetensors``.
    """
    if i2s is not None and i2s not in I2S_GROUPS:
        raise UserError(f"--i2s must be one of {', '.join(I2S_GROUPS)}, not {i2s!r}")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"folder {str(path)!r} holds no .safetensors file; name a folder of a Hugging Face model, or a file")
        found = _hugging_face(files, path, only)
    else:
        try:
            with path.open("rb") as stream:
                start = stream.read(4)
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}") from error
        if start == b"GGUF":
            found = _gguf(np.memmap(path, np.uint8, "r"), only, i2s)
        elif path.suffix == ".safetensors" and size:
            found = _hugging_face([path], path.parent, only)
        else:
            raise UserError(f"checkpoint {str(path)!r} is neither a .safetensors file nor a GGUF file")
    count, seen = 0, set()
    for tensor in found:
        if tensor.name in seen:
            raise ModelError(f"checkpoint {str(path)!r} has two tensors of the name {tensor.name!r}")
        if not tensor.name.strip() or not tensor.name.isprintable() or len(tensor.name) > LONGEST_NAME:
            raise ModelError(f"checkpoint {str(path)!r} has a tensor whose name {tensor.name[:40]!r} is blank, too long or not printable")
        seen.add(tensor.name)
        count += isinstance(tensor, TernaryTensor)
        yield tensor
    if not count:
        raise ModelError(f"checkpoint {str(path)!r} holds no ternary matrix{' of such a name' if only else ''}")


def _wanted(name: str, shape: Sequence[int], only: Sequence[str]) -> str:
    """Why a tensor is left out, empty if it must be ternary."""
    if only:
        return "" if any(fnmatchcase(name, pattern) for pattern in only) else "not asked for"
    if len(shape) < 2:
        return "a vector"
    return "kept in floats by its model" if any(part in name for part in KEPT) else ""


def _matrix(name: str, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise ModelError(f"tensor {name!r} has the shape {tuple(shape)}; only matrices are imported, choose others with --only")
    return shape[0], shape[1]


def _gguf(data: np.ndarray, only: Sequence[str], i2s: str | None) -> Iterator[TernaryTensor | LeftOut]:
    for entry in gguf.entries(data):
        if reason := _wanted(entry.name, entry.shape, only):
            yield LeftOut(entry.name, entry.shape, reason)
            continue
        name, shape = entry.name, _matrix(entry.name, entry.shape)
        if entry.kind == gguf.TQ1_0:
            yield from_tq1(name, entry.data, shape)
        elif entry.kind == gguf.TQ2_0:
            yield from_tq2(name, entry.data, shape)
        elif entry.kind == gguf.I2_S:
            if i2s is None:
                raise UserError(
                    f"tensor {name!r} has the type I2_S, whose order depends on the processor that the file was made on; say --i2s x86 or --i2s arm"
                )
            yield from_i2s(name, entry.data, shape, I2S_GROUPS[i2s])
        elif entry.kind in _GGUF_FLOATS:
            title, kind = _GGUF_FLOATS[entry.kind]
            yield from_floats(name, entry.data.view(kind).reshape(shape), title)
        else:
            raise ModelError(
                f"tensor {name!r} has the GGUF type {entry.kind}, which is not ternary; TQ1_0 ({gguf.TQ1_0}), TQ2_0 ({gguf.TQ2_0}), I2_S ({gguf.I2_S}) and floats are read"
            )


def _hugging_face(files: Sequence[Path], folder: Path, only: Sequence[str]) -> Iterator[TernaryTensor | LeftOut]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise MissingToolError(
            "reading .safetensors files needs the package safetensors; install it with: pip install 'tritloom[checkpoints]'"
        ) from error
    try:
        where = {}
        for file in files:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    if where.setdefault(name, file) != file:
                        raise ModelError(f"tensor {name!r} is in {where[name].name} and in {file.name}")
        for file in files:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    if name.endswith(".weight_scale"):
                        continue
                    entry = opened.get_slice(name)
                    kind, shape = str(entry.get_dtype()), tuple(entry.get_shape())
                    if reason := _wanted(name, shape, only):
                        yield LeftOut(name, shape, reason)
                        continue
                    _matrix(name, shape)
                    scale = _scale(f"{name.removesuffix('.weight')}.weight_scale", where, folder)
                    if kind == "U8" and scale is not None:
                        yield from_hugging_face(name, opened.get_tensor(name), scale)
                    elif kind in _FLOATS:
                        tensor = from_floats(name, opened.get_tensor(name), kind)
                        yield tensor if scale is None else TernaryTensor(name, tensor.trits, tensor.scale * np.float32(scale), kind)
                    else:
                        lacks = " without a weight_scale beside it" if kind == "U8" else ""
                        raise ModelError(
                            f"tensor {name!r} has the type {kind}{lacks}, which is not ternary; floats and packed uint8 are read"
                        )
    except (SafetensorError, OSError, UnicodeError) as error:
        raise ModelError(f"the safetensors file is damaged or cannot be read: {str(error).splitlines()[0][:200]}") from error


def _scale(name: str, where: Mapping[str, Path], folder: Path) -> float | None:
    """What the trit 1 is worth beside a packed or unpacked matrix, None where the checkpoint stores no scale for it."""
    if name not in where:
        return None
    from safetensors import safe_open

    with safe_open(where[name], framework="np") as opened:
        stored = np.asarray(opened.get_tensor(name)).astype(np.float64)
    if stored.size != 1 or not np.isfinite(stored).all() or stored.item() <= 0:
        raise ModelError(f"tensor {name!r} must be one number above 0, not {stored.ravel()[:3].tolist()} of shape {stored.shape}")
    return stored.item() if _multiplies(folder) else 1 / stored.item()


def _multiplies(folder: Path) -> bool:
    """Whether ``weight_scale`` multiplies the trits (linear class ``autobitlinear``) or divides them (``bitlinear``, the default): ``config.json`` says it."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(
            f"the checkpoint has weight_scale tensors, and {str(path)!r}, which says whether they multiply or divide, is not there; put it beside the file"
        )
    try:
        config: dict[str, Any] = json.loads(read_bytes(path, "model configuration"))
        kind = config["quantization_config"].get("linear_class", "bitlinear")
        method = config["quantization_config"].get("quant_method")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"model configuration {str(path)!r} has no readable quantization_config") from error
    if method != "bitnet" or kind not in ("bitlinear", "autobitlinear"):
        raise ModelError(
            f"model configuration {str(path)!r} names the quantisation {method!r} with {kind!r}; bitnet with bitlinear or autobitlinear is read"
        )
    return kind == "autobitlinear"
