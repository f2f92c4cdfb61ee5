"""Training of a :class:`~tritloom.models.nets.network.Network`: repeatable, and after an interruption the same to the last bit.

One thread and deterministic algorithms on the CPU: the same settings on the same kind of processor with the same PyTorch give the same file.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from tritloom.errors import UserError
from tritloom.models.data.pictures import Pictures
from tritloom.models.methods.drna import REPAIRED_SPAN
from tritloom.models.methods.layers import crystallise, flips, penalty, set_progress, weight_codes
from tritloom.models.methods.recipes import recipe
from tritloom.models.nets.classifier import classifier
from tritloom.models.nets.network import Layer, Network
from tritloom.models.train import parallel
from tritloom.models.train.augmentation import augment
from tritloom.models.train.checkpoints import Resumable
from tritloom.models.train.settings import Settings

__all__ = ["Trainer", "device_named"]


def device_named(name: str) -> torch.device:
    """``cpu`` or ``cuda``. Raises :class:`UserError` for another name, or where there is no such device."""
    if name not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda is not there: PyTorch sees no GPU; use cpu")
    return torch.device(name)


def _layers(settings: Settings) -> list[Layer]:
    dense = [Layer(width) for width in settings.hidden]
    if settings.net == "mlp":
        return dense
    return [Layer(width, convolution=True, pooled=number in settings.pooled) for number, width in enumerate(settings.channels, 1)] + dense


class Trainer(Resumable):
    """A training between two epochs. AdamW, learning rate falling along a cosine, cross-entropy.

    Parameters
    ----------
    settings
        All that decides the result.
    data
        The pictures; the held-out rows are looked at by :meth:`correct` only.
    device
        Where to compute.

    Raises :class:`UserError` where the network does not fit the pictures.
    """

    settings: Settings
    net: Network

    def __init__(self, settings: Settings, data: Pictures, *, device: torch.device | None = None) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(device is None or device.type == "cpu")
        torch.manual_seed(settings.seed)
        self.settings, self.data, self.device = settings, data, device or torch.device("cpu")
        self.generator = torch.Generator().manual_seed(settings.seed)
        parallel.check_batch(settings.batch)
        if len(data.train_images) < settings.batch:
            raise UserError(f"batch is {settings.batch}, but there are only {len(data.train_images)} rows for training")
        self.net = Network(data.shape, _layers(settings), data.classes, recipe(settings.method), input_step=data.step).to(self.device)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        # Batch normalisation needs more than one row: a short last batch is left out, its rows come in other epochs.
        self.steps_per_epoch = len(data.train_images) // settings.batch
        self.steps = settings.epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, self.steps)
        self.history: list[dict[str, float]] = []
        self._images = torch.from_numpy(data.train_images).to(self.device)
        self._labels = torch.from_numpy(data.train_labels).to(self.device)

    def run_epoch(self) -> dict[str, float]:
        """One pass over the training rows. Returns ``epoch``, mean ``loss``, and ``flips``, the share of weight codes that the epoch changed."""
        self.net.train()
        before = weight_codes(self.net)
        total, done = 0.0, self.epoch * self.steps_per_epoch
        order = torch.randperm(len(self._images), generator=self.generator)
        for rows in order[: self.steps_per_epoch * self.settings.batch].split(self.settings.batch):
            progress = done / self.steps
            set_progress(self.net, progress)
            if progress >= REPAIRED_SPAN[1]:
                crystallise(self.net)
            loss = self._loss(rows.to(self.device))
            self.optimiser.zero_grad()
            loss.backward()
            total += parallel.averaged(self.net, loss.item()) * len(rows)
            self.optimiser.step()
            self.schedule.step()
            done += 1
        set_progress(self.net, done / self.steps)
        if self.epoch + 1 == self.settings.epochs:
            crystallise(self.net)
        mean = total / (self.steps_per_epoch * self.settings.batch)
        if not math.isfinite(mean):
            raise UserError(f"the loss is no longer finite in epoch {self.epoch + 1}; take a smaller learning_rate")
        self.history.append({"epoch": self.epoch + 1, "loss": mean, "flips": flips(before, weight_codes(self.net))})
        return self.history[-1]

    def _loss(self, rows: Tensor) -> Tensor:
        settings, images = self.settings, self._images[rows]
        if settings.distorted:
            images = augment(
                images, self.generator, shift=settings.shift, rotation=settings.rotation, stretch=settings.stretch, whole=self.data.whole
            )
        images, labels = parallel.share(images), parallel.share(self._labels[rows])
        loss = functional.cross_entropy(self.net(images), labels, label_smoothing=settings.label_smoothing)
        extra = penalty(self.net)
        return loss if extra is None else loss + extra

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """Outputs of the network in evaluation mode, as it is trained, float32 (N, classes)."""
        self.net.eval()
        return np.concatenate([self.net(part.to(self.device)).cpu().numpy() for part in torch.from_numpy(images).split(500)])

    def correct(self) -> int:
        """Held-out rows that the network in evaluation mode classifies as their label says."""
        return int((self.logits(self.data.test_images).argmax(1) == self.data.test_labels).sum())

    def model(self, name: str, metadata: dict[str, str]) -> onnx.ModelProto:
        """The ONNX model, with all quantisers inside."""
        self.net.eval()
        stages = self.net.to("cpu").stages()
        self.net.to(self.device)
        return classifier(name, stages, shape=self.data.shape, metadata=metadata)

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """The held-out images and labels."""
        return self.data.test_images, self.data.test_labels

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """Model, samples and figures: :func:`tritloom.models.train.results.finish`."""
        from tritloom.models.train.results import finish

        return finish(self, name, command)
