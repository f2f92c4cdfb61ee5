"""Whether the float steps of a stored program can be computed: one sample of zeros is taken through each of them."""

import math

import numpy as np

from tritloom.compiler.golden.host import apply_host
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.program import HostOp, InputSpec, OutputSpec, Program
from tritloom.compiler.quantize.chain import ROUNDINGS

__all__ = ["check_host_steps"]

LARGEST_ARRAY = 1 << 24
"""Elements a sample of an array that the host handles; the front end makes no larger ones."""

_READ = ("A", "B", "input_mean", "input_var", "max", "min", "scale", "slope", "zero_point")
_BY_CHANNEL = ("BatchNormalization", "Dequantize", "Quantize")


def check_host_steps(program: Program) -> None:
    """Raise :class:`Malformed` for inputs and outputs that the host could not compute, or only with endless memory."""
    for spec in program.inputs:
        where = f"input {spec.name!r}"
        tensor = program.tensors[spec.tensor]
        if program.states and not spec.prologue:
            _need(len(spec.shape) == 1 and spec.index is None, f"{where} is not a token")
            continue
        x = np.zeros((1, *_sizes(spec, where)), np.float32 if spec.prologue else np.int8)
        for op in spec.prologue:
            x = _computed(op, x, where)
        _need(x.dtype == np.int8, f"{where} is not quantised to codes")
        count = x.size if spec.index is None else spec.index.size
        _need(count == tensor.elements, f"{where} gives {count} codes for {tensor.elements}")
        _need(spec.index is None or int(spec.index.max(initial=0)) < x.size, f"{where} has an index beyond its array")
    for spec in program.outputs:
        where = f"output {spec.name!r}"
        tensor = program.tensors[spec.tensor]
        shape = tensor.shape if spec.index is None else spec.index.shape
        _need(math.prod(shape) <= LARGEST_ARRAY, f"{where} has more than {LARGEST_ARRAY} elements")
        x = np.zeros((1, *shape), np.float32 if spec.scale_tensor else np.int8 if tensor.bits <= 8 else np.int32)
        for op in spec.epilogue:
            x = _computed(op, x, where)
        sizes = spec.shape[1:]
        if all(isinstance(size, int) for size in sizes):
            _need(math.prod(_sizes(spec, where)) == x.size, f"{where} has shape {list(spec.shape)} for {x.size} elements")
        _need(spec.dtype in ("bool", "float16", "float32", "float64") or spec.dtype.lstrip("u") in ("int8", "int16", "int32", "int64"),
              f"{where} is of type {spec.dtype[:40]!r}")  # fmt: skip


def _need(ok: bool, what: str) -> None:
    if not ok:
        raise Malformed(what)


def _sizes(spec: InputSpec | OutputSpec, where: str) -> list[int]:
    sizes = [size for size in spec.shape[1:] if isinstance(size, int) and size > 0]
    _need(len(spec.shape) == len(sizes) + 1 and len(sizes) < 8, f"{where} has shape {list(spec.shape)[:9]}")
    _need(math.prod(sizes) <= LARGEST_ARRAY, f"{where} has more than {LARGEST_ARRAY} elements")
    return sizes


def _computed(op: HostOp, x: np.ndarray, where: str) -> np.ndarray:
    """Result of a step, once nothing in it can make an array far larger than those that it is given."""
    where = f"{where}, step {op.kind}"
    try:
        shapes = [np.shape(constant) for name, constant in op.constants.items() if name in _READ]
        if op.kind in _BY_CHANNEL:
            axis = 1 if op.kind == "BatchNormalization" else op.attributes.get("axis", 1)
            sizes = {1, x.shape[axis] if x.ndim > 1 else 1}
            whole = op.kind == "Dequantize" and all(math.prod(shape) == 1 or shape == x.shape[1:] for shape in shapes)
            _need(
                whole or all(math.prod(shape) in sizes for shape in shapes), f"{where} has not one constant, or one a channel or an element"
            )
        elif op.kind == "Pad":
            grown = (size + before + after for size, (before, after) in zip(x.shape[1:], op.attributes["pads"], strict=True))
            _need(min(map(min, op.attributes["pads"]), default=0) >= 0 and math.prod(grown) <= LARGEST_ARRAY, f"{where} pads too much")
        elif op.kind != "Gather":
            _need(math.prod(np.broadcast_shapes(x.shape, *shapes)) <= LARGEST_ARRAY, f"{where} makes too large an array")
        if op.kind == "Quantize":
            _check_quantiser(op, where)
        with np.errstate(all="ignore"):
            result = apply_host(op, x)
    except Malformed:
        raise
    except Exception as error:  # wrong shapes, types and names make NumPy raise nearly anything
        raise Malformed(f"{where} cannot be computed ({' '.join(str(error).split())[:100] or type(error).__name__})") from None
    _need(result.ndim > 0 and len(result) == 1 and result.dtype.kind in "fiub", f"{where} does not keep the batch")
    _need(not result.dtype.kind == "f" or result.dtype.itemsize <= 8, f"{where} makes numbers of type {result.dtype}")
    return result


def _check_quantiser(op: HostOp, where: str) -> None:
    low, high, offset = (op.attributes.get(name, 0) for name in ("low", "high", "offset"))
    plain = all(isinstance(value, int) and abs(value) < 1 << 16 for value in (low, high, offset))
    _need(plain and -128 <= low + offset <= high + offset <= 127, f"{where} has codes beyond 8 bits")
    _need(op.attributes.get("rounding", "half_even") in ROUNDINGS, f"{where} has an unknown rounding")
    scale = np.asarray(op.constants["scale"], np.float64)
    _need(bool((np.isfinite(scale) & (scale > 0)).all()), f"{where} has a scale that is not a positive number")
