"""NumPy meaning of the operations on blocks; each formula is built of those of :mod:`tritloom.hw.arch.blockfloat`."""

import numpy as np

from tritloom.compiler.golden.quest import hadamard, quantise_by_deviation
from tritloom.compiler.ir.block import (
    TURN_BITS,
    Attend,
    BlockOperation,
    BlockProduct,
    BlockSum,
    Curve,
    Lookup,
    Norm,
    Position,
    Quantise,
    Rectify,
    Rotate,
    Store,
    Turn,
    View,
)
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.errors import ModelError
from tritloom.hw.arch import blockfloat

__all__ = ["run_block"]

Scale = tuple[np.ndarray, np.ndarray]
"""Mantissas and exponents, int64 (N, 1, H, W)."""

ONE = (1 << 15, -15)
NO_EXPONENT = -(1 << 30)
"""Below every exponent."""


def _constant(pair: tuple[int, int]) -> Scale:
    return np.array(pair[0], np.int64), np.array(pair[1], np.int64)


def _scale(tensors: dict[str, np.ndarray], name: str) -> Scale:
    """The scale tensor ``name`` as mantissas and exponents; 1 where there is none."""
    if not name:
        return _constant(ONE)
    pairs = tensors[name].astype(np.int64)
    return pairs[:, :1], pairs[:, 1:]


def _moved(scale: Scale, right: np.ndarray) -> Scale:
    """The scale of elements that were shifted to the right."""
    return scale[0], scale[1] + right


def _tensor(scale: Scale, samples: int, pixels: tuple[int, int]) -> np.ndarray:
    """A scale tensor int32 (N, 2, H, W)."""
    parts = [np.broadcast_to(part, (samples, 1, *pixels)) for part in scale]
    return np.concatenate(parts, axis=1).astype(np.int32)


def _norm(operation: Norm, codes: np.ndarray, scale: Scale) -> tuple[np.ndarray, Scale]:
    """1. The channels are normalised to 15 bits, with ``centre`` ``C`` times their deviation from the mean is taken and normalised again;
    2. ``u`` is the sum of the squares, ``30 + log2(C)`` bits, without its lowest ones where it has more than 31, as a scale; ``epsilon`` divided by the square of the
       input's scale is added by :func:`tritloom.hw.arch.blockfloat.scale_sum`;
    3. the result is the element times its gain, 31 bits and sign, and its scale ``1 / sqrt(u)``;
    4. a bias is added by :func:`tritloom.hw.arch.blockfloat.add_blocks` to the normalised products.
    """
    count = codes.shape[1]
    elements, right = blockfloat.normalise(codes, 1)
    unit = _moved(scale, right)
    if operation.centre:
        elements, more = blockfloat.normalise(count * elements - elements.sum(axis=1, keepdims=True), 1)
        # Deviations are ``count`` times as large.
        unit = blockfloat.scale_product(_moved(unit, more), blockfloat.reciprocal(blockfloat.scale_of(np.array(count))))
    dropped = blockfloat.norm_shift(count)
    power = blockfloat.scale_of((elements * elements).sum(axis=1, keepdims=True) >> dropped, dropped)
    if operation.epsilon[0]:
        inverse = blockfloat.reciprocal(unit)
        square = blockfloat.scale_product(inverse, inverse)
        power = blockfloat.scale_sum(power, blockfloat.scale_product(square, _constant(operation.epsilon)))
    root = blockfloat.root_reciprocal(power)
    products = elements * operation.gain.astype(np.int64)[:, None, None]
    if operation.bias is None:
        return products, root
    products, right = blockfloat.normalise(products, 1)
    bias = np.broadcast_to(operation.bias.astype(np.int64)[:, None, None], products.shape)
    return blockfloat.add_blocks(products, _moved(root, right), bias, _constant(operation.bias_scale))


def _rotate(operation: Rotate, codes: np.ndarray, scale: Scale, position: np.ndarray) -> tuple[np.ndarray, Scale]:
    """Elements of 15 bits times cosines and sines of 14: 30 bits and sign."""
    elements, right = blockfloat.normalise(codes, 1)
    half = elements.shape[1] // 2
    first, second = (elements[:, ::2], elements[:, 1::2]) if operation.interleaved else (elements[:, :half], elements[:, half:])
    cosine, sine = (table.astype(np.int64)[position.ravel()][:, :, None, None] for table in (operation.cosine, operation.sine))
    turned = first * cosine - second * sine, second * cosine + first * sine
    result = np.stack(turned, axis=2).reshape(elements.shape) if operation.interleaved else np.concatenate(turned, axis=1)
    return result, _moved(scale, right)


def _curve(codes: np.ndarray, scale: Scale, constant: tuple[int, int], table: np.ndarray, bits: int) -> np.ndarray:
    """Entries of ``table``, whose middle is 0, at the values of a block in steps of ``2**-bits``, rounded half up and limited to the table."""
    elements, right = blockfloat.normalise(codes, 1)
    scale = blockfloat.scale_product(_moved(scale, right), _constant(constant))
    places = np.clip(-scale[1] - bits, 1, 62)
    steps = (elements * scale[0] + (np.int64(1) << (places - 1))) >> places
    half = len(table) // 2
    return table.astype(np.int64)[np.clip(steps, -half, half - 1) + half]


def _turn(operation: Turn, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, Scale]:
    """Angles in turns of ``2**16``, which wrap; elements of 15 bits times cosines and sines of 14."""
    elements, right = blockfloat.normalise(tensors[operation.input].astype(np.int64), 1)
    before = tensors[operation.before].astype(np.int64)
    shares = _curve(before, _scale(tensors, operation.before_scale), operation.constant, operation.table, TURN_BITS)
    shares = np.repeat(shares, elements.shape[2] // before.shape[2], axis=2)
    turns = operation.angles.astype(np.int64)[tensors[operation.position].ravel()][:, :, None, None] + shares
    half = elements.shape[1] // 2
    other = np.concatenate([-elements[:, half:], elements[:, :half]], axis=1)
    result = elements * blockfloat.cosine(turns) + other * blockfloat.cosine(turns - (1 << 14))
    return result, _moved(_scale(tensors, operation.input_scale), right)


def _attend(operation: Attend, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, Scale]:
    """For each head, with the columns j from 0 to the token's position:

    1. ``f[j]`` is the mantissa of column j of the keys, shifted to the right to the largest exponent ``E`` of these columns; ``g[j] = (f[j] * m) >> 16``, 16 bits, with the
       mantissa ``m`` of the query's scale times ``logit``;
    2. ``acc[j]`` is the product of query and key, 21 bits and more, normalised to 15 bits over the columns;
       ``l[j] = floor(acc[j] * g[j] * 2**e + 1/2)`` with the exponent of all three, limited to 31 bits;
    3. ``p[j] = power_of_two(l[j] - max l)``, 16 bits;
    4. ``w[j] = (p[j] * v[j]) >> 16``, with the mantissas ``v`` of the values' columns shifted to their largest exponent as in 1;
    5. the sum of ``w[j] * value[j]``, without its lowest bits where there are more than 512 columns: 32 bits and sign;
    6. the sums are normalised to 15 bits and multiplied by ``1 / sum p`` (16 bits), then shifted to the largest exponent of all heads.
    """
    queries, keys, values = (tensors[name].astype(np.int64) for name in (operation.queries, operation.keys, operation.values))
    position = tensors[operation.position].astype(np.int64).reshape(-1, 1, 1)
    samples, heads, capacity = queries.shape[0], queries.shape[2], keys.shape[3]
    shared = heads // keys.shape[2]
    keys, values = (np.repeat(part, shared, axis=2) for part in (keys, values))
    there = np.arange(capacity) <= position

    def columns(name: str) -> Scale:
        """Factors of the columns, (N, heads, columns), and their exponent, (N, heads, 1)."""
        mantissas, exponents = (np.repeat(part[:, 0], shared, axis=1) for part in _scale(tensors, name))
        largest = np.where(there, exponents, NO_EXPONENT).max(axis=2, keepdims=True)
        return blockfloat.shifted(mantissas, np.where(there, largest - exponents, 0)), largest

    own = blockfloat.scale_product(_scale(tensors, operation.queries_scale), _constant(operation.logit))
    factors, exponent = columns(operation.keys_scale)
    factors = factors * own[0][:, 0] >> 16
    acc, right = blockfloat.normalise(np.where(there, (queries * keys).sum(axis=1), 0), 2)
    places = np.clip(-(own[1][:, 0] + exponent + 16 + right), 1, 62)
    logits = np.clip((acc * factors + (np.int64(1) << (places - 1))) >> places, -(1 << 30), (1 << 30) - 1)
    highest = np.where(there, logits, -(1 << 30)).max(axis=2, keepdims=True)
    powers = np.where(there, blockfloat.power_of_two(np.minimum(logits - highest, 0)), 0)
    factors, exponent = columns(operation.values_scale)
    weights = powers * factors >> 16
    dropped = blockfloat.mixing_shift(capacity)
    mixed, right = blockfloat.normalise((weights[:, None] * values).sum(axis=3) >> dropped, 1)
    total = blockfloat.reciprocal(blockfloat.scale_of(powers.sum(axis=2)))
    exponents = total[1] + exponent[:, :, 0] + 16 + dropped + right[:, 0]
    common = exponents.max(axis=1, keepdims=True)
    products = blockfloat.shifted(mixed * total[0][:, None], (common - exponents)[:, None])
    result = products.transpose(0, 2, 1).reshape(samples, -1, 1, 1)
    scale = blockfloat.scale_of(np.ones_like(common), common)
    return result, (scale[0].reshape(-1, 1, 1, 1), scale[1].reshape(-1, 1, 1, 1))


def _compute(operation: BlockOperation, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, Scale | None]:
    match operation:
        case Lookup():
            rows = tensors[operation.input][:, 0]
            if rows.size and (rows.min() < 0 or rows.max() >= len(operation.table)):
                raise ModelError(f"layer {operation.name!r} looks up row {int(rows.max())} of {len(operation.table)}")
            return operation.table[rows].astype(np.int64).transpose(0, 3, 1, 2), None
        case Position():
            return np.minimum(tensors[operation.input].astype(np.int64) + 1, operation.capacity), None
        case Norm():
            return _norm(operation, tensors[operation.input].astype(np.int64), _scale(tensors, operation.input_scale))
        case Quantise():
            codes, largest = blockfloat.quantise_block(tensors[operation.input].astype(np.int64), 1)
            return codes, blockfloat.scale_product(_scale(tensors, operation.input_scale), largest)
        case QuantiseByDeviation():
            codes, deviation = quantise_by_deviation(
                tensors[operation.input].astype(np.int64), operation.levels, _constant(operation.ratio)
            )
            return codes, blockfloat.scale_product(_scale(tensors, operation.input_scale), deviation)
        case Hadamard():
            elements, right = blockfloat.normalise(tensors[operation.input].astype(np.int64), 1)
            return hadamard(elements, operation.size), _moved(_scale(tensors, operation.input_scale), right)
        case Rectify():
            return np.maximum(tensors[operation.input].astype(np.int64), 0), None
        case BlockProduct() | BlockSum():
            left, left_right = blockfloat.normalise(tensors[operation.left].astype(np.int64), 1)
            other = operation.table[:, None, None] if operation.table is not None else tensors[operation.right]
            right, right_right = blockfloat.normalise(np.broadcast_to(other, left.shape).astype(np.int64), 1)
            scales = (
                _moved(_scale(tensors, operation.left_scale), left_right),
                _moved(_scale(tensors, operation.right_scale), right_right),
            )
            if isinstance(operation, BlockProduct):
                return left * right, blockfloat.scale_product(*scales)
            constants = _constant(operation.left_constant), _constant(operation.right_constant)
            scales = tuple(blockfloat.scale_product(scale, constant) for scale, constant in zip(scales, constants, strict=True))
            return blockfloat.add_blocks(left, scales[0], right, scales[1])
        case Curve():
            codes, scale = tensors[operation.input].astype(np.int64), _scale(tensors, operation.input_scale)
            return _curve(codes, scale, operation.constant, operation.table, blockfloat.CURVE_BITS), None
        case Turn():
            return _turn(operation, tensors)
        case Rotate():
            position = tensors[operation.position].astype(np.int64)
            return _rotate(operation, tensors[operation.input].astype(np.int64), _scale(tensors, operation.input_scale), position)
        case Store():
            cache, columns = tensors[operation.cache].astype(np.int64), tensors[operation.position].reshape(-1)
            result = cache.copy()
            result[np.arange(len(cache)), :, :, columns] = tensors[operation.input][..., 0]
            return result, None
        case Attend():
            return _attend(operation, tensors)
        case View():
            codes = tensors[operation.input].astype(np.int64)
            scale = None
            if operation.input_scale:
                mantissas, exponents = _scale(tensors, operation.input_scale)
                scale = mantissas[:, :, :1, :1], exponents[:, :, :1, :1]
            shape = (len(codes), *operation.index.shape)
            return codes.reshape(len(codes), -1)[:, operation.index.ravel()].reshape(shape), scale
        case _:
            raise ModelError(f"operation {operation.name!r} of kind {type(operation).__name__} is not known")


def run_block(operation: BlockOperation, tensors: dict[str, np.ndarray], bits: int = 32) -> dict[str, np.ndarray]:
    """The tensors that an operation writes, (N, C, H, W): codes by the name of its output, int8 where they have 8 ``bits`` or less and else int32, and
    the scale tensor, int32, if it has one.

    Raises :class:`ModelError` for an element that needs more than ``bits`` bits, and for a row that a table does not have.
    """
    codes, scale = _compute(operation, tensors)
    if codes.size and (codes.min() < -(1 << (bits - 1)) or codes.max() >= 1 << (bits - 1)):
        raise ModelError(f"layer {operation.name!r} reached {int(np.abs(codes).max())}, more than {bits} bits")
    written = {operation.output: codes.astype(np.int8 if bits <= 8 else np.int32)}
    if scale is not None and operation.output_scale:
        written[operation.output_scale] = _tensor(scale, len(codes), (codes.shape[2], codes.shape[3]))
    return written
