"""Random networks whose scales are powers of two, so that float32 is exact: every code equals ONNX Runtime's.

The batch axis wanders with the others, layouts change between layers, and values are read again later.
"""

import random

import numpy as np
from frontend_models import Graph, run_both

from tritloom.compiler.frontend import check

SCALES = (0.125, 0.25, 0.5, 1.0)
MOST_ELEMENTS = 300


class Walk:
    """One network under construction: the present value, its shape with a batch of one, and where the batch stands."""

    def __init__(self, seed: int) -> None:
        self.g, self.random = Graph(seed), random.Random(seed)
        self.shape = [1, *(self.random.randint(1, 5) for _ in range(self.random.randint(1, 3)))]
        self.given = tuple(self.shape[1:])
        self.batch, self.value = 0, "x"
        self.kept: list[tuple[str, list[int], int]] = []
        self.quantise()
        for _ in range(self.random.randint(2, 8)):
            self.random.choice((self.arithmetic, self.move, self.reshape, self.choose, self.layer, self.pool, self.quantise, self.join))()
            if np.prod(self.shape) > MOST_ELEMENTS:
                break
        if self.random.random() < 0.6:
            self.quantise()
        if self.batch:
            self.transpose([self.batch, *(axis for axis in range(len(self.shape)) if axis != self.batch)])

    def axis(self) -> int:
        """Any axis but the batch."""
        return self.random.choice([axis for axis in range(len(self.shape)) if axis != self.batch])

    def integers(self, *values: int) -> str:
        return self.g.constant(values, np.int64)

    def quantise(self) -> None:
        # Behind an odd zero point ties go to odd codes, which sums of two tensors do not always meet.
        self.value = self.g.qdq(self.value, self.random.choice(SCALES), self.random.choice((0, 4, -6)))
        self.kept.append((self.value, list(self.shape), self.batch))

    def arithmetic(self) -> None:
        match self.random.randrange(4):
            case 0:
                self.value = self.g.add("Relu", self.value)
            case 1:
                self.value = self.g.add("LeakyRelu", self.value, alpha=0.25)
            case 2:
                self.value = self.g.add("Clip", self.value, self.g.constant(-1.0), self.g.constant(2.0))
            case _:
                along = self.axis()
                sizes = [size if axis == along else 1 for axis, size in enumerate(self.shape)]
                operands = [self.value, self.g.constant(self.g.rng.choice([-1.5, -1.0, 0.25, 0.5, 2.0], sizes))]
                self.random.shuffle(operands)
                self.value = self.g.add(self.random.choice(("Add", "Sub", "Mul")), *operands)

    def transpose(self, perm: list[int]) -> None:
        self.value = self.g.add("Transpose", self.value, perm=perm)
        self.shape, self.batch = [self.shape[axis] for axis in perm], perm.index(self.batch)

    def move(self) -> None:
        self.transpose(self.random.sample(range(len(self.shape)), len(self.shape)))

    def reshape(self) -> None:
        if self.batch == 0:
            total = int(np.prod(self.shape))
            rows = self.random.choice([size for size in range(1, total + 1) if total % size == 0])
            self.shape = self.random.choice(([1, total], [1, rows, total // rows]))
            self.value = self.g.add("Reshape", self.value, self.integers(0, *self.shape[1:]))

    def choose(self) -> None:
        axis = self.axis()
        size = self.shape[axis]
        if self.random.random() < 0.5:
            first, last = sorted(self.random.choices(range(size), k=2))
            self.value = self.g.add("Slice", self.value, *(self.integers(part) for part in (first, last + 1, axis, 2)))
            self.shape[axis] = len(range(first, last + 1, 2))
        else:
            self.shape[axis] = self.random.randint(1, 3)
            self.value = self.g.add("Gather", self.value, self.integers(*self.random.choices(range(size), k=self.shape[axis])), axis=axis)

    def layer(self) -> None:
        outputs, scale = self.random.randint(1, 4), self.random.choice(SCALES)
        if len(self.shape) > 2 and self.batch == 0 and self.random.random() < 0.6:
            kernel = [self.random.randint(1, size) for size in self.shape[2:]]
            self.value = self.g.add("Conv", self.value, self.g.weights(outputs, self.shape[1], *kernel, scale=scale))
            self.shape = [1, outputs, *(size - part + 1 for size, part in zip(self.shape[2:], kernel, strict=True))]
        elif self.batch != len(self.shape) - 1:
            self.value = self.g.add("MatMul", self.value, self.g.weights(self.shape[-1], outputs, scale=scale))
            self.value = self.g.add("Add", self.value, self.g.constant(self.g.rng.integers(-9, 9, outputs) / 4))
            self.shape[-1] = outputs

    def pool(self) -> None:
        if len(self.shape) == 4 and self.batch == 0 and min(self.shape[2:]) > 1:
            self.value = self.g.add(self.random.choice(("MaxPool", "AveragePool")), self.value, kernel_shape=[2, 2], strides=[1, 1])
            self.shape[2:] = [size - 1 for size in self.shape[2:]]

    def join(self) -> None:
        """A sum with an earlier value of the same shape, or both side by side."""
        other = self.random.choice([None, *(name for name, shape, batch in self.kept if (shape, batch) == (self.shape, self.batch))])
        if other is not None and self.random.random() < 0.5:
            self.value = self.g.add("Add", self.value, other)
        elif other is not None:
            axis = self.axis()
            self.value = self.g.add("Concat", self.value, other, axis=axis)
            self.shape[axis] *= 2


def test_random_networks_equal_onnx_runtime() -> None:
    compared = 0
    for seed in range(120):
        walk = Walk(seed)
        data = walk.g.model({"x": ("N", *walk.given)}, {walk.value: None})
        report = check(data)
        if not report.supported or report.facts["calibration_needed_for"]:
            continue
        lowered, ours, theirs, _ = run_both(data, samples=9)
        assert all(step is None or step.proof.exact for step in (getattr(one, "step", None) for one in lowered.program.operations)), seed
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=f"seed {seed}, {name}")
        compared += 1
    assert compared > 60, "too few networks are supported for the test to mean anything"
