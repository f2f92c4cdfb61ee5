"""Everything that decides the result of a training, as a dataclass and as a TOML file; needs no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from tritloom.errors import UserError
from tritloom.files import parse_toml
from tritloom.models.nets.decoder import BLOCKS
from tritloom.models.nets.recursion import PRESETS
from tritloom.models.train.base_settings import DEFAULT_NET, AnySettings
from tritloom.models.train.evolution_settings import EVOLVED, LayeredSettings, RingSettings
from tritloom.models.train.language_settings import LanguageSettings
from tritloom.models.train.recursion_settings import RecursionSettings

__all__ = ["NETS", "Settings", "read_settings"]

NETS = ("mlp", "cnn")


@dataclass(frozen=True)
class Settings(AnySettings):
    """One training of a classifier. Raises :class:`UserError` for values that make no sense.

    ``channels`` and ``pooled`` are those of a ``cnn``: output channels of its convolutions, and the numbers (from 1) of those that a 2x2 pooling follows.
    ``hidden`` are the widths of the dense layers before the last. ``shift`` in pixels, ``rotation`` in radians and ``stretch`` as a share are
    the limits of random distortions of the training images; all 0 for none.
    """

    method: str
    net: str = "mlp"
    data: str = "digits"
    seed: int = 0
    epochs: int = 60
    batch: int = 50
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    label_smoothing: float = 0.05
    shift: float = 0.5
    rotation: float = 0.1
    stretch: float = 0.06
    channels: tuple[int, ...] = (16, 32, 64)
    pooled: tuple[int, ...] = (1, 3)
    hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        from tritloom.models.methods.names import BASELINES, METHODS

        if self.method not in METHODS + BASELINES:
            raise UserError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.net not in NETS:
            raise UserError(f"net must be one of {', '.join(NETS)}, not {self.net!r}")
        self.check_ranges(
            ("seed", 0, 2**63 - 1), ("epochs", 1, 100_000), ("batch", 2, 100_000), ("learning_rate", 1e-9, 10), ("weight_decay", 0, 10),
            ("label_smoothing", 0, 0.9), ("shift", 0, 32), ("rotation", 0, 3.2), ("stretch", 0, 0.9),
        )  # fmt: skip
        for name, low in (("channels", 1 if self.net == "cnn" else 0), ("pooled", 0), ("hidden", 0)):
            values = getattr(self, name)
            if len(values) < low or any(not 1 <= value <= 4096 for value in values):
                raise UserError(f"{name} must list numbers from 1 to 4096, not {list(values)}")
        if self.net == "cnn" and any(number > len(self.channels) for number in self.pooled):
            raise UserError(f"pooled names convolution {max(self.pooled)}, but there are only {len(self.channels)}")

    @property
    def distorted(self) -> bool:
        return bool(self.shift or self.rotation or self.stretch)


def _kind(method: Any, net: Any) -> type[AnySettings]:
    """The class of settings of a network. Raises :class:`UserError` for an unknown one."""
    net = net or (EVOLVED[0] if method == "evolve" else DEFAULT_NET)
    kinds: dict[str, type[AnySettings]] = dict.fromkeys(NETS, Settings)
    kinds |= dict.fromkeys(BLOCKS, LanguageSettings) | dict.fromkeys(PRESETS, RecursionSettings)
    kinds |= {"layered": LayeredSettings, "ring": RingSettings}
    if not isinstance(net, str) or net not in kinds:
        raise UserError(f"net must be one of {', '.join(kinds)}, not {net!r}")
    if method == "evolve" and net not in EVOLVED:
        raise UserError(f"net of evolve must be one of {', '.join(EVOLVED)}, not {net!r}")
    return kinds[net]


def read_settings(text: str, origin: str, overrides: Mapping[str, Any]) -> AnySettings:
    """Settings from the text of a TOML file, and from ``overrides`` that are not None, which win; ``net`` tells what kind of settings they are.

    Raises :class:`UserError`, naming ``origin``, for text that is no TOML, an unknown net, unknown keys, wrong types and a missing method.
    """
    table = parse_toml(text, origin)
    chosen = {key: value for key, value in overrides.items() if value is not None}
    kind = _kind(*((table | chosen).get(key) for key in ("method", "net")))
    kinds = get_type_hints(kind)
    for key, value in table.items():
        if key not in kinds:
            raise UserError(f"{origin} has the unknown key {key!r}; known are {', '.join(field.name for field in fields(kind))}")  # type: ignore[arg-type]
        table[key] = _typed(key, value, kinds[key], origin)
    table |= chosen
    if "method" not in table:
        raise UserError(f"{origin} must name the method")
    return kind(**table)


def _typed(key: str, value: Any, kind: Any, origin: str) -> Any:
    if get_args(kind):
        if isinstance(value, list) and all(type(entry) is int for entry in value):
            return tuple(value)
        raise UserError(f"{key} in {origin} must be a list of whole numbers, not {value!r}")
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", str: "a text"}
    raise UserError(f"{key} in {origin} must be {words[kind]}, not {value!r}")
