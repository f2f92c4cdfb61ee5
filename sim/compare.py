"""Bit by bit comparison of a candidate's tensors with golden's, and what a person needs to find the first difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tritloom.compiler.ir.program import Program

__all__ = ["Difference", "TensorComparison", "compare_tensors", "first_difference", "joined", "top1_agreement"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first differing element of a tensor: the user's layer name, sample, index (channel, row, column), and both codes."""

    layer: str
    tensor: str
    sample: int
    index: tuple[int, int, int]
    expected: int
    got: int

    def __str__(self) -> str:
        channel, row, column = self.index
        return (
            f"layer {self.layer!r}, tensor {self.tensor!r}, sample {self.sample}, channel {channel}, row {row}, column {column}: "
            f"expected {self.expected}, got {self.got}"
        )

    def replay_command(self, artefact: str, *, board: str, seed: int) -> str:
        """The command that runs this sample alone and records waves, for the random inputs that ``seed`` gives."""
        return f"tritloom sim {artefact} --board {board} --seed {seed} --first-sample {self.sample} --samples 1 --waves always"


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """Result for one tensor: codes compared, codes that differ, agreement of the largest code of each sample, first difference."""

    reference: str
    candidate: str
    tensor: str
    values: int
    mismatches: int
    top1_agreement: float
    first: Difference | None
    differing: tuple[int, ...] = ()
    """Samples that differ, in comparisons with the outside witness."""

    def to_json(self) -> dict[str, object]:
        """The fields that ``verify --json`` prints."""
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "tensor": self.tensor,
            "values": self.values,
            "mismatches": self.mismatches,
            "top1_agreement": self.top1_agreement,
        }


def top1_agreement(expected: np.ndarray, got: np.ndarray) -> float:
    """Share of samples (first axis) whose largest value, the first of equals, is at the same place."""
    left, right = (array.reshape(len(array), -1).argmax(axis=1) for array in (expected, got))
    return float(np.mean(left == right))


def compare_tensors(
    program: Program, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], *, candidate: str, reference: str = "golden"
) -> list[TensorComparison]:
    """Compare all tensors of ``expected``, (N, C, H, W), in execution order.

    A tensor that the candidate lacks, or has in another shape, differs in every value.
    """
    comparisons = []
    for name in _execution_order(program, expected):
        want = np.asarray(expected[name], np.int64)
        have = np.asarray(got[name], np.int64) if name in got else None
        if have is None or have.shape != want.shape:
            comparisons.append(
                TensorComparison(
                    reference=reference,
                    candidate=candidate,
                    tensor=name,
                    values=want.size,
                    mismatches=want.size,
                    top1_agreement=0.0,
                    first=None,
                )
            )
            continue
        wrong = want != have
        first = None
        if wrong.any():
            sample, *index = (int(axis[0]) for axis in np.nonzero(wrong))
            place = (sample, *index)
            first = Difference(
                layer=_layer(program, name, index[0]),
                tensor=name,
                sample=sample,
                index=(index[0], index[1], index[2]),
                expected=int(want[place]),
                got=int(have[place]),
            )
        comparisons.append(
            TensorComparison(
                reference=reference,
                candidate=candidate,
                tensor=name,
                values=want.size,
                mismatches=int(wrong.sum()),
                top1_agreement=top1_agreement(want, have),
                first=first,
            )
        )
    return comparisons


def joined(parts: Sequence[Sequence[TensorComparison]]) -> list[TensorComparison]:
    """Comparisons of samples one by one as those of all of them; ``parts`` are in the order of the samples."""
    result = []
    for column in zip(*parts, strict=True):
        first = next((replace(part.first, sample=sample) for sample, part in enumerate(column) if part.first is not None), None)
        values, mismatches = sum(part.values for part in column), sum(part.mismatches for part in column)
        agreement = sum(part.top1_agreement for part in column) / len(column)
        result.append(replace(column[0], values=values, mismatches=mismatches, top1_agreement=agreement, first=first))
    return result


def first_difference(comparisons: list[TensorComparison]) -> Difference | None:
    """The difference that happened first: the earliest layer of the earliest sample in which any tensor differs."""
    found = [comparison.first for comparison in comparisons if comparison.first is not None]
    return min(found, key=lambda difference: difference.sample) if found else None


def _execution_order(program: Program, tensors: Mapping[str, np.ndarray]) -> list[str]:
    written = [spec.tensor for spec in program.inputs] + [name for operation in program.walk() for name in operation.outputs]
    order = [name for name in dict.fromkeys(written) if name in tensors]
    return order + [name for name in tensors if name not in order]


def _layer(program: Program, tensor: str, channel: int) -> str:
    """Name of the operation that writes ``channel`` of ``tensor``: the last of its producers that begins at or before it."""
    producers = program.producer(tensor)
    if not producers:
        return "input"
    return max((operation for operation in producers if _offset(operation) <= channel), key=_offset).name


def _offset(operation: object) -> int:
    return int(getattr(operation, "channel_offset", 0))
