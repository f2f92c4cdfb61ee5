"""Decoder language models for training, every dense layer through the layers of the methods, and the same with a cache of keys and values.

What a file quantises is quantised in training: weights and activations by the method, the table of embeddings, the head, and keys and values before they
enter the cache. Attention scores stay float.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritloom.errors import UserError
from tritloom.models.methods.activations import AbsMaxTokens, QuestActivations
from tritloom.models.methods.layers import QuantLinear, SubLayerNorm
from tritloom.models.methods.weights import (
    AbsMeanWeights,
    IntegerWeights,
    PublishedDrnaWeights,
    QuestWeights,
    RepairedDrnaWeights,
    TwnWeights,
    WeightQuantiser,
)
from tritloom.models.nets.decoder import Decoder, angles
from tritloom.models.nets.decoder_export import BlockWeights, DecoderWeights, Dense, Norm
from tritloom.models.nets.language_methods import BITS, Precision

__all__ = ["LanguageModel", "State"]

State = tuple[Tensor, ...]
"""What a block remembers: keys and values (N, kv_heads, positions, head_size); of a ``drna`` block also the last key before its rotation (N, kv_heads, 1, head_size)."""


def _weights(method: str) -> WeightQuantiser | None:
    """One scale a layer, but for QuEST, whose rotated rows have their own."""
    if method in BITS:
        return QuestWeights(BITS[method])
    return {
        "float": lambda: None,
        "twn": lambda: TwnWeights(per_channel=False),
        "bitnet": AbsMeanWeights,
        "drna-reference": PublishedDrnaWeights,
        "drna-repaired": RepairedDrnaWeights,
    }[method]()


def _activations(precision: Precision) -> nn.Module:
    """In front of the layers that read one tensor, which is quantised once for all of them."""
    if precision.activations == "quest":
        return QuestActivations(BITS[precision.method])
    return AbsMaxTokens() if precision.activations == "int8" else nn.Identity()


def _dense(inputs: int, outputs: int, precision: Precision, *, bias: bool = False) -> QuantLinear:
    return QuantLinear(inputs, outputs, bias=bias, weights=_weights(precision.method))


@dataclass(frozen=True)
class _Positions:
    """Cosine and sine of the static angles, (positions, head_size), and the angles."""

    cosine: Tensor
    sine: Tensor
    angle: Tensor


class Attention(nn.Module):
    """Causal attention with grouped queries; the cache holds keys after their rotation."""

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        super().__init__()
        self.decoder, biased = decoder, decoder.block == "drna"
        self.inputs, self.mixed = _activations(precision), _activations(precision)
        self.query = _dense(decoder.width, decoder.width, precision, bias=biased)
        self.key = _dense(decoder.width, decoder.kv_width, precision, bias=biased)
        self.value = _dense(decoder.width, decoder.kv_width, precision, bias=biased)
        self.norm = SubLayerNorm(decoder.width, epsilon=decoder.epsilon) if decoder.block == "bitnet" else None
        self.output = _dense(decoder.width, decoder.width, precision, bias=biased)
        self.cached = AbsMaxTokens() if precision.cache == "int8" else nn.Identity()

    def _turned(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """``x`` (..., positions, head_size) rotated in pairs."""
        if self.decoder.rotation == "half":
            first, second = x.chunk(2, -1)
            other = torch.cat([-second, first], -1)
        else:
            first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
            other = torch.stack([-second, first], -1).flatten(-2)
        return x * cosine + other * sine

    def forward(self, x: Tensor, positions: _Positions, past: State) -> tuple[Tensor, State]:
        """``x`` (N, S, width) behind ``past``; returns the branch's output and the state with the new positions."""
        decoder, (rows, count) = self.decoder, x.shape[:2]
        group = decoder.heads // decoder.kv_heads

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (-1, decoder.head_size)).transpose(1, 2)

        x = self.inputs(x)
        query, key, value = heads(self.query(x)), heads(self.key(x)), self.cached(heads(self.value(x)))
        query = query.unflatten(1, (decoder.kv_heads, group))
        last: State = ()
        if decoder.block == "drna":
            before = torch.cat([past[2], self.cached(key)], 2)
            last = (before[:, :, -1:],)
            angle = positions.angle + math.pi * before[:, :, :-1].tanh()
            cosine, sine = angle.cos(), angle.sin()
            query, key = self._turned(query, cosine.unsqueeze(2), sine.unsqueeze(2)), self._turned(key, cosine, sine)
        else:
            query = self._turned(query, positions.cosine, positions.sine)
            key = self._turned(key, positions.cosine, positions.sine)
        keys, values = torch.cat([past[0], self.cached(key)], 2), torch.cat([past[1], value], 2)
        scores = query @ keys.unsqueeze(2).transpose(-1, -2) * (1 / math.sqrt(decoder.head_size))
        total = keys.shape[2]
        later = torch.arange(total, device=x.device) > torch.arange(total - count, total, device=x.device)[:, None]
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ values.unsqueeze(2)
        mixed = mixed.flatten(1, 2).transpose(1, 2).reshape(rows, count, decoder.width)
        mixed = mixed if self.norm is None else self.norm(mixed)
        return self.output(self.mixed(mixed)), (keys, values, *last)


class Perceptron(nn.Module):
    """The gated perceptron of a block."""

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        super().__init__()
        self.inputs, self.inner = _activations(precision), _activations(precision)
        self.gate = _dense(decoder.width, decoder.hidden, precision)
        self.up = _dense(decoder.width, decoder.hidden, precision)
        self.norm = SubLayerNorm(decoder.hidden, epsilon=decoder.epsilon) if decoder.block == "bitnet" else None
        self.down = _dense(decoder.hidden, decoder.width, precision)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        gate, up = self.gate(x), self.up(x)
        if self.norm is None:
            return self.down(self.inner(functional.silu(gate) * up))
        positive = functional.relu(gate)
        return self.down(self.inner(self.norm(positive * positive * up)))


def _norm(decoder: Decoder) -> nn.Module:
    if decoder.block == "drna":
        return nn.LayerNorm(decoder.width, eps=decoder.epsilon)
    return SubLayerNorm(decoder.width, epsilon=decoder.epsilon)


class DecoderBlock(nn.Module):
    """One block of any kind."""

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        super().__init__()
        self.parallel = decoder.block == "drna"
        self.attention_norm, self.attention = _norm(decoder), Attention(decoder, precision)
        self.perceptron_norm, self.perceptron = _norm(decoder), Perceptron(decoder, precision)

    def forward(self, x: Tensor, positions: _Positions, past: State) -> tuple[Tensor, State]:
        mixed, state = self.attention(self.attention_norm(x), positions, past)
        if self.parallel:
            return x + mixed + self.perceptron(self.perceptron_norm(x)), state
        x = x + mixed
        return x + self.perceptron(self.perceptron_norm(x)), state


class LanguageModel(nn.Module):
    """A decoder.

    Parameters
    ----------
    decoder
        Dimensions.
    precision
        What is quantised, and how.

    Raises :class:`UserError` for a quantised head that is tied to the embeddings.
    """

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        super().__init__()
        self.decoder, self.precision = decoder, precision
        self.embedding = nn.Parameter(torch.empty(decoder.vocabulary, decoder.width))
        self.table = IntegerWeights(8, per_channel=False) if precision.embedding == "int8" else None
        self.blocks = nn.ModuleList(DecoderBlock(decoder, precision) for _ in range(decoder.layers))
        self.norm = _norm(decoder)
        self.head = None
        if decoder.tied:
            if precision.head != "float":
                raise UserError("a head that is tied to the embeddings stays float: take tied = false, or head = 'float'")
        else:
            weights = {"float": lambda: None, "int8": lambda: IntegerWeights(8), "ternary": lambda: _ternary_head(precision.method)}[
                precision.head
            ]()
            activations = None if precision.head == "float" else AbsMaxTokens()
            self.head = QuantLinear(
                decoder.width, decoder.vocabulary, bias=decoder.block == "drna", weights=weights, activations=activations
            )
        table = torch.from_numpy(angles(decoder))
        full = torch.cat([table, table], 1) if decoder.rotation == "half" else table.repeat_interleave(2, 1)
        for name, values in (("angle", full), ("cosine", full.cos()), ("sine", full.sin())):
            self.register_buffer(name, values.float().to(self.embedding.device), persistent=False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Llama and BitNet: normal weights of 0.02, those that end a branch smaller by the root of the branches; D-RNA: PyTorch's own start, embeddings of 1."""
        if self.decoder.block == "drna":
            self.embedding.normal_(0, 1)
            return
        self.embedding.normal_(0, 0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(".weight"):
                ends = name.endswith(("attention.output.weight", "perceptron.down.weight"))
                parameter.normal_(0, 0.02 / math.sqrt(2 * self.decoder.layers) if ends else 0.02)

    def start(self, rows: int = 1) -> list[State]:
        """The state of every block before the first token."""
        decoder = self.decoder
        empty = self.embedding.new_zeros(rows, decoder.kv_heads, 0, decoder.head_size)
        last = (self.embedding.new_zeros(rows, decoder.kv_heads, 1, decoder.head_size),) if decoder.block == "drna" else ()
        return [(empty, empty, *last) for _ in self.blocks]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, S, vocabulary) of token numbers (N, S)."""
        return self.advance(tokens, self.start(len(tokens)))[0]

    def advance(self, tokens: Tensor, past: list[State]) -> tuple[Tensor, list[State]]:
        """Logits of the tokens that follow ``past``, and the state behind them. Raises :class:`UserError` beyond the last position."""
        first, count = past[0][0].shape[2], tokens.shape[1]
        if first + count > self.decoder.context:
            raise UserError(f"the model has {self.decoder.context} positions, not {first + count}; give fewer tokens")
        part = slice(first, first + count)
        positions = _Positions(*(cast(Tensor, getattr(self, name))[part] for name in ("cosine", "sine", "angle")))
        x = functional.embedding(tokens, self.embedding if self.table is None else self.table(self.embedding))
        states = []
        for block, state in zip(self.blocks, past, strict=True):
            x, after = block(x, positions, state)
            states.append(after)
        x = self.norm(x)
        return (functional.linear(x, self.embedding) if self.head is None else self.head(x)), states

    @torch.no_grad()
    def exported(self) -> DecoderWeights:
        """The integers and float constants of a file, for :func:`tritloom.models.nets.decoder_export.decoder_model`; on the CPU."""
        table = None if self.table is None else self.table.codes(self.embedding)
        codes = self.embedding if table is None else table[0]
        blocks = []
        for block in cast("list[DecoderBlock]", list(self.blocks)):
            attention, perceptron = block.attention, block.perceptron
            layers = {name: getattr(attention, name) for name in ("query", "key", "value", "output")}
            layers |= {name: getattr(perceptron, name) for name in ("gate", "up", "down")}
            kinds = dict.fromkeys(("query", "key", "value"), attention.inputs) | dict.fromkeys(("gate", "up"), perceptron.inputs)
            kinds |= {"output": attention.mixed, "down": perceptron.inner}
            norms = {
                "attention": block.attention_norm,
                "perceptron": block.perceptron_norm,
                "output": attention.norm,
                "down": perceptron.norm,
            }
            blocks.append(
                BlockWeights(
                    {name: _exported_dense(layer, kinds[name]) for name, layer in layers.items()},
                    {name: _exported_norm(norm) for name, norm in norms.items() if norm is not None},
                )
            )
        head = Dense(self.embedding.numpy(), None) if self.head is None else _exported_dense(self.head, self.head.activations)
        scale = None if table is None else table[1].numpy()
        return DecoderWeights(codes.numpy(), scale, blocks, _exported_norm(self.norm), head, self.precision.cache == "int8")


def _exported_dense(layer: QuantLinear, activations: nn.Module | None) -> Dense:
    bias = None if layer.bias is None else layer.bias.numpy()
    kind, bits = "int8" if isinstance(activations, AbsMaxTokens) else "float", 0
    if isinstance(activations, QuestActivations):
        kind, bits = "quest", activations.bits
    if layer.weights is None:
        return Dense(layer.weight.numpy(), None, bias, kind, bits)
    codes, scale = layer.weights.codes(layer.weight)
    return Dense(codes.numpy(), scale.numpy(), bias, kind, bits)


def _exported_norm(norm: nn.Module) -> Norm:
    if isinstance(norm, nn.LayerNorm):
        return Norm(norm.weight.numpy(), norm.bias.numpy())
    return Norm(cast(SubLayerNorm, norm).gain.numpy())


def _ternary_head(method: str) -> WeightQuantiser:
    """That of the method where it gives trits that are trained, else BitNet's."""
    if method in ("twn", "drna-repaired"):
        return cast(WeightQuantiser, _weights(method))
    return AbsMeanWeights()
