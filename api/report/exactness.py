"""What is known of every integer of a compiled model: grids and where they come from, accumulators, and the proof of each step function."""

from typing import Any

from tritloom.compiler.ir.program import Convolution, Operation, Program, SumPool, Tensor
from tritloom.report.facts import proof_of, signed_bits

__all__ = ["exactness"]

_SOURCES = {
    "quantiser": "a quantiser of the model",
    "calibration": "calibration samples",
    "declared": "the declared integer type of the input",
    "accumulator": "sums of weights and codes",
}


def exactness(program: Program) -> dict[str, Any]:
    """Plain values for JSON: ``tensors`` in the program's order and ``layers`` in execution order.

    A tensor has ``name``, ``shape`` (channels, height, width), ``bits``, ``low`` and ``high`` (every code that can occur), ``scale`` (exact
    fractions as text) and ``zero_point`` (one, or one a channel), and ``range_from``. A layer has ``name``, ``output``, ``accumulator`` (``None``
    where nothing is summed; bounds proven from weights and codes over every order of digit planes, and the bits that hold them) and ``proof``
    (``None`` where codes are only moved or compared, or sums left as they are): ``exact``, ``reachable`` inputs looked at, how many ``differing``
    from the float graph in rational arithmetic, and the ``largest`` difference in codes.
    """
    return {
        "tensors": [_tensor(tensor) for tensor in program.tensors.values()],
        "layers": [_layer(operation) for operation in program.walk()],
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "bits": tensor.bits,
        "low": tensor.low,
        "high": tensor.high,
        "scale": [str(scale) for scale in tensor.scale],
        "zero_point": list(tensor.zero_point),
        "range_from": _SOURCES.get(tensor.source, tensor.source),
    }


def _layer(operation: Operation) -> dict[str, Any]:
    accumulator, proof = None, proof_of(operation)
    if isinstance(operation, Convolution | SumPool):
        low, high = operation.acc_low, operation.acc_high
        accumulator = {"low": low, "high": high, "bits": signed_bits(low, high)}
    known = None
    if proof is not None:
        known = {"exact": proof.exact, "reachable": proof.reachable, "differing": proof.differing, "largest": proof.largest}
    return {"name": operation.name, "output": operation.output, "accumulator": accumulator, "proof": known}
