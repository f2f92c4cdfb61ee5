"""Settings of a language model's training, as a dataclass and as a TOML file; needs no PyTorch."""

from dataclasses import dataclass

from tritloom.errors import UserError
from tritloom.models.nets.decoder import BLOCKS, Decoder
from tritloom.models.nets.language_methods import Precision, precision
from tritloom.models.train.base_settings import AnySettings

__all__ = ["CORPUS_OF", "STEPS_PER_EPOCH", "LanguageSettings"]

STEPS_PER_EPOCH = 50
"""Text has no rows to pass over: an epoch is so many steps, each on random windows."""

CORPUS_OF = {"text": "topics", "text:topics": "topics", "text:library": "library"}
"""Corpus of :mod:`tritloom.models.data.text` by the name of the data."""


@dataclass(frozen=True)
class LanguageSettings(AnySettings):
    """One training of a decoder. Raises :class:`UserError` for values that make no sense.

    ``sequence`` is the length of a window and the number of positions that the model has. The learning rate rises for ``warmup`` steps and falls along a cosine to
    ``final_rate`` of itself; gradients are clipped to the norm ``clip``. ``width``, ``layers``, ``heads``, ``kv_heads``, ``hidden`` and ``rotation`` are those of
    :class:`~tritloom.models.nets.decoder.Decoder`; ``activations``, ``head``, ``embedding`` and ``cache`` those of
    :func:`~tritloom.models.nets.language_methods.precision`.
    """

    method: str
    net: str = "llama"
    data: str = "text"
    seed: int = 0
    epochs: int = 20
    batch: int = 32
    sequence: int = 64
    learning_rate: float = 2e-3
    warmup: int = 50
    final_rate: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
    hidden: int = 256
    rotation: str = "half"
    activations: str = "auto"
    head: str = "auto"
    embedding: str = "auto"
    cache: str = "auto"

    def __post_init__(self) -> None:
        if self.net not in BLOCKS:
            raise UserError(f"net of a language model must be one of {', '.join(BLOCKS)}, not {self.net!r}")
        if self.data not in CORPUS_OF:
            raise UserError(f"data of a language model must be one of {', '.join(CORPUS_OF)}, not {self.data!r}")
        for name, low, high in (
            ("seed", 0, 2**63 - 1), ("epochs", 1, 100_000), ("batch", 1, 10_000), ("sequence", 2, 4096), ("learning_rate", 1e-9, 10),
            ("warmup", 0, 1_000_000), ("final_rate", 0, 1), ("clip", 1e-6, 1e6), ("weight_decay", 0, 10), ("width", 2, 4096), ("layers", 1, 64),
            ("heads", 1, 64), ("kv_heads", 1, 64), ("hidden", 1, 16384),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} must lie in {low:g}..{high:g}, not {value}")
        self.decoder(2)
        self.precision  # noqa: B018 - refuses wrong choices

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * STEPS_PER_EPOCH

    @property
    def precision(self) -> Precision:
        """What is quantised."""
        return precision(self.method, activations=self.activations, head=self.head, embedding=self.embedding, cache=self.cache)

    def decoder(self, vocabulary: int) -> Decoder:
        """Dimensions of the network for so many tokens."""
        return Decoder(
            vocabulary=vocabulary, width=self.width, layers=self.layers, heads=self.heads, kv_heads=self.kv_heads, hidden=self.hidden,
            block=self.net, context=self.sequence, rotation=self.rotation, epsilon=1e-8 if self.net == "drna" else 1e-5,
        )  # fmt: skip

    @property
    def name(self) -> str:
        parts = ("charlm", self.method) if self.method.partition("-")[0] == self.net else ("charlm", self.net, self.method)
        return "_".join(parts).replace("-", "_").replace(".", "_")
