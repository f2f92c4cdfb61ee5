"""``tritloom check``: can the model be compiled, and if not, what must change."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, ModelArgument, QuietOption, ShapeOption, VerboseOption, sizes_of

if TYPE_CHECKING:
    from tritloom.compiler.frontend import Problem

__all__ = ["check"]

_NAMED = 6
"""Layers that only golden can do and that are named above the table."""


def check(
    model: ModelArgument, shape: ShapeOption = None, json: JsonOption = False, verbose: VerboseOption = 0, quiet: QuietOption = 0
) -> None:
    """Say what a model is and whether it is supported; lists every offending node at once.

    Dialect, sizes, bits and zeros of the weights of each layer, and what runs on the core and what on the host.

    Exits with 1 when the model is not supported.

    [bold]Examples[/bold]

    tritloom check model.onnx

    tritloom check model.onnx --shape image=1,3,64,64

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
    count = len(report.problems)
    console.say(
        f"{model.name}: supported" if report.supported else f"{model.name}: not supported, {count} problem{'s' if count != 1 else ''}"
    )
    console.table("", ("model", model.name), _summary(report.facts))
    wanted = report.facts["calibration_needed_for"]
    if report.supported and wanted:
        grids = "1 tensor without a quantiser" if len(wanted) == 1 else f"{len(wanted)} tensors without a quantiser"
        console.say(f"{grids}: give samples of the inputs to compile with --calibration samples.npz")
    if report.problems:
        console.table("", ("node", "operator", "reason", "nearest supported form"), _by_advice(report.problems))
    only = [layer["name"] for layer in report.layers if layer["runs"] == "golden only"]
    if only:
        named = ", ".join([*only[:_NAMED], f"and {len(only) - _NAMED} more"] if len(only) > _NAMED else only)
        console.say(f"no core runs it yet, golden does: {len(only)} layer{'s' if len(only) != 1 else ''} that only golden can do, {named}")
    for name, value in report.facts.items():
        console.say(f"{name}: {value}", level=1)
    precision = {row["layer"]: row for row in report.facts["precision"]}
    if report.layers:
        columns = ("layer", "operation", "runs", "input", "output", "multiply-accumulates", "weights", "zeros", "activation bits")
        console.table("", columns, [_layer_row(layer, precision.get(layer["name"])) for layer in report.layers])
    elif precision:
        rows = [(name, _weights(row), f"{row['zeros']:.0%}") for name, row in precision.items()]
        console.table("", ("layer", "weights", "zeros"), rows)
    problems = [asdict(problem) for problem in report.problems]
    console.result({"supported": report.supported, "problems": problems, "layers": report.layers, "facts": report.facts})
    if not report.supported:
        raise typer.Exit(1)


def _summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model is, one line each."""
    rows: list[tuple[str, str]] = [
        ("dialect", " and ".join(facts["dialect"])),
        ("producer", facts["producer"] or "not stated"),
        ("opset", ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items()) + f"; file format {facts['ir_version']}"),
        ("inputs", _shapes(facts["inputs"])),
        ("outputs", _shapes(facts["outputs"])),
        ("nodes", str(facts["nodes"])),
        ("parameters", _grouped(facts["parameters"])),
    ]
    if facts["macs"] is not None:
        rows.append(("multiply-accumulates", _grouped(facts["macs"])))
    layers = facts["precision"]
    if layers:
        ternary = sum(1 for row in layers if row["ternary"])
        total = sum(row["weights"] for row in layers)
        zeros = sum(row["weights"] * row["zeros"] for row in layers) / max(1, total)
        kinds = sorted({_weights(row) for row in layers})
        rows.append(("weights", f"{', '.join(kinds)}; {ternary} of {len(layers)} layers ternary, {zeros:.0%} zeros"))
    if facts["runs"] is not None:
        for place, title in (("core", "runs on the core"), ("golden only", "runs in golden only")):
            if facts["runs"][place]:
                rows.append((title, ", ".join(f"{count} {kind}" for kind, count in facts["runs"][place].items())))
        steps = {f"before {name}": kinds for name, kinds in facts["runs"]["host"]["inputs"].items()}
        steps |= {f"behind {name}": kinds for name, kinds in facts["runs"]["host"]["outputs"].items()}
        rows.append(("runs on the host", "; ".join(f"{where}: {', '.join(kinds)}" for where, kinds in steps.items() if kinds)))
    return rows


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _shapes(shapes: Mapping[str, Sequence[object]]) -> str:
    return "; ".join(f"{name} ({', '.join(map(str, sizes))})" for name, sizes in shapes.items())


def _weights(row: Mapping[str, Any]) -> str:
    """Bits of a layer's weights in words."""
    bits = row["weight_bits"]
    if bits is None:
        return "float"
    return "bipolar" if bits == 1 else "ternary" if row["ternary"] else f"{bits} bits"


def _layer_row(layer: Mapping[str, Any], precision: Mapping[str, Any] | None) -> tuple[object, ...]:
    sizes = ("x".join(map(str, layer[side])) for side in ("input", "output"))
    if precision is None:
        return (layer["name"], layer["op"], layer["runs"], *sizes, layer["macs"], None, None, None)
    bits = f"{precision['input_bits']} to {'sums' if precision['output_bits'] > 8 else precision['output_bits']}"
    return (layer["name"], layer["op"], layer["runs"], *sizes, layer["macs"], _weights(precision), f"{precision['zeros']:.0%}", bits)


def _by_advice(problems: Sequence["Problem"]) -> list[tuple[str, str, str, str]]:
    """One row for each advice, with all nodes that it is for."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        rows.setdefault((problem.op, problem.reason, problem.hint), []).append(problem.node)
    return [(", ".join(nodes), op, reason, hint) for (op, reason, hint), nodes in rows.items()]
