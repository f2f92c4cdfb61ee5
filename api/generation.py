"""Text from a compiled language model, token by token."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from tritloom.compiler.frontend.reader import parse_proto
from tritloom.compiler.golden import Sampler, logits_of, sampler
from tritloom.errors import ModelError, UserError
from tritloom.session import InferenceSession
from tritloom.sim.stream import CoreStream

__all__ = ["TextGenerator"]

_VOCABULARY = "vocabulary"
"""Entry of the model's metadata: a JSON list of the text of each token."""


class TextGenerator:
    """A language model with its vocabulary.

    Parameters
    ----------
    session
        Of an ONNX model with a cache of keys and values and the entry ``vocabulary`` in its metadata.

    Raises :class:`UserError` for a model of another kind, :class:`ModelError` for a vocabulary that does not fit.
    """

    def __init__(self, session: InferenceSession) -> None:
        model = session.model
        self._session = session
        if not model.program.states:
            raise UserError(
                "the model generates nothing: it has no cache of keys and values (inputs past_key_values.*); use 'tritloom run'"
            )
        self._program = model.program
        proto = parse_proto(model.source, "the ONNX model inside the compiled one")
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        self.vocabulary = _vocabulary(entries.get(_VOCABULARY), self._program.tensors[self._program.inputs[0].tensor].high + 1)
        self.cycles: int | None = None
        """The core's clocks so far in the last :meth:`generate`; ``None`` where no core computes."""
        self._numbers = {text: number for number, text in reversed(list(enumerate(self.vocabulary)))}
        self.context = self._program.tensors[self._program.states[0].tensor].high + 1

    def tokens(self, text: str) -> list[int]:
        """Numbers of the tokens of a text, at each place the longest that fits. Raises :class:`UserError` for characters that the model does not know."""
        longest, place, found = max(map(len, self.vocabulary)), 0, []
        while place < len(text):
            pieces = (text[place : place + size] for size in range(longest, 0, -1))
            piece = next((piece for piece in pieces if piece in self._numbers), None)
            if piece is None:
                raise UserError(f"the model does not know the character {text[place]!r}; it knows {''.join(sorted(self._numbers))!r}")
            found.append(self._numbers[piece])
            place += len(piece)
        return found

    def generate(self, prompt: Sequence[int], *, count: int, temperature: float = 0.0, top_k: int = 0, seed: int = 0) -> Iterator[int]:
        """``count`` tokens that follow ``prompt``, one after the other. The same arguments give the same tokens, on every backend.

        ``temperature`` 0 takes the likeliest, the first of equal ones; otherwise a token is drawn among the ``top_k`` likeliest (0: all), see :class:`tritloom.compiler.golden.Sampler`.

        Raises :class:`UserError` for an empty prompt, and for more tokens than the caches hold.
        """
        if not prompt:
            raise UserError("the prompt is empty; give at least one character")
        if len(prompt) + count > self.context:
            raise UserError(
                f"{len(prompt)} tokens of the prompt and {count} more do not fit the caches of {self.context}; ask for fewer, or compile with a larger --context"
            )
        return self._generated(prompt, count, sampler(self._program, temperature=temperature, top_k=top_k, seed=seed))

    def _generated(self, prompt: Sequence[int], count: int, drawn: Sampler | None) -> Iterator[int]:
        stream = self._session.stream()
        if isinstance(stream, CoreStream) and stream.generates:
            for token in stream.generate(prompt, count, drawn):
                self.cycles = stream.cycles
                yield token
            return
        for token in prompt[:-1]:
            stream.step(np.array([token]))
        token, name = prompt[-1], self._program.outputs[0].name
        for _ in range(count):
            logits = stream.step(np.array([token]))[name][0]
            token = int(np.argmax(logits)) if drawn is None else drawn.choose(*logits_of(self._program, stream.tensors))
            self.cycles = stream.cycles
            yield token


def _vocabulary(text: str | None, size: int) -> list[str]:
    """Raises :class:`UserError` where there is none, :class:`ModelError` for one that is no list of ``size`` texts."""
    if text is None:
        raise UserError("the model has no vocabulary: its ONNX metadata lack the entry 'vocabulary', a JSON list of the text of each token")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or len(entries) != size or not all(isinstance(entry, str) and entry for entry in entries):
        raise ModelError(f"the vocabulary in the model's metadata is no JSON list of {size} texts, one a token")
    return entries
