"""A language model on a core, token by token: the states stay in its memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from tritloom.boards.host import Host
from tritloom.compiler.golden import Sampler, stream_outputs, token_codes
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule
from tritloom.errors import UserError

__all__ = ["TOGETHER", "CoreStream"]

TOGETHER = 8
"""Tokens between two looks of the host at what a core has generated."""


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
        # Attention goes over all earlier tokens, so each one adds as many clocks as the one before.
        self._first = schedule.cycles_at(0)
        self._further = schedule.cycles_at(1) - self._first
        self._position = 0
        self.tensors: dict[str, np.ndarray] = {}
        """Every tensor of the last :meth:`trace`, or the outputs of the last :meth:`step`, (1, C, H, W)."""
        self.cycles: int = 0
        """The core's clocks of all runs."""
        host.clear(schedule, [state.tensor for state in program.states])

    def step(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32 (1, size), of the next token, int (1,). Raises :class:`UserError` for a token that the model does not know."""
        names = {name for spec in self._program.outputs for name in (spec.tensor, spec.scale_tensor) if name}
        tensors, cycles = self._host.infer(self._schedule, self._inputs(tokens), sorted(names), clocks=self._clocks(1))
        self.cycles += cycles
        self._position += 1
        self.tensors = {name: values[None] for name, values in tensors.items()}
        return stream_outputs(self._program, self.tensors)

    def trace(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The same, stopping after every layer to read its tensors into :attr:`tensors`."""
        clocks = self._schedule.layer_cycles_at(self._position)
        tensors, cycles = self._host.trace(self._schedule, self._program, self._inputs(tokens), clocks=clocks)
        self.cycles += cycles
        self._position += 1
        self.tensors = {name: values[None] for name, values in tensors.items()}
        return stream_outputs(self._program, self.tensors)

    @property
    def generates(self) -> bool:
        """Whether the core can choose tokens by itself."""
        return self._schedule.generation is not None

    def generate(self, prompt: Sequence[int], count: int, sampler: Sampler | None = None) -> Iterator[int]:
        """``count`` tokens behind ``prompt``, chosen by the core, each the likeliest one or drawn as ``sampler`` says: it runs :data:`TOGETHER` tokens at a time on its own.

        Begins with empty states. Raises :class:`UserError` for a token that the model does not know.
        """
        for token in prompt:
            self._inputs(np.array([token]))
        if self._position:
            raise UserError("tokens are generated from empty states; open a new stream")
        self._host.write_tokens(self._schedule, prompt)
        if sampler is not None:
            self._host.draw_tokens(self._schedule, count=sampler.count, constant=sampler.constant, state=sampler.state)
        for first in range(0, count, TOGETHER):
            total = len(prompt) + min(first + TOGETHER, count) - 1
            tokens, cycles = self._host.generate(
                self._schedule, prompt=len(prompt), total=total, clocks=self._clocks(total - self._position)
            )
            self.cycles += cycles
            self._position = total
            yield from tokens[len(prompt) + first :]
        self._host.draw_tokens(self._schedule, count=0, constant=(0, 0), state=0)

    def _clocks(self, count: int) -> int:
        """Of the next ``count`` tokens."""
        return sum(self._first + self._further * (self._position + index) for index in range(count))

    def _inputs(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return {self._program.inputs[0].tensor: token_codes(self._program, tokens, 1)[0]}
