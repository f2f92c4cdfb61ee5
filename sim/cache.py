"""Where built simulators are kept, and how two processes share them without building twice or reading half a build."""

import os
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from tritloom.errors import UserError

__all__ = ["cache_directory", "cached_build", "digest_of"]


def cache_directory() -> Path:
    """The cache's folder: ``TRITLOOM_CACHE`` where set, else the user's cache folder of this platform."""
    override = os.environ.get("TRITLOOM_CACHE")
    return Path(override) if override else user_cache_path("tritloom", appauthor=False)


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of the parts (each preceded by its length, so that none can run into the next), 32 hexadecimal digits."""
    digest = sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def cached_build(kind: str, digest: str, build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` fills, made at most once for each ``kind`` and ``digest``.

    ``build`` gets an empty folder, which takes its final name only when it returns: what has the final name is complete.
    Another process that wants the same waits. Raises what ``build`` raises, and :class:`UserError` when the cache cannot be written.
    """
    root = cache_directory() / kind
    final = root / digest
    if final.is_dir():
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{digest}.lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"the cache folder {root} cannot be written ({error.strerror}): set TRITLOOM_CACHE to a folder that can") from None
    try:
        if not final.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=root))
            try:
                build(scratch)
                scratch.chmod(0o755)
                scratch.rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.release()
    return final
