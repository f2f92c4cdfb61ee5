"""Caches and attention of language models, written out or as one operator. Read by :mod:`tritloom.compiler.frontend.sequence`."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tritloom.compiler.frontend.operators_quantisers import quantised
from tritloom.compiler.frontend.operators_rotation import rotary
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import POSITION, SequenceReader
from tritloom.compiler.frontend.sequence_values import Block, Cache, Scores, Size, Value, attribute, need_block, operator, scale_pair
from tritloom.compiler.ir.block import Attend, Store
from tritloom.compiler.ir.program import State

__all__ = ["expanded", "mixed", "reshaped"]


# ---- caches ----


@operator("Concat")
def _append(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if len(operands) != 2 or not isinstance(operands[0], Cache) or attribute(node, "axis", 0) not in (2, -2):
        raise RefusalError("only the new keys or values of a token are appended to a cache, along the tokens")
    return _stored(reader, node, operands[0], operands[1])


def _stored(reader: SequenceReader, node: onnx.NodeProto, cache: Any, value: Any) -> Cache:
    """The cache with a new column (1, heads, 1, channels), which gets codes of 8 bits for each head unless it has codes. Raises :class:`RefusalError`."""
    block = need_block(value, "a new column of a cache")
    if not isinstance(cache, Cache) or cache.axes != "1hnc" or any(state.tensor == cache.tensor for state in reader.states):
        raise RefusalError("keys and values are appended once, to the input that holds the earlier ones")
    if not block.codes:
        block = quantised(reader, node, block, f"{cache.tensor}.new")
    block = reader.laid_out(node, block)
    heads, channels = cache.shape
    if reader.tensors[block.tensor].shape != (channels, heads, 1):
        raise RefusalError(f"new columns of {block.index.shape} do not fit a cache of {heads} heads of {channels} channels")
    names = []
    for part, source in ((cache.tensor, block.tensor), (cache.scale, block.scale)):
        old = reader.tensors[part]
        output, _ = reader.emit(
            Store, node, old.shape, block.constant, bits=old.bits, scaled=False, name=f"{part}.after", cache=part, input=source,
            position=POSITION,
        )  # fmt: skip
        reader.tensors[part] = replace(old, scale=(block.constant,))
        reader.states.append(State(tensor=part, following=output))
        names.append(output)
    return Cache(names[0], names[1], block.constant, cache.shape, cache.axes)


def expanded(reader: SequenceReader, cache: Cache, name: str) -> Cache:
    """Heads of a cache repeated for the queries that share them: the axis behind the heads has any size. Raises :class:`RefusalError`."""
    if cache.axes != "1h1nc":
        raise RefusalError("an axis of size 1 right behind the heads is repeated, no other")
    for past, shape in enumerate(reader.sizes(name)):
        own = {"1": 1, "h": cache.shape[0], "n": past + 1, "c": cache.shape[1]}
        sizes = np.ravel(shape).tolist()
        if len(sizes) != len(cache.axes) or any(
            size not in (1, own[axis]) and at != 2 for at, (size, axis) in enumerate(zip(sizes, cache.axes, strict=True))
        ):
            raise RefusalError(f"shape {sizes} repeats more than the heads of a cache")
    return replace(cache, axes="1hgnc")


def reshaped(reader: SequenceReader, cache: Cache, name: str) -> Cache:
    """The heads of a cache and their repetition in one axis. Raises :class:`RefusalError`."""
    for past, shape in enumerate(reader.sizes(name)):
        sizes = np.ravel(shape).tolist()
        fits = len(sizes) == 4 and sizes[0] in (1, -1) and sizes[2] in (-1, past + 1) and sizes[3] in (-1, cache.shape[1])
        if cache.axes not in ("1hgnc", "1h1nc") or not fits:
            raise RefusalError("only the heads of a cache and their repetition are joined", "(1, heads, tokens, channels)")
    return replace(cache, axes="1hnc")


# ---- attention ----


@operator("Softmax")
def _softmax(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    if not isinstance(operands[0], Scores) or attribute(node, "axis", -1) not in (-1, operands[0].queries.index.ndim - 1):
        raise RefusalError("only the scores of an attention pass through it, along the tokens")
    return replace(operands[0], weights=True)


def mixed(reader: SequenceReader, node: onnx.NodeProto, scores: Scores, values: Any) -> Block:
    """The values that a softmax of ``scores`` weighs, (..., channels) like the queries; queries get codes of 8 bits unless they have codes. Raises :class:`RefusalError`."""
    if not scores.weights or not isinstance(values, Cache) or values.axes[-2:] != "nc" or values.shape != scores.keys.shape:
        raise RefusalError("only Softmax of queries times keys is multiplied by the cached values")
    queries = reader.laid_out(node, scores.queries)
    if not queries.codes:
        queries = quantised(reader, node, queries, f"{queries.tensor}.codes")
    channels, heads, _ = reader.tensors[queries.tensor].shape
    if channels != values.shape[1] or heads % values.shape[0]:
        raise RefusalError(f"{heads} query heads of {channels} channels do not fit {values.shape[0]} key heads of {values.shape[1]}")
    logit = queries.constant * scores.keys.constant * scores.factor * Fraction(256 * math.log2(math.e))
    result = reader.emit(
        Attend, node, (heads * channels, 1, 1), values.constant, queries=queries.tensor, queries_scale=queries.scale, keys=scores.keys.tensor,
        keys_scale=scores.keys.scale, values=values.tensor, values_scale=values.scale, position=POSITION, logit=scale_pair(logit),
    )  # fmt: skip
    index = np.arange(heads * channels).reshape(*queries.index.shape[:-1], channels)
    return Block(*result, values.constant, index)


def _heads(value: Any, count: int) -> Any:
    """(1, 1, heads * channels) as (1, heads, 1, channels); what has heads, and caches, as they are."""
    if not isinstance(value, Block) or value.index.ndim != 3:
        return value
    if count < 1:
        raise RefusalError("it does not say how many heads its operands have")
    return replace(value, index=value.index.reshape(1, 1, count, -1).transpose(0, 2, 1, 3))


def _need_plain(node: onnx.NodeProto, known: tuple[str, ...], **neutral: Any) -> None:
    """Refuse attributes that change the attention: others than ``known`` ones, unless they are ``neutral``. Raises :class:`RefusalError`."""
    for entry in node.attribute:
        if entry.name not in known and helper.get_attribute_value(entry) != neutral.get(entry.name):
            raise RefusalError(f"its attribute {entry.name} is not read", "leave it at its default")


def _attention(reader: SequenceReader, node: onnx.NodeProto, query: Any, keys: Cache, values: Cache) -> tuple[Block, Cache, Cache]:
    query = need_block(query, "its query")
    factor = Fraction(float(attribute(node, "scale", 0.0))) or Fraction(1 / math.sqrt(query.index.shape[-1]))
    if factor < 0:
        raise RefusalError(f"its scale must be above 0, not {float(factor):g}")
    return mixed(reader, node, Scores(query, keys, factor, weights=True), values), keys, values


@operator("Attention")
def _standard(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Value | None, ...]:
    """ONNX's, with the earlier keys and values among its operands or joined before it."""
    query, key, value, mask, past_key, past_value, *others = [*operands, *[None] * 7][: max(7, len(operands))]
    _need_plain(node, ("is_causal", "scale", "q_num_heads", "kv_num_heads", "softmax_precision"), softcap=0.0, qk_matmul_output_mode=0)
    if any(other is not None for other in others) or len([name for name in node.output[3:] if name]):
        raise RefusalError("only a mask and earlier keys and values are read, and no scores are handed out")
    flat = isinstance(query, Block) and query.index.ndim == 3
    query, key, value = (_heads(part, attribute(node, f"{name}_num_heads", 0)) for part, name in ((query, "q"), (key, "kv"), (value, "kv")))
    if past_key is not None:
        key, value = _stored(reader, node, past_key, key), _stored(reader, node, past_value, value)
    elif attribute(node, "is_causal", 0):
        raise RefusalError(
            "without earlier keys of its own it would leave a token only the first of them", "give them as past_key and past_value"
        )
    if not isinstance(key, Cache) or not isinstance(value, Cache) or (key.axes, value.axes) != ("1hnc", "1hnc"):
        raise RefusalError("it has no earlier keys and values", "give them as past_key and past_value")
    if mask is not None and not (isinstance(mask, Size) and reader.hides_nothing(node.input[3])):
        raise RefusalError("the mask of a single token must hide nothing", "leave the attention to all earlier tokens")
    result, *caches = _attention(reader, node, query, key, value)
    if flat:
        result = replace(result, index=result.index.reshape(1, 1, -1))
    return result, *caches


@operator("com.microsoft.GroupQueryAttention")
def _grouped(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Value | None, ...]:
    """ONNX Runtime's, with rotary positions in it or before it; queries, keys and values may come in one operand."""
    query, key, value, past_key, past_value, _, _, cosine, sine, *others = [*operands, *[None] * 9][: max(9, len(operands))]
    _need_plain(
        node, ("num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved"), softcap=0.0, local_window_size=-1, smooth_softmax=0,
        qk_output=0,
    )  # fmt: skip
    heads, shared = attribute(node, "num_heads", 0), attribute(node, "kv_num_heads", 0)
    if (
        any(other is not None for other in others[1:])
        or min(heads, shared) < 1
        or (others and others[0] is not None and not reader.is_position(node.input[9]))
    ):
        raise RefusalError("only earlier keys and values, lengths and tables of angles are read")
    if len(node.input) < 6 or not isinstance(operands[5], Size) or not reader.is_position(node.input[5]):
        raise RefusalError("its length of the keys must be the number of earlier tokens")
    query = need_block(query, "its query")
    if key is None:
        parts = np.split(query.index.reshape(1, 1, heads + 2 * shared, -1), [heads, heads + shared], axis=2)
        query, key, value = (replace(query, index=part.reshape(1, 1, -1)) for part in parts)
    query, key, value = _heads(query, heads), _heads(need_block(key, "its key"), shared), _heads(value, shared)
    if attribute(node, "do_rotary", 0):
        interleaved = bool(attribute(node, "rotary_interleaved", 0))
        query = rotary(reader, node, query, (cosine, sine), interleaved, f"{node.output[0]}.queries")
        key = rotary(reader, node, key, (cosine, sine), interleaved, f"{node.output[0]}.keys")
    result, *caches = _attention(reader, node, query, _stored(reader, node, past_key, key), _stored(reader, node, past_value, value))
    return replace(result, index=result.index.reshape(1, 1, -1)), *caches
