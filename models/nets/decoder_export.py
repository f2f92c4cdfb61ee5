"""ONNX files of decoder language models: one graph for a prompt and for what follows it; needs no PyTorch.

Inputs: ``input_ids`` int64 (1, S), the tokens behind P earlier ones, and for every block N ``past_key_values.N.key`` and ``.value`` float
(1, kv_heads, P, head_size), empty at the start. Outputs: ``logits`` float (1, S, vocabulary), and ``present.N.key`` and ``.value`` with P + S positions, which are the next call's
past. A block ``drna`` also hands on ``past_key_values.N.last_key`` to ``present.N.last_key``, (1, kv_heads, 1, head_size): the newest key before its rotation, zeros at the
start. The keys of the cache are rotated.

Every quantiser stands in the graph. Weights and the table of embeddings are int8 with a DequantizeLinear of one scale, a list of one number: of a MatMul with a scalar, or
with scales for the outputs, the optimiser of ONNX Runtime 1.31 makes a MatMulNBits, which rounds the activations once more. Scales of outputs are multiplied to the sums.
A quantiser with a scale for each token, which keys and
values also pass on their way into the cache, is written out::

    scale = 127 / max(max|x|, 1e-5)        value = clip(round(x * scale), -128, 127) * (1 / scale)

and QuEST's, behind a product with its rotation, likewise; see :mod:`tritloom.models.methods.bitnet` and :mod:`tritloom.models.methods.quest`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tritloom.models.methods import quest
from tritloom.models.methods.bitnet import EPSILON
from tritloom.models.nets.classifier import rotation
from tritloom.models.nets.decoder import Decoder, angles
from tritloom.models.nets.export import Graph

__all__ = ["INPUT", "LOGITS", "BlockWeights", "Dense", "DecoderWeights", "Norm", "decoder_model", "state_names"]

OPSET, IR_VERSION = 23, 11
"""Operator set 23 is the first with RMSNormalization and RotaryEmbedding."""

INPUT, LOGITS = "input_ids", "logits"

MASKED = np.float32(-np.inf)


@dataclass(frozen=True)
class Dense:
    """A dense layer: ``scale * codes`` (O, I) and maybe a bias (O,).

    ``codes`` are integers of 8 bits with ``scale`` (1,) or (O,), or float weights with None. ``activations`` of its input: ``float``, ``int8``, or ``quest`` of so many ``bits``,
    for which the codes are those of the rotated weights.
    """

    codes: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None = None
    activations: str = "float"
    bits: float = 0


@dataclass(frozen=True)
class Norm:
    """Gain (width,), and the bias of a layer norm; None for a root-mean-square norm."""

    gain: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class BlockWeights:
    """``dense`` by the names of :attr:`~tritloom.models.nets.decoder.Decoder.layer_names`; ``norms``: ``attention``, ``perceptron``, of BitNet also ``output``, ``down``."""

    dense: Mapping[str, Dense]
    norms: Mapping[str, Norm]


@dataclass(frozen=True)
class DecoderWeights:
    """``embedding`` (vocabulary, width): integers of 8 bits with ``embedding_scale``, or floats with None. ``cache`` tells whether keys and values are quantised."""

    embedding: np.ndarray
    embedding_scale: np.ndarray | None
    blocks: Sequence[BlockWeights]
    norm: Norm
    head: Dense
    cache: bool


def state_names(decoder: Decoder) -> list[tuple[str, str]]:
    """Names of the inputs and outputs that carry the state, in the order of the graph."""
    parts = ("key", "value", "last_key") if decoder.block == "drna" else ("key", "value")
    return [(f"past_key_values.{index}.{part}", f"present.{index}.{part}") for index in range(decoder.layers) for part in parts]


class _Writer(Graph):
    """What a block needs. Constants and quantised tensors that several nodes read are written once."""

    def __init__(self, decoder: Decoder, cache: bool) -> None:
        super().__init__()
        self.decoder, self.cache = decoder, cache
        self._shared: dict[str, str] = {}

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """A scalar stays one, which Range asks for."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def number(self, value: float | int | Sequence[int]) -> str:
        """A float scalar, an integer scalar, or a list of integers, under its value's name."""
        name = f"constant.{str(value).replace(' ', '')}"
        if name not in self._shared:
            kind = np.float32 if isinstance(value, float) else np.int64
            self._shared[name] = self.constant(name, np.asarray(value, kind))
        return self._shared[name]

    def rounded(self, source: str) -> str:
        """One scale a token: the last axis."""
        if f"{source}.int8" in self._shared:
            return self._shared[f"{source}.int8"]
        largest = self.node("ReduceMax", [self.node("Abs", [source], f"{source}.magnitude"), self.number([-1])], f"{source}.largest")
        largest = self.node("Max", [largest, self.number(EPSILON)], f"{source}.bounded")
        scale = self.node("Div", [self.number(127.0), largest], f"{source}.scale")
        codes = self.node("Round", [self.node("Mul", [source, scale], f"{source}.scaled")], f"{source}.rounded")
        codes = self.node("Clip", [codes, self.number(-128.0), self.number(127.0)], f"{source}.codes")
        step = self.node("Div", [self.number(1.0), scale], f"{source}.step")
        self._shared[f"{source}.int8"] = self.node("Mul", [codes, step], f"{source}.quantised")
        return self._shared[f"{source}.int8"]

    def rotated(self, source: str, features: int, bits: float) -> str:
        """QuEST's grid on the rotated last axis."""
        if f"{source}.quest" in self._shared:
            return self._shared[f"{source}.quest"]
        size, count = quest.block_size(features), quest.levels(bits)
        x = source
        if size > 1:
            name = f"rotation.{features}"
            if name not in self._shared:
                self._shared[name] = self.integers(name, rotation(features), np.ones(1))
            x = self.node("MatMul", [source, self._shared[name]], f"{source}.sums")
            x = self.node("Div", [x, self.number(math.sqrt(size))], f"{source}.turned")
        square = self.node("ReduceMean", [self.node("Mul", [x, x], f"{source}.squares"), self.number([-1])], f"{source}.variance")
        sigma = self.node("Add", [self.node("Sqrt", [square], f"{source}.root"), self.number(1e-8)], f"{source}.deviation")
        unit = self.node("Mul", [sigma, self.number(float(quest.unit_of(1.0, bits)))], f"{source}.unit")
        x = self.node("Div", [x, unit], f"{source}.units")
        limit = 1.0 if count == 3 else float(count - 1)
        codes = self.node("Clip", [x, self.number(-limit), self.number(limit)], f"{source}.limited")
        if count == 3:
            codes = self.node("Round", [codes], f"{source}.codes")
        else:
            half = self.node("Add", [self.node("Div", [codes, self.number(2.0)], f"{source}.halves"), self.number(0.5)], f"{source}.levels")
            double = self.node("Mul", [self.node("Round", [half], f"{source}.level"), self.number(2.0)], f"{source}.doubled")
            codes = self.node("Sub", [double, self.number(1.0)], f"{source}.codes")
        self._shared[f"{source}.quest"] = self.node("Mul", [codes, unit], f"{source}.quantised")
        return self._shared[f"{source}.quest"]

    def dense(self, source: str, name: str, layer: Dense) -> str:
        if layer.activations == "int8":
            source = self.rounded(source)
        elif layer.activations == "quest":
            source = self.rotated(source, layer.codes.shape[1], layer.bits)
        channels = layer.scale if layer.scale is not None and layer.scale.size > 1 else None
        scale = layer.scale if channels is None else np.ones(1, np.float32)
        steps = [("MatMul", self.integers(f"{name}.weight", layer.codes.T, scale))]
        if channels is not None:
            steps.append(("Mul", self.constant(f"{name}.channel_scale", channels.astype(np.float32))))
        if layer.bias is not None:
            steps.append(("Add", self.constant(f"{name}.bias", layer.bias)))
        for number, (operator, operand) in enumerate(steps):
            source = self.node(operator, [source, operand], name if number + 1 == len(steps) else f"{name}.{operator.lower()}")
        return source

    def integers(self, name: str, codes: np.ndarray, scale: np.ndarray | None) -> str:
        """Integers behind a DequantizeLinear with one scale, or floats."""
        if scale is None:
            return self.constant(name, codes.astype(np.float32))
        scales = self.constant(f"{name}_scale", scale.astype(np.float32).reshape(1))
        return self.node("DequantizeLinear", [self.constant(f"{name}_codes", codes.astype(np.int8)), scales], name)

    def norm(self, source: str, name: str, norm: Norm) -> str:
        parts = [source, self.constant(f"{name}.gain", norm.gain)]
        if norm.bias is None:
            return self.node("RMSNormalization", parts, name, axis=-1, epsilon=self.decoder.epsilon)
        return self.node(
            "LayerNormalization", [*parts, self.constant(f"{name}.bias", norm.bias)], name, axis=-1, epsilon=self.decoder.epsilon
        )

    def positions(self) -> None:
        """``positions`` int64 (S,) and ``mask`` float (S, P + S), from the sizes of the inputs; the tables of the static angles."""
        past = self.node("Squeeze", [self.node("Shape", ["past_key_values.0.key"], "past.size", start=2, end=3)], "past")
        count = self.node("Squeeze", [self.node("Shape", [INPUT], "count.size", start=1, end=2)], "count")
        total = self.node("Add", [past, count], "total")
        rows = self.node("Range", [past, total, self.number(1)], "positions")
        columns = self.node("Range", [self.number(0), total, self.number(1)], "columns")
        later = self.node("Greater", [columns, self.node("Unsqueeze", [rows, self.number([1])], "rows")], "later")
        self.node("Where", [later, self.constant("masked", MASKED), self.number(0.0)], "mask")
        table = angles(self.decoder)
        if self.decoder.block == "drna":
            self.node("Gather", [self.constant("angles", np.tile(table, 2).astype(np.float32)), rows], "angle", axis=0)
            return
        self.node("Unsqueeze", [rows, self.number([0])], "position_ids")
        for name, function in (("cosine", np.cos), ("sine", np.sin)):
            self.constant(name, function(table).astype(np.float32))

    def heads(self, source: str, name: str, count: int) -> str:
        """(1, S, count * head_size) to (1, count, S, head_size)."""
        split = self.node("Reshape", [source, self.number([0, -1, count, self.decoder.head_size])], f"{name}.split")
        return self.node("Transpose", [split], name, perm=[0, 2, 1, 3])

    def turned(self, source: str, name: str, cosine: str, sine: str) -> str:
        """Halves rotated by angles of their own for each element."""
        halves = [f"{name}.first", f"{name}.second"]
        self.nodes.append(helper.make_node("Split", [source], halves, name=f"{name}.halves", axis=-1, num_outputs=2))
        other = self.node("Concat", [self.node("Neg", [halves[1]], f"{name}.negated"), halves[0]], f"{name}.other", axis=-1)
        parts = [self.node("Mul", [source, cosine], f"{name}.along"), self.node("Mul", [other, sine], f"{name}.across")]
        return self.node("Add", parts, name)

    def attention(self, source: str, name: str, index: int, block: BlockWeights) -> str:
        decoder, past, present = self.decoder, f"past_key_values.{index}", f"present.{index}"
        query, key, value = (self.dense(source, f"{name}.{part}", block.dense[part]) for part in ("query", "key", "value"))
        query = self.heads(query, f"{name}.queries", decoder.heads)
        key = self.heads(key, f"{name}.new_keys", decoder.kv_heads)
        value = self.heads(value, f"{name}.new_values", decoder.kv_heads)
        groups = self.number([1, decoder.kv_heads, decoder.heads // decoder.kv_heads, -1, decoder.head_size])
        if decoder.block == "drna":
            newest = self.rounded(key) if self.cache else key
            keys = self.node("Concat", [f"{past}.last_key", newest], f"{name}.moving_keys", axis=2)
            before = self.node("Slice", [keys, self.number([0]), self.number([-1]), self.number([2])], f"{name}.keys_before")
            self.node("Slice", [keys, self.number([-1]), self.number([2**63 - 1]), self.number([2])], f"{present}.last_key")
            phase = self.node("Mul", [self.node("Tanh", [before], f"{name}.phase.share"), self.number(math.pi)], f"{name}.phase")
            angle = self.node("Add", ["angle", phase], f"{name}.angle")
            cosine, sine = self.node("Cos", [angle], f"{name}.cosine"), self.node("Sin", [angle], f"{name}.sine")
            key = self.turned(key, f"{name}.turned_keys", cosine, sine)
            grouped = self.node("Reshape", [query, groups], f"{name}.grouped_queries")
            shared = [self.node("Unsqueeze", [part, self.number([2])], f"{part}.shared") for part in (cosine, sine)]
            query = self.turned(grouped, f"{name}.turned_queries", *shared)
        else:
            interleaved = int(decoder.rotation == "interleaved")
            query, key = (
                self.node("RotaryEmbedding", [part, "cosine", "sine", "position_ids"], f"{name}.turned_{kind}", interleaved=interleaved)
                for part, kind in ((query, "queries"), (key, "keys"))
            )
            query = self.node("Reshape", [query, groups], f"{name}.grouped_queries")
        if self.cache:
            key, value = self.rounded(key), self.rounded(value)
        keys = self.node("Concat", [f"{past}.key", key], f"{present}.key", axis=2)
        values = self.node("Concat", [f"{past}.value", value], f"{present}.value", axis=2)
        columns = self.node(
            "Transpose", [self.node("Unsqueeze", [keys, self.number([2])], f"{name}.shared_keys")], f"{name}.columns", perm=[0, 1, 2, 4, 3]
        )
        scores = self.node(
            "Mul",
            [self.node("MatMul", [query, columns], f"{name}.products"), self.number(1 / math.sqrt(decoder.head_size))],
            f"{name}.scores",
        )
        weights = self.node("Softmax", [self.node("Add", [scores, "mask"], f"{name}.masked")], f"{name}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, self.node("Unsqueeze", [values, self.number([2])], f"{name}.shared_values")], f"{name}.mixed")
        mixed = self.node("Reshape", [mixed, self.number([1, decoder.heads, -1, decoder.head_size])], f"{name}.heads")
        mixed = self.node(
            "Reshape", [self.node("Transpose", [mixed], f"{name}.tokens", perm=[0, 2, 1, 3]), self.number([0, 0, -1])], f"{name}.joined"
        )
        if "output" in block.norms:
            mixed = self.norm(mixed, f"{name}.output_norm", block.norms["output"])
        return self.dense(mixed, f"{name}.output", block.dense["output"])

    def perceptron(self, source: str, name: str, block: BlockWeights) -> str:
        gate, up = (self.dense(source, f"{name}.{part}", block.dense[part]) for part in ("gate", "up"))
        if "down" in block.norms:
            gate = self.node("Relu", [gate], f"{name}.positive")
            gate = self.node("Mul", [gate, gate], f"{name}.square")
            inner = self.norm(self.node("Mul", [gate, up], f"{name}.inner"), f"{name}.down_norm", block.norms["down"])
        else:
            gate = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.swish")
            inner = self.node("Mul", [gate, up], f"{name}.inner")
        return self.dense(inner, f"{name}.down", block.dense["down"])

    def block(self, x: str, index: int, block: BlockWeights) -> str:
        name = f"block{index}"
        mixed = self.attention(self.norm(x, f"{name}.attention_norm", block.norms["attention"]), f"{name}.attention", index, block)
        after = self.node("Add", [x, mixed], f"{name}.after_attention")
        inside = self.norm(x if self.decoder.block == "drna" else after, f"{name}.perceptron_norm", block.norms["perceptron"])
        return self.node("Add", [after, self.perceptron(inside, f"{name}.perceptron", block)], name)


def decoder_model(name: str, decoder: Decoder, weights: DecoderWeights, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The graph, with ``metadata`` in the given order. The same arguments give the same bytes."""
    graph = _Writer(decoder, weights.cache)
    graph.positions()
    if weights.embedding_scale is None:
        x = graph.node("Gather", [graph.constant("embedding", weights.embedding.astype(np.float32)), INPUT], "tokens")
    else:
        codes = graph.node("Gather", [graph.constant("embedding", weights.embedding.astype(np.int8)), INPUT], "token_codes")
        scale = graph.constant("embedding_scale", weights.embedding_scale.astype(np.float32).reshape(1))
        x = graph.node("DequantizeLinear", [codes, scale], "tokens")
    for index, block in enumerate(weights.blocks):
        x = graph.block(x, index, block)
    graph.dense(graph.norm(x, "norm", weights.norm), LOGITS, weights.head)

    def described(label: str, count: int | str) -> onnx.ValueInfoProto:
        positions = 1 if label.endswith(".last_key") else count
        return helper.make_tensor_value_info(label, TensorProto.FLOAT, [1, decoder.kv_heads, positions, decoder.head_size])

    states = state_names(decoder)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, TensorProto.INT64, [1, "S"]), *(described(before, "P") for before, _ in states)],
            [
                helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [1, "S", decoder.vocabulary]),
                *(described(after, "P + S") for _, after in states),
            ],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tritloom",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model
