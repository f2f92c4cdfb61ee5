"""Programs with states, run after run: a language model token by token."""

import numpy as np

from tritloom.compiler.golden.host import block_values
from tritloom.compiler.golden.integer import execute
from tritloom.compiler.ir.program import Program
from tritloom.errors import UserError

__all__ = ["Stream"]


class Stream:
    """One or several sequences, each with states of its own, that start as zeros.

    Parameters
    ----------
    program
        With states, and one input: a token a run.
    sequences
        How many are run at once.
    """

    def __init__(self, program: Program, sequences: int = 1) -> None:
        self._program, self._sequences = program, sequences
        self._states = {state.tensor: np.zeros((sequences, *program.tensors[state.tensor].shape), np.int32) for state in program.states}
        self.tensors: dict[str, np.ndarray] = {}
        """Every tensor of the last run, (sequences, C, H, W): int8 for codes, int32 for what is wider."""

    def step(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32 (sequences, size), of the next token of each sequence. Raises :class:`UserError` for a token that the model does not know."""
        (given,) = self._program.inputs
        tensor = self._program.tensors[given.tensor]
        codes = np.asarray(tokens)
        if codes.shape != (self._sequences,) or codes.dtype.kind not in "iu":
            raise UserError(f"tokens must be {self._sequences} integers, not {codes.dtype} {codes.shape}")
        if codes.size and (codes.min() < tensor.low or codes.max() > tensor.high):
            raise UserError(f"tokens must be from {tensor.low} to {tensor.high}, not {codes.min()}..{codes.max()}")
        tensors = {**self._states, given.tensor: codes.astype(np.int32)[:, None, None, None]}
        for operation in self._program.operations:
            execute(operation, self._program, tensors)
        self._states = {state.tensor: tensors[state.following] for state in self._program.states}
        self.tensors = tensors
        outputs = {}
        for spec in self._program.outputs:
            scales = tensors[spec.scale_tensor] if spec.scale_tensor else None
            values = block_values(tensors[spec.tensor], float(self._program.tensors[spec.tensor].scale[0]), scales)
            outputs[spec.name] = values.reshape(self._sequences, -1)[:, spec.index if spec.index is not None else slice(None)]
        return outputs
