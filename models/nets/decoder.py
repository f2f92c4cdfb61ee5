"""Decoder language models as data: the dimensions of one, and those of published models; needs no PyTorch.

Three blocks, all with causal attention, grouped queries and rotary positions (RoPE, arXiv 2104.09864):

- ``llama`` (arXiv 2302.13971): ``h = x + Wo A(N1 x)``, ``out = h + W2 (SiLU(W1 v) * W3 v)`` with ``v = N2 h``; root-mean-square norms with a gain, no biases.
- ``bitnet`` (arXiv 2504.12285): the same with ``ReLU(W1 v) ** 2`` and one more norm in front of Wo and of W2 (SubLN).
- ``drna``: both branches read the block's input, ``out = x + Wo A(N1 x) + W2 (SiLU(W1 v) * W3 v)`` with ``v = N2 x``; layer norms with gain and bias, biases in the
  four projections of the attention and in the head. Its rotation has angles of its own for each element, ``theta[s, i] + pi * tanh(k[s - 1, i])``: the static angle and
  the key of the token before (0 at the start). The two elements of a pair turn by different angles, so that the norm of a vector changes.

A head of ``width / heads`` elements has the static angles ``s * base ** (-2 j / head_size)`` for its pair ``j`` at position ``s``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tritloom.errors import UserError

__all__ = ["BLOCKS", "PRESETS", "ROTATIONS", "Decoder", "angles"]

BLOCKS = ("llama", "bitnet", "drna")

ROTATIONS = ("half", "interleaved")
"""A pair of RoPE is the elements ``j`` and ``j + head_size / 2``, or ``2 j`` and ``2 j + 1``."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Dimensions of a language model. Raises :class:`UserError` for those that make no network.

    Parameters
    ----------
    vocabulary
        Tokens.
    width
        Elements of a token between the blocks.
    layers
        Blocks.
    heads, kv_heads
        Heads of queries, and of keys and values; ``heads / kv_heads`` queries share a key.
    hidden
        Elements between the layers of the gated perceptron.
    block
        One of :data:`BLOCKS`.
    context
        Positions that there are.
    rotation
        One of :data:`ROTATIONS`; a ``drna`` block has halves.
    base
        Of the angles.
    tied
        The head is the table of embeddings.
    epsilon
        Of the norms.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    kv_heads: int = 0
    block: str = "llama"
    context: int = 64
    rotation: str = "half"
    base: float = 10_000.0
    tied: bool = False
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.block not in BLOCKS:
            raise UserError(f"block must be one of {', '.join(BLOCKS)}, not {self.block!r}")
        if self.rotation not in ROTATIONS:
            raise UserError(f"rotation must be one of {', '.join(ROTATIONS)}, not {self.rotation!r}")
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "hidden", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise UserError(
                f"width must be a multiple of twice the heads, so that a head has pairs to rotate; {self.width} is none of {2 * self.heads}"
            )
        if self.heads % self.kv_heads:
            raise UserError(f"heads must be a multiple of kv_heads, but {self.heads} is none of {self.kv_heads}")
        if self.block == "drna" and self.rotation != "half":
            raise UserError("a drna block rotates halves: take rotation = 'half'")

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Elements of a token's keys, and of its values."""
        return self.kv_heads * self.head_size

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The dense layers of a block; their weights are (outputs, inputs)."""
        return ("query", "key", "value", "output", "gate", "up", "down")


def angles(decoder: Decoder) -> np.ndarray:
    """Static angles in radians, float64 (context, head_size / 2)."""
    pairs = np.arange(decoder.head_size // 2)
    return np.arange(decoder.context)[:, None] * decoder.base ** (-2.0 * pairs / decoder.head_size)


PRESETS: Mapping[str, Decoder] = {
    "llama-small": Decoder(vocabulary=100, width=128, layers=3, heads=4, hidden=256),
    "bitnet-small": Decoder(vocabulary=100, width=128, layers=3, heads=4, kv_heads=1, hidden=256, block="bitnet", context=192),
    "drna-small": Decoder(vocabulary=100, width=128, layers=3, heads=4, hidden=256, block="drna", epsilon=1e-8),
    "bitnet-2b4t": Decoder(
        vocabulary=128_256,
        width=2560,
        layers=30,
        heads=20,
        kv_heads=5,
        hidden=6912,
        block="bitnet",
        context=4096,
        base=500_000.0,
        tied=True,
    ),
    "quest-30m": Decoder(vocabulary=32_000, width=640, layers=6, heads=5, hidden=1792, context=512, rotation="interleaved"),
    "quest-50m": Decoder(vocabulary=32_000, width=768, layers=7, heads=6, hidden=2048, context=512, rotation="interleaved"),
    "quest-100m": Decoder(vocabulary=32_000, width=1024, layers=8, heads=8, hidden=2816, context=512, rotation="interleaved"),
    "drna": Decoder(vocabulary=65_536, width=256, layers=16, heads=8, hidden=1024, block="drna", context=256, epsilon=1e-8),
}
"""Small ones for a CPU, and published ones: BitNet b1.58 2B4T (arXiv 2504.12285), QuEST (arXiv 2502.05003; heads of 128), D-RNA."""
