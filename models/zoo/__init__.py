"""Models trained by this project, ready to compile.

>>> from tritloom.models.zoo import path
>>> path("digits_cnn_twn").name
'digits_cnn_twn.onnx'
"""

from pathlib import Path

from tritloom.errors import UserError

__all__ = ["names", "path", "properties"]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.onnx"))


def path(name: str) -> Path:
    """Path of the ONNX file of a model. Raises :class:`UserError` for an unknown name."""
    if name not in names():
        raise UserError(f"the zoo has no model {name!r}; it has: {', '.join(names())}")
    return _FOLDER / f"{name}.onnx"


def properties(name: str) -> dict[str, str]:
    """What the file of a model says of itself, in its order: training command, seed, method, data, accuracy. Raises :class:`UserError` for an unknown name."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path(name)).metadata_props}
