"""Data parallel training under ``torchrun``: every process computes its share of each batch, and all take the same step.

All processes draw the same random numbers, so every one knows the whole batch and takes every n-th row of it; the mean of the gradients is that of the
whole batch. Batch normalisation sees the share of a process alone, as elsewhere. Without ``torchrun`` there is one process, and nothing here does anything.
"""

import os

import torch
from torch import Tensor, nn

from tritloom.errors import UserError

__all__ = ["averaged", "check_alone", "check_batch", "is_first", "processes", "share", "start"]


def start(device: torch.device) -> None:
    """Join the other processes that ``torchrun`` started, if it did: over gloo on CPUs, NCCL on GPUs, of which each process takes its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def processes() -> int:
    return torch.distributed.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return not _joined() or torch.distributed.get_rank() == 0


def check_alone(what: str) -> None:
    """Raise :class:`UserError` under ``torchrun`` for a training that is of one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what} trains in one process: leave torchrun away")


def check_batch(batch: int) -> None:
    """Raise :class:`UserError` for a batch that the processes cannot share equally."""
    if batch % processes():
        raise UserError(f"batch is {batch}, which {processes()} processes cannot share equally; take a multiple of {processes()}")


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return rows[torch.distributed.get_rank() :: processes()] if _joined() else rows


def averaged(net: nn.Module, loss: float) -> float:
    """Replace gradients and statistics (of batch normalisation, of activations) of ``net`` by their mean over all processes; the mean of the ``loss``."""
    if not _joined():
        return loss
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    statistics = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    last = torch.tensor(loss, dtype=torch.float64, device=gradients[0].device)
    for value in (*gradients, *statistics, last):
        torch.distributed.all_reduce(value)
        value /= processes()
    return last.item()
