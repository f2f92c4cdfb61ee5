"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BiasCorrectionOption", "BoardOption", "CalibrationMethodOption", "CalibrationOption", "JsonOption", "LayersOption", "LoomArgument", "MethodOption",
    "ModelArgument", "ModelOrLoomArgument", "PercentileOption", "PlanesOption", "QuietOption", "VerboseOption",
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
