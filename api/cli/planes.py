"""``tritloom compile --planes auto``: its options, and what it says of the search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritloom.cli.console import Console, Progress
from tritloom.errors import UserError
from tritloom.planes import PlaneSearch

__all__ = ["automatic", "fraction", "plane_count", "tell"]


def plane_count(text: str | None) -> int | None:
    """``--planes`` as a number."""
    if text is not None and not text.lstrip("-").isdecimal():
        raise UserError(f"--planes must be a number of digit planes or auto, not {text!r}")
    return None if text is None else int(text)


def fraction(text: str) -> float:
    """``1%`` or ``0.01`` as 0.01."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UserError(f"--max-loss must be a share of the samples from 0 to below 1 such as 1% or 0.01, not {text!r}")
    return value


def automatic(
    model: Path,
    *,
    board: str,
    calibration: Path | None,
    labels: Path | None,
    max_loss: str | None,
    layers: Path | None,
    shapes: Mapping[str, Sequence[int | str]] | None,
    options: Mapping[str, Any],
    progress: Progress,
) -> PlaneSearch:
    """The search, on the user's files."""
    from tritloom.compiler.frontend import with_sizes
    from tritloom.compiler.frontend.calibrate import LABELS
    from tritloom.compiler.frontend.settings import Settings
    from tritloom.files import read_arrays, read_bytes
    from tritloom.layers import read_layers
    from tritloom.planes import choose_planes

    if max_loss is None:
        raise UserError("--planes auto needs to know how much accuracy it may lose: add --max-loss 1%")
    allowed = fraction(max_loss)
    if calibration is None:
        raise UserError("--planes auto needs labelled samples: add --calibration samples.npz with the inputs by name and an array 'labels'")
    data = read_bytes(model, "model")
    if shapes:
        data = with_sizes(data, shapes, model.stem)
    samples = read_arrays(calibration, "calibration file")
    if labels is None:
        if LABELS not in samples:
            raise UserError(f"calibration file '{calibration}' holds no array 'labels'; add it, or give --labels F.npz")
        answers = samples.pop(LABELS)
    else:
        answers = read_arrays(labels, "labels file").get(LABELS)
        if answers is None:
            raise UserError(f"labels file '{labels}' holds no array 'labels'; write it with numpy.savez(path, labels=array)")
    return choose_planes(
        data,
        name=model.stem,
        calibration=samples,
        labels=answers,
        max_loss=allowed,
        board=board,
        settings=Settings(layers={} if layers is None else read_layers(layers), **options),
        progress=progress,
    )


def tell(console: Console, search: PlaneSearch, report: Path | None) -> dict[str, Any]:
    """Print the table of points and the choice of each layer, write the report's files, give the JSON fields."""
    rows = [
        (
            "*" if point is search.chosen else "",
            point.name,
            f"{point.accuracy:.2%}",
            f"{search.loss(point):.2%}",
            point.cycles,
            point.weight_bytes,
        )
        for point in search.points
    ]
    columns = ("", "setting", "top-1", "loss", "cycles", "weight bytes")
    console.table(f"{len(search.points)} settings on {search.samples} samples, * is chosen", columns, rows)
    weights = search.weights
    console.table(
        "",
        ("layer", "method", "planes", "weight error", "why not fewer planes"),
        [
            (layer, choice.method, choice.planes, f"{weights[layer].error:.4f}", search.reasons.get(layer, "fewer there are not"))
            for layer, choice in search.chosen.layers.items()
        ],
    )
    console.say(
        f"float model {search.float_correct / search.samples:.2%} of {search.samples} samples in ONNX Runtime, "
        f"chosen {search.chosen.accuracy:.2%} in golden: it loses {search.loss(search.chosen):.2%} of at most {search.max_loss:.2%}"
    )
    fields = search.to_json()
    if report is not None:
        _write(search, fields, report)
        console.say(f"wrote planes.json, planes.svg and layers.toml in {report}")
    return fields


def _write(search: PlaneSearch, fields: dict[str, Any], folder: Path) -> None:
    import json

    from tritloom.files import write_bytes
    from tritloom.layers import format_layers
    from tritloom.report.scatter import accuracy_plot

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"report folder '{folder}' cannot be made: {error.strerror or error}") from error
    plot = accuracy_plot(search, f"{search.model.program.name}: digit planes for each layer")
    write_bytes(folder / "planes.json", (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(folder / "planes.svg", plot.encode())
    write_bytes(folder / "layers.toml", format_layers(search.chosen.layers).encode())
