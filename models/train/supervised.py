"""The training loop that the scripts of packaged networks share."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["train_classifier"]

Network = TypeVar("Network", bound=nn.Module)


def train_classifier(
    make: Callable[[], Network],
    images: np.ndarray,
    labels: np.ndarray,
    distort: Callable[[Tensor, torch.Generator], Tensor],
    *,
    seed: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    progress: Callable[[int, float], None] | None = None,
) -> Network:
    """Train what ``make`` makes on images (N, ...) and labels (N,); AdamW, learning rate falling along a cosine. The result is in evaluation mode.

    ``seed`` is that of the weights, the order of the images and what ``distort`` does to each batch. ``progress`` is called after each epoch
    with the epoch (from 1) and the mean loss. One thread and deterministic algorithms, from here on in the whole process.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(seed)
    inputs, answers = torch.from_numpy(images), torch.from_numpy(labels)
    net = make()
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * math.ceil(len(inputs) / batch))
    for epoch in range(1, epochs + 1):
        net.train()
        total = 0.0
        for rows in torch.randperm(len(inputs), generator=generator).split(batch):
            loss = functional.cross_entropy(net(distort(inputs[rows], generator)), answers[rows], label_smoothing=label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        if progress is not None:
            progress(epoch, total / len(inputs))
    return net.eval()
