"""MatMulNBits of ONNX Runtime: a matrix product with weights of 2, 4 or 8 bits packed in bytes, a scale and a zero point for each block.

Row ``n`` of the weights is cut into blocks of ``block_size`` along K; weight ``k`` of a block takes ``bits`` bits, the first weight the lowest
ones of the first byte. ``w = scale * (code - zero_point)``, the zero point ``2**(bits - 1)`` where none is given. Source:
docs/ContribOperators.md of ONNX Runtime.
"""

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.operators_fused import MICROSOFT, apply
from tritloom.compiler.frontend.operators_quantise import constant_on_grid, needed
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import Operand

__all__ = ["unpacked"]


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` unsigned numbers of ``bits`` bits in each row of bytes (rows, bytes), lowest bits first: int64 (rows, count)."""
    per_byte = 8 // bits
    numbers = (packed.astype(np.int64)[..., None] >> (bits * np.arange(per_byte))) & ((1 << bits) - 1)
    return numbers.reshape(len(packed), -1)[:, :count]


@operator("MatMulNBits", "2, 4 or 8 bits, blocks whose scales have a common grid of small integers", domains=(MICROSOFT,))
def _matmul_n_bits(builder: Builder, node: Node) -> Operand:
    features, outputs = (int(node.attribute(name, int, 0)) for name in ("K", "N"))
    bits, size = int(node.attribute("bits", int, 4)), int(node.attribute("block_size", int, 0))
    if bits not in (2, 4, 8):
        raise RefusalError(f"weights of {bits} bits are not supported", "pack the weights in 2, 4 or 8 bits")
    if node.operand(4) is not None:
        raise RefusalError("its blocks are ordered by an index (g_idx)", "quantise without reordering")
    if features < 1 or outputs < 1 or size < 1 or features * outputs > LARGEST_TENSOR:
        raise RefusalError(f"its sizes K {features}, N {outputs} and block_size {size} are impossible", "export the model again")
    blocks = -(-features // size)
    packed, scales = needed(node.constant(1, "weight"), "weight").array, needed(node.constant(2, "scale"), "scale").array
    row = -(-size * bits // 8)
    if packed.dtype != np.uint8 or packed.size != outputs * blocks * row or scales.size != outputs * blocks:
        raise RefusalError(
            f"its weights of shape {list(packed.shape)} do not fit {outputs} rows of {blocks} blocks", "export the model again"
        )
    if not np.isfinite(scales.astype(np.float64)).all():
        raise RefusalError("a scale is infinite or not a number", "export the model again")
    signed = scales.astype(np.float32).reshape(outputs, blocks, 1)
    codes = unpacked(packed.reshape(-1, row), bits, size).reshape(outputs, blocks, size) - _zero_points(node, bits, outputs, blocks)
    # A grid has positive scales: the sign goes to the codes, and codes of scale 0 are 0.
    codes = codes * np.sign(signed).astype(np.int64)
    scale = np.broadcast_to(np.where(signed == 0, np.float32(1), np.abs(signed)), codes.shape)
    matrix = constant_on_grid(codes.reshape(outputs, -1)[:, :features], scale.reshape(outputs, -1)[:, :features], blocked=blocks > 1)
    biased = node.operand(5) is not None
    product = apply(
        builder, node, "MatMul", [node.activation(), matrix.moved(np.transpose)], result=f"{node.outputs[0]}_product" if biased else ""
    )
    return apply(builder, node, "Add", [product, node.operand(5)]) if biased else product


def _zero_points(node: Node, bits: int, outputs: int, blocks: int) -> np.ndarray:
    """Zero points (outputs, blocks, 1)."""
    constant = node.constant(3, "zero point")
    if constant is None:
        return np.full((outputs, blocks, 1), 1 << (bits - 1), np.int64)
    array = constant.array
    if array.dtype == np.uint8 and array.size == outputs * -(-blocks * bits // 8):
        return unpacked(array.reshape(outputs, -1), bits, blocks)[..., None]
    if array.size == outputs * blocks and array.dtype.kind == "f" and np.array_equal(array, np.rint(array)):
        return array.reshape(outputs, blocks, 1).astype(np.int64)
    raise RefusalError("its zero points are not one integer for each block", "quantise with integer zero points")
