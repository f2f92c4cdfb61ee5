"""``tritloom check``: can the model be compiled, and if not, what must change."""

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, ModelArgument, QuietOption, ShapeOption, VerboseOption, sizes_of

__all__ = ["check"]


def check(
    model: ModelArgument, shape: ShapeOption = None, json: JsonOption = False, verbose: VerboseOption = 0, quiet: QuietOption = 0
) -> None:
    """Say whether a model is supported; lists every offending node at once.

    Exits with 1 when the model is not supported.

    [bold]Examples[/bold]

    tritloom check model.onnx

    tritloom check model.onnx --json | jq .problems
    """
    from dataclasses import asdict

    from tritloom.compiler.frontend import check as check_model
    from tritloom.compiler.frontend import with_sizes
    from tritloom.errors import ModelError
    from tritloom.files import read_bytes

    console = Console(json=json, verbose=verbose, quiet=quiet)
    data = read_bytes(model, "model")
    sizes = sizes_of(shape)
    try:
        if sizes:
            data = with_sizes(data, sizes, model.stem)
        report = check_model(data, name=model.stem)
    except ModelError as error:
        problem = {
            "node": "",
            "op": "",
            "reason": str(error),
            "hint": "export the model again with torch.onnx.export or another ONNX exporter",
        }
        console.say(f"{model.name}: {error}")
        console.result({"supported": False, "problems": [problem], "layers": []})
        raise typer.Exit(1) from error
    if report.supported:
        console.say(f"{model.name}: supported")
        wanted = report.facts["calibration_needed_for"]
        if wanted:
            grids = "1 tensor without a quantiser" if len(wanted) == 1 else f"{len(wanted)} tensors without a quantiser"
            console.say(f"{grids}: give samples of the inputs to compile with --calibration samples.npz")
    else:
        console.say(f"{model.name}: not supported, {len(report.problems)} problem{'s' if len(report.problems) != 1 else ''}")
        rows = [(problem.node, problem.op, problem.reason, problem.hint) for problem in report.problems]
        console.table("", ("node", "operator", "reason", "nearest supported form"), rows)
    only = [layer["name"] for layer in report.layers if layer["runs"] == "golden only"]
    if only:
        console.say(
            f"no core runs it yet, golden does: {len(only)} layer{'s' if len(only) != 1 else ''} that only golden can do, {', '.join(only)}"
        )
    for name, value in report.facts.items():
        console.say(f"{name}: {value}", level=1)
    if report.layers:
        columns = list(dict.fromkeys(key for layer in report.layers for key in layer))
        console.table("", columns, [[_plain(layer.get(column)) for column in columns] for layer in report.layers])
    problems = [asdict(problem) for problem in report.problems]
    console.result({"supported": report.supported, "problems": problems, "layers": report.layers, "facts": report.facts})
    if not report.supported:
        raise typer.Exit(1)


def _plain(value: object) -> object:
    return "x".join(str(item) for item in value) if isinstance(value, list | tuple) else value
