"""The outer file: a zip with every byte determined by its entries.

Entries are stored uncompressed in the order of their names, dated 1980-01-01, without extra fields or comments. The reader takes
only files that equal what the writer makes of their entries, so any damaged byte is found.
"""

import io
import struct
import zipfile
from collections import Counter

from tritloom.errors import ModelError

__all__ = ["pack", "unpack"]

_MAX_ENTRIES = 65535


def pack(entries: dict[str, bytes]) -> bytes:
    """Bytes of the archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, entries[name])
    return buffer.getvalue()


def unpack(data: bytes, where: str) -> dict[str, bytes]:
    """Entries of an archive, by name. Raises :class:`ModelError` (``where`` names the file) for anything that :func:`pack` does not write."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if len(infos) > _MAX_ENTRIES:
                raise ModelError(f"{where} has {len(infos)} entries; an artefact has at most {_MAX_ENTRIES}")
            if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
                raise ModelError(f"{where} has compressed entries; an artefact is stored uncompressed")
            if sum(info.file_size for info in infos) > len(data):
                raise ModelError(f"{where} declares more data than it has; it is damaged, compile the model again")
            name, times = Counter(info.filename for info in infos).most_common(1)[0] if infos else ("", 0)
            if times > 1:
                raise ModelError(f"{where} has two entries called {name!r}")
            entries = {info.filename: archive.read(info) for info in infos}
    except (
        zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, LookupError, NotImplementedError, RuntimeError, OverflowError, struct.error,
    ) as error:  # fmt: skip
        raise ModelError(f"{where} is not a tritloom artefact or is damaged ({_reason(error)}); compile the model again") from None
    return entries


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
