"""Operations on blocks for QuEST (arXiv 2502.05003): the Hadamard transform, and a grid by the root mean square. Rules in :mod:`tritloom.compiler.golden.quest`."""

from dataclasses import dataclass

from tritloom.compiler.ir.block import BlockOperation

__all__ = ["Hadamard", "QuantiseByDeviation"]


@dataclass(frozen=True, kw_only=True)
class Hadamard(BlockOperation):
    """Each ``size`` neighbouring channels times Sylvester's matrix of -1 and 1; ``size`` is a power of two that divides the channels."""

    input: str
    input_scale: str = ""
    size: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)


@dataclass(frozen=True, kw_only=True)
class QuantiseByDeviation(BlockOperation):
    """Codes of each pixel on a grid of ``levels`` steps, whose width is a multiple of the root mean square of the channels.

    ``ratio`` is ``sqrt(C)`` over the distance of two levels in root mean squares, as a scale (mantissa, exponent). With an odd number of levels codes are integers up to
    ``(levels - 1) / 2``; with an even one odd integers up to ``levels - 1``, and two levels are 2 apart.
    """

    input: str
    input_scale: str = ""
    levels: int
    ratio: tuple[int, int]

    @property
    def missing(self) -> str:
        steps = self.levels + self.levels % 2
        return "its vector unit limits codes to 2, 4, 8, ... or 3, 7, 15, ... levels" if steps & (steps - 1) else ""

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.input, self.input_scale) if name)
