"""Training of a :class:`~tritloom.models.nets.language.LanguageModel` on characters: repeatable, and resumed to the last bit.

``train_language(method, block, seed)`` is one training with everything but the blocks as published, and its figures.
"""

import json
import math
import platform
import time
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from tritloom.errors import UserError
from tritloom.models.data.text import Text, load
from tritloom.models.methods.drna import REPAIRED_SPAN
from tritloom.models.methods.layers import crystallise, flips, penalty, quantised_layers, set_progress, weight_codes
from tritloom.models.methods.weights import RepairedDrnaWeights
from tritloom.models.nets.decoder_export import decoder_model
from tritloom.models.nets.language import LanguageModel
from tritloom.models.nets.language_methods import LANGUAGE_METHODS
from tritloom.models.train import parallel
from tritloom.models.train.checkpoints import Resumable
from tritloom.models.train.language_settings import CORPUS_OF, STEPS_PER_EPOCH, LanguageSettings
from tritloom.models.train.perplexity import evaluate, windows

__all__ = ["LanguageTrainer", "figures", "finish", "train_language"]

BETAS = (0.9, 0.95)

SOURCES = {"topics": "pydoc_data.topics", "library": "modules of the standard library"}


def _rate(settings: LanguageSettings, step: int) -> float:
    """Share of the learning rate at a step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class LanguageTrainer(Resumable):
    """A training between two epochs of :data:`STEPS_PER_EPOCH` steps. AdamW, cross-entropy of the next character at every position of random windows.

    Parameters
    ----------
    settings
        All that decides the result.
    text
        The characters; those held out are looked at by :meth:`nats` only. None for those that the settings name.
    device
        Where to compute.

    Raises :class:`UserError` for a text that is shorter than a window.
    """

    settings: LanguageSettings
    net: LanguageModel

    def __init__(self, settings: LanguageSettings, text: Text | None = None, *, device: torch.device | None = None) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(device is None or device.type == "cpu")
        torch.manual_seed(settings.seed)
        self.settings, self.text, self.device = settings, text or load(CORPUS_OF[settings.data]), device or torch.device("cpu")
        if min(len(self.text.train), len(self.text.held_out)) <= settings.sequence:
            raise UserError(
                f"sequence is {settings.sequence}, but the text has only {len(self.text.held_out)} held-out characters; take a shorter one"
            )
        parallel.check_batch(settings.batch)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.net = LanguageModel(settings.decoder(len(self.text.alphabet)), settings.precision).to(self.device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _rate(settings, step))
        self.history: list[dict[str, float]] = []
        self._train = torch.from_numpy(self.text.train)

    def run_epoch(self) -> dict[str, float]:
        """Some steps. Returns ``epoch``, mean ``loss`` in nats a character, and ``flips``, the share of weight codes that changed.

        The epoch that crystallises also tells ``before_crystallising`` and ``after_crystallising``, the held-out nats around that moment.
        """
        self.net.train()
        codes, crystal = weight_codes(self.net), dict[str, float]()
        total, done = 0.0, self.epoch * STEPS_PER_EPOCH
        for step in range(done, done + STEPS_PER_EPOCH):
            progress = step / self.settings.steps
            set_progress(self.net, progress)
            if progress >= REPAIRED_SPAN[1]:
                crystal |= self._crystallise()
            loss = self._loss()
            extra = penalty(self.net)
            self.optimiser.zero_grad()
            (loss if extra is None else loss + extra).backward()
            total += parallel.averaged(self.net, loss.item())
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
            self.optimiser.step()
            self.schedule.step()
        set_progress(self.net, (done + STEPS_PER_EPOCH) / self.settings.steps)
        if self.epoch + 1 == self.settings.epochs:
            crystal |= self._crystallise()
        mean = total / STEPS_PER_EPOCH
        if not math.isfinite(mean):
            raise UserError(f"the loss is no longer finite in epoch {self.epoch + 1}; take a smaller learning_rate")
        self.history.append({"epoch": self.epoch + 1, "loss": mean, "flips": flips(codes, weight_codes(self.net)), **crystal})
        return self.history[-1]

    def _loss(self) -> Tensor:
        settings = self.settings
        starts = parallel.share(torch.randint(len(self._train) - settings.sequence, (settings.batch,), generator=self.generator))
        rows = self._train[starts[:, None] + torch.arange(settings.sequence + 1)].to(self.device)
        logits = self.net(rows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def _crystallise(self) -> dict[str, float]:
        """Once; held-out nats before and after."""
        if not any(isinstance(weights, RepairedDrnaWeights) and not weights.crystal for _, _, weights in quantised_layers(self.net)):
            return {}
        before = self.nats()
        crystallise(self.net)
        after = self.nats()
        self.net.train()
        return {"before_crystallising": before, "after_crystallising": after}

    @torch.no_grad()
    def nats(self) -> float:
        """Nats a held-out character, over windows one behind the other, as the network is trained."""
        self.net.eval()
        total, rows = 0.0, self.held_out()
        for part in torch.from_numpy(rows).to(self.device).split(64):
            logits = self.net(part[:, :-1])
            total += functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        return total / rows[:, 1:].size

    def held_out(self) -> np.ndarray:
        """The held-out characters in rows, see :func:`~tritloom.models.train.perplexity.windows`."""
        return windows(self.text.held_out, self.settings.sequence)

    def model(self, name: str, metadata: dict[str, str]) -> onnx.ModelProto:
        """The ONNX model, with all quantisers inside."""
        weights = self.net.to("cpu").exported()
        self.net.to(self.device)
        return decoder_model(name, self.net.decoder, weights, metadata)

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """Model, no samples, and figures: :func:`finish`."""
        model, found = finish(self, name, command)
        return model, {}, found


def train_language(method: str, block: str, seed: int, **settings: Any) -> dict[str, Any]:
    """Train a character model by ``method`` with the blocks of ``block`` (``llama``, ``bitnet``, ``drna``), and tell what it reaches.

    What the publications leave float is float here: embeddings, head, cache, and activations of the methods D-RNA. Other keywords are fields of
    :class:`LanguageSettings`, whose defaults are the setup that the results of this project were measured with.

    Returns
    -------
    dict
        ``settings``; ``nats_pytorch``, held-out nats a character of the network as it is trained; ``nats_exported``, of the ONNX file in ONNX Runtime, whose weights
        are others for ``drna-reference``; ``correct`` of ``characters`` that the file predicts, ``accuracy``; ``weights`` and the share ``zeros`` of them, of the quantised
        layers; ``seconds``; ``history``, an entry for each epoch.
    """
    published = {"head": "float", "embedding": "float", "cache": "float"}
    if method.startswith("drna"):
        published["activations"] = "float"
    chosen = replace(LanguageSettings(method, net=block, seed=seed), **(published | settings))
    trainer, started = LanguageTrainer(chosen), time.monotonic()
    while trainer.epoch < chosen.epochs:
        trainer.run_epoch()
    return figures(trainer) | {"seconds": round(time.monotonic() - started), "history": trainer.history}


def figures(trainer: LanguageTrainer) -> dict[str, Any]:
    """Settings, held-out nats and weights of a training that has run its epochs."""
    score = evaluate(trainer.model("model", {}).SerializeToString(deterministic=True), trainer.held_out())
    codes = list(weight_codes(trainer.net).values())
    count = sum(array.numel() for array in codes)
    return {
        "settings": trainer.settings.as_dict(),
        "nats_pytorch": trainer.nats(),
        "nats_exported": score.nats,
        "correct": score.correct,
        "characters": score.characters,
        "accuracy": score.correct / score.characters,
        "weights": count,
        "zeros": sum(int((array == 0).sum()) for array in codes) / max(1, count),
    }


def finish(trainer: LanguageTrainer, name: str, command: str) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file, with its vocabulary and its origin written in it, and the figures, of a training that has run its epochs."""
    found = figures(trainer)
    metadata = {
        "training": command,
        "seed": str(trainer.settings.seed),
        "method": LANGUAGE_METHODS[trainer.settings.method],
        "data": f"Python {platform.python_version()}, {SOURCES[CORPUS_OF[trainer.settings.data]]}; the last tenth held out",
        "accuracy": f"{found['accuracy']:.4f} ({found['correct']} of {found['characters']})",
        "nats": f"{found['nats_exported']:.4f}",
        "context": str(trainer.settings.sequence),
        "vocabulary": json.dumps(list(trainer.text.alphabet)),
        "pytorch": torch.__version__.split("+")[0],
    }
    model = trainer.model(name, metadata).SerializeToString(deterministic=True)
    return model, {"name": name, **found, "history": trainer.history}
