"""Let a layer pad its input by itself, where what it reads is another tensor in a frame of one code (ONNX ``Pad``)."""

from dataclasses import replace

from tritloom.compiler.ir.program import Convolution, MaxPool, Operation, Program, Proof, StepFunction, SumPool, Tensor, Window
from tritloom.hw.arch.record import START_MIN, Record

__all__ = ["fold_pads", "identity_step"]

_IDENTITY = Record(START_MIN, 1, 0, 0)


def identity_step(channels: int, low: int, high: int) -> StepFunction:
    """The step function that gives back every code from ``low`` to ``high``."""
    proof = Proof(exact=True, reachable=(high - low + 1) * channels)
    return StepFunction(records=((_IDENTITY,),) * channels, low=low, high=high, proof=proof)


def fold_pads(program: Program) -> Program:
    """Read around every frame where the reader's own padding can stand for it; the frame itself goes when nothing reads it any more."""
    frames = {operation.output: operation for operation in program.operations if isinstance(operation, SumPool) and _is_frame(operation)}
    operations: list[Operation] = []
    for operation in program.operations:
        while isinstance(operation, Convolution | MaxPool | SumPool) and operation.input in frames:
            folded = _folded(operation, frames[operation.input], program.tensors)
            if folded is None:
                break
            operation = folded
        operations.append(operation)
    return replace(program, operations=tuple(operations))


def _is_frame(operation: SumPool) -> bool:
    window = operation.window
    steps = [step for _, step in operation.regions]
    return window == Window(pads=window.pads) and all(pieces == (_IDENTITY,) for step in steps for pieces in step.records)


def _folded(
    operation: Convolution | MaxPool | SumPool, frame: SumPool, tensors: dict[str, Tensor]
) -> Convolution | MaxPool | SumPool | None:
    """The operation on the tensor inside the frame, ``None`` where it would compute something else."""
    window = operation.window
    pads = tuple(own + outer for own, outer in zip(window.pads, frame.window.pads, strict=True))
    extent = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(window.dilations, window.kernel, strict=True)]
    wider = replace(window, pads=(pads[0], pads[1], pads[2], pads[3]))
    if isinstance(operation, MaxPool):
        # Outside its input a max-pool sees nothing: the frame must never be the largest code, nor all that a window sees.
        inside = all(max(pads[axis], pads[axis + 2]) < extent[axis] for axis in range(2))
        fits = inside and frame.pad_code <= tensors[frame.input].low
        return replace(operation, input=frame.input, window=wider) if fits else None
    if any(window.pads) and operation.pad_code != frame.pad_code:
        return None
    return replace(operation, input=frame.input, window=wider, pad_code=frame.pad_code)
