"""Evolution of a layered network of trits, in integers only: the forward pass of training is that of the hardware.

``hidden = min(max(0, first . x) >> shift, top)``, ``logits = second . hidden``. One parent has one child a generation, with one to three trits changed; the
child takes its place when its loss is not larger, so the network drifts freely where the loss is flat (Rechenberg's (1+1) strategy with neutral
acceptance). The loss is an integer too: for each sample the sum over the wrong classes of ``max(0, margin - (logit of the label - logit)) ** 2``.

A generation costs a few operations on one column, because only what the changed trits touch is computed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tritloom.errors import UserError

__all__ = ["LayeredNet", "evolve", "loss_of", "random_net"]

CHANGES = 3
"""Most trits that a child differs in."""

_BATCH = 4096
"""Generations whose random numbers are drawn at once."""


@dataclass(frozen=True)
class LayeredNet:
    """Trits int8: ``first`` (hidden, inputs), ``second`` (classes, hidden); hidden codes lie in ``0 .. top``."""

    first: np.ndarray
    second: np.ndarray
    shift: int
    top: int

    def hidden(self, x: np.ndarray) -> np.ndarray:
        """Hidden codes int64 (N, hidden) of integers (N, inputs)."""
        return np.minimum(np.maximum(x @ self.first.T.astype(np.int64), 0) >> self.shift, self.top)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Integers int64 (N, classes)."""
        return self.hidden(x) @ self.second.T.astype(np.int64)


def random_net(inputs: int, hidden: int, classes: int, *, seed: int, shift: int = 3, top: int = 15) -> LayeredNet:
    """Trits drawn uniformly. Raises :class:`UserError` for sizes below 1."""
    if min(inputs, hidden, classes, top) < 1 or shift < 0:
        raise UserError(
            f"a layered network needs sizes of at least 1 and a shift of at least 0, not {(inputs, hidden, classes, top, shift)}"
        )
    rng = np.random.default_rng([seed, 0])
    first, second = (rng.integers(-1, 2, shape).astype(np.int8) for shape in ((hidden, inputs), (classes, hidden)))
    return LayeredNet(first, second, shift, top)


def _loss(lead: np.ndarray, margin: int) -> int:
    """``lead`` is the label's logit minus each logit, (classes, N); the label's own row counts ``margin ** 2`` a sample, always."""
    short = np.maximum(margin - lead, 0)
    return int(np.multiply(short, short, dtype=np.int64).sum())


def loss_of(net: LayeredNet, x: np.ndarray, labels: np.ndarray, margin: int) -> int:
    """The integer loss that evolution lowers."""
    logits = net.logits(x).T
    return _loss(logits[labels, np.arange(len(labels))] - logits, margin) - margin * margin * len(labels)


def evolve(
    net: LayeredNet,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    generations: int,
    seed: int,
    margin: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LayeredNet, list[int]]:
    """The network after so many generations.

    Parameters
    ----------
    net
        Where to begin; it is not changed.
    x, labels
        Integers (N, inputs) and class numbers (N,); all rows count in every generation.
    generations
        Children made; most are no better and are dropped.
    seed
        Same seed, same network.
    margin
        The lead in the logits beyond which a sample is learned.
    progress
        Called now and then with generation and loss.

    Returns
    -------
    tuple
        The network, and the loss after every :data:`_BATCH` generations, never rising.
    """
    if len(x) != len(labels) or not len(x) or x.shape[1] != net.first.shape[1]:
        raise UserError(f"samples {x.shape} and labels {labels.shape} do not fit a network of {net.first.shape[1]} inputs")
    if labels.min() < 0 or labels.max() >= len(net.second):
        raise UserError(f"labels must lie in 0..{len(net.second) - 1}, not in {labels.min()}..{labels.max()}")
    rng = np.random.default_rng([seed, 1])
    columns = np.ascontiguousarray(x.T.astype(np.int32))
    first, second = net.first.astype(np.int32), net.second.astype(np.int32)
    rows = np.arange(len(labels))
    sums = first @ columns
    hidden = np.minimum(np.maximum(sums, 0) >> net.shift, net.top)
    logits = second @ hidden
    constant = margin * margin * len(labels)
    best = _loss(logits[labels, rows] - logits, margin)
    inputs, size = first.shape[1], first.size
    losses = []
    for start in range(0, generations, _BATCH):
        count = min(_BATCH, generations - start)
        changes = rng.integers(1, CHANGES + 1, count).tolist()
        places = rng.integers(0, size + second.size, (count, CHANGES)).tolist()
        turns = rng.integers(1, 3, (count, CHANGES)).tolist()
        for number, where, turn in zip(changes, places, turns, strict=True):
            undo: list[tuple[np.ndarray, int, int, int]] = []
            touched: dict[int, np.ndarray] = {}
            child = logits.copy()
            for place, step in zip(where[:number], turn[:number], strict=True):
                matrix, (row, column) = (first, divmod(place, inputs)) if place < size else (second, divmod(place - size, second.shape[1]))
                old = int(matrix[row, column])
                new = (old + 1 + step) % 3 - 1
                undo.append((matrix, row, column, old))
                matrix[row, column] = new
                if matrix is second:
                    child[row] += (new - old) * (touched[column][1] if column in touched else hidden[column])
                else:
                    before = touched.get(row, (sums[row], hidden[row]))
                    total = before[0] + (new - old) * columns[column]
                    codes = np.minimum(np.maximum(total, 0) >> net.shift, net.top)
                    child += second[:, row, None] * (codes - before[1])
                    touched[row] = (total, codes)  # type: ignore[assignment]
            loss = _loss(child[labels, rows] - child, margin)
            if loss <= best:
                best, logits = loss, child
                for row, (total, codes) in touched.items():
                    sums[row], hidden[row] = total, codes
            else:
                for matrix, row, column, old in reversed(undo):
                    matrix[row, column] = old
        losses.append(best - constant)
        if progress is not None:
            progress(start + count, losses[-1])
    return replace(net, first=first.astype(np.int8), second=second.astype(np.int8)), losses
