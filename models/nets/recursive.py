"""The Tiny Recursive Model for training (Jolicoeur-Martineau: arXiv 2510.04871): one small network applied again and again to an answer and a latent state.

With the embedded puzzle ``x``, the answer ``y`` and the latent state ``z``, all (N, tokens, D), and one network ``f``::

    cycle(x, y, z):  n times z <- f(z + y + x);  then y <- f(y + z)
    step(x, y, z):   T - 1 cycles without gradient, then one with it

A supervision step is one ``step`` and what the heads say of ``y``: the answer's symbols, and whether to halt (a logit above 0, read from token 0). There are up
to ``supervision`` of them, each from the states that the one before left. The first ``y`` and ``z`` are fixed random vectors, the same for every token.

``f`` is two blocks, each two residual branches with the norm behind the sum, ``h <- rms(h + branch(h))``: root mean square without gain, ``epsilon = 1e-5``.
The first branch mixes tokens, by attention or by a SwiGLU across the token axis (where the norm runs over the token axis too); the second is a SwiGLU across channels.
In front of the puzzle stand ``prefix`` tokens of their own.

What integers need is part of the network unless ``method`` is ``float``: every product has quantised weights and one int8 grid per token, embedding and heads have int8
weights, and ``x``, ``y``, ``z`` and what leaves a norm lie on an int16 grid of 1/2048 (1/1024 for more than 256 channels or tokens), which the norm bounds.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tritloom.models.methods.activations import AbsMaxTokens, StaticGrid
from tritloom.models.methods.gradients import to_grid
from tritloom.models.methods.layers import QuantLinear
from tritloom.models.methods.recipes import recipe
from tritloom.models.methods.weights import IntegerWeights
from tritloom.models.nets.recursion import EMBEDDING_STEP, EPSILON, RecursiveShape
from tritloom.models.nets.recursive_export import RecursiveWeights

__all__ = ["Answer", "RecursiveNet"]


def _linear(inputs: int, outputs: int, method: str, *, bias: bool = False, head: bool = False) -> QuantLinear:
    """A product of the network; weights from a normal distribution cut at two standard deviations, of variance ``1 / inputs``."""
    if method == "float":
        layer = QuantLinear(inputs, outputs, bias=bias)
    else:
        weights = IntegerWeights(8) if head else recipe(method).weights()
        layer = QuantLinear(inputs, outputs, bias=bias, weights=weights, activations=AbsMaxTokens())
    _cut_normal(layer.weight, 1 / math.sqrt(inputs))
    return layer


def _cut_normal(tensor: Tensor, deviation: float) -> None:
    wide = deviation / 0.8796256610342398  # what cutting at two standard deviations takes away
    nn.init.trunc_normal_(tensor, std=wide, a=-2 * wide, b=2 * wide)


class SwiGlu(nn.Module):
    """``down(silu(a) * b)`` with ``(a, b)`` the halves of ``gate_up(x)``, along the last axis."""

    def __init__(self, features: int, inner: int, method: str) -> None:
        super().__init__()
        self.gate_up, self.down = _linear(features, 2 * inner, method), _linear(inner, features, method)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gate_up(x).chunk(2, -1)
        return self.down(functional.silu(a) * b)


class Attention(nn.Module):
    """Every token sees every other; rotary positions (halves, base 10000), scores divided by the square root of the head's width."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: RecursiveShape, method: str) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv, self.out = _linear(shape.dim, 3 * shape.dim, method), _linear(shape.dim, shape.dim, method)
        for name, table in (("cosine", np.cos(shape.angles())), ("sine", np.sin(shape.angles()))):
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def _turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cosine - b * self.sine, b * self.cosine + a * self.sine], -1)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, features = x.shape
        q, k, v = (part.reshape(count, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = self._turned(q) @ self._turned(k).transpose(-1, -2) / math.sqrt(features // self.heads)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, features))


class Block(nn.Module):
    """Two branches, each followed by the norm of the sum and by the grid of the states."""

    def __init__(self, shape: RecursiveShape, method: str, grid: nn.Module) -> None:
        super().__init__()
        self.grid = grid
        self.mixes_tokens = shape.heads == 0
        self.tokens: nn.Module
        if self.mixes_tokens:
            self.tokens = SwiGlu(shape.tokens, shape.inner(shape.tokens), method)
        else:
            self.tokens = Attention(shape, method)
        self.channels = SwiGlu(shape.dim, shape.inner(shape.dim), method)

    def _normed(self, h: Tensor) -> Tensor:
        return self.grid(functional.rms_norm(h, h.shape[-1:], eps=EPSILON))

    def forward(self, h: Tensor) -> Tensor:
        if self.mixes_tokens:
            columns = h.transpose(1, 2)
            h = self._normed(columns + self.tokens(columns)).transpose(1, 2)
        else:
            h = self._normed(h + self.tokens(h))
        return self._normed(h + self.channels(h))


@dataclass(frozen=True)
class Answer:
    """What the heads say: ``logits`` (N, cells, symbols) and ``halt`` (N,), and the states behind them."""

    logits: Tensor
    halt: Tensor
    y: Tensor
    z: Tensor

    def solved(self, wanted: Tensor) -> Tensor:
        """Rows whose symbols are all those of ``wanted`` (N, cells), bool (N,)."""
        return (self.logits.argmax(-1) == wanted).all(-1)


class RecursiveNet(nn.Module):
    """A Tiny Recursive Model of a shape, with the weights of a method (``float``, ``bitnet``, ``twn``, ``twn-tensor``, ``int8``, ``int4``)."""

    y0: Tensor
    z0: Tensor

    def __init__(self, shape: RecursiveShape, method: str) -> None:
        super().__init__()
        self.shape, self.method = shape, method
        grid: nn.Module = nn.Identity() if method == "float" else StaticGrid(shape.state_step, -(1 << 15), (1 << 15) - 1)
        self.embedding = nn.Parameter(torch.empty(shape.symbols, shape.dim))
        self.prefix = nn.Parameter(torch.zeros(shape.prefix, shape.dim))
        self.blocks = nn.ModuleList(Block(shape, method, grid) for _ in range(shape.blocks))
        self.answer_head = _linear(shape.dim, shape.symbols, method, head=True)
        self.halt_head = _linear(shape.dim, 1, method, bias=True, head=True)
        with torch.no_grad():
            _cut_normal(self.embedding, 1.0)
            self.halt_head.weight.zero_()
            self.halt_head.bias.fill_(-5.0)
            for name in ("y0", "z0"):
                state = torch.empty(shape.dim)
                _cut_normal(state, 1.0)
                self.register_buffer(name, grid(state))

    def embed(self, puzzles: Tensor) -> Tensor:
        """``x`` (N, tokens, D) of symbols int64 (N, cells)."""
        table = torch.cat([self.prefix, self.embedding])
        if self.method != "float":
            table = to_grid(table, EMBEDDING_STEP, -127, 127)
        front = torch.arange(self.shape.prefix, device=puzzles.device).expand(len(puzzles), -1)
        return functional.embedding(torch.cat([front, puzzles + self.shape.prefix], 1), table)

    def start(self, count: int) -> tuple[Tensor, Tensor]:
        """The first ``y`` and ``z`` of so many rows."""
        return tuple(state.expand(count, self.shape.tokens, -1).clone() for state in (self.y0, self.z0))  # type: ignore[return-value]

    def refine(self, h: Tensor) -> Tensor:
        """The network ``f``."""
        for block in self.blocks:
            h = block(h)
        return h

    def _cycle(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.shape.n):
            z = self.refine(z + y + x)
        return self.refine(y + z), z

    def forward(self, puzzles: Tensor, y: Tensor, z: Tensor) -> Answer:
        """One supervision step; the gradient goes through its last cycle and, for the first ones, nowhere."""
        with torch.no_grad():
            x = self.embed(puzzles)
            for _ in range(self.shape.cycles - 1):
                y, z = self._cycle(x, y, z)
        y, z = self._cycle(self.embed(puzzles), y, z)
        return Answer(self.answer_head(y[:, self.shape.prefix :]), self.halt_head(y[:, 0])[:, 0], y.detach(), z.detach())

    @torch.no_grad()
    def every_step(self, puzzles: Tensor) -> list[Answer]:
        """All supervision steps, whatever the halting head says."""
        y, z = self.start(len(puzzles))
        answers = []
        for _ in range(self.shape.supervision):
            answers.append(self(puzzles, y, z))
            y, z = answers[-1].y, answers[-1].z
        return answers

    @torch.no_grad()
    def exported(self) -> RecursiveWeights:
        """What the file stores; on the CPU."""
        names = {f"block{index + 1}": block for index, block in enumerate(self.blocks)}
        names |= {"answer_head": self.answer_head, "halt_head": self.halt_head}
        layers: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for prefix, part in names.items():
            for name, layer in part.named_modules(prefix=prefix):
                if isinstance(layer, QuantLinear):
                    codes, scale = (layer.weight, None) if layer.weights is None else layer.weights.codes(layer.weight)
                    layers[name] = (codes.numpy(), None) if scale is None else (codes.numpy().astype(np.int8), scale.numpy())
        table = torch.cat([self.prefix, self.embedding]).numpy()
        if self.method != "float":
            table = np.clip(np.rint(table / EMBEDDING_STEP), -127, 127).astype(np.int8)
        return RecursiveWeights(layers, table, self.y0.numpy(), self.z0.numpy(), float(self.halt_head.bias))
