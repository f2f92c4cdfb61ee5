"""ONNX files of Tiny Recursive Models: ``Loop`` nodes around one set of weights; needs no PyTorch.

``puzzle`` int64 (1, cells) goes to ``logits`` float (1, cells, symbols), ``halt``, the halting head's logit float (1,), and ``steps``, how many supervision steps were taken,
int64 (). The outermost ``Loop`` counts supervision steps and ends early when ``halt`` is above 0; in its body one ``Loop`` counts cycles, and in that one's body another counts
the updates of the latent state. So the network ``f`` stands in the file twice, for ``z`` and for ``y``, and every weight once.

Weights are int8 integers with a DequantizeLinear outside the loops. The int8 grid of each token is written out as training computes it: largest magnitude, division, rounding half
to even. States lie on an int16 grid, a QuantizeLinear and a DequantizeLinear. All operators are standard ones of operator set 23.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from tritloom.models.methods.bitnet import EPSILON as LEAST_MAGNITUDE
from tritloom.models.nets.loops import Scope, State, model_of, typed
from tritloom.models.nets.recursion import EMBEDDING_STEP, EPSILON, RecursiveShape

__all__ = ["INPUT", "OUTPUTS", "RecursiveWeights", "random_weights", "recursive_model"]

INPUT, OUTPUTS = "puzzle", ("logits", "halt", "steps")


@dataclass(frozen=True)
class RecursiveWeights:
    """What training made.

    ``layers``: by name, in order, integers int8 (O, I) and scales float32 (O,) or (1,); or float32 weights and None. ``embedding``: int8 codes (prefix + symbols, D) with the
    step :data:`EMBEDDING_STEP`, or float32. ``y0`` and ``z0``: float32 (D,), on the states' grid where there is one. ``halt_bias``: a float.
    """

    layers: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
    embedding: np.ndarray
    y0: np.ndarray
    z0: np.ndarray
    halt_bias: float

    @property
    def quantised(self) -> bool:
        return self.embedding.dtype == np.int8


def random_weights(shape: RecursiveShape, *, seed: int, halt_bias: float = 0.0, spread: int = 2048) -> RecursiveWeights:
    """Random trits, heads that say something, and first states of the standard deviation ``spread`` in steps of their grid: for measuring what no training has to be done for."""
    rng = np.random.default_rng(seed)
    layers: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for block in range(1, shape.blocks + 1):
        for part, features in (("tokens", shape.tokens), ("channels", shape.dim)):
            inner = shape.inner(features)
            for layer, outputs, inputs in (("gate_up", 2 * inner, features), ("down", features, inner)):
                scale = np.full(1, 1.5 * inputs**-0.5, np.float32)
                layers[f"block{block}.{part}.{layer}"] = rng.integers(-1, 2, (outputs, inputs)).astype(np.int8), scale
    for head, outputs in (("answer_head", shape.symbols), ("halt_head", 1)):
        codes = rng.integers(-127, 128, (outputs, shape.dim)).astype(np.int8)
        layers[head] = codes, rng.uniform(0.002, 0.004, outputs).astype(np.float32)
    table = rng.integers(-100, 101, (shape.prefix + shape.symbols, shape.dim)).astype(np.int8)
    y0, z0 = (np.rint(rng.normal(0, 1, shape.dim) * spread) * shape.state_step for _ in range(2))
    return RecursiveWeights(layers, table, y0.astype(np.float32), z0.astype(np.float32), halt_bias)


class _Writer:
    """The parts of the network, written into any scope."""

    def __init__(self, shape: RecursiveShape, weights: RecursiveWeights, root: Scope) -> None:
        self.shape, self.weights, self.root = shape, weights, root
        self.matrices: dict[str, str] = {}
        for name, (codes, scale) in weights.layers.items():
            if scale is None:
                self.matrices[name] = root.constant(f"{name}.weight", codes.T.astype(np.float32))
                continue
            # One scale is a scalar; a scale an output runs along axis 1, because the product is x W.
            step = root.constant(f"{name}.weight_scale", scale.astype(np.float32).reshape(() if scale.size == 1 else (-1,)))
            stored = root.constant(f"{name}.weights", codes.T.astype(np.int8))
            self.matrices[name] = root.node("DequantizeLinear", [stored, step], f"{name}.weight", axis=1)

    def product(self, scope: Scope, x: str, layer: str, name: str) -> str:
        """``x W`` along the last axis, ``x`` on the grid of its token."""
        if self.weights.layers[layer][1] is not None:
            x = self._token_grid(scope, x, f"{name}.tokens")
        return scope.node("MatMul", [x, self.matrices[layer]], name)

    def _token_grid(self, scope: Scope, x: str, name: str) -> str:
        constant, node = scope.constant, scope.node
        magnitude = node("Abs", [x], f"{name}.magnitude")
        largest = node("ReduceMax", [magnitude, constant("last_axis", np.array([-1]))], f"{name}.largest", keepdims=1)
        largest = node("Max", [largest, constant("least_magnitude", np.float32(LEAST_MAGNITUDE))], f"{name}.clipped")
        factor = node("Div", [constant("highest_code", np.float32(127)), largest], f"{name}.factor")
        codes = node("Round", [node("Mul", [x, factor], f"{name}.scaled")], f"{name}.rounded")
        limits = [constant("lowest_code", np.float32(-128)), constant("highest_code", np.float32(127))]
        codes = node("Clip", [codes, *limits], f"{name}.codes")
        return node("Mul", [codes, node("Reciprocal", [factor], f"{name}.step")], name)

    def normed(self, scope: Scope, x: str, name: str, features: int) -> str:
        """Norm over the last axis, then the states' grid."""
        gain = scope.constant(f"ones.{features}", np.ones(features, np.float32))
        x = scope.node("RMSNormalization", [x, gain], f"{name}.norm", axis=-1, epsilon=EPSILON)
        return self.on_grid(scope, x, name)

    def on_grid(self, scope: Scope, x: str, name: str) -> str:
        if not self.weights.quantised:
            return x
        grid = [scope.constant("state.scale", np.float32(self.shape.state_step)), scope.constant("state.zero_point", np.int16(0))]
        return scope.node("DequantizeLinear", [scope.node("QuantizeLinear", [x, *grid], f"{name}.codes"), *grid], name)

    def gated(self, scope: Scope, x: str, layer: str, name: str) -> str:
        both = self.product(scope, x, f"{layer}.gate_up", f"{name}.gate_up")
        gate, up = f"{name}.gate", f"{name}.up"
        scope.nodes.append(helper.make_node("Split", [both], [gate, up], name=f"{name}.split", axis=-1, num_outputs=2))
        silu = scope.node("Mul", [gate, scope.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        return self.product(scope, scope.node("Mul", [silu, up], f"{name}.gated"), f"{layer}.down", f"{name}.down")

    def attended(self, scope: Scope, x: str, layer: str, name: str) -> str:
        shape, node = self.shape, scope.node
        both = self.product(scope, x, f"{layer}.qkv", f"{name}.qkv")
        parts = [f"{name}.{part}" for part in "qkv"]
        scope.nodes.append(helper.make_node("Split", [both], parts, name=f"{name}.split", axis=-1, num_outputs=3))
        heads = scope.constant("heads.shape", np.array([1, shape.tokens, shape.heads, shape.dim // shape.heads]))
        q, k, v = (
            node("Transpose", [node("Reshape", [part, heads], f"{part}.heads")], f"{part}.rows", perm=[0, 2, 1, 3]) for part in parts
        )
        angles = shape.angles()
        turns = [
            scope.constant("rotary.cosine", np.cos(angles).astype(np.float32)),
            scope.constant("rotary.sine", np.sin(angles).astype(np.float32)),
        ]
        turns.append(scope.constant("rotary.positions", np.arange(shape.tokens)[None]))
        q, k = (node("RotaryEmbedding", [part, *turns], f"{part}.turned") for part in (q, k))
        mixed = node("Transpose", [node("Attention", [q, k, v], f"{name}.attention")], f"{name}.mixed", perm=[0, 2, 1, 3])
        flat = scope.constant("heads.flat", np.array([1, shape.tokens, shape.dim]))
        return self.product(scope, node("Reshape", [mixed, flat], f"{name}.flat"), f"{layer}.out", f"{name}.out")

    def refined(self, scope: Scope, h: str, name: str) -> str:
        """The network ``f``."""
        shape = self.shape
        for index in range(shape.blocks):
            label, layer = f"{name}.block{index + 1}", f"block{index + 1}"
            if shape.heads:
                branch = self.attended(scope, h, f"{layer}.tokens", f"{label}.tokens")
                h = self.normed(scope, scope.node("Add", [h, branch], f"{label}.tokens.sum"), f"{label}.mixed", shape.dim)
            else:
                columns = scope.node("Transpose", [h], f"{label}.columns", perm=[0, 2, 1])
                branch = self.gated(scope, columns, f"{layer}.tokens", f"{label}.tokens")
                total = scope.node("Add", [columns, branch], f"{label}.tokens.sum")
                columns = self.normed(scope, total, f"{label}.mixed", shape.tokens)
                h = scope.node("Transpose", [columns], f"{label}.rows", perm=[0, 2, 1])
            branch = self.gated(scope, h, f"{layer}.channels", f"{label}.channels")
            h = self.normed(scope, scope.node("Add", [h, branch], f"{label}.channels.sum"), f"{label}.out", shape.dim)
        return h

    def embedded(self, scope: Scope) -> str:
        """``x`` (1, tokens, D)."""
        table, prefix = self.weights.embedding, self.shape.prefix
        symbols = scope.node("Gather", [scope.constant("embedding", table[prefix:]), INPUT], "symbols", axis=0)
        codes = scope.node("Concat", [scope.constant("prefix", table[None, :prefix]), symbols], "tokens", axis=1)
        if not self.weights.quantised:
            return codes
        return scope.node("DequantizeLinear", [codes, scope.constant("embedding.scale", np.float32(EMBEDDING_STEP))], "x")

    def first(self, scope: Scope, name: str, state: np.ndarray) -> str:
        """A first state (1, tokens, D): the same for all tokens."""
        value = state.astype(np.float32)[None, None]
        if self.weights.quantised:
            step = scope.constant("state.scale", np.float32(self.shape.state_step))
            codes = scope.constant(f"{name}.codes", np.rint(value / self.shape.state_step).astype(np.int16))
            source = scope.node("DequantizeLinear", [codes, step], f"{name}.vector")
        else:
            source = scope.constant(f"{name}.vector", value)
        return scope.node("Expand", [source, scope.constant("states.shape", np.array(self._states))], name)

    @property
    def _states(self) -> tuple[int, int, int]:
        return 1, self.shape.tokens, self.shape.dim

    def supervised(self, scope: Scope) -> list[str]:
        """All loops; the names of the outputs."""
        shape = self.shape
        x = self.embedded(scope)
        answer = (1, shape.cells, shape.symbols)

        def update(inner: Scope, number: str, states: list[str]) -> tuple[str, list[str]]:
            z = inner.node("Add", [inner.node("Add", [states[0], "cycle.before.y"], "update.y_and_z"), x], "update.sum")
            return "", [self.refined(inner, z, "update")]

        def cycle(inner: Scope, number: str, states: list[str]) -> tuple[str, list[str]]:
            (z,) = inner.loop("update", shape.n, [State("z", states[1], self._states)], update)
            return "", [self.refined(inner, inner.node("Add", [states[0], z], "answer.sum"), "answer"), z]

        def supervise(inner: Scope, number: str, states: list[str]) -> tuple[str, list[str]]:
            y, z = inner.loop("cycle", shape.cycles, [State("y", states[0], self._states), State("z", states[1], self._states)], cycle)
            ends = [inner.constant(f"cut.{end}", np.array([end])) for end in (shape.prefix, shape.tokens, 0, 1)]
            axis = inner.constant("token_axis", np.array([1]))
            cells = inner.node("Slice", [y, *ends[:2], axis], "step.cells")
            logits = self.product(inner, cells, "answer_head", "step.logits")
            front = self.product(inner, inner.node("Slice", [y, *ends[2:], axis], "step.front"), "halt_head", "step.halt_product")
            biased = inner.node("Add", [front, inner.constant("halt_head.bias", np.float32(self.weights.halt_bias))], "step.halt_sum")
            halt = inner.node("Reshape", [biased, inner.constant("one", np.array([1]))], "step.halt")
            halts = inner.node("Greater", [halt, inner.constant("zero", np.float32(0))], "step.halts")
            goes_on = inner.node("Not", [inner.node("Squeeze", [halts], "step.halts_scalar")], "step.goes_on")
            steps = inner.node("Add", [number, inner.constant("one_step", np.int64(1))], "step.count")
            return goes_on, [y, z, logits, halt, steps]

        nothing = [
            State("logits", scope.constant("no_logits", np.zeros(answer, np.float32)), answer),
            State("halt", scope.constant("no_halt", np.zeros(1, np.float32)), (1,)),
            State("steps", scope.constant("no_steps", np.int64(0)), (), TensorProto.INT64),
        ]
        states = [State(name, self.first(scope, name, getattr(self.weights, name)), self._states) for name in ("y0", "z0")]
        return scope.loop("step", shape.supervision, [*states, *nothing], supervise)[2:]


def recursive_model(name: str, shape: RecursiveShape, weights: RecursiveWeights, *, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model, with ``metadata`` in the given order. The same arguments give the same bytes."""
    root = Scope()
    found = _Writer(shape, weights, root).supervised(root)
    kinds = [(TensorProto.FLOAT, (1, shape.cells, shape.symbols)), (TensorProto.FLOAT, (1,)), (TensorProto.INT64, ())]
    outputs = {output: (value, *kind) for output, value, kind in zip(OUTPUTS, found, kinds, strict=True)}
    return model_of(root, name, typed([INPUT], [(TensorProto.INT64, (1, shape.cells))]), outputs, metadata)
