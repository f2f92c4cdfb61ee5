"""Ternary weights that others trained: read from their checkpoints, to the last trit, or refused."""

from tritloom.models.checkpoints.reading import read_checkpoint
from tritloom.models.checkpoints.tensors import LeftOut, TernaryTensor
from tritloom.models.checkpoints.writing import arrays_of, weights_model

__all__ = ["LeftOut", "TernaryTensor", "arrays_of", "read_checkpoint", "weights_model"]
