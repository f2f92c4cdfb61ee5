"""NumPy meaning of every integer operation, on batches.

Sums go through float matrix products where that is exact: every product and every partial sum is an integer whose
magnitude is at most ``sum |w| * max |code|``; float32 holds all integers up to 2**24 and float64 up to 2**53, so with that
bound neither the order of summation nor fused multiply-adds can change a bit.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tritloom.compiler.golden.block import run_block
from tritloom.compiler.golden.grid import run_grid
from tritloom.compiler.golden.requantise import requantise, requantise_sum
from tritloom.compiler.golden.vector import run_vector
from tritloom.compiler.ir.block import BlockOperation
from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Rescale, SumPool, Tensor, Window
from tritloom.compiler.ir.vector import VectorOperation
from tritloom.errors import ModelError, UserError

__all__ = ["execute", "run"]

_CHUNK_ELEMENTS = 1 << 23
"""Elements of the largest temporary array of one chunk of samples (32 MiB in float32)."""


def _dtype(tensor: Tensor) -> type[np.signedinteger]:
    return np.int8 if tensor.bits <= 8 else np.int32


def _padded(codes: np.ndarray, pads: tuple[int, int, int, int], value: int) -> np.ndarray:
    top, left, bottom, right = pads
    if not any(pads):
        return codes
    return np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _columns(padded: np.ndarray, window: Window) -> np.ndarray:
    """View (N, out height, out width, C, kernel height, kernel width) of the padded codes below every output pixel."""
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.strides, window.dilations
    extent = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    views = sliding_window_view(padded, extent, axis=(2, 3))
    return views[:, :, ::sh, ::sw, ::dh, ::dw].transpose(0, 2, 3, 1, 4, 5)


def _taps(codes: np.ndarray, window: Window, value: int) -> Iterable[np.ndarray]:
    """For each kernel position the view (N, C, out height, out width) that the output pixels see there."""
    columns = _columns(_padded(codes, window.pads, value), window)
    for ky, kx in np.ndindex(*window.kernel):
        yield columns[..., ky, kx].transpose(0, 3, 1, 2)


def _exact_float(operation: Convolution, tensor: Tensor) -> type[np.floating]:
    """Narrowest float type in which every partial sum of this layer is exact. Raises :class:`ModelError` beyond 2**53."""
    largest = max(abs(tensor.low), abs(tensor.high), abs(operation.pad_code))
    weights = np.abs(operation.weights.astype(np.int64)).reshape(len(operation.weights), -1)
    bound = int(weights.sum(axis=1).max(initial=0)) * largest
    if bound < 1 << 24:
        return np.float32
    if bound < 1 << 53:
        return np.float64
    raise ModelError(f"layer {operation.name!r} sums up to {bound}, more than can be computed exactly")


def _check_bounds(operation: Convolution | SumPool, acc: np.ndarray) -> None:
    if acc.size and (acc.min() < operation.acc_low or acc.max() > operation.acc_high):
        raise ModelError(
            f"layer {operation.name!r} reached the accumulator {int(acc.min())}..{int(acc.max())} outside its bounds "
            f"{operation.acc_low}..{operation.acc_high}; the artefact is inconsistent"
        )


def _convolution(operation: Convolution, codes: np.ndarray, tensor: Tensor) -> np.ndarray:
    samples = len(codes)
    outputs, per_group = operation.weights.shape[:2]
    height, width = operation.window.output_size(codes.shape[2], codes.shape[3])
    kind = _exact_float(operation, tensor)
    # Channels last: the copy into columns then moves contiguous stretches.
    pixels = _padded(codes, operation.window.pads, operation.pad_code).transpose(0, 2, 3, 1).astype(kind, order="C")
    columns = _columns(pixels.transpose(0, 3, 1, 2), operation.window).transpose(0, 1, 2, 4, 5, 3)
    weights = operation.weights.transpose(0, 2, 3, 1).astype(kind).reshape(operation.groups, outputs // operation.groups, -1)
    acc = np.empty((samples * height * width, outputs), kind)
    share = outputs // operation.groups
    for group in range(operation.groups):
        part = columns[..., group * per_group : (group + 1) * per_group].reshape(len(acc), -1)
        acc[:, group * share : (group + 1) * share] = part @ weights[group].T
    _check_bounds(operation, acc)
    acc = acc.reshape(samples, height, width, outputs).transpose(0, 3, 1, 2)
    return acc.astype(np.int32) if operation.step is None else requantise(operation.step, acc)


def _max_pool(operation: MaxPool, codes: np.ndarray) -> np.ndarray:
    result: np.ndarray | None = None
    for view in _taps(codes, operation.window, -128):
        result = view.copy() if result is None else np.maximum(result, view, out=result)
    assert result is not None
    return result


def _sum_pool(operation: SumPool, codes: np.ndarray) -> np.ndarray:
    acc: np.ndarray | int = 0
    for view in _taps(codes, operation.window, operation.pad_code):
        acc = acc + view.astype(np.int64)
    assert isinstance(acc, np.ndarray)
    _check_bounds(operation, acc)
    result = np.empty(acc.shape, np.int8)
    for (top, bottom, left, right), step in operation.regions:
        result[:, :, top:bottom, left:right] = requantise(step, acc[:, :, top:bottom, left:right])
    return result


Record = Callable[[str, np.ndarray], None]
"""Called with name and value of each tensor of a loop as it is written, in every trip."""


def execute(operation: Operation, program: Program, tensors: dict[str, np.ndarray], record: Record | None = None) -> None:
    """Put the tensors that ``operation`` writes beside those that it reads, (N, C, H, W). Raises :class:`ModelError`."""
    target = program.tensors[operation.output]
    operands = [tensors[name] for name in operation.inputs]
    samples = len(operands[0])
    match operation:
        case Convolution():
            result = _convolution(operation, operands[0], program.tensors[operation.input])
        case MaxPool():
            result = _max_pool(operation, operands[0])
        case SumPool():
            result = _sum_pool(operation, operands[0])
        case Add():
            result = requantise_sum(operation.step, *operands)
        case VectorOperation():
            result = run_vector(operation, operands)
        case BlockOperation():
            tensors.update(run_block(operation, tensors, target.bits))
            return
        case GridOperation():
            result = run_grid(operation, operands)
            if result.size and (result.min() < target.low or result.max() > target.high):
                raise ModelError(
                    f"layer {operation.name!r} leaves the range {target.low}..{target.high} of its tensor; the artefact is inconsistent"
                )
        case Loop():
            _loop(operation, program, tensors, record)
            return
        case Copy():
            result = operands[0].reshape(samples, -1)[:, operation.index.ravel()].reshape(samples, *target.shape)
        case Rescale():
            result = requantise(operation.step, operands[0])
            if result.shape[1] != target.shape[0]:
                whole = tensors.setdefault(operation.output, np.zeros((samples, *target.shape), np.int8))
                whole[:, operation.channel_offset : operation.channel_offset + result.shape[1]] = result
                return
        case _:
            raise ModelError(f"operation {operation.name!r} of kind {type(operation).__name__} is not known")
    if result.shape[1:] != target.shape:
        raise ModelError(f"operation {operation.name!r} gives shape {result.shape[1:]}, but tensor {target.name!r} has {target.shape}")
    tensors[operation.output] = result.astype(_dtype(target), copy=False)


def _loop(operation: Loop, program: Program, tensors: dict[str, np.ndarray], record: Record | None) -> None:
    """Each trip is computed for the samples that have not had their last one; the others keep what their last trip wrote."""
    outer = {name: tensors[name] for name in operation.inputs}
    samples = len(outer[operation.inputs[0]])
    kinds = {entry.before: _dtype(program.tensors[entry.before]) for entry in operation.carried}
    carried: dict[str, np.ndarray] = {}
    for entry in operation.carried:
        first = outer[entry.initial] if entry.values is None else np.broadcast_to(entry.values, (samples, *entry.values.shape))
        carried[entry.before] = first.astype(kinds[entry.before])
    active = np.arange(samples)
    trips = np.zeros((samples, 1, 1, 1), np.int32)
    written = [name for name in operation.outputs if name != operation.output]
    for _ in range(operation.limit):
        inner = {**outer, **carried}
        if record is not None:
            for name in carried:
                record(name, inner[name])
        for part in operation.body:
            execute(part, program, inner, record)
            # A loop has told of its tensors itself.
            if record is not None and not isinstance(part, Loop):
                for name in part.outputs:
                    record(name, inner[name])
        for name in written:
            if len(active) == samples:
                tensors[name] = inner[name]
            else:
                # What is carried unchanged may be one array under two names.
                tensors[name] = tensors[name].copy()
                tensors[name][active] = inner[name]
        trips[active] += 1
        if record is not None:
            record(operation.output, trips[active])
        carried = {entry.before: inner[entry.after].astype(kinds[entry.before], copy=False) for entry in operation.carried}
        if operation.condition:
            more = inner[operation.condition].reshape(-1) != 0
            if not more.any():
                break
            active = active[more]
            outer = {name: array[more] for name, array in outer.items()}
            carried = {name: array[more] for name, array in carried.items()}
    tensors[operation.output] = trips


def _chunk_size(program: Program) -> int:
    """Samples that are computed together, so that the largest temporary array stays near ``_CHUNK_ELEMENTS``."""
    largest = max((tensor.elements for tensor in program.tensors.values()), default=1)
    for operation in program.walk():
        if isinstance(operation, Loop):
            # What a body writes is kept until the loop ends.
            largest = max(largest, sum(program.tensors[name].elements for name in operation.outputs))
        if isinstance(operation, Convolution):
            shape = program.tensors[operation.output].shape
            taps = operation.window.kernel[0] * operation.window.kernel[1]
            largest = max(largest, program.tensors[operation.input].shape[0] * taps * shape[1] * shape[2])
    return max(1, _CHUNK_ELEMENTS // largest)


def _check_codes(program: Program, codes: dict[str, np.ndarray]) -> int:
    """Number of samples. Raises :class:`UserError` for missing inputs, wrong shapes, types or codes out of range."""
    samples: int | None = None
    for spec in program.inputs:
        tensor = program.tensors[spec.tensor]
        if tensor.name not in codes:
            raise UserError(f"codes of tensor {tensor.name!r} are missing; given are {sorted(codes)}")
        array = np.asarray(codes[tensor.name])
        if array.dtype.kind not in "iu" or array.shape[1:] != tensor.shape:
            raise UserError(f"codes of {tensor.name!r} must be integers of shape (N, *{tensor.shape}), not {array.dtype} {array.shape}")
        if samples is not None and len(array) != samples:
            raise UserError(f"all inputs must have one batch size, but {tensor.name!r} has {len(array)} samples instead of {samples}")
        samples = len(array)
        if array.size and (int(array.min()) < tensor.low or int(array.max()) > tensor.high):
            raise UserError(f"codes of tensor {tensor.name!r} must lie in {tensor.low}..{tensor.high}, not {array.min()}..{array.max()}")
    if samples is None:
        raise ModelError("a program must have an input")
    return samples


def trace(program: Program, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every integer tensor of one sample (1, C, H, W): of what loops write, one array below the other for every trip, (trips, C, H, W). Errors as :func:`run`."""
    if _check_codes(program, codes) != 1:
        raise UserError("one sample at a time is traced")
    found: dict[str, list[np.ndarray]] = {}
    tensors = {spec.tensor: np.asarray(codes[spec.tensor]).astype(_dtype(program.tensors[spec.tensor])) for spec in program.inputs}

    def record(name: str, values: np.ndarray) -> None:
        found.setdefault(name, []).append(values.copy())

    for operation in program.operations:
        execute(operation, program, tensors, record)
    return {**tensors, **{name: np.concatenate(rows) for name, rows in found.items()}}


def run(program: Program, codes: dict[str, np.ndarray], *, keep: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Every integer tensor of ``program`` for a batch of input codes.

    ``codes`` maps the inputs' tensor names to integer arrays (N, C, H, W), N from 0 up. The result maps tensor names (all, or those in
    ``keep``, with the scales of outputs among these) to arrays of N samples: int8 for codes, int32 for what is wider. Samples are computed in chunks, so memory beyond
    the result stays bounded; ``keep`` bounds the result. Raises :class:`UserError` for codes that do not fit the inputs.
    """
    samples = _check_codes(program, codes)
    written = [spec.tensor for spec in program.inputs] + [name for operation in program.operations for name in operation.outputs]
    wanted = list(dict.fromkeys(written if keep is None else keep))
    wanted += [spec.scale_tensor for spec in program.outputs if spec.tensor in wanted and spec.scale_tensor not in ("", *wanted)]
    unknown = [name for name in wanted if name not in written]
    if unknown:
        raise UserError(f"no operation writes a tensor {unknown[0]!r}; tensors are {', '.join(dict.fromkeys(written))}")
    last_use = {name: index for index, operation in enumerate(program.operations) for name in operation.inputs}
    results = {name: np.empty((samples, *program.tensors[name].shape), _dtype(program.tensors[name])) for name in wanted}
    size = _chunk_size(program)
    for begin in range(0, samples, size):
        stop = min(begin + size, samples)
        tensors = {
            spec.tensor: np.asarray(codes[spec.tensor])[begin:stop].astype(_dtype(program.tensors[spec.tensor])) for spec in program.inputs
        }
        for index, operation in enumerate(program.operations):
            execute(operation, program, tensors)
            for name in operation.inputs:
                if last_use[name] == index and name in tensors:
                    array = tensors.pop(name)
                    if name in results:
                        results[name][begin:stop] = array
        for name, array in tensors.items():
            if name in results:
                results[name][begin:stop] = array
    return results
