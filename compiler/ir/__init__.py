"""The integer program: what the front end produces, golden interprets and the schedule places on a core."""

from tritloom.compiler.ir.program import (
    Add,
    Convolution,
    Copy,
    HostOp,
    InputSpec,
    MaxPool,
    Operation,
    OutputSpec,
    Program,
    Proof,
    Rescale,
    StepFunction,
    SumPool,
    Tensor,
    Window,
)

__all__ = [
    "Add", "Convolution", "Copy", "HostOp", "InputSpec", "MaxPool", "Operation", "OutputSpec", "Program", "Proof", "Rescale", "StepFunction", "SumPool",
    "Tensor", "Window",
]  # fmt: skip
