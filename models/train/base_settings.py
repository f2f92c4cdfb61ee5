"""What the settings of every kind of training have in common; needs no PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tritloom.errors import UserError

__all__ = ["DEFAULT_NET", "AnySettings", "check_same"]

DEFAULT_NET = "mlp"
"""What ``tritloom train`` trains where no net is named."""


class AnySettings:
    """What the settings of every kind of training have: a dataclass of plain values with ``method``, ``net``, ``data``, ``seed`` and ``epochs``."""

    method: str
    net: str
    data: str
    seed: int
    epochs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples, in the order of the fields."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @property
    def name(self) -> str:
        """Of the model and, by default, of the folder: data, network and method, the network left out where the method is named after it."""
        data = self.data.partition(":")[0]
        parts = (data, self.method) if self.method.partition("-")[0] == self.net else (data, self.net, self.method)
        return "_".join(parts).replace("-", "_").replace(".", "_")

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint's file."""
        return "checkpoint.pt"

    @property
    def command(self) -> str:
        """The command that trains with these settings, and, behind it, those that are not its defaults."""
        default = type(self)(self.method).as_dict()  # type: ignore[call-arg]
        net = "" if default["net"] == DEFAULT_NET else f" --net {self.net}"
        words = {key: value for key, value in self.as_dict().items() if value != default[key] and not (net and key == "net")}
        return f"tritloom train {self.method}{net}" + (f", settings {json.dumps(words)}" if words else "")

    def check_ranges(self, *limits: tuple[str, float, float]) -> None:
        """Raises :class:`UserError` where the number of a name does not lie between its limits, both included."""
        for name, low, high in limits:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} must lie in {low:g}..{high:g}, not {value}")


def check_same(found: Mapping[str, Any], settings: AnySettings) -> None:
    """Raises :class:`UserError` where the settings ``found`` in a checkpoint are others."""
    for key, value in settings.as_dict().items():
        if found.get(key) != value:
            raise UserError(
                f"the checkpoint was made with {key} = {found.get(key)!r}, not {value!r}; use the same settings or another folder"
            )
