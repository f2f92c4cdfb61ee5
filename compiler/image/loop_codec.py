"""Decoders of loops and of the operations on integers of a fixed grid, and whether their parts fit together."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tritloom.compiler.image.values import ArrayReader, Malformed, boolean, integer, mapping, sequence, text
from tritloom.compiler.ir.grid import FACTOR_BITS, Align, ClampedSum, GridOperation, Magnitude, Prepend, Reduce
from tritloom.compiler.ir.loop import MOST_TRIPS, Carried, Loop
from tritloom.compiler.ir.program import Operation, Program, Tensor

__all__ = ["check_grid", "check_loop", "grid_kinds", "loop_kinds"]

Decoder = Callable[[Any], Any]
Kinds = dict[str, tuple[type[Operation], dict[str, Decoder]]]


def grid_kinds(base: dict[str, Decoder], arrays: ArrayReader, scale: Decoder) -> Kinds:
    """Class and decoders of the fields of each operation on integers, by its name in JSON; ``base`` decodes what all operations have, ``scale`` a pair."""

    def columns(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int16 or array.ndim != 2 or not array.size:
            raise Malformed("columns are not a 2-dimensional int16 array")
        return array

    def factor(value: Any) -> int:
        return integer(value, 1 - (1 << FACTOR_BITS), (1 << FACTOR_BITS) - 1)

    def limit(value: Any) -> int:
        return integer(value, -(1 << 31), (1 << 31) - 1)

    return {
        "Align": (Align, {**base, "input": text, "input_scale": text, "constant": scale}),
        "ClampedSum": (ClampedSum, {
            **base, "left": text, "right": text, "left_factor": factor, "right_factor": factor, "constant": limit, "low": limit, "high": limit,
        }),
        "Magnitude": (Magnitude, {**base, "input": text}),
        "Prepend": (Prepend, {**base, "input": text, "columns": columns}),
        "Reduce": (Reduce, {**base, "input": text, "smallest": boolean}),
    }  # fmt: skip


def loop_kinds(base: dict[str, Decoder], arrays: ArrayReader, operation: Decoder) -> Kinds:
    """The same for loops; ``operation`` decodes one of a body."""

    def values(value: Any) -> np.ndarray | None:
        array = None if value is None else arrays.get(value)
        if array is not None and (array.dtype != np.int16 or array.ndim != 3):
            raise Malformed("the first values of a loop are not a 3-dimensional int16 array")
        return array

    def carried(value: Any) -> Carried:
        return Carried(**mapping(value, {"before": text, "after": text, "initial": text, "values": values}))

    fields: dict[str, Decoder] = {
        **base,
        "limit": lambda value: integer(value, 1, MOST_TRIPS),
        "condition": text,
        "carried": lambda value: sequence(value, carried),
        "body": lambda value: sequence(value, operation),
    }
    return {"Loop": (Loop, fields)}


def check_grid(operation: GridOperation, program: Program, output: Tensor, where: str) -> None:
    """Raise :class:`Malformed` where shapes, ranges and constants of an operation do not fit together."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise Malformed(f"{where} {what}")

    first = program.tensors[operation.inputs[0]]
    match operation:
        case ClampedSum():
            terms = [(first, operation.left_factor)]
            terms += [(program.tensors[operation.right], operation.right_factor)] if operation.right else []
            need(all(tensor.shape == output.shape for tensor, _ in terms), "adds tensors of unlike shapes")
            need(
                all(abs(factor) <= 1 or max(-tensor.low, tensor.high) <= 1 << FACTOR_BITS for tensor, factor in terms),
                "multiplies more than 16 bits",
            )
            need(output.low <= operation.low <= operation.high <= output.high, "has limits beyond its tensor")
        case Magnitude():
            need(first.shape == output.shape, "changes the shape")
            need(max(abs(first.low), abs(first.high)) <= output.high and output.low <= 0, "does not fit its tensor")
        case Reduce():
            need(output.shape == (1, 1, 1) and output.low <= first.low and first.high <= output.high, "does not fit its tensor")
        case Align():
            need(first.shape == output.shape and output.bits == 16 and output.low == -(1 << 15), "does not give 16 bits for each element")
            if operation.input_scale:
                scale = program.tensors[operation.input_scale]
                need(scale.shape == (2, *first.shape[1:]) and scale.bits == 32, f"has a scale of shape {scale.shape}")
        case Prepend():
            channels, rows, width = first.shape
            need(rows == 1 and operation.columns.shape[0] == channels, "joins columns of another size")
            need(output.shape == (channels, 1, operation.columns.shape[1] + width), "has an output of another shape")
            low, high = min(first.low, int(operation.columns.min())), max(first.high, int(operation.columns.max()))
            need(output.low <= low and high <= output.high, "does not fit its tensor")
        case _:
            raise Malformed(f"{where} is no known operation")


def check_loop(operation: Loop, program: Program, known: set[str], where: str, trips: int) -> None:
    """Raise :class:`Malformed` for a loop that cannot begin: ``known`` are the tensors before it, ``trips`` those of the loops around it."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise Malformed(f"{where} {what}")

    need(bool(operation.body), "repeats nothing")
    need(trips * operation.limit <= MOST_TRIPS, f"makes more than {MOST_TRIPS} trips with the loops around it")
    count = program.tensors[operation.output]
    need(count.shape == (1, 1, 1) and count.bits == 32 and count.low <= 1 and operation.limit <= count.high, "counts in another tensor")
    befores = [carried.before for carried in operation.carried]
    need(len(set(befores)) == len(befores) and not known & set(befores), "carries two values in one tensor")
    for carried in operation.carried:
        need(carried.before in program.tensors and carried.after in program.tensors, "carries a tensor that does not exist")
        before = program.tensors[carried.before]
        need(bool(carried.initial) == (carried.values is None), f"begins {carried.before!r} with two values or none")
        if carried.values is not None:
            low, high = int(carried.values.min(initial=0)), int(carried.values.max(initial=0))
            need(
                carried.values.shape == before.shape and before.low <= low and high <= before.high,
                f"begins {carried.before!r} with values that do not fit",
            )
        else:
            need(carried.initial in known, f"begins {carried.before!r} with a tensor that does not exist")
        for source in (carried.initial, carried.after) if carried.initial else (carried.after,):
            _check_carried(program.tensors[source], before, where)
    need(bool(operation.inputs), "depends on no input")


def _check_carried(source: Tensor, before: Tensor, where: str) -> None:
    if source.shape != before.shape or not before.low <= source.low <= source.high <= before.high:
        raise Malformed(f"{where} carries {source.name!r} in a tensor that does not hold it")
