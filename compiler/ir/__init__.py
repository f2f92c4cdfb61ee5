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
    State,
    StepFunction,
    SumPool,
    Tensor,
    Window,
)
from tritloom.compiler.ir.vector import GoldenOperation, MatrixProduct, Normalise, Product, Softmax, VectorOperation, obstacles

__all__ = [
    "Add", "Convolution", "Copy", "GoldenOperation", "HostOp", "InputSpec", "MatrixProduct", "MaxPool", "Normalise", "Operation", "OutputSpec", "Product",
    "Program", "Proof", "Rescale", "Softmax", "State", "StepFunction", "SumPool", "Tensor", "VectorOperation", "Window", "obstacles",
]  # fmt: skip
