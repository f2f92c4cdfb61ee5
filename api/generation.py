"""Text from a compiled language model, token by token."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from tritloom.compiler.frontend.reader import parse_proto
from tritloom.errors import ModelError, UserError
from tritloom.session import InferenceSession
from tritloom.sim.stream import CoreStream

__all__ = ["TextGenerator", "choose"]

_VOCABULARY = "vocabulary"
"""Entry of the model's metadata: a JSON list of the text of each token."""


def choose(logits: np.ndarray, *, temperature: float, top_k: int, rng: np.random.Generator) -> int:
    """The next token. ``temperature`` 0 takes the largest of ``logits`` (size,), the first of equal ones.

    Otherwise a token is drawn with probability ``exp(logit / temperature)``, among the ``top_k`` largest where ``top_k`` is not 0; equal ones count in their order.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    powers = np.exp(scaled - scaled[0])
    return int(order[np.searchsorted(np.cumsum(powers), rng.random() * powers.sum(), side="right").clip(max=len(order) - 1)])


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
        """``count`` tokens that follow ``prompt``, one after the other. The same arguments give the same tokens.

        Raises :class:`UserError` for an empty prompt, and for more tokens than the caches hold.
        """
        if not prompt:
            raise UserError("the prompt is empty; give at least one character")
        if len(prompt) + count > self.context:
            raise UserError(
                f"{len(prompt)} tokens of the prompt and {count} more do not fit the caches of {self.context}; ask for fewer, or compile with a larger --context"
            )
        if temperature < 0 or top_k < 0:
            raise UserError(f"temperature and top_k must not be negative, not {temperature!r} and {top_k!r}")
        return self._generated(prompt, count, temperature, top_k, np.random.default_rng(seed))

    def _generated(self, prompt: Sequence[int], count: int, temperature: float, top_k: int, rng: np.random.Generator) -> Iterator[int]:
        stream = self._session.stream()
        if isinstance(stream, CoreStream) and stream.generates and temperature == 0:
            for token in stream.generate(prompt, count):
                self.cycles = stream.cycles
                yield token
            return
        for token in prompt[:-1]:
            stream.step(np.array([token]))
        token, name = prompt[-1], self._program.outputs[0].name
        for _ in range(count):
            token = choose(stream.step(np.array([token]))[name][0], temperature=temperature, top_k=top_k, rng=rng)
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
