"""What the host does in float32: from the model's inputs to the first codes, and from the last codes to the model's outputs.

Operands of a :class:`HostOp` keep their ONNX names. ``constants``: ``A`` or ``B`` (Add, Sub, Mul, Div: the constant side),
``scale``, ``B``, ``input_mean``, ``input_var`` (BatchNormalization), ``min`` and ``max`` (Clip), ``slope`` (PRelu), ``scale`` and
``zero_point`` (Quantize, Dequantize), ``thresholds`` (Quantize, where they decide the code), ``index`` (Gather), ``value`` (Pad). ``attributes``: ``alpha`` (LeakyRelu), ``epsilon``
(BatchNormalization), ``pads`` without batch axis, (before, after) an axis (Pad), ``axis`` (Softmax, LogSoftmax, ArgMax,
and Quantize or Dequantize with one scale a channel), ``keepdims`` and ``select_last_index`` (ArgMax), ``shape`` without batch axis
(Reshape), ``perm`` with batch axis (Transpose), and for Quantize ``low``, ``high``, ``rounding``, ``bipolar``, ``clip_first``, ``offset``
as in :class:`tritloom.compiler.quantize.steps.Quantiser`. Everything is elementwise float32, one rounding an operation, as ONNX Runtime
does it. ``Function`` is computed in float64 and rounded once. ``Fork``, ``Swap`` and ``Join`` are for operators of two operands that are
both computed from one value, :func:`apply_hosts`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tritloom.compiler.ir.program import HostOp, InputSpec, OutputSpec, Program
from tritloom.compiler.quantize.functions import FUNCTIONS
from tritloom.errors import ModelError, UserError

__all__ = ["apply_host", "apply_hosts", "block_values", "dequantise_outputs", "invert_host", "quantise_inputs", "random_feeds"]

_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}


def _round(values: np.ndarray, rounding: str) -> np.ndarray:
    match rounding:
        case "half_even":
            return np.rint(values)
        case "half_up":
            # Adding a half would round 0.49999997 up to one.
            whole = np.floor(values)
            return whole + (values - whole >= 0.5)
        case "half_away":
            return np.sign(values) * np.floor(np.abs(values) + np.float32(0.5))
        case "half_toward_zero":
            return np.sign(values) * np.ceil(np.abs(values) - np.float32(0.5))
        case "floor":
            return np.floor(values)
        case "ceil":
            return np.ceil(values)
        case "toward_zero":
            return np.trunc(values)
        case "away_from_zero":
            return np.sign(values) * np.ceil(np.abs(values))
        case _:
            raise ModelError(f"rounding {rounding!r} is not known")


def _along(constant: np.ndarray, dimensions: int, axis: int) -> np.ndarray:
    """Give a vector of one entry a channel the shape that broadcasts along ``axis``; more axes are those of a sample."""
    constant = np.asarray(constant)
    if constant.size == 1:
        return constant.reshape(())
    if constant.ndim > 1:
        return constant[None]
    return constant.reshape([-1 if d == axis % dimensions else 1 for d in range(dimensions)])


def _quantize(op: HostOp, x: np.ndarray) -> np.ndarray:
    axis = int(op.attributes.get("axis", 1))
    scale = _along(op.constants["scale"], x.ndim, axis).astype(x.dtype)
    zero = _along(op.constants.get("zero_point", np.zeros(1)), x.ndim, axis).astype(x.dtype)
    low, high, offset = int(op.attributes["low"]), int(op.attributes["high"]), int(op.attributes.get("offset", 0))
    rounding = op.attributes.get("rounding", "half_even")
    if "thresholds" in op.constants:
        codes = np.full(x.shape, low, np.int16)
        for column in np.asarray(op.constants["thresholds"], x.dtype).T:
            codes += x >= _along(column, x.ndim, axis)
        return (codes + offset).astype(np.int8)
    scaled = x / scale
    if op.attributes.get("bipolar", False):
        codes = np.where(scaled + zero >= 0, high, low)
    elif op.attributes.get("clip_first", False):
        codes = _round(np.clip(scaled + zero, low, high), rounding)
    else:
        codes = np.clip(_round(scaled, rounding) + zero, low, high)
    return (codes + offset).astype(np.int8)


def _dequantize(op: HostOp, x: np.ndarray) -> np.ndarray:
    axis = int(op.attributes.get("axis", 1))
    scale = _along(op.constants["scale"], x.ndim, axis)
    zero = _along(op.constants.get("zero_point", np.zeros(1)), x.ndim, axis)
    return ((x.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)).astype(np.float32)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    below = x - x.max(axis=axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


def _argmax(op: HostOp, x: np.ndarray) -> np.ndarray:
    axis = int(op.attributes.get("axis", 0)) % x.ndim
    if op.attributes.get("select_last_index", 0):
        found = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis, keepdims=True)
    else:
        found = np.argmax(x, axis=axis, keepdims=True)
    return found.astype(np.int64) if op.attributes.get("keepdims", 1) else np.squeeze(found, axis).astype(np.int64)


def _normalise(op: HostOp, x: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    gain, bias, mean, variance = (
        np.asarray(op.constants[name], np.float32).reshape([-1 if d == 1 else 1 for d in range(x.ndim)])
        for name in ("scale", "B", "input_mean", "input_var")
    )
    gain = gain / np.sqrt(variance + np.float32(op.attributes.get("epsilon", 1e-5)))
    bias = bias - mean * gain
    return (x - bias) / np.where(gain == 0, 1, gain) if inverse else x * gain + bias


def _function(op: HostOp, x: np.ndarray) -> np.ndarray:
    name = op.attributes.get("name")
    if name not in FUNCTIONS:
        raise ModelError(f"host function {name!r} is not known")
    with np.errstate(all="ignore"):
        return FUNCTIONS[name].fast(x.astype(np.float64), *op.attributes.get("parameters", ())).astype(x.dtype)


def apply_hosts(ops: Sequence[HostOp], x: np.ndarray) -> np.ndarray:
    """Host operations one after the other. ``Fork`` keeps the array aside, ``Swap`` exchanges it for the one kept last, and ``Join`` is the
    binary operator of the one kept last and the present one: what lies between is computed twice from the forked array. Infinities and NaN are those of NumPy."""
    kept: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        for op in ops:
            match op.kind:
                case "Fork":
                    kept.append(x)
                case "Swap" | "Join" if not kept:
                    raise ModelError(f"host operation {op.kind!r} stands without a Fork before it")
                case "Swap":
                    x, kept[-1] = kept[-1], x
                case "Join":
                    if op.attributes.get("operator") not in _BINARY:
                        raise ModelError(f"host operator {op.attributes.get('operator')!r} is not known")
                    x = _BINARY[op.attributes["operator"]](kept.pop(), x)
                case _:
                    x = apply_host(op, x)
    return x


def apply_host(op: HostOp, x: np.ndarray) -> np.ndarray:
    """One host operation on an array whose first axis is the batch. Raises :class:`ModelError` for an unknown kind."""
    if op.kind in _BINARY:
        left = np.asarray(op.constants["A"], x.dtype) if "A" in op.constants else x
        right = x if "A" in op.constants else np.asarray(op.constants["B"], x.dtype)
        return _BINARY[op.kind](left, right)
    match op.kind:
        case "Neg":
            return -x
        case "Relu":
            return np.maximum(x, x.dtype.type(0))
        case "LeakyRelu":
            return np.where(x < 0, x * x.dtype.type(op.attributes.get("alpha", 0.01)), x)
        case "PRelu":
            return np.where(x < 0, x * np.asarray(op.constants["slope"], x.dtype), x)
        case "Clip":
            for name, bound in (("min", np.maximum), ("max", np.minimum)):
                if name in op.constants:
                    x = bound(x, np.asarray(op.constants[name], x.dtype))
            return x
        case "BatchNormalization":
            return _normalise(op, x)
        case "Softmax":
            return _softmax(x, int(op.attributes.get("axis", -1)))
        case "LogSoftmax":
            return _log_softmax(x, int(op.attributes.get("axis", -1)))
        case "Sigmoid":
            small = np.exp(-np.abs(x))
            return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
        case "Function":
            return _function(op, x)
        case "ArgMax":
            return _argmax(op, x)
        case "Reshape":
            return x.reshape(len(x), *op.attributes["shape"])
        case "Transpose":
            return x.transpose(op.attributes["perm"])
        case "Gather":
            index = np.asarray(op.constants["index"])
            return x.reshape(len(x), -1)[:, index.ravel()].reshape(len(x), *index.shape)
        case "Pad":
            value = np.asarray(op.constants["value"], x.dtype)
            return np.pad(x, ((0, 0), *op.attributes["pads"]), constant_values=value)
        case "Quantize":
            return _quantize(op, x)
        case "Dequantize":
            return _dequantize(op, x)
        case _:
            raise ModelError(f"host operation {op.kind!r} is not known")


def _sizes(spec: InputSpec | OutputSpec) -> tuple[int, ...] | None:
    """Declared shape without the batch axis, ``None`` when an axis other than the batch is not a number."""
    sizes = tuple(size for size in spec.shape[1:] if isinstance(size, int))
    return sizes if len(sizes) == len(spec.shape) - 1 else None


def _validate(spec: InputSpec, value: object) -> np.ndarray:
    array = np.asarray(value)
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "fiub" or (wanted.kind in "iu" and array.dtype.kind == "f"):
        raise UserError(f"input {spec.name!r} must be {spec.dtype}, not {array.dtype}")
    if array.ndim != len(spec.shape):
        raise UserError(f"input {spec.name!r} must have {len(spec.shape)} axes (the first is the batch), not shape {array.shape}")
    for axis, (got, expected) in enumerate(zip(array.shape[1:], spec.shape[1:], strict=True), start=1):
        if isinstance(expected, int) and got != expected:
            shape = ", ".join(str(size) for size in ("N", *spec.shape[1:]))
            raise UserError(f"input {spec.name!r} has size {got} at axis {axis}, expected {expected}; its shape is ({shape})")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise UserError(f"input {spec.name!r} must be finite in float32, but its value at {index} is {array[index]}")
    return array


def quantise_inputs(program: Program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Input codes, int8 (N, C, H, W) by tensor name, of the model's own inputs; any batch size, whatever the model declares. Inputs without
    steps on the host are codes as they are, int32 where their tensor has more than 8 bits.

    Raises :class:`UserError` for missing or unknown names, wrong shapes or types, values that are not finite, unlike batch sizes, and codes out of range.
    """
    names = list(dict.fromkeys(spec.name for spec in program.inputs))
    if sorted(feeds) != sorted(names):
        raise UserError(f"inputs must be {', '.join(names)}; given are {', '.join(sorted(feeds)) or 'none'}")
    arrays = {spec.name: _validate(spec, feeds[spec.name]) for spec in program.inputs}
    if len({len(array) for array in arrays.values()}) > 1:
        raise UserError(f"inputs must have one batch size, not {', '.join(f'{name} {len(a)}' for name, a in arrays.items())}")
    codes = {}
    for spec in program.inputs:
        x = arrays[spec.name]
        with np.errstate(over="ignore"):
            x = apply_hosts(spec.prologue, x)
        flat = x.reshape(len(x), int(np.prod(x.shape[1:])))
        if spec.index is not None:
            flat = flat[:, np.asarray(spec.index).ravel()]
        tensor = program.tensors[spec.tensor]
        if not spec.prologue:
            if flat.size and (flat.min() < tensor.low or flat.max() > tensor.high):
                raise UserError(f"input {spec.name!r} must lie in {tensor.low}..{tensor.high}, not {flat.min():.0f}..{flat.max():.0f}")
            flat = flat.astype(np.int8 if tensor.bits <= 8 else np.int32)
        codes[spec.tensor] = flat.reshape(len(x), *tensor.shape)
    return codes


def block_values(codes: np.ndarray, constant: float, scales: np.ndarray | None) -> np.ndarray:
    """Reals, float32 (N, ...), of codes (N, C, H, W) and a scale tensor (N, 2, H, W): computed in float64 and rounded once."""
    values = codes.astype(np.float64) * constant
    if scales is not None:
        values = values * np.ldexp(scales[:, :1].astype(np.float64), scales[:, 1:])
    return values.astype(np.float32)


def dequantise_outputs(program: Program, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs by name, in its own shapes (first axis the batch) and types, from integer tensors (N, C, H, W).

    With ``index`` the array that the epilogue sees has the shape of ``index`` behind the batch axis, without it (N, C, H, W).
    """
    outputs = {}
    for spec in program.outputs:
        x = tensors[spec.tensor]
        if spec.scale_tensor:
            x = block_values(x, float(program.tensors[spec.tensor].scale[0]), tensors[spec.scale_tensor])
        if spec.index is not None:
            index = np.asarray(spec.index)
            x = x.reshape(len(x), program.tensors[spec.tensor].elements)[:, index.ravel()].reshape(len(x), *index.shape)
        x = apply_hosts(spec.epilogue, x)
        sizes = _sizes(spec)
        outputs[spec.name] = (x if sizes is None else x.reshape(len(x), *sizes)).astype(spec.dtype)
    return outputs


def invert_host(op: HostOp, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An operand of ``shape`` (without batch) that ``op`` maps to ``x``, where there is one. Raises :class:`ModelError` where there cannot be."""
    constant = np.asarray(op.constants["A"] if "A" in op.constants else op.constants.get("B", 0), np.float32)
    left = "A" in op.constants
    match op.kind:
        case "Add":
            return x - constant
        case "Sub":
            return constant - x if left else x + constant
        case "Mul":
            return x / np.where(constant == 0, 1, constant)
        case "Div":
            return constant / x if left else x * constant
        case "Neg":
            return -x
        case "Relu" | "Clip":
            return x
        case "Function":
            points = np.linspace(-20, 20, 1 << 14, dtype=np.float32)
            values = _function(op, points)
            points, values = points[np.isfinite(values)], values[np.isfinite(values)]
            order = np.argsort(values, kind="stable")
            nearest = np.minimum(np.searchsorted(values[order], x), len(order) - 1)
            return points[order][nearest]
        case "LeakyRelu":
            alpha = np.float32(op.attributes.get("alpha", 0.01))
            return np.where(x < 0, x / alpha, x) if alpha > 0 else x
        case "PRelu":
            slope = np.asarray(op.constants["slope"], np.float32)
            return np.where((x < 0) & (slope > 0), x / np.where(slope > 0, slope, 1), x)
        case "BatchNormalization":
            return _normalise(op, x, inverse=True)
        case "Reshape":
            return x.reshape(len(x), *shape)
        case "Transpose":
            return x.transpose(np.argsort(op.attributes["perm"]))
        case "Gather":
            whole = np.zeros((len(x), int(np.prod(shape))), x.dtype)
            whole[:, np.asarray(op.constants["index"]).ravel()] = x.reshape(len(x), -1)
            return whole.reshape(len(x), *shape)
        case "Pad":
            inner = tuple(slice(before, before + size) for (before, _), size in zip(op.attributes["pads"], shape, strict=True))
            return x[(slice(None), *inner)]
        case "Quantize" if "thresholds" in op.constants:
            rows = np.asarray(op.constants["thresholds"], np.float32)
            # Code 0 is anything below the first threshold, another code the threshold that reaches it.
            reals = np.concatenate([np.nextafter(rows[:, :1], np.float32(-np.inf)), rows], axis=1)
            row = _along(np.arange(len(rows)), x.ndim, int(op.attributes.get("axis", 1)))
            return reals[row, x.astype(np.int64) - int(op.attributes.get("offset", 0)) - int(op.attributes["low"])]
        case "Quantize":
            axis = int(op.attributes.get("axis", 1))
            scale = _along(op.constants["scale"], x.ndim, axis).astype(np.float64)
            zero = _along(op.constants.get("zero_point", np.zeros(1)), x.ndim, axis).astype(np.float64)
            return ((x.astype(np.float64) - int(op.attributes.get("offset", 0)) - zero) * scale).astype(np.float32)
        case _:
            raise ModelError(f"host operation {op.kind!r} cannot be inverted to draw random inputs")


def _sections(ops: Sequence[HostOp]) -> list[tuple[HostOp, ...]]:
    """The operations one by one, but everything from a Fork to its Join together."""
    found: list[tuple[HostOp, ...]] = []
    depth = 0
    for op in ops:
        if depth:
            found[-1] = (*found[-1], op)
        else:
            found.append((op,))
        depth += (op.kind == "Fork") - (op.kind == "Join")
    return found


def _unquantise(spec: InputSpec, codes: np.ndarray) -> np.ndarray:
    """Model input whose codes are ``codes``, (N, C, H, W)."""
    sizes = _sizes(spec)
    if sizes is None:
        raise ModelError(f"input {spec.name!r} has a shape that is not fixed: {spec.shape}")
    shapes, probe, sections = [sizes], np.zeros((1, *sizes), np.float32), _sections(spec.prologue)
    for section in sections:
        probe = apply_hosts(section, probe)
        shapes.append(probe.shape[1:])
    flat = codes.reshape(len(codes), -1)
    if spec.index is not None:
        # Elements that no code is taken from may be anything: the code of the first element.
        whole = np.repeat(flat[:, :1], int(np.prod(shapes[-1])), axis=1)
        whole[:, np.asarray(spec.index).ravel()] = flat
        flat = whole
    x = flat.reshape(len(codes), *shapes[-1])
    for section, shape in zip(reversed(sections), reversed(shapes[:-1]), strict=True):
        # What x * f(x) is made of cannot be told from it: x itself is near enough to reach many codes.
        x = invert_host(section[0], x, shape) if len(section) == 1 else x.reshape(len(x), *shape)
    return np.rint(x).astype(spec.dtype) if np.dtype(spec.dtype).kind in "iu" else x.astype(spec.dtype)


def random_feeds(program: Program, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Random model inputs on the model's own input grid, for comparison with an outside witness.

    Codes are drawn uniformly from ``low..high`` of each input tensor and turned to floats through the inverse of the prologue. Codes that
    the prologue cannot reach (behind a Relu, say) are replaced by the ones it gives, and so are codes that float32 misses by its rounding
    where a quantiser cuts off (FLOOR).
    """
    drawn = {}
    # An input that the model quantises twice is drawn on the first of its grids.
    specs = list({spec.name: spec for spec in reversed(program.inputs)}.values())[::-1]
    for number, spec in enumerate(specs):
        tensor = program.tensors[spec.tensor]
        # A generator an input: sample n is then the same however many samples are drawn, and can be made again alone.
        generator = np.random.default_rng([seed, number])
        kind = np.int8 if tensor.bits <= 8 else np.int32
        drawn[spec.tensor] = generator.integers(tensor.low, tensor.high + 1, (samples, *tensor.shape), dtype=np.int64).astype(kind)

    def feeds_for(codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {spec.name: _unquantise(spec, codes[spec.tensor]) for spec in specs}

    feeds = feeds_for(drawn)
    reached = quantise_inputs(program, feeds)
    if any(not np.array_equal(reached[name], drawn[name]) for name in drawn):
        feeds = feeds_for(reached)
    return feeds
