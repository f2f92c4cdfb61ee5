"""JSON for programs: every class of :mod:`tritloom.compiler.ir.program`, with arrays as ``.npy`` entries beside it.

Decoding trusts nothing: each field has a decoder that checks its type and range, and raises :class:`Malformed`.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np

from tritloom.compiler.image.block_codec import block_kinds, scale_pair
from tritloom.compiler.image.loop_codec import grid_kinds, loop_kinds
from tritloom.compiler.image.values import (
    ArrayReader,
    ArrayWriter,
    Malformed,
    boolean,
    fraction,
    integer,
    mapping,
    number,
    sequence,
    shortened,
    text,
)
from tritloom.compiler.ir.program import (
    Add,
    Convolution,
    Copy,
    HostOp,
    InputSpec,
    MaxPool,
    Operation,
    OutputSpec,
    Program,
    Proof,
    Rescale,
    State,
    StepFunction,
    SumPool,
    Tensor,
    Window,
)
from tritloom.compiler.ir.vector import POWER_BITS, MatrixProduct, Normalise, Product, Softmax
from tritloom.hw.arch.record import Record

__all__ = ["decode_program", "encode_program"]

HOST_OPS = (
    "Add", "ArgMax", "BatchNormalization", "Clip", "Dequantize", "Div", "Fork", "Function", "Gather", "Join", "LeakyRelu", "LogSoftmax", "Mul", "Neg", "Pad", "PRelu", "Quantize",
    "Relu", "Reshape", "Sigmoid", "Softmax", "Sub", "Swap", "Transpose",
)  # fmt: skip
MAX_STEP_CHANNELS = 1 << 22
"""Most channels of all step functions of a program together, which bounds what a small file can unfold to."""

# ---- attributes: any plain value ----------------------------------------------------------------------------------------


def _encode_plain(value: Any, arrays: ArrayWriter) -> Any:
    """Plain Python and NumPy values; those that JSON has not are objects with one key that names their kind."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, Fraction):
        return {"fraction": _fraction_text(value)}
    if isinstance(value, np.ndarray):
        return {"ndarray": arrays.add(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode_plain(entry, arrays) for entry in value]}
    if isinstance(value, list):
        return [_encode_plain(entry, arrays) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode_plain(value[key], arrays) for key in sorted(value)}}
    raise TypeError(f"an attribute must be a plain value, not {type(value).__name__}")


def _decode_plain(value: Any, arrays: ArrayReader) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return [_decode_plain(entry, arrays) for entry in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise Malformed(f"{shortened(value)} is not an attribute value")
    kind, inner = next(iter(value.items()))
    if kind == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if kind == "fraction":
        return fraction(inner)
    if kind == "ndarray":
        return arrays.get(inner)
    if kind == "tuple":
        return sequence(inner, lambda entry: _decode_plain(entry, arrays))
    if kind == "dict" and isinstance(inner, dict):
        return {key: _decode_plain(entry, arrays) for key, entry in inner.items()}
    raise Malformed(f"{shortened(kind)} is not a kind of attribute value")


def _fraction_text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


# ---- programs -----------------------------------------------------------------------------------------------------------


def encode_program(program: Program, arrays: ArrayWriter) -> dict[str, Any]:
    """JSON of a program; its arrays go to ``arrays``."""
    return {
        "name": program.name,
        "tensors": [_encode_tensor(tensor) for tensor in program.tensors.values()],
        "operations": [_encode_operation(operation, arrays) for operation in program.operations],
        "inputs": [_encode_spec(spec, arrays) for spec in program.inputs],
        "outputs": [_encode_spec(spec, arrays) for spec in program.outputs],
        "states": [{"tensor": state.tensor, "following": state.following} for state in program.states],
    }


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    values = {field.name: getattr(tensor, field.name) for field in fields(tensor)}
    return values | {
        "shape": list(tensor.shape),
        "scale": [_fraction_text(value) for value in tensor.scale],
        "zero_point": list(tensor.zero_point),
    }


def _encode_step(step: StepFunction, arrays: ArrayWriter) -> dict[str, Any]:
    rows = [
        [(record.start, record.multiplier, record.bias, record.shift, int(record.half_even)) for record in pieces]
        for pieces in (step.records[:1] if all(pieces == step.records[0] for pieces in step.records) else step.records)
    ]
    proof = {field.name: getattr(step.proof, field.name) for field in fields(step.proof)}
    return {
        "channels": len(step.records),
        "records": arrays.add(np.array(rows, np.int64)),
        "low": step.low,
        "high": step.high,
        "proof": proof,
    }


def _encode_operation(operation: Operation, arrays: ArrayWriter) -> dict[str, Any]:
    encoded: dict[str, Any] = {"type": type(operation).__name__}
    for field in fields(operation):
        value = getattr(operation, field.name)
        if isinstance(value, Window):
            value = {part.name: list(getattr(value, part.name)) for part in fields(value)}
        elif isinstance(value, StepFunction):
            value = _encode_step(value, arrays)
        elif isinstance(value, np.ndarray):
            value = arrays.add(value)
        elif field.name == "body":
            value = [_encode_operation(part, arrays) for part in value]
        elif field.name == "carried":
            value = [{**vars(entry), "values": None if entry.values is None else arrays.add(entry.values)} for entry in value]
        elif field.name == "regions":
            value = [{"region": list(region), "step": _encode_step(step, arrays)} for region, step in value]
        encoded[field.name] = value
    return encoded


def _encode_host_op(operation: HostOp, arrays: ArrayWriter) -> dict[str, Any]:
    return {
        "kind": operation.kind,
        "constants": {name: arrays.add(operation.constants[name]) for name in sorted(operation.constants)},
        "attributes": {name: _encode_plain(operation.attributes[name], arrays) for name in sorted(operation.attributes)},
    }


def _encode_spec(spec: InputSpec | OutputSpec, arrays: ArrayWriter) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name == "shape":
            value = list(value)
        elif field.name in ("prologue", "epilogue"):
            value = [_encode_host_op(operation, arrays) for operation in value]
        elif field.name == "index" and value is not None:
            value = arrays.add(np.asarray(value, np.int64))
        encoded[field.name] = value
    return encoded


def decode_program(value: Any, arrays: ArrayReader) -> Program:
    """Inverse of :func:`encode_program`. Raises :class:`Malformed`; that the parts fit together is not checked here."""

    def window(value: Any) -> Window:
        def pair(value: Any) -> tuple[Any, ...]:
            return sequence(value, lambda size: integer(size, 1, 1 << 15), 2)

        def pads(value: Any) -> tuple[Any, ...]:
            return sequence(value, lambda size: integer(size, 0, 1 << 15), 4)

        return Window(**mapping(value, {"kernel": pair, "strides": pair, "dilations": pair, "pads": pads}))

    channels_left = MAX_STEP_CHANNELS

    def step(value: Any) -> StepFunction:
        nonlocal channels_left
        parts = mapping(value, {"channels": _size, "records": arrays.get, "low": _code, "high": _code, "proof": _proof})
        table = parts["records"]
        if (
            table.dtype != np.int64
            or table.ndim != 3
            or table.shape[0] not in (1, parts["channels"])
            or not table.shape[1]
            or table.shape[2] != 5
        ):
            raise Malformed(f"step function has a record table of shape {table.shape}")
        if parts["low"] > parts["high"]:
            raise Malformed("step function has low above high")
        try:
            records = tuple(tuple(Record(*row[:4], half_even=bool(row[4])) for row in pieces) for pieces in table.tolist())
        except ValueError as error:
            raise Malformed(str(error)) from None
        channels_left -= parts["channels"]
        if channels_left < 0:
            raise Malformed(f"step functions have more than {MAX_STEP_CHANNELS} channels")
        if len(records) == 1:
            records *= parts["channels"]
        return StepFunction(records=records, low=parts["low"], high=parts["high"], proof=parts["proof"])

    def region(value: Any) -> tuple[tuple[int, ...], StepFunction]:
        parts = mapping(value, {"region": lambda value: sequence(value, lambda edge: integer(edge, 0, 1 << 15), 4), "step": step})
        return parts["region"], parts["step"]

    def weights(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int16 or array.ndim != 4:
            raise Malformed("weights are not a 4-dimensional int16 array")
        return array

    def index(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int64:
            raise Malformed("index is not an int64 array")
        return array

    def optional(decoder: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda value: None if value is None else decoder(value)

    def host_op(value: Any) -> HostOp:
        def constants(value: Any) -> dict[str, np.ndarray]:
            return {name: arrays.get(reference) for name, reference in _object(value).items()}

        def attributes(value: Any) -> dict[str, Any]:
            return {name: _decode_plain(entry, arrays) for name, entry in _object(value).items()}

        parts = mapping(value, {"kind": text, "constants": constants, "attributes": attributes})
        if parts["kind"] not in HOST_OPS:
            raise Malformed(f"{shortened(parts['kind'])} is not a host operation")
        return HostOp(**parts)

    def powers(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.int32 or array.ndim != 1 or not array.size or array.min() < 0 or array.max() >> POWER_BITS:
            raise Malformed(f"powers are not a list of integers of {POWER_BITS} bits")
        return array

    def mask(value: Any) -> np.ndarray:
        array = arrays.get(value)
        if array.dtype != np.uint8 or array.ndim != 3 or array.max(initial=0) > 1:
            raise Malformed("mask is not a 3-dimensional array of 0 and 1")
        return array

    base = {"name": text, "output": text}
    bounded = {**base, "step": optional(step), "acc_low": _accumulator, "acc_high": _accumulator}
    operands = {"left": text, "right": text, "left_zero": _zero, "right_zero": _zero}
    kinds: dict[str, tuple[type[Operation], dict[str, Callable[[Any], Any]]]] = {
        "Convolution": (Convolution, {
            **base, "input": text, "weights": weights, "planes": lambda value: integer(value, 1, 11), "window": window, "groups": _size, "pad_code": _code,
            "step": optional(step), "acc_low": _accumulator, "acc_high": _accumulator, "weight_method": text, "weight_error": number,
        }),
        "MaxPool": (MaxPool, {**base, "input": text, "window": window}),
        "SumPool": (SumPool, {
            **base, "input": text, "window": window, "pad_code": _code, "regions": lambda value: sequence(value, region),
            "acc_low": _accumulator, "acc_high": _accumulator,
        }),
        "Rescale": (Rescale, {**base, "input": text, "step": step, "channel_offset": lambda value: integer(value, 0, 1 << 30)}),
        "Add": (Add, {**base, "left": text, "right": text, "step": step}),
        "Copy": (Copy, {**base, "input": text, "index": index}),
        "Product": (Product, {**bounded, **operands}),
        "MatrixProduct": (MatrixProduct, {**bounded, **operands}),
        "Normalise": (Normalise, {
            **bounded, "input": text, "groups": _size, "pixels": boolean, "centre": boolean, "zero_point": _zero,
            "epsilon": lambda value: integer(value, 0, 1 << 62), "fraction": lambda value: integer(value, 0, 30),
        }),
        "Softmax": (Softmax, {**bounded, "input": text, "powers": powers, "mask": optional(mask)}),
        **block_kinds(base, arrays),
        **grid_kinds(base, arrays, scale_pair),
    }  # fmt: skip

    def operation(value: Any) -> Operation:
        kind = _object(value).get("type")
        if not isinstance(kind, str) or kind not in kinds:
            raise Malformed(f"{shortened(kind)} is not an operation")
        made, decoders = kinds[kind]
        parts = mapping(value, {"type": text, **decoders})
        del parts["type"]
        return made(**parts)

    kinds |= loop_kinds(base, arrays, operation)

    def dimension(value: Any) -> int | str:
        return text(value) if isinstance(value, str) else integer(value, 0, 1 << 30)

    spec: dict[str, Callable[[Any], Any]] = {
        "name": text, "shape": lambda value: sequence(value, dimension), "dtype": text, "tensor": text, "index": optional(index),
    }  # fmt: skip

    def host_ops(value: Any) -> tuple[HostOp, ...]:
        return sequence(value, host_op)

    parts = mapping(
        value,
        {
            "name": text,
            "tensors": lambda value: sequence(value, _tensor),
            "operations": lambda value: sequence(value, operation),
            "inputs": lambda value: sequence(value, lambda entry: InputSpec(**mapping(entry, {**spec, "prologue": host_ops}))),
            "outputs": lambda value: sequence(
                value, lambda entry: OutputSpec(**mapping(entry, {**spec, "epilogue": host_ops, "witness": text, "scale_tensor": text}))
            ),
            "states": lambda value: sequence(value, lambda entry: State(**mapping(entry, {"tensor": text, "following": text}))),
        },
    )
    tensors = {tensor.name: tensor for tensor in parts["tensors"]}
    if len(tensors) != len(parts["tensors"]):
        raise Malformed("two tensors have one name")
    return Program(**{**parts, "tensors": tensors})


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{shortened(value)} is not an object")
    return value


def _size(value: Any) -> int:
    return integer(value, 1, 1 << 30)


def _code(value: Any) -> int:
    return integer(value, -128, 127)


def _zero(value: Any) -> int:
    return integer(value, -255, 255)


def _accumulator(value: Any) -> int:
    return integer(value, -(1 << 31), (1 << 31) - 1)


def _proof(value: Any) -> Proof:
    return Proof(**mapping(value, {"exact": boolean, "reachable": _count, "differing": _count, "largest": _count}))


def _count(value: Any) -> int:
    return integer(value, 0)


def _tensor(value: Any) -> Tensor:
    return Tensor(
        **mapping(
            value,
            {
                "name": text,
                "shape": lambda value: sequence(value, _size, 3),
                "bits": lambda value: integer(value, 1, 32),
                "low": _accumulator,
                "high": _accumulator,
                "scale": lambda value: sequence(value, fraction),
                "zero_point": lambda value: sequence(value, lambda entry: integer(entry, -(1 << 40), 1 << 40)),
                "source": text,
            },
        )
    )
