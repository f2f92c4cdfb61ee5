"""What a report says of each layer, taken from the integer program and its schedule."""

from dataclasses import dataclass

import numpy as np

from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Proof, Rescale, SumPool
from tritloom.compiler.schedule import Schedule
from tritloom.hw.arch.trits import digit_planes

__all__ = ["LayerFacts", "layer_facts", "proof_of", "signed_bits"]

_KINDS = {
    "Convolution": "convolution",
    "MaxPool": "max pool",
    "SumPool": "average pool",
    "Rescale": "rescale",
    "Add": "add",
    "Copy": "copy",
}


@dataclass(frozen=True)
class LayerFacts:
    """One operation. ``trits`` counts the digits -1, 0 and 1 over all planes; ``accumulator`` are its proven bounds."""

    name: str
    kind: str
    shape: str
    bits: int
    planes: int | None
    method: str
    trits: tuple[int, int, int] | None
    accumulator: tuple[int, int] | None
    proof: Proof | None
    macs: int
    cycles: int
    utilisation: float

    @property
    def accumulator_bits(self) -> int | None:
        return None if self.accumulator is None else signed_bits(*self.accumulator)

    @property
    def sparsity(self) -> float | None:
        return None if self.trits is None else self.trits[1] / sum(self.trits)


def signed_bits(low: int, high: int) -> int:
    """Bits of the narrowest two's complement number that holds ``low`` to ``high``."""
    return max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1


def layer_facts(program: Program, schedule: Schedule) -> list[LayerFacts]:
    """Facts of every scheduled layer, in execution order."""
    facts = []
    for layer in schedule.layers:
        operation = program.operations[layer.operation]
        tensor = program.tensors[operation.output]
        convolution = operation if isinstance(operation, Convolution) else None
        dense = convolution is not None and convolution.is_dense(program.tensors[convolution.input].shape)
        facts.append(
            LayerFacts(
                name=layer.name,
                kind="dense" if dense else _KINDS[type(operation).__name__],
                shape=" x ".join(map(str, tensor.shape)),
                bits=tensor.bits,
                planes=convolution.planes if convolution else None,
                method=convolution.weight_method if convolution else "",
                trits=_trits(convolution) if convolution else None,
                accumulator=(operation.acc_low, operation.acc_high) if isinstance(operation, Convolution | SumPool) else None,
                proof=proof_of(operation),
                macs=layer.macs,
                cycles=layer.cycles,
                utilisation=float(layer.utilisation),
            )
        )
    return facts


def _trits(convolution: Convolution) -> tuple[int, int, int]:
    digits = digit_planes(convolution.weights, convolution.planes)
    return int(np.sum(digits == -1)), int(np.sum(digits == 0)), int(np.sum(digits == 1))


def proof_of(operation: Operation) -> Proof | None:
    """Proof of an operation's step function; that of all regions together for an average pool."""
    match operation:
        case Convolution(step=step):
            return step.proof if step else None
        case Rescale(step=step) | Add(step=step):
            return step.proof
        case SumPool(regions=regions):
            proofs = [step.proof for _, step in regions]
            return Proof(
                exact=all(proof.exact for proof in proofs),
                reachable=sum(proof.reachable for proof in proofs),
                differing=sum(proof.differing for proof in proofs),
                largest=max(proof.largest for proof in proofs),
            )
        case MaxPool() | Copy():
            return None
    return None
