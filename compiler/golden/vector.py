"""NumPy meaning of the operations that no core can do yet, in integers that hardware can follow bit by bit.

Divisions are by a reciprocal of 24 bits that is computed once for a row: the divisor is shifted until its leading bit stands at a fixed
place, one integer division gives the reciprocal, and every element is multiplied by it and shifted back, rounded half up.
Bit widths: see each function. No intermediate value needs more than 63 bits, so int64 holds them all.
"""

import numpy as np

from tritloom.compiler.golden.requantise import requantise
from tritloom.compiler.ir.vector import NORMALISED_BITS, PROBABILITY_BITS, MatrixProduct, Normalise, Product, Softmax, VectorOperation
from tritloom.errors import ModelError
from tritloom.hw.arch.blockfloat import bit_length

__all__ = ["normalise_rows", "run_vector", "softmax_rows"]

_ROOT_BITS = 24
"""Width of the square root, whose radicand is shifted to 47 or 48 bits."""


def softmax_rows(codes: np.ndarray, powers: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Probabilities along axis 1, int64 with 24 fraction bits, of integer codes (N, C, ...); ``mask`` is (C, ...) and 0 where an element is left out.

    1. ``d = largest - code``, 8 bits, largest among the elements that take part;
    2. ``e = powers[d]``, 24 bits, 0 for an element that is left out;
    3. ``s = sum of e``, ``24 + log2(C)`` bits; its leading element is ``2**24 - 1``, so it is never 0;
    4. with ``L`` the bit length of ``s`` the reciprocal ``r = floor(2**(L + 24) / s)``, 26 bits;
    5. ``p = floor((e * r + 2**(L - 1)) / 2**L)``, 25 bits, the product 50.
    """
    codes = codes.astype(np.int64)
    # No code and no padding is below -128, so this one never is the largest.
    taking = codes if mask is None else np.where(mask, codes, -129)
    largest = taking.max(axis=1, keepdims=True)
    # A code that is left out may be larger than the largest of the others.
    differences = np.maximum(largest - codes, 0)
    exponentials = powers.astype(np.int64)[differences]
    if mask is not None:
        exponentials = np.where(mask, exponentials, 0)
    total = exponentials.sum(axis=1, keepdims=True)
    length = bit_length(total)
    reciprocal = (np.int64(1) << (length + PROBABILITY_BITS)) // total
    return (exponentials * reciprocal + (np.int64(1) << (length - 1))) >> length


def normalise_rows(codes: np.ndarray, *, centre: bool, epsilon: int, fraction: int) -> np.ndarray:
    """Codes over the root of their mean square along the last axis, int64 with 16 fraction bits; int64 ``codes`` without zero point.

    With ``n`` the length of the axis, at most ``2**16``, and codes of 9 bits (sign and 8):

    1. ``s1 = sum of codes`` (0 without ``centre``), 25 bits, ``s2 = sum of squares``, 32 bits;
    2. ``d = n * code - s1``, 25 bits, and ``v = n * s2 - s1**2``, 48 bits: ``n`` times the deviation, ``n**2`` times the variance;
    3. ``u = (v << fraction) + epsilon``, 62 bits;
    4. ``L`` is the bit length of ``u``, one more where it is odd; ``u`` is shifted to ``w`` in ``2**46 .. 2**48 - 1`` (bits beyond are dropped);
    5. ``root = floor(sqrt(w))``, 24 bits, and ``r = floor(2**47 / root)``, 25 bits;
    6. ``z = floor((d * r + 2**(k - 1)) / 2**k)``, the product 49 bits, with ``k = 7 + (L - fraction) / 2``.

    Where ``u`` is 0 every ``d`` is 0 and so is ``z``.
    """
    count = codes.shape[-1]
    total = codes.sum(axis=-1, keepdims=True) if centre else np.zeros((*codes.shape[:-1], 1), np.int64)
    deviation = count * codes - total
    variance = count * (codes * codes).sum(axis=-1, keepdims=True) - total * total
    scaled = (variance << fraction) + epsilon
    length = bit_length(scaled)
    length += length & 1
    excess = length - 2 * _ROOT_BITS
    radicand = np.where(excess > 0, scaled >> np.maximum(excess, 0), scaled << np.maximum(-excess, 0))
    # Below 2**48 the float64 root of k**2 - 1 is below k by far more than its rounding: cutting it is exact.
    root = np.sqrt(radicand.astype(np.float64)).astype(np.int64)
    reciprocal = (np.int64(1) << (2 * _ROOT_BITS - 1)) // np.maximum(root, 1)
    shift = np.maximum(_ROOT_BITS - 1 - NORMALISED_BITS + (length - fraction) // 2, 1)
    return (deviation * reciprocal + (np.int64(1) << (shift - 1))) >> shift


def _normalise(operation: Normalise, codes: np.ndarray) -> np.ndarray:
    samples, channels, height, width = codes.shape
    groups = codes.reshape(samples, operation.groups, channels // operation.groups, height * width).astype(np.int64) - operation.zero_point
    rows = groups.reshape(samples, operation.groups, -1) if operation.pixels else groups.swapaxes(2, 3)
    found = normalise_rows(rows, centre=operation.centre, epsilon=operation.epsilon, fraction=operation.fraction)
    return (found if operation.pixels else found.swapaxes(2, 3)).reshape(codes.shape)


def _matrix_product(operation: MatrixProduct, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Through float64, which holds every partial sum: bounds of accumulators are below ``2**31``."""
    rows = left.astype(np.float64).transpose(0, 2, 3, 1) - operation.left_zero
    columns = right.astype(np.float64).transpose(0, 2, 1, 3) - operation.right_zero
    return np.matmul(rows, columns).transpose(0, 3, 1, 2)


def run_vector(operation: VectorOperation, operands: list[np.ndarray]) -> np.ndarray:
    """Codes, or raw accumulators int32, (N, C, H, W), of one operation. Raises :class:`ModelError` for accumulators beyond its bounds."""
    match operation:
        case Product():
            acc = (operands[0].astype(np.int64) - operation.left_zero) * (operands[1].astype(np.int64) - operation.right_zero)
        case MatrixProduct():
            acc = _matrix_product(operation, operands[0], operands[1])
        case Normalise():
            acc = _normalise(operation, operands[0])
        case Softmax():
            if operands[0].size and int(operands[0].max()) - int(operands[0].min()) >= len(operation.powers):
                raise ModelError(f"layer {operation.name!r} reads codes beyond the range of its input; the artefact is inconsistent")
            acc = softmax_rows(operands[0], operation.powers, operation.mask)
        case _:
            raise ModelError(f"operation {operation.name!r} of kind {type(operation).__name__} is not known")
    if acc.size and (acc.min() < operation.acc_low or acc.max() > operation.acc_high):
        raise ModelError(
            f"layer {operation.name!r} reached the accumulator {int(acc.min())}..{int(acc.max())} outside its bounds "
            f"{operation.acc_low}..{operation.acc_high}; the artefact is inconsistent"
        )
    return acc.astype(np.int32) if operation.step is None else requantise(operation.step, acc)
