"""Text for character language models, from what every Python has: the help topics of ``pydoc`` and the sources of the standard library.

The text is that of the running Python, so results belong to one version of it.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritloom.errors import UserError

__all__ = ["CORPORA", "Text", "load"]

CORPORA = ("topics", "library")


@dataclass(frozen=True)
class Text:
    """Character codes int64: ``alphabet[code]`` is the character; the last tenth of the text is held out."""

    alphabet: str
    train: np.ndarray
    held_out: np.ndarray


def load(corpus: str = "topics", *, characters: int | None = None) -> Text:
    """The first ``characters`` of a corpus, or all of it.

    ``topics``: the topics in the order of their names. ``library``: the modules of the standard library's first level, in the order of their names.
    Raises :class:`UserError` for another name, or for fewer than 10 characters.
    """
    if corpus not in CORPORA:
        raise UserError(f"corpus must be one of {', '.join(CORPORA)}, not {corpus!r}")
    if characters is not None and characters < 10:
        raise UserError(f"characters must be 10 or more, not {characters}")
    text = (_topics() if corpus == "topics" else _library())[:characters]
    alphabet = "".join(sorted(set(text)))
    codes = np.searchsorted(np.array([ord(letter) for letter in alphabet]), np.frombuffer(text.encode("utf-32-le"), "<u4")).astype(np.int64)
    cut = len(codes) - len(codes) // 10
    return Text(alphabet, codes[:cut], codes[cut:])


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
