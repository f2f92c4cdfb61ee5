"""Let the host write an input in the order that its first consumer wants, instead of copying it on the core."""

from dataclasses import replace
from typing import Any

import numpy as np

from tritloom.compiler.ir.program import Copy, Operation, Program, Tensor

__all__ = ["fold_input_copies"]


def fold_input_copies(program: Program) -> Program:
    """Remove every Copy of an input tensor that nothing else reads."""
    outputs = {spec.tensor for spec in program.outputs}
    operations, inputs, tensors = list(program.operations), list(program.inputs), dict(program.tensors)
    for position, spec in enumerate(inputs):
        readers = [operation for operation in operations if spec.tensor in operation.inputs]
        if (
            len(readers) != 1
            or not isinstance(readers[0], Copy)
            or spec.tensor in outputs
            or sum(s.tensor == spec.tensor for s in inputs) > 1
        ):
            continue
        copy = readers[0]
        index = copy.index if spec.index is None else np.asarray(spec.index).ravel()[copy.index]
        identity = np.array_equal(index, np.arange(len(index))) and tensors[spec.tensor].elements == len(index)
        # The tensor keeps the name of the value that the model quantises.
        tensors[spec.tensor] = replace(tensors.pop(copy.output), name=spec.tensor)
        inputs[position] = replace(spec, index=None if identity else index)
        operations = [_renamed(operation, copy.output, spec.tensor) for operation in operations if operation is not copy]
    final = tuple(replace(spec, tensor=_new_name(spec.tensor, program, tensors)) for spec in program.outputs)
    return replace(program, operations=tuple(operations), inputs=tuple(inputs), tensors=tensors, outputs=final)


def _renamed(operation: Operation, old: str, new: str) -> Operation:
    fields: dict[str, Any] = {name: new for name in ("input", "left", "right") if getattr(operation, name, None) == old}
    return replace(operation, **fields) if fields else operation


def _new_name(tensor: str, before: Program, tensors: dict[str, Tensor]) -> str:
    """Where an output reads a copy that was folded into an input: the input's tensor."""
    if tensor in tensors:
        return tensor
    return next(operation.input for operation in before.operations if isinstance(operation, Copy) and operation.output == tensor)
