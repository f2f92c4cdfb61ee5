"""Inference in the call shapes of ONNX Runtime."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tritloom.boards import get_board
from tritloom.compiled import DEFAULT_BOARD, CompiledModel, Source, open_model
from tritloom.compiler.golden import Stream, dequantise_outputs, quantise_inputs
from tritloom.compiler.ir.program import InputSpec, OutputSpec, Tensor
from tritloom.errors import MissingToolError, UserError
from tritloom.sim.backends import Backend, open_backend
from tritloom.sim.stream import CoreStream

__all__ = ["PROVIDERS", "InferenceSession", "NodeArg", "Quantisation"]

PROVIDERS = ("golden", "amaranth", "verilator", "netlist", "bitstream")
"""What can run a program: the NumPy definition, two simulators of the core's gateware, and what synthesis and a whole build make of it for a board."""

_TYPES = {"float32": "tensor(float)", "float64": "tensor(double)", "float16": "tensor(float16)"}


@dataclass(frozen=True)
class Quantisation:
    """Grid of an integer tensor: ``real = scale * (code - zero_point)``, one entry or one a channel."""

    scale: tuple[Fraction, ...]
    zero_point: tuple[int, ...]
    bits: int
    low: int
    high: int


@dataclass(frozen=True)
class NodeArg:
    """A graph input or output as ONNX Runtime describes it, with the grid of its integer tensor."""

    name: str
    shape: list[int | str]
    type: str
    quant: Quantisation


class InferenceSession:
    """Runs a compiled model. Providers never fall back silently.

    Parameters
    ----------
    program
        A :class:`tritloom.CompiledModel`, the path of a ``.loom`` file or of an ONNX model, or the bytes of either.
    sess_options
        Only ``None``: there are no session options.
    providers
        Names from :data:`PROVIDERS`, or pairs of a name and its options. When several are listed, the first whose tools are
        installed is used, and :meth:`get_providers` tells which.
    provider_options
        One mapping a provider; the only option is ``board``, whose core is simulated (default ``sim``).
    progress
        Called with a few words now and then while a simulator is built, and during long batches.

    Raises :class:`UserError`, :class:`ModelError`, or :class:`MissingToolError` when no listed provider can run.
    """

    def __init__(
        self,
        program: CompiledModel | Source,
        sess_options: None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if sess_options is not None:
            raise UserError("sess_options must be None; tritloom has no session options")
        if isinstance(providers, str | os.PathLike):
            raise UserError(f"providers must be a list of names, not {providers!r}; write [{providers!r}]")
        wanted = _wanted(providers if providers is not None else ["golden"], provider_options)
        self._model = open_model(program)
        self._cycles: int | None = None
        self._provider, self._backend = self._open(wanted, progress)

    def _open(self, wanted: list[tuple[str, str]], progress: Callable[[str], None] | None) -> tuple[str, Backend]:
        missing: MissingToolError | None = None
        for name, board in wanted:
            try:
                digest = bytes.fromhex(self._model.digest)
                # Only golden runs what no core can: every other provider gets the sentence that says why.
                unscheduled = name == "golden" and get_board(board) and self._model.golden_only
                schedule = None if unscheduled else self._model.schedule(board)
                return name, open_backend(name, self._model.program, schedule, board=board, digest=digest, progress=progress)
            except MissingToolError as error:
                missing = missing or error
        if missing is None:
            raise UserError(f"providers must name at least one of {', '.join(PROVIDERS)}")
        raise missing

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray], run_options: None = None) -> list[np.ndarray]:
        """Outputs for a batch of inputs; the first axis of every array is the batch, whatever batch the model declares.

        Inputs that the model declares although nothing in it reads them may be given, and are ignored.
        Raises :class:`UserError` (a :class:`ValueError`) for missing, unknown, misshapen or non-finite inputs.
        """
        if run_options is not None:
            raise UserError("run_options must be None; tritloom has no run options")
        known = [spec.name for spec in self._model.program.outputs]
        names = list(output_names) if output_names else known
        for name in names:
            if name not in known:
                raise UserError(f"the model has no output {name!r}; its outputs are {', '.join(known)}")
        if self._model.program.states:
            outputs = self._run_tokens(input_feed)
            return [outputs[name] for name in names]
        unread = self._model.unread_inputs
        codes = quantise_inputs(self._model.program, {name: array for name, array in input_feed.items() if name not in unread})
        tensors, self._cycles = self._backend.run(codes)
        outputs = dequantise_outputs(self._model.program, tensors)
        return [outputs[name] for name in names]

    def _run_tokens(self, input_feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Whole sequences (N, S) of tokens from empty caches; outputs (N, S, size). The caches are not handed out."""
        program = self._model.program
        (given,) = program.inputs
        tokens = np.asarray(input_feed[given.name]) if set(input_feed) == {given.name} else None
        if tokens is None or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise UserError(f"a language model takes {given.name!r} alone, integers of shape (sequences, tokens): its caches begin empty")
        context = self.context
        if not 1 <= tokens.shape[1] <= context:
            raise UserError(f"{given.name!r} has {tokens.shape[1]} tokens; from 1 to {context} fit the caches (--context)")
        if self._provider == "golden":
            stream = Stream(program, len(tokens))
            steps = [stream.step(column) for column in tokens.T]
            return {spec.name: np.stack([step[spec.name] for step in steps], axis=1) for spec in program.outputs}
        rows, self._cycles = [], 0
        for row in tokens:
            stream = self._backend.stream()
            rows.append([stream.step(token[None]) for token in row])
            self._cycles += stream.cycles or 0
        return {spec.name: np.stack([np.concatenate([step[spec.name] for step in row]) for row in rows]) for spec in program.outputs}

    @property
    def context(self) -> int:
        """Tokens that the caches of a language model hold; 0 for another model."""
        program = self._model.program
        return program.tensors[program.states[0].tensor].high + 1 if program.states else 0

    def stream(self) -> "Stream | CoreStream":
        """A sequence of a language model, token by token, from empty caches; one at a time."""
        if not self._model.program.states:
            raise UserError("the model keeps nothing from run to run, so it has no stream; use run")
        return self._backend.stream()

    @property
    def model(self) -> CompiledModel:
        return self._model

    @property
    def last_cycles(self) -> int | None:
        """Clock cycles from start to done in the last :meth:`run`, summed over its batch; ``None`` before it.

        The simulated core counts them; golden reports what the schedule says, and ``None`` for a model that no core can run yet.
        """
        return self._cycles

    def get_providers(self) -> list[str]:
        return [self._provider]

    def get_inputs(self) -> list[NodeArg]:
        # A model may quantise one input on several grids: it is listed once.
        return [self._describe(spec) for spec in {spec.name: spec for spec in self._model.program.inputs}.values()]

    def get_outputs(self) -> list[NodeArg]:
        return [self._describe(spec) for spec in self._model.program.outputs]

    def _describe(self, spec: InputSpec | OutputSpec) -> NodeArg:
        tensor: Tensor = self._model.program.tensors[spec.tensor]
        grid = Quantisation(tensor.scale, tensor.zero_point, tensor.bits, tensor.low, tensor.high)
        return NodeArg(spec.name, list(spec.shape), _TYPES.get(spec.dtype, f"tensor({spec.dtype})"), grid)


def _wanted(
    providers: Sequence[str | tuple[str, Mapping[str, Any]]], provider_options: Sequence[Mapping[str, Any]] | None
) -> list[tuple[str, str]]:
    """Names and boards of the listed providers, checked."""
    if provider_options is not None and len(provider_options) != len(providers):
        raise UserError(f"provider_options must have one entry a provider, {len(providers)}, not {len(provider_options)}")
    wanted = []
    for index, entry in enumerate(providers):
        name, options = (entry, {}) if isinstance(entry, str) else (entry[0], dict(entry[1]))
        if provider_options is not None:
            options = {**options, **provider_options[index]}
        if name not in PROVIDERS:
            raise UserError(f"provider must be one of {', '.join(PROVIDERS)}, not {name!r}")
        unknown = sorted(set(options) - {"board"})
        if unknown:
            raise UserError(f"provider {name!r} has no option {unknown[0]!r}; its only option is 'board'")
        wanted.append((name, str(options.get("board", DEFAULT_BOARD))))
    return wanted
