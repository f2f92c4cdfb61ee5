"""Drop operations whose result nothing reads, and tensors that nothing writes."""

from dataclasses import replace

from tritloom.compiler.ir.program import Operation, Program

__all__ = ["remove_unused"]


def remove_unused(program: Program) -> Program:
    """Keep what the outputs depend on; inputs stay."""
    needed = {spec.tensor for spec in program.outputs}
    kept: list[Operation] = []
    for operation in reversed(program.operations):
        if operation.output in needed:
            kept.append(operation)
            needed.update(operation.inputs)
    kept.reverse()
    made = {spec.tensor for spec in program.inputs} | {operation.output for operation in kept}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in made}
    return replace(program, operations=tuple(kept), tensors=tensors)
