"""Checkpoints that trainings of every kind share: written between two epochs, and resumed to the last bit."""

import io
import json
from typing import Any

import numpy as np
import torch

from tritloom.errors import UserError
from tritloom.models.methods.layers import set_progress
from tritloom.models.train.base_settings import AnySettings, check_same

__all__ = ["Resumable", "pack", "unpack"]


def pack(state: dict[str, Any], settings: AnySettings) -> bytes:
    """The file of a state of tensors and plain values."""
    stream = io.BytesIO()
    torch.save({"settings": json.dumps(settings.as_dict()), **state}, stream)
    return stream.getvalue()


def unpack(checkpoint: bytes, settings: AnySettings, device: torch.device) -> dict[str, Any]:
    """What :func:`pack` was given. Raises :class:`UserError` for another file, or one of other settings."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(checkpoint), map_location=device, weights_only=True)
        found = json.loads(state["settings"])
    except Exception as error:  # PyTorch raises what its archive and its reader of pickles raise, of no common base
        raise UserError("the checkpoint cannot be read: it is damaged or was not written by 'tritloom train'") from error
    check_same(found, settings)
    return state


class Resumable:
    """What a training depends on; its ``history`` has an entry for every epoch that is done, its ``settings`` have ``epochs`` and ``as_dict()``."""

    settings: Any
    device: torch.device
    generator: torch.Generator
    net: Any
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    history: list[dict[str, float]]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def told(self) -> str:
        """The last epoch for people."""
        last = self.history[-1]
        return f"loss {last['loss']:.4f}, {last['flips']:.2%} of the weights changed"

    def curves(self) -> list[tuple[str, list[float]]]:
        """Loss and share of changed weights over the epochs."""
        return [("loss", [entry["loss"] for entry in self.history]), ("weights changed", [entry["flips"] for entry in self.history])]

    def pictures(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Held-out images and labels that the compiled model can be judged by; None where it is no classifier of images."""
        return None

    def checkpoint(self) -> bytes:
        """Everything that the next epochs depend on."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }
        return pack(state, self.settings)

    def resume(self, checkpoint: bytes) -> None:
        """Go on from :meth:`checkpoint`. Raises :class:`UserError` for another file, or one of other settings."""
        state = unpack(checkpoint, self.settings, self.device)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.history = state["history"]
        set_progress(self.net, self.epoch / self.settings.epochs)
