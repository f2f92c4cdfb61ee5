"""Give an input that only a dense layer reads one element a channel, so that every lane of the array has work."""

from dataclasses import replace

from tritloom.compiler.ir.program import Convolution, Program, Window

__all__ = ["flatten_inputs"]


def flatten_inputs(program: Program) -> Program:
    """Turn inputs (C, H, W) into (C * H * W, 1, 1) where every reader is a convolution whose kernel covers the whole of them."""
    outputs = {spec.tensor for spec in program.outputs}
    operations, tensors = list(program.operations), dict(program.tensors)
    for spec in program.inputs:
        tensor = tensors[spec.tensor]
        readers = [operation for operation in operations if spec.tensor in operation.inputs]
        dense = all(
            isinstance(operation, Convolution) and operation.window == Window(kernel=tensor.shape[1:]) and operation.groups == 1
            for operation in readers
        )
        if tensor.shape[1:] == (1, 1) or spec.tensor in outputs or not dense or len(tensor.scale) > 1 or len(tensor.zero_point) > 1:
            continue
        tensors[spec.tensor] = replace(tensor, shape=(tensor.elements, 1, 1))
        for position, operation in enumerate(operations):
            if isinstance(operation, Convolution) and operation.input == spec.tensor:
                weights = operation.weights.reshape(len(operation.weights), tensor.elements, 1, 1)
                operations[position] = replace(operation, weights=weights, window=Window())
    return replace(program, operations=tuple(operations), tensors=tensors)
