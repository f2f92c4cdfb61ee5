"""``tritloom import``: ternary weights that others trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

if TYPE_CHECKING:
    from tritloom.models.checkpoints import TernaryTensor

__all__ = ["import_"]


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face model, .safetensors or .gguf.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.onnx|FILE.npz", help="Default: NAME.onnx, named like the checkpoint.", show_default=False
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Only tensors of such names ('*.q_proj.*'); may be repeated.", show_default=False),
    ] = None,
    i2s: Annotated[
        str | None,
        typer.Option("--i2s", metavar="x86|arm", help="Processor on which a GGUF file with I2_S was made.", show_default=False),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = 0,
) -> None:
    """Take the ternary weights out of a checkpoint: BitNet of Hugging Face, or GGUF with TQ1_0, TQ2_0 or I2_S.

    The ONNX file multiplies with each matrix (input NAME.input, output NAME), its weights in INT2; the arrays are NAME.trits and NAME.scale. Nothing is
    rounded: a matrix that is not ternary is refused, but for embeddings and output heads, which are left out.

    [bold]Examples[/bold]

    tritloom import bitnet-b1.58-2B-4T -o bitnet.onnx

    tritloom import model.gguf --only 'blk.0.*' -o block0.npz
    """
    from tritloom.errors import UserError
    from tritloom.files import write_arrays, write_bytes
    from tritloom.models.checkpoints import LeftOut, arrays_of, read_checkpoint, weights_model

    console = Console(json=json, verbose=verbose, quiet=quiet)
    target = Path(f"{checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem}.onnx") if output is None else output
    if target.suffix not in (".onnx", ".npz"):
        raise UserError(f"output file {str(target)!r} must end in .onnx or .npz")
    taken: list[dict[str, Any]] = []
    left: list[LeftOut] = []

    def tensors() -> "Iterator[TernaryTensor]":
        for tensor in read_checkpoint(checkpoint, only=only or (), i2s=i2s):
            if isinstance(tensor, LeftOut):
                left.append(tensor)
                console.say(f"left out: {tensor.name} {list(tensor.shape)}: {tensor.reason}", level=1)
                continue
            scales = [float(tensor.scale.min()), float(tensor.scale.max())]
            taken.append(
                {"name": tensor.name, "shape": list(tensor.trits.shape), "stored": tensor.stored, "scales": tensor.scale.size, "scale": scales, "zeros": tensor.zeros}
            )  # fmt: skip
            yield tensor

    if target.suffix == ".onnx":
        model = weights_model(target.stem, tensors(), {"source": checkpoint.resolve().name})
        write_bytes(target, model.SerializeToString(deterministic=True))
    else:
        write_arrays(target, arrays_of(tensors()))
    console.table(
        "",
        ("tensor", "shape", "stored as", "scale", "zeros"),
        [
            (
                row["name"],
                " x ".join(map(str, row["shape"])),
                row["stored"],
                f"{row['scale'][0]:.6g}" if row["scales"] == 1 else f"{row['scale'][0]:.6g} .. {row['scale'][1]:.6g}, {row['scales']}",
                f"{row['zeros']:.1%}",
            )
            for row in taken
        ],
    )
    weights = sum(row["shape"][0] * row["shape"][1] for row in taken)
    console.say(f"wrote {target}: {len(taken)} matrices, {weights} weights; {len(left)} tensors left out{'' if not left else ', see -v'}")
    console.result(
        {
            "output": str(target),
            "tensors": taken,
            "left_out": [{"name": tensor.name, "shape": list(tensor.shape), "reason": tensor.reason} for tensor in left],
        }
    )
