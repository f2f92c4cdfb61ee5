"""``tritloom compile``: ONNX model to ``.loom`` file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import (
    BiasCorrectionOption,
    BoardOption,
    CalibrationMethodOption,
    CalibrationOption,
    CompensationOption,
    ContextOption,
    JsonOption,
    LayersOption,
    MethodOption,
    ModelArgument,
    PercentileOption,
    QuietOption,
    ShapeOption,
    VerboseOption,
    sizes_of,
)
from tritloom.errors import UserError

__all__ = ["compile"]

_OBSTACLES = 4
"""Layers that no core can run of which each gets a sentence."""


def compile(
    model: ModelArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.loom", help="Default: the model's name.", show_default=False)
    ] = None,
    board: BoardOption = "sim",
    calibration: CalibrationOption = None,
    calibration_method: CalibrationMethodOption = "mse",
    percentile: PercentileOption = 99.99,
    no_bias_correction: BiasCorrectionOption = False,
    no_compensation: CompensationOption = False,
    method: MethodOption = "auto",
    planes: Annotated[
        str | None,
        typer.Option(
            "--planes",
            metavar="N|auto",
            help="Digit planes for float weights; auto: as few for each layer as --max-loss allows.",
            show_default=False,
        ),
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(metavar="1%", help="Points of top-1 accuracy that --planes auto may lose: 1% or 0.01.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="F.npz",
            help="The classes of the calibration samples, an array named labels, for --planes auto; default: in the calibration file.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --planes auto: a folder for planes.json, planes.svg and layers.toml.", show_default=False),
    ] = None,
    layers: LayersOption = None,
    shape: ShapeOption = None,
    context: ContextOption = None,
    activation_bits: Annotated[int, typer.Option(metavar="N", help="Width of activations that the model does not quantise, 2 to 8.")] = 8,
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="verilog",
            help="Also write the folder FILE-verilog: Verilog of the core, register map, memory images, test vectors, FuseSoC file, cocotb bench.",
            show_default=False,
        ),
    ] = None,
    divisor: Annotated[
        int | None,
        typer.Option(metavar="N", help="Clocks in a bit of the serial line of the Verilog, at least 4. Default: 4.", show_default=False),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Compile a model to ternary integers, with the proof of every step, and schedule it for a board.

    A model with a layer that no core can run yet gets no schedule, and runs with --on golden.

    [bold]Examples[/bold]

    tritloom compile quantised.onnx -o model.loom

    tritloom compile float.onnx -o model.loom --calibration samples.npz --planes 3

    tritloom compile float.onnx -o model.loom --calibration labelled.npz --planes auto --max-loss 1% --report report/

    tritloom compile quantised.onnx -o model.loom --board ulx3s-25f

    tritloom compile convolutional.onnx -o model.loom --shape image=1,3,64,64

    tritloom compile quantised.onnx -o model.loom --board icebreaker --emit verilog --divisor 24
    """
    from tritloom.cli.planes import automatic, plane_count, tell
    from tritloom.compiled import compile as compile_model
    from tritloom.report.exactness import exactness

    if emit not in (None, "verilog"):
        raise UserError(f"--emit must be verilog, not {emit!r}")
    if divisor is not None and emit is None:
        raise UserError("--divisor belongs to the serial line of the Verilog: add --emit verilog")
    if planes != "auto" and not (max_loss is None and labels is None and report is None):
        raise UserError("--max-loss, --labels and --report belong to --planes auto")
    if planes == "auto" and method != "auto":
        raise UserError("--planes auto chooses the method of each layer by itself: leave out --method, or name the layer in --layers")
    count = None if planes == "auto" else plane_count(planes)
    search = None
    console = Console(json=json, verbose=verbose, quiet=quiet)
    target = Path(f"{model.stem}.loom") if output is None else output
    folder = target.with_name(f"{target.stem}-verilog")
    with console.progress() as progress:
        progress.tell(f"compiling {model.name}")
        options = {
            "activation_bits": activation_bits,
            "calibration_method": calibration_method,
            "percentile": percentile,
            "bias_correction": not no_bias_correction,
            "context": context,
            "compensation": not no_compensation,
        }
        if planes == "auto":
            search = automatic(
                model,
                board=board,
                calibration=calibration,
                labels=labels,
                max_loss=max_loss,
                layers=layers,
                shapes=sizes_of(shape),
                options=options,
                progress=progress,
            )
            compiled = search.model
        else:
            compiled = compile_model(
                model,
                board=board,
                calibration=calibration,
                method=method,
                planes=count,
                layers=layers,
                shapes=sizes_of(shape),
                **options,
            )
        if emit is not None:
            from tritloom.emission import emit_verilog
            from tritloom.hw.link.uart import MIN_DIVISOR

            progress.tell("writing the core's Verilog")
            emit_verilog(compiled, folder, board=board, divisor=MIN_DIVISOR if divisor is None else divisor)
    compiled.save(target)
    told = {} if search is None else {"planes": tell(console, search, report)}
    for note in compiled.notes:
        console.say(note)
    fields = {"file": str(target), "board": board, "digest": compiled.digest, "golden_only": list(compiled.golden_only)}
    size = target.stat().st_size
    if compiled.golden_only:
        for sentence in compiled.golden_only[:_OBSTACLES]:
            console.say(sentence)
        if len(compiled.golden_only) > _OBSTACLES:
            console.say(f"and {len(compiled.golden_only) - _OBSTACLES} more such layers ('tritloom check' lists all)")
        console.say(f"wrote {target} ({size} bytes) without a schedule for {board}: it runs in golden, on no core yet")
        console.result({**fields, **told, "macs": None, "cycles": None, "notes": list(compiled.notes)})
        return
    schedule = compiled.schedule(board)
    console.table("", ("layer", "multiply-accumulates", "cycles"), [(layer.name, layer.macs, layer.cycles) for layer in schedule.layers])
    console.say(f"wrote {target} ({size} bytes) for {board}: {schedule.macs} multiply-accumulates in {schedule.cycles} cycles")
    fields |= {**told, "macs": schedule.macs, "cycles": schedule.cycles}
    if emit is not None:
        console.say(f"wrote {folder}: simulate it there with make (cocotb and Icarus Verilog) or make SIM=verilator")
        fields["verilog"] = str(folder)
    known = exactness(compiled.program)
    _say_proofs(console, known["layers"])
    console.result({**fields, "notes": list(compiled.notes), **known})


def _say_proofs(console: Console, layers: list[dict[str, Any]]) -> None:
    """How many step functions are proven exact, and each one that is not."""
    proofs = {layer["name"]: layer["proof"] for layer in layers if layer["proof"] is not None}
    exact = sum(proof["exact"] for proof in proofs.values())
    if proofs:
        reachable = sum(proof["reachable"] for proof in proofs.values())
        console.say(f"{exact} of {len(proofs)} step functions are proven exact, {reachable} reachable inputs compared")
    for name, proof in proofs.items():
        if not proof["exact"]:
            console.say(
                f"layer {name!r}: {proof['differing']} of {proof['reachable']} reachable inputs differ from the float graph, by {proof['largest']} at most"
            )
