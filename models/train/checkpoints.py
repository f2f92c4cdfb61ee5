"""Checkpoints that trainings of every kind share: written between two epochs, and resumed to the last bit."""

import io
import json
from typing import Any

import torch

from tritloom.errors import UserError
from tritloom.models.methods.layers import set_progress

__all__ = ["Resumable"]


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

    def checkpoint(self) -> bytes:
        """Everything that the next epochs depend on."""
        state = {
            "settings": json.dumps(self.settings.as_dict()),
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "history": self.history,
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()

    def resume(self, checkpoint: bytes) -> None:
        """Go on from :meth:`checkpoint`. Raises :class:`UserError` for another file, or one of other settings."""
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(checkpoint), map_location=self.device, weights_only=True)
            found = json.loads(state["settings"])
        except Exception as error:  # PyTorch raises what its archive and its reader of pickles raise, of no common base
            raise UserError("the checkpoint cannot be read: it is damaged or was not written by 'tritloom train'") from error
        wanted = self.settings.as_dict()
        for key, value in wanted.items():
            if found.get(key) != value:
                raise UserError(
                    f"the checkpoint was made with {key} = {found.get(key)!r}, not {value!r}; use the same settings or another folder"
                )
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.history = state["history"]
        set_progress(self.net, self.epoch / self.settings.epochs)
