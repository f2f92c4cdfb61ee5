"""Decoders of the operations on blocks, and whether their parts fit together."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tritloom.compiler.image.values import ArrayReader, Malformed, boolean, integer, sequence, text
from tritloom.compiler.ir.block import (
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
from tritloom.compiler.ir.program import Operation, Program, Tensor
from tritloom.compiler.ir.quest import Hadamard, QuantiseByDeviation
from tritloom.hw.arch.blockfloat import MANTISSA_BITS

__all__ = ["block_kinds", "check_block", "scale_pair"]

CURVE_POINTS, TURN_POINTS = 1024, 2048
MOST_COLUMNS = 1 << 16
_EXPONENTS = 1 << 12

Decoder = Callable[[Any], Any]


def scale_pair(value: Any) -> tuple[int, int]:
    """Mantissa and exponent of a constant scale."""
    mantissa, exponent = sequence(value, lambda entry: integer(entry, -_EXPONENTS, (1 << MANTISSA_BITS) - 1), 2)
    if exponent > _EXPONENTS or (mantissa and not mantissa >> (MANTISSA_BITS - 1) == 1):
        raise Malformed(f"({mantissa}, {exponent}) is no scale")
    return mantissa, exponent


def block_kinds(base: dict[str, Decoder], arrays: ArrayReader) -> dict[str, tuple[type[Operation], dict[str, Decoder]]]:
    """Class and decoders of the fields of each operation on blocks, by its name in JSON; ``base`` decodes what all operations have."""

    def table(dimensions: int) -> Decoder:
        def decode(value: Any) -> np.ndarray:
            array = arrays.get(value)
            if array.dtype != np.int16 or array.ndim != dimensions:
                raise Malformed(f"table is not a {dimensions}-dimensional int16 array")
            return array

        return decode

    def optional(decoder: Decoder) -> Decoder:
        return lambda value: None if value is None else decoder(value)

    def index(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int64 or array.ndim != 3:
            raise Malformed("index is not a 3-dimensional int64 array")
        return array

    def angles(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int32 or array.ndim != 2 or array.min(initial=0) < 0 or array.max(initial=0) >> 16:
            raise Malformed("angles are not a table of 16-bit turns")
        return array

    own = {**base, "output_scale": text}
    scaled = {**own, "input": text, "input_scale": text}
    pair = {**own, "left": text, "left_scale": text, "right": text, "right_scale": text, "table": optional(table(1))}
    attended = {name: text for name in ("queries", "queries_scale", "keys", "keys_scale", "values", "values_scale", "position")}
    return {
        "Attend": (Attend, {**own, **attended, "logit": scale_pair}),
        "BlockProduct": (BlockProduct, pair),
        "BlockSum": (BlockSum, {**pair, "left_constant": scale_pair, "right_constant": scale_pair}),
        "Curve": (Curve, {**scaled, "constant": scale_pair, "table": table(1)}),
        "Hadamard": (Hadamard, {**scaled, "size": lambda value: integer(value, 2, MOST_COLUMNS)}),
        "Lookup": (Lookup, {**own, "input": text, "table": table(2)}),
        "Norm": (Norm, {
            **scaled, "gain": table(1), "bias": optional(table(1)), "bias_scale": scale_pair, "centre": boolean,
            "epsilon": scale_pair,
        }),
        "Position": (Position, {**own, "input": text, "capacity": lambda value: integer(value, 0, MOST_COLUMNS)}),
        "Quantise": (Quantise, scaled),
        "QuantiseByDeviation": (QuantiseByDeviation, {**scaled, "levels": lambda value: integer(value, 2, 255), "ratio": scale_pair}),
        "Rectify": (Rectify, {**own, "input": text}),
        "Rotate": (Rotate, {**scaled, "position": text, "cosine": table(2), "sine": table(2), "interleaved": boolean}),
        "Store": (Store, {**own, "cache": text, "input": text, "position": text}),
        "Turn": (Turn, {
            **scaled, "before": text, "before_scale": text, "constant": scale_pair, "position": text, "angles": angles, "table": table(1),
        }),
        "View": (View, {**scaled, "index": index}),
    }  # fmt: skip


def check_block(operation: BlockOperation, program: Program, output: Tensor, where: str) -> None:
    """Raise :class:`Malformed` where tensors, tables and scales of an operation do not fit together."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise Malformed(f"{where} {what}")

    def shape(name: str) -> tuple[int, int, int]:
        return program.tensors[name].shape

    def need_scale(name: str, of: str) -> None:
        if name:
            need(of in program.tensors, "has a scale of no tensor")
            (_, rows, columns), sizes = shape(of), shape(name)
            need(sizes[0] == 2 and sizes[1] in (1, rows) and sizes[2] in (1, columns), f"has a scale of shape {sizes}")
            need(program.tensors[name].bits == 32, "has a scale of few bits")

    def need_position(name: str, columns: int) -> None:
        tensor = program.tensors[name]
        need(
            tensor.shape == (1, 1, 1) and 0 <= tensor.low and tensor.high < columns,
            f"has a position of {tensor.low}..{tensor.high} in {columns} columns",
        )

    need(output.bits == 8 or output.bits == 32 or not isinstance(operation, Quantise), "quantises to more than 8 bits")
    if operation.output_scale:
        need(operation.output_scale in program.tensors, "writes a scale that does not exist")
        need_scale(operation.output_scale, operation.output)
    for part in ("input", "left", "right", "queries", "keys", "values"):
        name = getattr(operation, f"{part}_scale", "")
        if name:
            need_scale(name, getattr(operation, part))
    match operation:
        case Lookup():
            source = program.tensors[operation.input]
            rows, columns = source.shape[1:]
            need(source.shape[0] == 1 and output.shape == (operation.table.shape[1], rows, columns), "looks up columns of another size")
            need(0 <= source.low and source.high < len(operation.table), f"has a table of {len(operation.table)} rows")
        case Position():
            need(shape(operation.input) == output.shape == (1, 1, 1), "counts in a tensor of many elements")
            need(0 <= program.tensors[operation.input].low and operation.capacity <= output.high, "counts beyond its tensor")
        case Norm():
            need(shape(operation.input) == output.shape and len(operation.gain) == output.shape[0], "has gains for other channels")
            need(operation.bias is None or len(operation.bias) == output.shape[0], "has biases for other channels")
        case Quantise() | QuantiseByDeviation() | Rectify() | Curve() | Hadamard():
            need(shape(operation.input) == output.shape, "changes the shape")
            size = operation.size if isinstance(operation, Hadamard) else 1
            need(size & (size - 1) == 0 and output.shape[0] % size == 0, "transforms blocks that do not fit")
            highest = (
                0
                if not isinstance(operation, QuantiseByDeviation)
                else operation.levels // 2
                if operation.levels % 2
                else operation.levels - 1
            )
            need(-highest >= output.low and highest <= output.high and (not highest or output.bits <= 8), "has levels beyond its tensor")
            need(not isinstance(operation, Curve) or len(operation.table) == CURVE_POINTS, f"has a table without {CURVE_POINTS} entries")
        case BlockProduct() | BlockSum():
            table = operation.table
            need(
                (table is None) == bool(operation.right) and not (table is not None and operation.right_scale), "has not one right operand"
            )
            right = (len(table), *output.shape[1:]) if table is not None else shape(operation.right)
            need(shape(operation.left) == output.shape == right, "joins tensors of unlike shapes")
        case Rotate():
            sizes = operation.cosine.shape
            need(
                shape(operation.input) == output.shape and output.shape[0] == 2 * sizes[1] and operation.sine.shape == sizes,
                "has tables for other channels",
            )
            need_position(operation.position, sizes[0])
        case Turn():
            before, output_shape = shape(operation.before), output.shape
            need(shape(operation.input) == output_shape and output_shape[0] % 2 == 0, "turns channels without pairs")
            need(
                operation.angles.shape[1] == output_shape[0] == before[0] and len(operation.table) == TURN_POINTS,
                "has tables for other channels",
            )
            need(before[2] == output_shape[2] == 1 and output_shape[1] % before[1] == 0, "is turned by keys of another shape")
            need_scale(operation.before_scale, operation.before)
            need(output.bits == 32 and bool(operation.output_scale), "has no result of 32 bits with a scale")
            for name, of in (
                (operation.input_scale, operation.input), (operation.before_scale, operation.before), (operation.output_scale, operation.output),
            ):  # fmt: skip
                need(not name or shape(name) == (2, *shape(of)[1:]), "has no scale for each head")
            need_position(operation.position, len(operation.angles))
        case Store():
            channels, heads, columns = shape(operation.cache)
            need(
                output.shape == (channels, heads, columns) and shape(operation.input) == (channels, heads, 1),
                "stores a column of another shape",
            )
            need_position(operation.position, columns)
        case Attend():
            channels, heads, tokens = shape(operation.queries)
            keys = shape(operation.keys)
            need(
                tokens == 1 and shape(operation.values) == keys and keys[0] == channels and heads % keys[1] == 0,
                "attends to keys of another shape",
            )
            need(output.shape == (channels * heads, 1, 1), "has an output of another shape")
            for part in ("queries", "keys", "values"):
                need(program.tensors[getattr(operation, part)].bits <= 8, f"has {part} of many bits")
                sizes = shape(getattr(operation, part))
                need(shape(getattr(operation, f"{part}_scale")) == (2, *sizes[1:]), f"has no scale for each of its {part}")
            need_position(operation.position, keys[2])
        case View():
            elements = program.tensors[operation.input].elements
            inside = operation.index.size and 0 <= operation.index.min() and operation.index.max() < elements
            need(operation.index.shape == output.shape and bool(inside), "views elements that do not exist")
        case _:
            raise Malformed(f"{where} is no known operation")
