"""The artefact ``model.loom``: the source model, the integer program and its schedules in one file (see ``docs/formats.md``)."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from tritloom.compiler.image.archive import pack, unpack
from tritloom.compiler.image.codec import decode_program, encode_program
from tritloom.compiler.image.host_steps import check_host_steps
from tritloom.compiler.image.schedules import SCHEDULE_FILES, decode_schedule, encode_schedule
from tritloom.compiler.image.validate import validate_program
from tritloom.compiler.image.values import ArrayReader, ArrayWriter, Malformed, integer, mapping, text
from tritloom.compiler.ir.loop import has_loops
from tritloom.compiler.ir.program import Program
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.schedule import Schedule
from tritloom.errors import ModelError
from tritloom.files import read_bytes, write_bytes

__all__ = ["SCHEMA_VERSION", "Artefact", "artefact_digest", "decode_artefact", "encode_artefact", "read_artefact", "write_artefact"]

SCHEMA_VERSION = 4

_BOARD = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SCHEDULE_ENTRY = re.compile(r"schedules/([a-z0-9][a-z0-9-]{0,63})/([a-z.]+)")
_ARRAY_ENTRY = re.compile(r"arrays/[0-9]{5,9}\.npy")


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Contents of a ``.loom`` file.

    ``source`` is the ONNX file as it was given, ``schedules`` maps board names to schedules, ``settings`` holds how the model was
    compiled (plain JSON values). Without a schedule, ``settings`` says under ``unscheduled`` why; a program that no core can run has none.
    """

    source: bytes
    program: Program
    schedules: dict[str, Schedule]
    settings: dict[str, Any] = field(default_factory=dict)


def _json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces to speak of, ASCII, one line feed at the end."""

    def plain(value: Any) -> Any:
        if isinstance(value, (np.integer, np.floating, np.bool_)):
            return value.item()
        raise TypeError(f"an artefact cannot hold a {type(value).__name__}")

    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False, default=plain) + "\n").encode()


def _entries(artefact: Artefact) -> dict[str, bytes]:
    """All entries but the manifest."""
    arrays = ArrayWriter()
    entries = {"source.onnx": artefact.source, "program.json": _json(encode_program(artefact.program, arrays))}
    entries.update(arrays.entries)
    for board, schedule in artefact.schedules.items():
        if not _BOARD.fullmatch(board):
            raise ValueError(f"board name must be lower-case letters, digits and hyphens, not {board!r}")
        for name, content in encode_schedule(schedule).items():
            entries[f"schedules/{board}/{name}"] = content if isinstance(content, bytes) else _json(content)
    return entries


def _manifest(artefact: Artefact, entries: dict[str, bytes]) -> bytes:
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in entries.items()}
    return _json({"schema": SCHEMA_VERSION, "tritloom": version("tritloom"), "settings": artefact.settings, "entries": digests})


def artefact_digest(artefact: Artefact) -> bytes:
    """First 8 bytes of the SHA-256 of the manifest: what a loaded core reports as its artefact."""
    return hashlib.sha256(_manifest(artefact, _entries(artefact))).digest()[:8]


def encode_artefact(artefact: Artefact) -> bytes:
    """Bytes of the file; they depend on the contents only."""
    entries = _entries(artefact)
    return pack({**entries, "manifest.json": _manifest(artefact, entries)})


def write_artefact(path: str | os.PathLike[str], artefact: Artefact) -> None:
    """Write a ``.loom`` file as a whole or not at all. Raises :class:`UserError` when it cannot be written."""
    write_bytes(path, encode_artefact(artefact))


def read_artefact(path: str | os.PathLike[str]) -> Artefact:
    """Read and check a ``.loom`` file.

    Raises :class:`ModelError` with one sentence for contents that are damaged, of an unknown version, or not what the compiler makes,
    and :class:`UserError` when the file cannot be read.
    """
    return decode_artefact(read_bytes(path, "artefact"), os.fspath(path))


def decode_artefact(data: bytes, where: str) -> Artefact:
    """Inverse of :func:`encode_artefact`; ``where`` names the file in messages. Raises :class:`ModelError`."""
    entries = unpack(data, where)
    try:
        manifest = _read_manifest(entries, where)
        if pack(entries) != data:
            raise Malformed("its bytes are not those of its entries")
        arrays = ArrayReader({name: content for name, content in entries.items() if name.startswith("arrays/")})
        program = decode_program(_read_json(entries["program.json"]), arrays)
        validate_program(program)
        check_host_steps(program)
        if arrays.unused:
            raise Malformed(f"nothing refers to {min(arrays.unused)}")
        schedules = {}
        no_core = obstacles(program)
        for board in sorted({match[1] for name in entries if (match := _SCHEDULE_ENTRY.fullmatch(name))}):
            if no_core:
                raise Malformed(f"schedule {board!r}: {no_core[0]}")
            if program.states or has_loops(program):
                raise Malformed(f"schedule {board!r}: programs with states or loops have none")
            files: dict[str, Any] = {}
            for name in SCHEDULE_FILES:
                if f"schedules/{board}/{name}" not in entries:
                    raise Malformed(f"schedule {board!r} has no {name}")
                content = entries[f"schedules/{board}/{name}"]
                files[name] = _read_json(content) if name.endswith(".json") else content
            try:
                schedules[board] = decode_schedule(files, program, f"{where}: schedule {board!r}")
            except Malformed as error:
                raise Malformed(f"schedule {board!r}: {error}") from None
        reason = manifest["settings"].get("unscheduled")
        if not schedules and not (isinstance(reason, str) and reason):
            raise Malformed("it has no schedule, and no reason for that")
    except (Malformed, RecursionError) as error:
        raise ModelError(f"{where} is damaged or was not made by tritloom: {_sentence(error)}; compile the model again") from None
    return Artefact(source=entries["source.onnx"], program=program, schedules=schedules, settings=manifest["settings"])


def _sentence(error: Exception) -> str:
    return "values are nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]


def _read_json(data: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise Malformed(f"{constant} is not a JSON value")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"JSON is broken ({error})") from None


def _read_manifest(entries: dict[str, bytes], where: str) -> dict[str, Any]:
    """Decoded manifest, when every entry is in it with the right digest and has a name that the format knows."""
    for name in ("manifest.json", "program.json", "source.onnx"):
        if name not in entries:
            raise Malformed(f"entry {name} is missing")
    value = _read_json(entries["manifest.json"])
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and not isinstance(schema, bool) and schema != SCHEMA_VERSION:
        raise ModelError(
            f"{where} has artefact version {str(schema)[:20]}, this tritloom reads version {SCHEMA_VERSION}; compile the model again or use a matching tritloom"
        )

    def settings(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Malformed("settings are not an object")
        return value

    manifest = mapping(
        value,
        {
            "schema": lambda entry: integer(entry, SCHEMA_VERSION, SCHEMA_VERSION),
            "tritloom": text,
            "settings": settings,
            "entries": settings,
        },
    )
    listed = manifest["entries"]
    if set(listed) != set(entries) - {"manifest.json"}:
        odd = min(set(listed) ^ (set(entries) - {"manifest.json"}))
        raise Malformed(f"entry {odd[:80]!r} is not both in the file and in its manifest")
    for name, data in entries.items():
        match = _SCHEDULE_ENTRY.fullmatch(name)
        plain = name in ("manifest.json", "program.json", "source.onnx") or _ARRAY_ENTRY.fullmatch(name)
        if not plain and not (match and match[2] in SCHEDULE_FILES):
            raise Malformed(f"entry {name[:80]!r} has no place in an artefact")
        if name != "manifest.json" and listed[name] != {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
            raise Malformed(f"entry {name} does not have the digest that the manifest gives")
    return manifest
