"""What every kind of training offers to the command line, and the choice of the kind by its settings; needs no PyTorch by itself."""

from typing import Any, Protocol

import numpy as np

from tritloom.errors import MissingToolError, UserError
from tritloom.models.train.base_settings import AnySettings

__all__ = ["Training", "begin"]


class Training(Protocol):
    """A training between two epochs."""

    settings: Any
    history: list[dict[str, float]]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        ...

    def run_epoch(self) -> dict[str, float]:
        """One more epoch; its entry in ``history``."""
        ...

    def told(self) -> str:
        """The last entry of ``history`` for people."""
        ...

    def curves(self) -> list[tuple[str, list[float]]]:
        """Up to two curves over the epochs, none negative."""
        ...

    def checkpoint(self) -> bytes:
        """Everything that the next epochs depend on."""
        ...

    def resume(self, checkpoint: bytes) -> None:
        """Go on from :meth:`checkpoint`. Raises :class:`UserError` for another file, or one of other settings."""
        ...

    def pictures(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Held-out images and labels that the compiled model can be judged by; None where it is no classifier of images."""
        ...

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """The ONNX file, samples of its input by name, and the figures, of a training that has run its epochs."""
        ...


def begin(settings: AnySettings, device: str) -> Training:
    """A new training. Raises :class:`UserError` where settings, data and device do not go together, :class:`MissingToolError` without PyTorch."""
    try:
        return _begin(settings, device)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingToolError("training needs PyTorch; install it with: pip install 'tritloom[train]'") from error


def _begin(settings: AnySettings, device: str) -> Training:
    from tritloom.models.train.evolution_settings import EvolutionSettings
    from tritloom.models.train.language_settings import LanguageSettings
    from tritloom.models.train.recursion_settings import RecursionSettings
    from tritloom.models.train.settings import Settings

    if isinstance(settings, EvolutionSettings):
        from tritloom.models.train.evolution import evolution

        if device != "cpu":
            raise UserError(f"evolve computes on the cpu, not on {device!r}: leave --device away")
        return evolution(settings)
    if isinstance(settings, RecursionSettings):
        from tritloom.models.data.puzzles import load_puzzles
        from tritloom.models.train.loop import device_named
        from tritloom.models.train.parallel import check_alone
        from tritloom.models.train.recursion import RecursionTrainer

        check_alone(settings.net)
        where = device_named(device)
        return RecursionTrainer(
            settings, load_puzzles(settings.data, count=settings.puzzles, held_out=settings.held_out, seed=settings.seed), device=where
        )
    if isinstance(settings, LanguageSettings):
        from tritloom.models.train.language import LanguageTrainer
        from tritloom.models.train.loop import device_named
        from tritloom.models.train.parallel import start

        where = device_named(device)
        start(where)
        return LanguageTrainer(settings, device=where)
    assert isinstance(settings, Settings)
    from tritloom.models.data.pictures import load_pictures

    pictures = load_pictures(settings.data)
    from tritloom.models.train.loop import Trainer, device_named
    from tritloom.models.train.parallel import start

    where = device_named(device)
    start(where)
    return Trainer(settings, pictures, device=where)
