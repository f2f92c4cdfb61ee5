"""ONNX bytes to an integer program: reading, checking, symbolic execution of the float graph, exact quantisation."""

from tritloom.compiler.frontend.lowering import Lowering, check, lower
from tritloom.compiler.frontend.problems import CheckReport, Lowered, Problem
from tritloom.compiler.frontend.registry import Operator, supported_operators
from tritloom.compiler.frontend.sizes import Sizes, with_sizes

__all__ = ["CheckReport", "Lowered", "Lowering", "Operator", "Problem", "Sizes", "check", "lower", "supported_operators", "with_sizes"]
