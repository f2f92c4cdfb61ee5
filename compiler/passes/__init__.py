"""Rewrites of an integer program, one a file; each keeps what the program computes."""

from collections.abc import Callable

from tritloom.compiler.ir.program import Program
from tritloom.compiler.passes.flatten_inputs import flatten_inputs
from tritloom.compiler.passes.fold_input_copies import fold_input_copies
from tritloom.compiler.passes.fold_pads import fold_pads
from tritloom.compiler.passes.remove_unused import remove_unused

__all__ = ["PASSES", "flatten_inputs", "fold_input_copies", "fold_pads", "remove_unused"]

PASSES: tuple[Callable[[Program], Program], ...] = (fold_pads, remove_unused, fold_input_copies, flatten_inputs)
"""In the order in which the compiler runs them."""
