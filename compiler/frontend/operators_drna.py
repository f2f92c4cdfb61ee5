"""D-RNA's rotation as its exporter writes it: angles that depend on the key of the token before.

A state ``last_key`` is joined with the newest key; the older of both goes through ``pi * tanh``, the static angles of the position are added, and cosine and sine multiply the halves of
queries and keys. Followed step by step until the two products are added: then it is one :class:`~tritloom.compiler.ir.block.Turn`.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from tritloom.compiler.frontend.operators_sequence import attribute, scale_pair, single
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.sequence import HANDLERS, POSITION, TURNS, Block, Handler, SequenceReader, Size, Turning, Value
from tritloom.compiler.ir.block import Turn
from tritloom.compiler.ir.program import State

__all__ = ["TURN_TABLE"]

TURN_TABLE = np.minimum(np.rint(np.tanh(np.arange(-1024, 1024) / 256) * (1 << 15)), (1 << 15) - 1).astype(np.int16)
"""``tanh`` from -4 to 4 with 15 fraction bits; as turns of ``2**16`` that is ``pi * tanh``."""

_ANGLE_BITS = 14


def _refusal() -> RefusalError:
    return RefusalError("it is no step of a rotation by the key before", "export the block as models.nets.decoder_export does")


def _step(before: str, after: str) -> Handler:
    def handler(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
        value = operands[0]
        if isinstance(value, Turning) and value.stage == before:
            return replace(value, stage=after)
        raise _refusal()

    return handler


TURNS.update(Tanh=_step("before", "share"), Cos=_step("angle", "cosine"), Sin=_step("angle", "sine"), Neg=_step("second", "negated"))


def _split(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> tuple[Value, ...]:
    """Halves of the channels of a block."""
    block = operands[0]
    if (
        not isinstance(block, Block)
        or attribute(node, "axis", 0) not in (-1, block.index.ndim - 1)
        or len(node.output) != 2
        or block.index.shape[-1] % 2
    ):
        raise RefusalError("only the channels of a head are split, into two halves")
    return Turning("first", block=block), Turning("second", block=block)


HANDLERS["Split"] = _split


def _join(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    left, right = operands if len(operands) == 2 else (None, None)
    if isinstance(left, Turning) and left.stage == "last" and isinstance(right, Block) and right.codes and attribute(node, "axis", 0) == 2:
        assert left.before is not None
        state = reader.tensors[left.before.tensor]
        reader.tensors[state.name] = replace(state, scale=(right.constant,))
        return replace(left, stage="moving", block=right)
    if isinstance(left, Turning) and isinstance(right, Turning) and (left.stage, right.stage) == ("negated", "first"):
        if left.block is right.block:
            return Turning("other", block=left.block)
    raise _refusal()


def _slice(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """Of the key before and the newest one, along the tokens: all but the last is the former, the last is the next state."""
    value = operands[0]
    starts, ends, axes = (np.ravel(reader.settled(name)).tolist() for name in node.input[1:4])
    if not isinstance(value, Turning) or value.stage != "moving" or value.before is None or value.block is None or axes != [2]:
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


def _product(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for left, right in (operands, operands[::-1]):
        factor = single(right)
        if isinstance(left, Turning) and left.stage == "share" and factor is not None and abs(float(factor) - math.pi) < 1e-6:
            return replace(left, stage="phase")
        if isinstance(left, Block) and isinstance(right, Turning) and right.stage == "cosine":
            return replace(right, stage="along", block=left)
        if isinstance(left, Turning) and isinstance(right, Turning) and (left.stage, right.stage) == ("other", "sine"):
            return replace(right, stage="across", block=left.block)
    raise _refusal()


def _sum(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    for (left, right), name in ((operands, node.input[0]), (operands[::-1], node.input[1])):
        if isinstance(left, Size) and isinstance(right, Turning) and right.stage == "phase":
            return replace(right, stage="angle", angles=name)
        if isinstance(left, Turning) and isinstance(right, Turning) and (left.stage, right.stage) == ("along", "across"):
            same = left.block is right.block and left.before is right.before and left.angles == right.angles
            if same and left.block is not None and left.before is not None:
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


def _moved(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """An axis for the heads that share a key changes nothing: heads are told by their order."""
    if operands[0].stage in ("cosine", "sine"):
        return operands[0]
    raise _refusal()


TURNS.update(Concat=_join, Slice=_slice, Mul=_product, Add=_sum, Unsqueeze=_moved)
