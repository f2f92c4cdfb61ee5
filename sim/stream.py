"""A language model on a core, token by token: the states stay in its memory."""

import numpy as np

from tritloom.boards.host import Host
from tritloom.compiler.golden import stream_outputs, token_codes
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule

__all__ = ["CoreStream"]


class CoreStream:
    """One sequence on a core; its states begin as zeros.

    Parameters
    ----------
    host
        Driver of a core on which ``schedule`` is loaded.
    program, schedule
        A program with states, and one input: a token a run.
    """

    def __init__(self, host: Host, program: Program, schedule: Schedule) -> None:
        self._host, self._program, self._schedule = host, program, schedule
        self.tensors: dict[str, np.ndarray] = {}
        """Every tensor of the last :meth:`trace`, (1, C, H, W)."""
        self.cycles: int = 0
        """The core's clocks of all runs."""
        host.clear(schedule, [state.tensor for state in program.states])

    def step(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32 (1, size), of the next token, int (1,). Raises :class:`UserError` for a token that the model does not know."""
        names = {name for spec in self._program.outputs for name in (spec.tensor, spec.scale_tensor) if name}
        tensors, cycles = self._host.infer(self._schedule, self._inputs(tokens), sorted(names))
        self.cycles += cycles
        return stream_outputs(self._program, {name: values[None] for name, values in tensors.items()})

    def trace(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The same, stopping after every layer to read its tensors into :attr:`tensors`."""
        tensors, cycles = self._host.trace(self._schedule, self._program, self._inputs(tokens))
        self.cycles += cycles
        self.tensors = {name: values[None] for name, values in tensors.items()}
        return stream_outputs(self._program, self.tensors)

    def _inputs(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return {self._program.inputs[0].tensor: token_codes(self._program, tokens, 1)[0]}
