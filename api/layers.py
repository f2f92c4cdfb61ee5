"""Which method and how many digit planes each layer gets: the file of ``compile --layers``, in TOML.

::

    [conv1]
    planes = 3

    ["/head/Gemm"]
    method = "twn"
"""

import json
import os
from collections.abc import Mapping

from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.errors import UserError
from tritloom.files import parse_toml, read_bytes

__all__ = ["format_layers", "read_layers"]


def read_layers(path: str | os.PathLike[str]) -> dict[str, WeightChoice]:
    """Choices by layer name. Raises :class:`UserError` for a file that is no TOML, and for keys and values that are not known."""
    shown = os.fspath(path)
    try:
        text = read_bytes(path, "layers file").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"layers file {shown!r} is not valid TOML: {error}") from error
    tables = parse_toml(text, f"layers file {shown!r}")
    choices = {}
    for layer, entries in tables.items():
        if not isinstance(entries, dict):
            raise UserError(
                f"layers file {shown!r}: {layer!r} must be a table such as [{json.dumps(layer)}] with planes or method below it"
            )
        unknown = sorted(set(entries) - {"method", "planes"})
        if unknown:
            raise UserError(f"layers file {shown!r}: layer {layer!r} has an unknown key {unknown[0]!r}; keys are method and planes")
        try:
            choices[layer] = WeightChoice(**entries)
        except UserError as error:
            raise UserError(f"layers file {shown!r}: layer {layer!r}: {error}") from None
    return choices


def format_layers(layers: Mapping[str, WeightChoice]) -> str:
    """The text that :func:`read_layers` reads."""
    parts = []
    for layer, choice in layers.items():
        # A JSON string is a TOML basic string, but for one control character.
        key = json.dumps(layer).replace("\x7f", "\\u007F")
        lines = [f"[{key}]", f'method = "{choice.method}"']
        parts.append("\n".join([*lines, *([f"planes = {choice.planes}"] if choice.planes is not None else []), ""]))
    return "\n".join(parts)
