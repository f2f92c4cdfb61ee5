"""Small decoders with random weights, and what they compute: plain NumPy in float64, one position and one head after the other."""

import numpy as np
import onnxruntime

from tritloom.models.methods import bitnet, quest
from tritloom.models.nets.decoder import Decoder
from tritloom.models.nets.decoder_export import BlockWeights, DecoderWeights, Dense, Norm, state_names


def small(block: str = "llama", *, kv_heads: int = 2, rotation: str = "half", context: int = 12) -> Decoder:
    return Decoder(
        vocabulary=13, width=32, layers=2, heads=4, kv_heads=kv_heads, hidden=48, block=block, context=context, rotation=rotation,
        epsilon=1e-8 if block == "drna" else 1e-5,
    )  # fmt: skip


def random_weights(decoder: Decoder, kind: str, seed: int) -> DecoderWeights:
    """``kind``: ``float``, ``ternary`` with 8-bit activations, or QuEST's bits as text."""
    rng = np.random.default_rng(seed)
    drna, bits = decoder.block == "drna", 0 if kind in ("float", "ternary") else float(kind)

    def dense(outputs: int, inputs: int, biased: bool) -> Dense:
        bias = rng.normal(0, 0.2, outputs).astype(np.float32) if biased else None
        if kind == "float":
            return Dense(rng.normal(0, inputs**-0.5, (outputs, inputs)).astype(np.float32), None, bias)
        if kind == "ternary":
            scale = np.full(1, 1.3 * inputs**-0.5, np.float32)
            return Dense(rng.integers(-1, 2, (outputs, inputs)).astype(np.float32), scale, bias, "int8")
        count = quest.levels(bits)
        codes = rng.integers(-1, 2, (outputs, inputs)) if count == 3 else 2 * rng.integers(0, count, (outputs, inputs)) - count + 1
        scale = (rng.uniform(0.5, 1.5, outputs) * inputs**-0.5 / np.abs(codes).max()).astype(np.float32)
        return Dense(codes.astype(np.float32), scale, bias, "quest", bits)

    def norm(width: int) -> Norm:
        gain = rng.uniform(0.5, 1.5, width).astype(np.float32)
        return Norm(gain, rng.normal(0, 0.2, width).astype(np.float32) if drna else None)

    width, hidden, kv = decoder.width, decoder.hidden, decoder.kv_width
    blocks = []
    for _ in range(decoder.layers):
        sizes = {"query": (width, width), "key": (kv, width), "value": (kv, width), "output": (width, width)}
        layers = {name: dense(*size, drna) for name, size in sizes.items()}
        layers |= {"gate": dense(hidden, width, False), "up": dense(hidden, width, False), "down": dense(width, hidden, False)}
        norms = {"attention": norm(width), "perceptron": norm(width)}
        if decoder.block == "bitnet":
            norms |= {"output": norm(width), "down": norm(hidden)}
        blocks.append(BlockWeights(layers, norms))
    if kind == "float":
        return DecoderWeights(
            rng.normal(0, 1, (decoder.vocabulary, width)).astype(np.float32), None, blocks, norm(width), dense(13, width, drna), False
        )
    table = rng.integers(-127, 128, (decoder.vocabulary, width)).astype(np.float32)
    head = Dense(rng.integers(-127, 128, (13, width)).astype(np.float32), rng.uniform(1e-3, 2e-3, 13).astype(np.float32), None, "int8")
    return DecoderWeights(table, np.full(1, 1 / 64, np.float32), blocks, norm(width), head, True)


MARGIN = 1e-4
"""Float32 sums of these sizes are off by a tenth of it, in steps of a quantiser."""

distances: list[float] = []
"""Of the values that :func:`reference` rounded to the nearest boundary, in steps."""


def _note(steps: np.ndarray) -> None:
    distances.append(float(np.abs(steps - np.floor(steps) - 0.5).min()))


def _rounded(x: np.ndarray) -> np.ndarray:
    codes, step = bitnet.absmax(x)
    _note(x / step)
    return codes * step


def _dense(x: np.ndarray, layer: Dense) -> np.ndarray:
    if layer.activations == "int8":
        x = _rounded(x)
    elif layer.activations == "quest":
        x = quest.rotate(x)
        unit = quest.unit_of(np.sqrt((x * x).mean(-1, keepdims=True)) + 1e-8, layer.bits)
        _note(x / unit if quest.levels(layer.bits) == 3 else x / unit / 2 + 0.5)
        x = quest.quantise(x, layer.bits, unit) * unit
    scale = 1.0 if layer.scale is None else layer.scale.astype(np.float64)
    return x @ layer.codes.T.astype(np.float64) * scale + (0.0 if layer.bias is None else layer.bias)


def _normed(x: np.ndarray, norm: Norm, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True) if norm.bias is not None else x
    return norm.gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) + (0.0 if norm.bias is None else norm.bias)


def _turn(x: np.ndarray, angle: np.ndarray, rotation: str) -> np.ndarray:
    """One vector of a head by an angle for each element."""
    half, turned = len(x) // 2, np.empty_like(x)
    for pair in range(half):
        i, j = (pair, pair + half) if rotation == "half" else (2 * pair, 2 * pair + 1)
        turned[i] = x[i] * np.cos(angle[i]) - x[j] * np.sin(angle[i])
        turned[j] = x[j] * np.cos(angle[j]) + x[i] * np.sin(angle[j])
    return turned


def _attention(x: np.ndarray, decoder: Decoder, block: BlockWeights, cache: bool) -> np.ndarray:
    size, count = decoder.head_size, len(x)
    stored = _rounded if cache else (lambda values: values)
    query, key, value = (_dense(x, block.dense[name]).reshape(count, -1, size) for name in ("query", "key", "value"))
    pairs = np.arange(size) % (size // 2) if decoder.rotation == "half" else np.arange(size) // 2
    mixed = np.zeros((count, decoder.heads, size))
    for head in range(decoder.heads):
        shared = head * decoder.kv_heads // decoder.heads
        keys = []
        for s in range(count):
            angle = s * decoder.base ** (-2 * pairs / size)
            if decoder.block == "drna" and s:
                angle = angle + np.pi * np.tanh(stored(key[s - 1, shared]))
            keys.append(stored(_turn(key[s, shared], angle, decoder.rotation)))
            scores = np.array([_turn(query[s, head], angle, decoder.rotation) @ each for each in keys]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            mixed[s, head] = weights / weights.sum() @ stored(value[: s + 1, shared])
    joined = mixed.reshape(count, -1)
    if "output" in block.norms:
        joined = _normed(joined, block.norms["output"], decoder.epsilon)
    return _dense(joined, block.dense["output"])


def _perceptron(x: np.ndarray, decoder: Decoder, block: BlockWeights) -> np.ndarray:
    gate, up = _dense(x, block.dense["gate"]), _dense(x, block.dense["up"])
    if decoder.block == "bitnet":
        return _dense(_normed(np.maximum(gate, 0) ** 2 * up, block.norms["down"], decoder.epsilon), block.dense["down"])
    return _dense(gate / (1 + np.exp(-gate)) * up, block.dense["down"])


def reference(decoder: Decoder, weights: DecoderWeights, tokens: np.ndarray) -> np.ndarray:
    """Logits (S, vocabulary) of token numbers (S,), from the definitions."""
    x = weights.embedding[tokens].astype(np.float64) * (1.0 if weights.embedding_scale is None else float(weights.embedding_scale[0]))
    for block in weights.blocks:
        mixed = _attention(_normed(x, block.norms["attention"], decoder.epsilon), decoder, block, weights.cache)
        inside = x if decoder.block == "drna" else x + mixed
        x = x + mixed + _perceptron(_normed(inside, block.norms["perceptron"], decoder.epsilon), decoder, block)
    return _dense(_normed(x, weights.norm, decoder.epsilon), weights.head)


class Runner:
    """A file in ONNX Runtime."""

    def __init__(self, model: bytes, decoder: Decoder, optimise: str = "ORT_ENABLE_ALL") -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimise)
        options.intra_op_num_threads = 1
        self.decoder, self.session = decoder, onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def start(self) -> list[np.ndarray]:
        shape = (1, self.decoder.kv_heads, 0, self.decoder.head_size)
        return [np.zeros((*shape[:2], int(name.endswith("last_key")), shape[3]), np.float32) for name, _ in state_names(self.decoder)]

    def advance(self, tokens: np.ndarray, state: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (S, vocabulary) and the state behind the tokens (S,)."""
        names = [name for name, _ in state_names(self.decoder)]
        logits, *after = self.session.run(None, {"input_ids": tokens[None].astype(np.int64), **dict(zip(names, state, strict=True))})
        return np.asarray(logits)[0], [np.asarray(array) for array in after]

    def whole(self, tokens: np.ndarray) -> np.ndarray:
        return self.advance(tokens, self.start())[0]

    def in_parts(self, tokens: np.ndarray, prompt: int) -> np.ndarray:
        """The same through the cache: a prompt, then token by token."""
        logits, state = self.advance(tokens[:prompt], self.start())
        parts = [logits]
        for token in tokens[prompt:]:
            logits, state = self.advance(token[None], state)
            parts.append(logits)
        return np.concatenate(parts)


def clear_sequences(decoder: Decoder, weights: DecoderWeights, seed: int, *, length: int = 7) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four sequences of random tokens and their logits, of which no value lies within :data:`MARGIN` steps of a rounding boundary.

    Float arithmetic of another order would round such a value the other way now and then, and everything behind it differs. Ties are no rarity: ternary weights and
    integer codes make values that are whole multiples of one number, and one that is half the largest of its token is 63.5 steps of 8 bits.
    """
    rng, rows, logits = np.random.default_rng(seed), [], []
    for _ in range(300):
        row = rng.integers(0, decoder.vocabulary, length)
        distances.clear()
        found = reference(decoder, weights, row)
        if min(distances, default=1.0) > MARGIN:
            rows.append(row)
            logits.append(found)
        if len(rows) == 4:
            return rows, logits
    raise AssertionError(f"no sequences without ties, seed {seed}")


def assert_alike(found: list[np.ndarray], wanted: list[np.ndarray], *, within: float = 1e-4) -> None:
    """Logits (S, vocabulary) of sequences without ties: they differ by ``within`` of the spread of all, float32 sums in another order; the likeliest successors are the same."""
    spread = np.std(wanted)
    assert spread > 0.1, "the test would prove nothing on a silent network"
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() <= within * spread
        assert np.array_equal(one.argmax(-1), other.argmax(-1))
