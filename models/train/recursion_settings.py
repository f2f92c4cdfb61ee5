"""Everything that decides the result of the training of a Tiny Recursive Model; needs no PyTorch."""

from dataclasses import dataclass

from tritloom.errors import UserError
from tritloom.models.data.puzzles import PUZZLES
from tritloom.models.nets.recursion import PRESETS
from tritloom.models.train.base_settings import AnySettings

__all__ = ["RECURSION_METHODS", "RecursionSettings"]

RECURSION_METHODS = ("float", "bitnet", "twn", "twn-tensor", "int8", "int4")


@dataclass(frozen=True)
class RecursionSettings(AnySettings):
    """One training of a Tiny Recursive Model. Raises :class:`UserError` for values that make no sense.

    An epoch is ``steps`` steps of the optimiser. ``decay`` is that of the running mean of the weights, which is what is exported. ``puzzles`` are generated for training,
    and ``held_out`` others; 0 for as many as suits the data.
    """

    method: str
    net: str = "trm-sudoku4"
    data: str = "sudoku4"
    seed: int = 0
    epochs: int = 30
    steps: int = 50
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    decay: float = 0.99
    puzzles: int = 0
    held_out: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", RECURSION_METHODS), ("net", tuple(PRESETS)), ("data", PUZZLES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} of a recursive network must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        self.check_ranges(
            ("seed", 0, 2**62 - 1), ("epochs", 1, 100_000), ("steps", 1, 100_000), ("batch", 1, 100_000), ("learning_rate", 1e-9, 10),
            ("weight_decay", 0, 10), ("decay", 0, 0.99999), ("puzzles", 0, 10_000_000), ("held_out", 0, 1_000_000),
        )  # fmt: skip

    @property
    def name(self) -> str:
        parts = [self.net] if self.net.endswith(self.data) else [self.net, self.data]
        return "_".join(parts + [self.method] * (self.method != "bitnet")).replace("-", "_")
