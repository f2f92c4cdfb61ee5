"""Sizes of Tiny Recursive Models, which training and the ONNX writer share; needs no PyTorch."""

from dataclasses import dataclass

import numpy as np

from tritloom.errors import UserError

__all__ = ["EMBEDDING_STEP", "EPSILON", "PRESETS", "Preset", "RecursiveShape"]

EPSILON = 1e-5
"""Added to the mean square in every norm."""

EMBEDDING_STEP = 1 / 32
"""Step of the embedding's int8 codes: whole steps of the states' grid, so that ``x`` is exact there."""


@dataclass(frozen=True)
class Preset:
    """What a network is whatever its puzzles: width ``dim``, ``prefix`` tokens, ``heads`` of attention (0: tokens are mixed by a SwiGLU), the
    ``multiple`` that inner widths are rounded up to, ``n`` updates of the latent state a cycle, ``cycles`` (T) a step, ``supervision`` steps."""

    dim: int
    prefix: int
    heads: int
    multiple: int
    n: int
    cycles: int
    supervision: int
    blocks: int = 2


PRESETS = {
    "trm-sudoku4": Preset(64, prefix=1, heads=0, multiple=64, n=3, cycles=2, supervision=6),
    "trm-small": Preset(128, prefix=1, heads=0, multiple=64, n=6, cycles=3, supervision=8),
    "trm-small-attention": Preset(128, prefix=1, heads=4, multiple=64, n=4, cycles=2, supervision=8),
    "trm-mlp": Preset(512, prefix=16, heads=0, multiple=256, n=6, cycles=3, supervision=16),
    "trm-attention": Preset(512, prefix=16, heads=8, multiple=256, n=4, cycles=3, supervision=16),
}
"""``trm-mlp`` (5.0 million parameters at 81 cells) and ``trm-attention`` (6.8 million) are those of the paper; the others train on a CPU."""


@dataclass(frozen=True)
class RecursiveShape(Preset):
    """A preset and its puzzles: ``cells`` symbols of ``symbols`` kinds in, as many out. Raises :class:`UserError` for sizes that make no sense."""

    cells: int = 16
    symbols: int = 5

    def __post_init__(self) -> None:
        least = {"prefix": 1, "heads": 0}
        for name, value in vars(self).items():
            if value < least.get(name, 1):
                raise UserError(f"{name} of a recursive network must be at least {least.get(name, 1)}, not {value}")
        if self.heads and self.dim % (2 * self.heads):
            raise UserError(f"dim must be an even multiple of heads, not {self.dim} with {self.heads} heads")

    @classmethod
    def of(cls, preset: Preset, cells: int, symbols: int) -> "RecursiveShape":
        return cls(**vars(preset), cells=cells, symbols=symbols)

    @property
    def tokens(self) -> int:
        return self.prefix + self.cells

    def inner(self, features: int) -> int:
        """Inner width of a SwiGLU: eight thirds of ``features``, rounded, and up to the next ``multiple``."""
        return -(-round(features * 8 / 3) // self.multiple) * self.multiple

    @property
    def state_step(self) -> float:
        """Step of the int16 grid of the states: a norm over ``k`` values leaves none above ``sqrt(k)``, and 16 or 32 is the grid's end."""
        return 1 / 2048 if max(self.dim, self.tokens) <= 256 else 1 / 1024

    def angles(self) -> np.ndarray:
        """Of the rotary positions of a head's first half, float64 (tokens, width / 2): ``position * 10000 ** (-i / (width / 2))``."""
        half = self.dim // self.heads // 2
        return np.outer(np.arange(self.tokens), 10_000.0 ** (-np.arange(half) / half))
