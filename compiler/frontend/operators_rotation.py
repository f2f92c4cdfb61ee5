"""Rotations of queries and keys: rotary positions as one operator or written out, and D-RNA's. Read by :mod:`tritloom.compiler.frontend.sequence`.

Written out are ``x * cosine + concat(-second half, first half) * sine``, with Slice or Split. D-RNA's angles depend on the key of the token before: a state ``last_key`` is joined with the
newest key; the older of both goes through ``pi * tanh``, the static angles of the position are added, and cosine and sine multiply queries and keys. Either is followed
step by step until the two products are added: then it is one :class:`~tritloom.compiler.ir.block.Rotate` or :class:`~tritloom.compiler.ir.block.Turn`.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import POSITION, SequenceReader
from tritloom.compiler.frontend.sequence_values import (
    Block,
    Handler,
    Size,
    Turning,
    Value,
    attribute,
    need_block,
    operator,
    same,
    scale_pair,
    single,
)
from tritloom.compiler.ir.block import Rotate, Turn
from tritloom.compiler.ir.program import State

__all__ = ["TURN_TABLE", "rotary"]

TURN_TABLE = np.minimum(np.rint(np.tanh(np.arange(-1024, 1024) / 256) * (1 << 15)), (1 << 15) - 1).astype(np.int16)
"""``tanh`` from -4 to 4 with 15 fraction bits; as turns of ``2**16`` that is ``pi * tanh``."""

_ANGLE_BITS = 14


def _refusal() -> RefusalError:
    return RefusalError(
        "it is no step of a rotation",
        "x * cosine + Concat(-second half, first half) * sine, or export the block as models.nets.decoder_export does",
    )


# ---- rotary positions ----


def rotary(reader: SequenceReader, node: onnx.NodeProto, block: Block, tables: tuple[Any, Any], interleaved: bool, name: str = "") -> Block:
    """Heads (1, heads, 1, channels) turned by the angles of the token's position, ``tables`` being cosines and sines (positions, channels / 2). Raises :class:`RefusalError`."""
    if any(not isinstance(table, np.ndarray) or table.ndim != 2 for table in tables):
        raise RefusalError("it needs constant tables of cosines and sines, (positions, channels / 2)")
    if block.index.ndim != 4 or any(table.shape[1] * 2 != block.index.shape[-1] for table in tables):
        raise RefusalError("it must turn whole heads: (1, heads, 1, channels)")
    rows = min(len(table) for table in tables)
    if rows < reader.capacity:
        raise RefusalError(f"its tables hold {rows} positions, the caches {reader.capacity}", f"compile with --context {rows}")
    block = reader.laid_out(node, block)
    constant = block.constant / (1 << _ANGLE_BITS)
    cosine, sine = (np.rint(table[: reader.capacity] * (1 << _ANGLE_BITS)).astype(np.int16) for table in tables)
    result = reader.emit(
        Rotate, node, reader.tensors[block.tensor].shape, constant, name=name, input=block.tensor, input_scale=block.scale,
        position=POSITION, cosine=cosine, sine=sine, interleaved=interleaved,
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@operator("RotaryEmbedding", "com.microsoft.RotaryEmbedding")
def _rotary(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    block = need_block(operands[0], "the operand")
    place, *tables = (3, *operands[1:3]) if node.domain in ("", "ai.onnx") else (1, *operands[2:4])
    if len(node.input) <= place or not reader.is_position(node.input[place]):
        raise RefusalError("its positions must be the number of earlier tokens")
    if attribute(node, "rotary_embedding_dim", 0) or float(attribute(node, "scale", 1.0)) != 1 or len(tables) != 2:
        raise RefusalError("it must turn whole heads: (1, heads, 1, channels)")
    shape = block.index.shape
    if len(shape) == 3 and isinstance(tables[0], np.ndarray):
        heads = np.reshape(block.index, (*shape[:2], -1, 2 * tables[0].shape[-1])).transpose(0, 2, 1, 3)
        block = replace(block, index=heads)
    turned = rotary(reader, node, block, (tables[0], tables[1]), bool(attribute(node, "interleaved", 0)))
    return replace(turned, index=turned.index.transpose(0, 2, 1, 3).reshape(shape)) if len(shape) == 3 else turned


def _written_out(reader: SequenceReader, node: onnx.NodeProto, along: Turning, across: Turning) -> Value:
    """Cosines and sines of halves that turn alike."""
    assert along.block is not None
    tables = []
    for name in (along.angles, across.angles):
        whole = np.stack([np.asarray(value, np.float64).ravel() for value in reader.sizes(name)])
        half = whole.shape[1] // 2
        if whole.shape[1] != along.block.index.shape[-1] or not np.array_equal(whole[:, :half], whole[:, half:]):
            raise RefusalError("both halves of a head must turn by the angles of its channels")
        tables.append(whole[:, :half])
    return rotary(reader, node, along.block, (tables[0], tables[1]), interleaved=False)


@operator("Neg")
def _negated(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    return Turning("negated", block=need_block(operands[0], "the operand"))


# ---- the key before ----


def _step(before: str, after: str) -> Handler:
    def handler(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
        if operands[0].stage == before:
            return replace(operands[0], stage=after)
        raise _refusal()

    return handler


for _name, _before, _after in (("Tanh", "before", "share"), ("Cos", "angle", "cosine"), ("Sin", "angle", "sine")):
    operator(_name, of=(Turning,))(_step(_before, _after))


@operator("Concat", of=(Turning,))
def _join(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands if len(operands) == 2 else (None, None)
    axis = attribute(node, "axis", 0)
    if not isinstance(left, Turning) or not isinstance(right, Block):
        raise _refusal()
    if left.stage == "last" and right.codes and axis in (2, -2):
        assert left.before is not None
        state = reader.tensors[left.before.tensor]
        reader.tensors[state.name] = replace(state, scale=(right.constant,))
        return replace(left, stage="moving", block=right)
    if left.stage == "negated" and left.block is not None and axis in (-1, right.index.ndim - 1):
        if (left.block.tensor, left.block.constant, left.block.index.shape) == (right.tensor, right.constant, right.index.shape):
            return Turning("other", block=replace(right, index=np.concatenate([right.index, left.block.index], axis=-1)))
    raise _refusal()


@operator("Slice", of=(Turning,))
def _slice(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """Of the key before and the newest one, along the tokens: all but the last is the former, the last is the next state."""
    value = operands[0]
    starts, ends, axes = (np.ravel(reader.settled(name)).tolist() for name in node.input[1:4])
    if value.stage != "moving" or value.before is None or value.block is None or axes != [2]:
        raise _refusal()
    if (starts, ends) == ([0], [-1]):
        return replace(value, stage="before")
    if starts != [-1] or ends[0] < 1:
        raise _refusal()
    newest, last = reader.laid_out(node, value.block), value.before
    for part, source in ((last.tensor, newest.tensor), (last.scale, newest.scale)):
        if reader.tensors[part].shape != reader.tensors[source].shape:
            raise RefusalError(f"the newest key has shape {reader.tensors[source].shape}, its state {reader.tensors[part].shape}")
        reader.states.append(State(tensor=part, following=source))
    return Turning("stored")


@operator("Mul", of=(Turning,))
def _product(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for (left, right), name in ((operands, node.input[1]), (operands[::-1], node.input[0])):
        factor = single(right)
        if isinstance(left, Turning) and left.stage == "share" and factor is not None and abs(float(factor) - math.pi) < 1e-6:
            return replace(left, stage="phase")
        if isinstance(left, Block) and isinstance(right, Turning) and right.stage == "cosine":
            return replace(right, stage="along", block=left)
        if isinstance(left, Turning) and left.stage == "other":
            if isinstance(right, Turning) and right.stage == "sine":
                return replace(right, stage="across", block=left.block)
            if isinstance(right, Size):
                return replace(left, stage="across", angles=name)
    raise _refusal()


@operator("Add", of=(Turning,))
def _sum(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for (left, right), name in ((operands, node.input[0]), (operands[::-1], node.input[1])):
        if isinstance(left, Size) and isinstance(right, Turning) and right.stage == "phase":
            return replace(right, stage="angle", angles=name)
        if isinstance(left, Turning) and isinstance(right, Turning) and (left.stage, right.stage) == ("along", "across"):
            if same(left.block, right.block) and left.block is not None and left.before is right.before:
                if left.before is None:
                    return _written_out(reader, node, left, right)
                if left.angles == right.angles:
                    return _turned(reader, node, left.block, left.before, left.angles)
    raise _refusal()


def _turned(reader: SequenceReader, node: onnx.NodeProto, block: Block, before: Block, angles: str) -> Value:
    block = reader.laid_out(node, block)
    channels, heads, _ = reader.tensors[block.tensor].shape
    table = np.stack([np.asarray(value, np.float64).ravel() for value in reader.sizes(angles)])
    if table.shape[1] != channels or heads % reader.tensors[before.tensor].shape[1]:
        raise RefusalError(f"angles of {table.shape[1]} channels do not turn {heads} heads of {channels}")
    turns = np.rint(table / (2 * math.pi) * (1 << 16)).astype(np.int64) % (1 << 16)
    constant = block.constant / (1 << _ANGLE_BITS)
    state = reader.tensors[before.tensor]
    result = reader.emit(
        Turn, node, reader.tensors[block.tensor].shape, constant, input=block.tensor, input_scale=block.scale, before=before.tensor, before_scale=before.scale,
        constant=scale_pair(state.scale[0]), position=POSITION, angles=turns.astype(np.int32), table=TURN_TABLE,
    )  # fmt: skip
    return reader.result(result, constant, block.index.shape)


@operator("Unsqueeze", of=(Turning,))
def _moved(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """An axis for the heads that share a key changes nothing: heads are told by their order."""
    if operands[0].stage in ("cosine", "sine"):
        return operands[0]
    raise _refusal()
