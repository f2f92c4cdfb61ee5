"""Whether the parts of a program fit together, so that golden, scheduler and host need not ask again."""

from itertools import combinations

import numpy as np

from tritloom.compiler.image.block_codec import check_block
from tritloom.compiler.image.loop_codec import check_grid, check_loop
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.block import BlockOperation
from tritloom.compiler.ir.grid import GridOperation
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Add, Convolution, Copy, MaxPool, Operation, Program, Rescale, StepFunction, SumPool, Tensor, Window
from tritloom.compiler.ir.vector import MatrixProduct, Normalise, Product, Softmax, VectorOperation

__all__ = ["validate_program"]

_LONGEST_ROW = 1 << 16
_SCALED_BITS = 62

MAX_ELEMENTS = 1 << 28
"""Most elements of one tensor: no core has a larger activation memory."""
MAX_REGIONS = 1 << 10


def validate_program(program: Program) -> None:
    """Raise :class:`Malformed` for a program that no front end makes: unknown tensors, shapes that disagree, weights beyond their planes."""
    for tensor in program.tensors.values():
        channels = tensor.shape[0]
        _need(tensor.elements <= MAX_ELEMENTS, f"tensor {tensor.name!r} has more than {MAX_ELEMENTS} elements")
        _need(tensor.bits <= 8 or tensor.bits in (16, 32), f"tensor {tensor.name!r} has {tensor.bits} bits")
        _need(tensor.low <= tensor.high, f"tensor {tensor.name!r} has an empty range")
        limit = 1 << (max(tensor.bits, 8) - 1)
        _need(-limit <= tensor.low and tensor.high < limit, f"tensor {tensor.name!r} has codes beyond {max(tensor.bits, 8)} bits")
        _need(
            len(tensor.scale) in (1, channels) and len(tensor.zero_point) in (1, channels),
            f"tensor {tensor.name!r} has {len(tensor.scale)} scales",
        )
    known = set(_states(program))
    for spec in program.inputs:
        _need(spec.tensor in program.tensors and spec.tensor not in known, f"input {spec.name!r} has no tensor of its own")
        known.add(spec.tensor)
        integers = not spec.prologue and spec.dtype.lstrip("u") in ("bool", "int8", "int16", "int32", "int64")
        _need(integers or (bool(spec.prologue) and spec.prologue[-1].kind == "Quantize"), f"input {spec.name!r} is not quantised")
        # Into the array that the host quantises, which check_host_steps looks at: it may hold more elements than are used.
        _check_index(spec.index, program.tensors[spec.tensor].elements, 1 << 62, f"input {spec.name!r}")
    _check_operations(program.operations, program, known, 1)
    _need(bool(program.inputs and program.outputs), "there is no input or no output")
    for spec in program.outputs:
        _need(spec.tensor in known, f"output {spec.name!r} has no tensor")
        _check_index(spec.index, None, program.tensors[spec.tensor].elements, f"output {spec.name!r}")
        scales = (2, *program.tensors[spec.tensor].shape[1:])
        scaled = not spec.scale_tensor or (spec.scale_tensor in known and program.tensors[spec.scale_tensor].shape == scales)
        _need(scaled, f"output {spec.name!r} has no scale")
    for state in program.states:
        before, after = program.tensors[state.tensor], program.tensors.get(state.following)
        _need(state.following in known and after is not None, f"state {state.tensor!r} has no value for the next run")
        assert after is not None
        fits = before.shape == after.shape and before.low <= after.low and after.high <= before.high and before.low <= 0 <= before.high
        _need(fits, f"state {state.tensor!r} does not hold what follows it")
    # Inputs may share a name: a model may quantise one graph input on several grids.
    _need(len({spec.name for spec in program.outputs}) == len(program.outputs), "two outputs have one name")


def _check_operations(operations: tuple[Operation, ...], program: Program, known: set[str], trips: int) -> None:
    """Check operations in order and put the tensors that they write into ``known``; ``trips`` are those of the loops around them."""
    written: dict[str, list[tuple[int, int]]] = {}
    for operation in operations:
        where = f"layer {operation.name!r}"
        _need(operation.output in program.tensors, f"{where} writes a tensor that does not exist")
        _need(operation.output not in known, f"{where} writes a tensor that exists already")
        output = program.tensors[operation.output]
        if isinstance(operation, Loop):
            check_loop(operation, program, known, where, trips)
            known.update(carried.before for carried in operation.carried)
            _check_operations(operation.body, program, known, trips * operation.limit)
            _need(all(carried.after in known for carried in operation.carried), f"{where} carries a tensor that is never made")
            ends = program.tensors.get(operation.condition)
            made = not operation.condition or (operation.condition in known and ends is not None and ends.shape == (1, 1, 1))
            _need(made and operation.output not in known, f"{where} ends by a tensor that is no single number")
            known.add(operation.output)
            continue
        _need(all(name in known for name in operation.inputs), f"{where} reads a tensor before it is made")
        if isinstance(operation, BlockOperation | GridOperation):
            _need(all(getattr(operation, operand, "there") for operand in ("input", "left")), f"{where} reads nothing")
            if isinstance(operation, BlockOperation):
                check_block(operation, program, output, where)
            else:
                check_grid(operation, program, output, where)
            for name in operation.outputs:
                _need(name not in known, f"{where} writes a tensor that exists already")
                known.add(name)
            continue
        _need(all(program.tensors[name].bits <= 8 for name in operation.inputs), f"{where} reads raw accumulators")
        first, last = _check_operation(operation, program, output, where)
        parts = written.setdefault(operation.output, [])
        _need(all(end <= first or last <= begin for begin, end in parts), f"{where} writes channels that exist already")
        parts.append((first, last))
        if sum(end - begin for begin, end in parts) == output.shape[0]:
            known.add(operation.output)


def _states(program: Program) -> list[str]:
    """Tensors that a run finds."""
    names = [state.tensor for state in program.states]
    _need(len(set(names)) == len(names) and set(names) <= set(program.tensors), "two states have one tensor, or one has none")
    return names


def _need(ok: bool, what: str) -> None:
    if not ok:
        raise Malformed(what)


def _check_index(index: np.ndarray | None, length: int | None, elements: int, where: str) -> None:
    if index is not None:
        _need(length is None or index.size == length, f"{where} has an index of {index.size} elements")
        _need(not index.size or (index.min() >= 0 and index.max() < elements), f"{where} has an index beyond its tensor")


def _check_step(step: StepFunction, channels: int, output: Tensor, where: str) -> None:
    _need(len(step.records) == channels, f"{where} has step functions for {len(step.records)} of {channels} channels")
    _need(output.bits <= 8, f"{where} writes codes into a raw tensor")


def _check_window(window: Window, source: Tensor, output: Tensor, where: str) -> None:
    _need(window.output_size(*source.shape[1:]) == output.shape[1:], f"{where} has a window that does not give its output's size")


def _check_operation(operation: Operation, program: Program, output: Tensor, where: str) -> tuple[int, int]:
    """Check one operation; returns the first and end channel that it writes."""
    channels = output.shape[0]
    source = program.tensors[operation.inputs[0]]
    if isinstance(operation, Convolution):
        weights = operation.weights
        _check_window(operation.window, source, output, where)
        _need(
            weights.shape[2:] == operation.window.kernel and weights.shape[0] == channels, f"{where} has weights of shape {weights.shape}"
        )
        _need(
            channels % operation.groups == 0 and weights.shape[1] * operation.groups == source.shape[0],
            f"{where} has {operation.groups} groups",
        )
        _need(
            2 * int(np.abs(weights.astype(np.int32)).max(initial=0)) < 3**operation.planes,
            f"{where} has weights beyond {operation.planes} digit planes",
        )
        _need(operation.acc_low <= operation.acc_high, f"{where} has an empty accumulator range")
        if operation.step is None:
            _need(output.bits == 32, f"{where} writes accumulators into a tensor of codes")
        else:
            _check_step(operation.step, channels, output, where)
    elif isinstance(operation, SumPool):
        _check_window(operation.window, source, output, where)
        _need(source.shape[0] == channels and operation.acc_low <= operation.acc_high, f"{where} does not keep its channels")
        _need(len(operation.regions) <= MAX_REGIONS, f"{where} has more than {MAX_REGIONS} regions")
        for (y0, y1, x0, x1), step in operation.regions:
            _need(y0 < y1 <= output.shape[1] and x0 < x1 <= output.shape[2], f"{where} has a region outside its output")
            _check_step(step, channels, output, where)
        edges = [region for region, _ in operation.regions]
        area = sum((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in edges)
        apart = all(a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2] for a, b in combinations(edges, 2))
        _need(apart and area == output.shape[1] * output.shape[2], f"{where} has regions that do not tile its output")
    elif isinstance(operation, MaxPool):
        _check_window(operation.window, source, output, where)
        _need(source.shape[0] == channels and output.bits <= 8, f"{where} does not keep its channels")
    elif isinstance(operation, Rescale):
        first = operation.channel_offset
        _need(source.shape[1:] == output.shape[1:] and first + source.shape[0] <= channels, f"{where} does not fit its output")
        _check_step(operation.step, source.shape[0], output, where)
        return first, first + source.shape[0]
    elif isinstance(operation, Add):
        _need(source.shape == output.shape == program.tensors[operation.right].shape, f"{where} adds tensors of unlike shapes")
        _check_step(operation.step, channels, output, where)
        _need(operation.step.pieces == 2, f"{where} has {operation.step.pieces} records for two operands")
    elif isinstance(operation, VectorOperation):
        _need(operation.acc_low <= operation.acc_high, f"{where} has an empty accumulator range")
        if operation.step is None:
            _need(output.bits == 32, f"{where} writes accumulators into a tensor of codes")
        else:
            _check_step(operation.step, channels, output, where)
        _check_vector(operation, [program.tensors[name] for name in operation.inputs], output, where)
    elif isinstance(operation, Copy):
        _need(output.bits <= 8, f"{where} copies into a raw tensor")
        _check_index(operation.index, output.elements, source.elements, where)
    else:
        raise Malformed(f"{where} is no known operation")
    return 0, channels


def _check_vector(operation: VectorOperation, operands: list[Tensor], output: Tensor, where: str) -> None:
    """Shapes and widths of an operation that only golden can do."""
    first, second = operands[0], operands[-1]
    match operation:
        case Product():
            _need(first.shape == output.shape == second.shape, f"{where} multiplies tensors of unlike shapes")
        case MatrixProduct():
            size, heads, rows = first.shape
            columns = second.shape[2]
            _need(
                second.shape[:2] == (size, heads) and output.shape == (columns, heads, rows), f"{where} multiplies matrices that do not fit"
            )
        case Normalise(groups=groups, pixels=pixels):
            _need(first.shape == output.shape and first.shape[0] % groups == 0, f"{where} has {groups} groups")
            count = first.shape[0] // groups * (first.shape[1] * first.shape[2] if pixels else 1)
            _need(count <= _LONGEST_ROW, f"{where} normalises {count} elements together")
            largest = count * max(abs(first.low - operation.zero_point), abs(first.high - operation.zero_point))
            _need(
                ((largest**2) << operation.fraction) + operation.epsilon < 1 << _SCALED_BITS, f"{where} needs more than {_SCALED_BITS} bits"
            )
        case Softmax(powers=powers, mask=mask):
            _need(first.shape == output.shape and first.shape[0] <= _LONGEST_ROW, f"{where} has an output of another shape")
            _need(len(powers) == first.high - first.low + 1, f"{where} has {len(powers)} powers")
            _need(powers[0] > 0, f"{where} has no power of difference 0")
            whole = mask is None or (mask.shape == first.shape and bool(mask.any(axis=0).all()))
            _need(whole, f"{where} has a mask that does not fit, or that leaves out all of a pixel")
        case _:
            raise Malformed(f"{where} is no known operation")
