"""Channels-last nodes of QONNX: the standard operator between two transposes, which cost nothing."""

from collections.abc import Sequence
from typing import Any

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_fused import apply
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import Constant, Operand

__all__ = ["CHANNELS_LAST", "standard_operator"]

CHANNELS_LAST = "qonnx.custom_op.channels_last"


def standard_operator(builder: Builder, node: Node, op: str, *rest: Operand, **attributes: Any) -> Operand:
    """``op`` of the node's first input, whose last axis is the channel, and ``rest``; the result has its channels last too."""
    rank = len(node.activation().shape)
    if rank < 3:
        raise RefusalError(f"its input has {rank} axes", "give it an input of three or four axes, the channel last")
    name = node.outputs[0]
    first = apply(builder, node, "Transpose", [node.operand(0)], result=f"{name}_first", perm=_to_first(rank))
    found = apply(builder, node, op, [first, *rest], result=f"{name}_result", **attributes)
    return apply(builder, node, "Transpose", [found], perm=[0, *range(2, rank), 1])


def _to_first(rank: int) -> Sequence[int]:
    return [0, rank - 1, *range(1, rank - 1)]


@operator("Conv", "as Conv of the standard operator set; input, weights and result with channels last", domains=(CHANNELS_LAST,))
def _conv(builder: Builder, node: Node) -> Operand:
    weights = node.constant(1, "weight")
    rank = len(node.activation().shape)
    if not isinstance(weights, Constant) or weights.array.ndim != rank:
        raise RefusalError("its weights do not have as many axes as its input", "use (outputs, kernel ..., inputs / groups) weights")
    turned = weights.moved(lambda array: array.transpose(_to_first(rank)))
    return standard_operator(builder, node, "Conv", turned, *node.inputs[2:], **node.attributes)


@operator("MaxPool", "as MaxPool of the standard operator set, channels last", domains=(CHANNELS_LAST,))
def _max_pool(builder: Builder, node: Node) -> Operand:
    return standard_operator(builder, node, "MaxPool", **node.attributes)


@operator("AveragePool", "as AveragePool of the standard operator set, channels last", domains=(CHANNELS_LAST,))
def _average_pool(builder: Builder, node: Node) -> Operand:
    return standard_operator(builder, node, "AveragePool", **node.attributes)


@operator("BatchNormalization", "as BatchNormalization of the standard operator set, channels last", domains=(CHANNELS_LAST,))
def _batch_normalization(builder: Builder, node: Node) -> Operand:
    return standard_operator(builder, node, "BatchNormalization", *node.inputs[1:], **node.attributes)
