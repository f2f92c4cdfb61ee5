"""Evolution of a ring of ternary neurons that grows and shrinks (after the public description of Aigarth's unit; formulas only).

A neuron has ``m`` trits of input weights and a state of -1, 0 or 1. With ``c = clamp(m // 2 - skew, 0, m)`` its first ``c`` weights belong to the ``c`` neurons before it on the
ring, the others to those that follow; where there are more weights than other neurons, the outer ones are not active. All neurons change at once:
``next = sign(sum(weight * state))``. Inputs are set once, to -1 or 1, everything else is 0, and the ring ticks until nothing changes, until every output is
known (not 0), or ``ticks`` times.

A mutation adds or subtracts 1 at one active weight. A weight that would leave -1 .. 1 stays, and a copy of the neuron that feeds it is inserted behind the mutated
one; a neuron whose weights have all become 0, and which is neither input nor output, is deleted. A child with more correct bits, or as many with more of them
unknown, replaces its parent, and so does one that is just as good.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritloom.errors import UserError

__all__ = ["Ring", "Score", "addition", "evolve_ring", "mutate", "random_ring", "score"]

Score = tuple[int, int]
"""Correct bits, then unknown ones; the larger pair is better."""


@dataclass(frozen=True)
class Ring:
    """``weights`` int8 (neurons, m) and ``skews`` (neurons,) in ring order; ``roles`` (neurons,): an input ``i`` is ``i``, output ``o`` is ``-1 - o``, the rest ``HIDDEN``."""

    weights: np.ndarray
    skews: np.ndarray
    roles: np.ndarray

    def inputs(self) -> np.ndarray:
        """Positions of the inputs, in the order of the bits."""
        found = np.flatnonzero((self.roles >= 0) & (self.roles != HIDDEN))
        return found[np.argsort(self.roles[found])]

    def outputs(self) -> np.ndarray:
        """Positions of the outputs, in the order of the bits."""
        found = np.flatnonzero(self.roles < 0)
        return found[np.argsort(-self.roles[found])]

    def window(self, neuron: int) -> tuple[int, int, int]:
        """First active weight, one past the last, and ``c``, the number of weights that look back."""
        m, others = self.weights.shape[1], len(self.roles) - 1
        back = min(max(m // 2 - int(self.skews[neuron]), 0), m)
        if m <= others:
            return 0, m, back
        low = max(min((m - others + 1) // 2, back), back - others)  # one more is left out on the side that looks back
        return low, low + others, back

    def feeder(self, neuron: int, weight: int) -> int:
        """Position of the neuron whose state an active weight multiplies."""
        back = self.window(neuron)[2]
        return (neuron + weight - back + (weight >= back)) % len(self.roles)

    def dense(self) -> np.ndarray:
        """The same as a square matrix, int64: ``next = sign(dense @ states)``."""
        matrix = np.zeros((len(self.roles), len(self.roles)), np.int64)
        for neuron in range(len(self.roles)):
            low, high, _ = self.window(neuron)
            for weight in range(low, high):
                matrix[neuron, self.feeder(neuron, weight)] = self.weights[neuron, weight]
        return matrix

    def run(self, bits: np.ndarray, ticks: int) -> np.ndarray:
        """Outputs int8 (N, outputs) of inputs (N, inputs) of -1 and 1; 0 is unknown."""
        matrix, outputs = self.dense().T, self.outputs()
        states = np.zeros((len(bits), len(self.roles)), np.int64)
        states[:, self.inputs()] = bits
        active = np.arange(len(bits))
        for _ in range(ticks):
            after = np.sign(states[active] @ matrix)
            done = (after == states[active]).all(1) | (after[:, outputs] != 0).all(1)
            states[active] = after
            active = active[~done]
            if not len(active):
                break
        return states[:, outputs].astype(np.int8)


HIDDEN = 1 << 30
"""Role of a neuron that is neither input nor output."""


def random_ring(inputs: int, outputs: int, *, m: int, seed: int) -> Ring:
    """Inputs and outputs alone, in random order, with random trits and no skew."""
    if min(inputs, outputs, m) < 1:
        raise UserError(f"a ring needs at least one input, output and weight, not {(inputs, outputs, m)}")
    rng = np.random.default_rng([seed, 0])
    roles = rng.permutation(np.concatenate([np.arange(inputs), -1 - np.arange(outputs)]))
    return Ring(rng.integers(-1, 2, (len(roles), m)).astype(np.int8), np.zeros(len(roles), np.int64), roles)


def score(ring: Ring, bits: np.ndarray, wanted: np.ndarray, ticks: int) -> Score:
    """Over all samples: correct bits and unknown bits."""
    got = ring.run(bits, ticks)
    return int((got == wanted).sum()), int((got == 0).sum())


def mutate(ring: Ring, rng: np.random.Generator, limit: int) -> Ring:
    """A child; where it would have more than ``limit`` neurons it equals its parent."""
    windows = [ring.window(neuron) for neuron in range(len(ring.roles))]
    sizes = np.array([high - low for low, high, _ in windows])
    chosen = int(rng.integers(0, sizes.sum()))
    neuron = int(np.searchsorted(np.cumsum(sizes), chosen, side="right"))
    weight = windows[neuron][0] + chosen - int(sizes[:neuron].sum())
    value = int(ring.weights[neuron, weight]) + (1 if rng.integers(0, 2) else -1)
    if abs(value) > 1:
        if len(ring.roles) >= limit:
            return ring
        source = ring.feeder(neuron, weight)
        return Ring(
            np.insert(ring.weights, neuron + 1, ring.weights[source], axis=0),
            np.insert(ring.skews, neuron + 1, ring.skews[source]),
            np.insert(ring.roles, neuron + 1, HIDDEN),
        )
    weights = ring.weights.copy()
    weights[neuron, weight] = value
    if ring.roles[neuron] == HIDDEN and not weights[neuron].any():
        return Ring(np.delete(weights, neuron, axis=0), np.delete(ring.skews, neuron), np.delete(ring.roles, neuron))
    return Ring(weights, ring.skews, ring.roles)


def evolve_ring(
    ring: Ring,
    bits: np.ndarray,
    wanted: np.ndarray,
    *,
    generations: int,
    seed: int,
    ticks: int = 64,
    limit: int = 24,
    changes: int = 1,
    progress: Callable[[int, Score], None] | None = None,
) -> tuple[Ring, list[Score]]:
    """The ring after so many mutations, and its score after each, never falling.

    Parameters
    ----------
    ring
        Where to begin.
    bits, wanted
        Inputs (N, inputs) and outputs (N, outputs) of -1 and 1.
    generations, seed
        Children made; same seed, same ring.
    ticks
        Most ticks a sample.
    limit
        Most neurons.
    changes
        Most mutations that a child has; each child has one of 1 .. ``changes`` of them, all as likely.
    progress
        Called after each generation with its number and the score.
    """
    if bits.ndim != 2 or wanted.ndim != 2 or len(bits) != len(wanted) or not len(bits):
        raise UserError(f"bits {bits.shape} and wanted {wanted.shape} must be (N, inputs) and (N, outputs) with at least one sample")
    if bits.shape[1] != len(ring.inputs()) or wanted.shape[1] != len(ring.outputs()):
        raise UserError(
            f"the ring has {len(ring.inputs())} inputs and {len(ring.outputs())} outputs; the samples have {bits.shape[1]} and {wanted.shape[1]}"
        )
    if not (np.abs(bits) == 1).all() or not (np.abs(wanted) == 1).all():
        raise UserError("bits and wanted must be -1 or 1 everywhere")
    rng = np.random.default_rng([seed, 1])
    best, scores = score(ring, bits, wanted, ticks), []
    for generation in range(generations):
        child = ring
        for _ in range(1 if changes == 1 else int(rng.integers(1, changes + 1))):
            child = mutate(child, rng, limit)
        found = best if child is ring else score(child, bits, wanted, ticks)
        if found >= best:
            ring, best = child, found
        scores.append(best)
        if progress is not None:
            progress(generation + 1, best)
    return ring, scores


def addition(width: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of signed integers of ``width`` bits and their sums of ``width + 1`` bits, least significant bit first, -1 for 0 and 1 for 1."""
    if not 1 <= width <= 8:
        raise UserError(f"addition is for 1 to 8 bits, not {width}")
    values = np.arange(-(2 ** (width - 1)), 2 ** (width - 1))
    a, b = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))

    def bits(numbers: np.ndarray, count: int) -> np.ndarray:
        return ((numbers[:, None] >> np.arange(count)) & 1) * 2 - 1

    return np.concatenate([bits(a, width), bits(b, width)], axis=1), bits(a + b, width + 1)
