"""Everything that decides the result of an evolution."""

from dataclasses import dataclass

from tritloom.errors import UserError
from tritloom.models.train.base_settings import AnySettings

__all__ = ["EVOLVED", "EvolutionSettings", "LayeredSettings", "RingSettings"]

EVOLVED = ("layered", "ring")
"""What can be evolved."""


@dataclass(frozen=True)
class EvolutionSettings(AnySettings):
    """What all evolutions have; an epoch is ``generations`` children. Raises :class:`UserError` for values that make no sense."""

    method: str = "evolve"
    net: str = "layered"
    data: str = "digits"
    seed: int = 0
    epochs: int = 48
    generations: int = 2_500

    @property
    def checkpoint(self) -> str:
        return "checkpoint.npz"

    def __post_init__(self) -> None:
        if self.method != "evolve":
            raise UserError(f"the net {self.net!r} has the method evolve, not {self.method!r}")
        if self.net not in EVOLVED:
            raise UserError(f"net of evolve must be one of {', '.join(EVOLVED)}, not {self.net!r}")
        self.check_ranges(("seed", 0, 2**62 - 1), ("epochs", 1, 100_000), ("generations", 1, 10_000_000))


@dataclass(frozen=True)
class LayeredSettings(EvolutionSettings):
    """A layered network for pictures.

    ``hidden`` units; ``margin`` is the lead in the logits beyond which a sample is learned. Every epoch sees ``batch`` training images (0: all) and as many
    distorted ones, by up to ``shift`` pixels, ``rotation`` radians and the share ``stretch``; none where all three are 0.
    """

    hidden: int = 128
    margin: int = 96
    batch: int = 0
    shift: float = 0.5
    rotation: float = 0.1
    stretch: float = 0.06

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ranges(
            ("hidden", 1, 4096),
            ("margin", 1, 1_000_000),
            ("batch", 0, 1_000_000),
            ("shift", 0, 32),
            ("rotation", 0, 3.2),
            ("stretch", 0, 0.9),
        )

    @property
    def name(self) -> str:
        return f"{self.data.partition(':')[0]}_evolved".replace("-", "_")


@dataclass(frozen=True)
class RingSettings(EvolutionSettings):
    """A ring for the addition of two signed numbers of ``width`` bits.

    ``weights`` a neuron, at most ``neurons`` neurons and ``ticks`` ticks; a child differs in up to ``changes`` mutations; ``tries`` rings evolve side by side, and the best is kept.
    """

    net: str = "ring"
    data: str = "addition"
    epochs: int = 20
    generations: int = 500
    width: int = 3
    weights: int = 32
    neurons: int = 24
    ticks: int = 64
    changes: int = 1
    tries: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data != "addition":
            raise UserError(f"a ring evolves on the data addition, not on {self.data!r}")
        self.check_ranges(
            ("width", 1, 8),
            ("weights", 1, 1024),
            ("neurons", 3 * self.width + 1, 1024),
            ("ticks", 1, 1_000_000),
            ("changes", 1, 64),
            ("tries", 1, 1024),
        )

    @property
    def name(self) -> str:
        return "ring"
