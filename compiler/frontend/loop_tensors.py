"""Tensors of models with loops: integers with proven ranges, and blocks whose tokens lie along the width."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import SequenceReader
from tritloom.compiler.frontend.sequence_values import ZERO, Block, Integers
from tritloom.compiler.ir.block import View
from tritloom.compiler.ir.grid import ClampedSum
from tritloom.compiler.ir.program import Convolution, Proof, StepFunction, Tensor, Window
from tritloom.hw.arch.record import START_MIN, Record

__all__ = ["GridReader"]


@dataclass
class GridReader(SequenceReader):
    """Makes tensors and moves their elements."""

    capacity: int = 0
    _views: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def integers(self, name: str, shape: tuple[int, int, int], low: int, high: int) -> str:
        """The name of a new tensor of integers; 8, 16 or 32 bits. Raises :class:`RefusalError` for a wider range."""
        bits = next((bits for bits in (8, 16, 32) if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1)), 0)
        if not bits:
            raise RefusalError(f"its results may lie in {low}..{high}, which needs more than 32 bits")
        name = self.tensor(name, shape)
        self.tensors[name] = Tensor(name=name, shape=shape, bits=bits, low=low, high=high, scale=(Fraction(1),))
        return name

    def laid_out(self, node: onnx.NodeProto, block: Any, pixels: int | None = None) -> Any:
        """A block, or integers, with the last axis in the channels and the others along the width; moved only where it lies otherwise.

        A block with a scale for each token keeps its tokens where they are: only its channels are picked.
        """
        channels = block.index.shape[-1] if block.index.ndim else 1
        shape = (channels, 1, block.index.size // channels)
        order = block.index.reshape(-1, channels).T.reshape(shape)
        source = self.tensors[block.tensor]
        if source.shape == shape and np.array_equal(order.ravel(), np.arange(order.size)):
            return block
        if isinstance(block, Block) and block.scale:
            width = source.shape[2]
            if shape[2] != width or (order % width != np.arange(width)).any():
                raise RefusalError(
                    "it joins or moves tokens that have scales of their own",
                    "bring them to a fixed grid with QuantizeLinear to int16 first",
                )
        key = block.tensor, shape, order.tobytes()
        if key not in self._views:
            self._views[key] = self._selected(source, order) if (order == ZERO).any() else self._viewed(source, order)
        natural = np.arange(order.size).reshape(channels, -1).T.reshape(block.index.shape)
        return replace(block, tensor=self._views[key], index=natural)

    def _viewed(self, source: Tensor, order: np.ndarray) -> str:
        output = self.tensor(f"{source.name}.view", order.shape)
        self.tensors[output] = replace(source, name=output, shape=order.shape)
        self.operations.append(View(name=output, output=output, input=source.name, index=order))
        return output

    def _selected(self, source: Tensor, order: np.ndarray) -> str:
        """Elements of a vector beside constant zeros: a product with a matrix of zeros and ones."""
        if source.shape[1:] != (1, 1) or order.shape[1:] != (1, 1) or source.bits > 8:
            raise RefusalError("only vectors of 8-bit integers are joined with zeros")
        picked = order.ravel()
        weights = np.zeros((len(picked), source.shape[0], 1, 1), np.int16)
        weights[np.flatnonzero(picked != ZERO), picked[picked != ZERO]] = 1
        low, high = min(source.low, 0), max(source.high, 0)
        proof = Proof(exact=True, reachable=(high - low + 1) * len(picked))
        step = StepFunction(records=((Record(START_MIN, 1, 0, 0),),) * len(picked), low=low, high=high, proof=proof)
        output = self.integers(f"{source.name}.placed", (len(picked), 1, 1), low, high)
        self.operations.append(
            Convolution(
                name=output, output=output, input=source.name, weights=weights, planes=1, window=Window(), step=step,
                acc_low=low, acc_high=high,
            )
        )  # fmt: skip
        return output

    def clamped_sum(
        self,
        node: onnx.NodeProto,
        operands: Sequence[tuple[Integers | Block, int]],
        constant: int = 0,
        low: int | None = None,
        high: int | None = None,
    ) -> str:
        """The tensor of one or two laid out operands times their factors plus ``constant``, limited to ``low`` and ``high`` where they are given."""
        if abs(constant) >= 1 << 31:
            raise RefusalError(f"its constant {constant} needs more than 32 bits")
        ranges = [
            sorted((self.tensors[operand.tensor].low * factor, self.tensors[operand.tensor].high * factor)) for operand, factor in operands
        ]
        least, most = (sum(bounds) + constant for bounds in zip(*ranges, strict=True))
        low = least if low is None else min(max(least, low), high if high is not None else least)
        high = most if high is None else max(min(most, high), low)
        names, factors = [operand.tensor for operand, _ in operands], [factor for _, factor in operands]
        output = self.integers(node.output[0], self.tensors[names[0]].shape, low, high)
        self.operations.append(
            ClampedSum(
                name=node.name or node.output[0], output=output, left=names[0], right=names[1] if names[1:] else "", left_factor=factors[0],
                right_factor=factors[1] if factors[1:] else 1, constant=constant, low=low, high=high,
            )
        )  # fmt: skip
        return output
