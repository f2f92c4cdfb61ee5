"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from tritloom.errors import UserError

__all__ = [
    "BiasCorrectionOption", "BoardOption", "CalibrationMethodOption", "CalibrationOption", "CompensationOption", "ContextOption", "JsonOption", "LayersOption", "LoomArgument", "MethodOption",
    "ModelArgument", "ModelOrLoomArgument", "PercentileOption", "PlanesOption", "QuietOption", "ShapeOption", "VerboseOption", "sizes_of",
]  # fmt: skip

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX model.", show_default=False)]
LoomArgument = Annotated[
    Path, typer.Argument(metavar="FILE.loom", help="Compiled model (an ONNX model is compiled first).", show_default=False)
]
ModelOrLoomArgument = Annotated[
    Path, typer.Argument(metavar="FILE.loom|MODEL", help="Compiled model, or an ONNX model to compile first.", show_default=False)
]
BoardOption = Annotated[str, typer.Option("--board", metavar="BOARD", help="Whose core to use; 'tritloom boards' lists them.")]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="F.npz",
        help="Samples of the inputs by name, for a model without quantisers of its own.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        help="Tokens that the caches of a language model hold. Default: 192, or as many as its tables of angles have.",
        show_default=False,
    ),
]
CalibrationMethodOption = Annotated[
    str,
    typer.Option(
        "--calibration-method",
        metavar="minmax|percentile|mse",
        help="How grids follow from the samples: all values inside, a share of them inside, or the smallest mean squared error.",
    ),
]
PercentileOption = Annotated[
    float, typer.Option("--percentile", metavar="P", help="Share of the values inside the grid for --calibration-method percentile.")
]
BiasCorrectionOption = Annotated[
    bool,
    typer.Option(
        "--no-bias-correction",
        help="Leave the mean error of ternarised weights over the samples in the sums; by default the biases take it out.",
    ),
]
CompensationOption = Annotated[
    bool,
    typer.Option(
        "--no-compensation",
        help="Round each float weight to its nearest code; by default the codes of a layer make up for one another's errors on the samples.",
    ),
]
LayersOption = Annotated[
    Path | None,
    typer.Option(
        "--layers", metavar="F.toml", help="Method and planes of single layers: a table for each, named like it.", show_default=False
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method", metavar="auto|twn|absmean|planes", help="How float weights become digits; integer weights always stay exact with auto."
    ),
]
PlanesOption = Annotated[int | None, typer.Option("--planes", metavar="N", help="Digit planes for float weights.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
VerboseOption = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for tracebacks.", show_default=False)]
QuietOption = Annotated[int, typer.Option("--quiet", "-q", count=True, help="Say less; twice for errors only.", show_default=False)]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="[NAME=]N,...",
        help="Sizes of an input, batch first, instead of those in the ONNX model; once for each input.",
        show_default=False,
    ),
]


def sizes_of(shapes: list[str] | None) -> dict[str, tuple[int | str, ...]]:
    """``NAME=1,32,32,3`` or ``1,32,32,3`` as axes by input name, the name empty where it is left out. Raises :class:`UserError`."""
    found: dict[str, tuple[int | str, ...]] = {}
    for text in shapes or ():
        name, equals, sizes = text.rpartition("=")
        words = [word.strip() for word in sizes.split(",")]
        if (equals and not name) or not all(words):
            raise UserError(f"--shape must be NAME=SIZES such as x=1,3,32,32, or SIZES alone, not {text!r}")
        if name in found:
            raise UserError(f"--shape names {f'input {name!r}' if name else 'the input'} twice; give each input once")
        found[name] = tuple(_size(word, text) for word in words)
    return found


def _size(word: str, text: str) -> int | str:
    if word.removeprefix("-").isascii() and word.removeprefix("-").isdigit():
        if len(word) > 18:
            raise UserError(f"--shape {text[:40]!r} has a size beyond all models")
        return int(word)
    if not word.isidentifier():
        raise UserError(f"--shape must be NAME=SIZES such as x=1,3,32,32, or SIZES alone, not {text!r}")
    return word
