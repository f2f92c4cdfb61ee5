"""Sizes of a model's inputs, declared anew: fully convolutional networks at another resolution, free batches, symbolic axes.

Every other size in the file follows from those of the inputs. The stored ones are dropped and inferred again by ONNX, on a copy in which the
operators of QONNX are replaced by standard ones of the same shapes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.helper
import onnx.shape_inference

from tritloom.compiler.frontend.constants import constants_of, rebatch_reshapes
from tritloom.compiler.frontend.reader import CUSTOM_DOMAINS, parse_proto, read_proto
from tritloom.compiler.frontend.values import LARGEST_ACTIVATION
from tritloom.errors import ModelError, UserError

__all__ = ["Sizes", "with_sizes"]

Sizes = Mapping[str, Sequence[int | str]]
"""Input name to its axes, batch first; the name may be empty where the model has one input. A text keeps the batch free."""

_CHANNELS_LAST = "qonnx.custom_op.channels_last"
_LARGEST_BATCH = 1 << 16


def with_sizes(data: bytes, sizes: Sizes, name: str) -> bytes:
    """The model with inputs of ``sizes`` and all other shapes inferred from them; the same bytes for the same arguments.

    An input that is not named keeps its axes, except those that share a symbolic size with one that is. Raises :class:`UserError` for
    sizes that do not suit the inputs, and :class:`ModelError` for a model that cannot be read or holds a constant shape that they do not fit.
    """
    checked = read_proto(data, name)
    # The file as it is, not what reading makes of it: the outside witness runs it. Functions have to be expanded to be seen through.
    model = parse_proto(data, name)
    model = checked if model.functions else model
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in initializers}
    wanted = {_input_name(key, inputs, name): tuple(axes) for key, axes in sizes.items()}
    if len(wanted) < len(sizes):
        raise UserError("--shape names one input twice; give each input once")
    bound: dict[str, int | str] = {}
    batches: set[tuple[int, int | str]] = set()
    for key, axes in wanted.items():
        _check_axes(key, axes)
        declared = inputs[key].type.tensor_type.shape.dim
        if inputs[key].type.tensor_type.HasField("shape") and len(declared) != len(axes):
            shown = ", ".join(str(axis.dim_value or axis.dim_param or "?") for axis in declared)
            raise UserError(
                f"--shape gives input {key!r} {_count(len(axes))}, but it has {len(declared)}: ({shown}); give one number an axis"
            )
        if declared and declared[0].dim_value:
            batches.add((declared[0].dim_value, axes[0]))
        for axis, size in zip(declared, axes, strict=False):
            if axis.dim_param and bound.setdefault(axis.dim_param, size) != size:
                raise UserError(
                    f"--shape gives the symbolic size {axis.dim_param!r} as {bound[axis.dim_param]} and as {size}; it can have one value"
                )
    for key, value in inputs.items():
        _declare(value, wanted.get(key), bound)
    for old, new in batches:
        rebatch_reshapes(graph, old, new if isinstance(new, int) else 0)
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _infer(model, name)
    return model.SerializeToString(deterministic=True)


def _count(axes: int) -> str:
    return f"{axes} {'axis' if axes == 1 else 'axes'}"


def _input_name(key: str, inputs: Mapping[str, object], name: str) -> str:
    if key in inputs:
        return key
    if key:
        raise UserError(f"--shape names {key!r}, which is no input of {name}; its inputs are {', '.join(inputs) or 'none'}")
    if len(inputs) != 1:
        raise UserError(f"{name} has {len(inputs)} inputs ({', '.join(inputs)}); say which with --shape NAME=SIZES")
    return next(iter(inputs))


def _check_axes(key: str, axes: tuple[int | str, ...]) -> None:
    if not axes:
        raise UserError(f"--shape gives input {key!r} no axes; the first axis is the batch")
    for position, size in enumerate(axes):
        if isinstance(size, str) and (position or not size.isidentifier()):
            raise UserError(
                f"--shape of input {key!r} has the axis {size!r}; use whole numbers, and a name only for the first axis (the batch)"
            )
        if not isinstance(size, str) and size < 1:
            raise UserError(f"--shape of input {key!r} has an axis of size {size}; sizes must be 1 or more")
    if isinstance(axes[0], int) and axes[0] > _LARGEST_BATCH:
        raise UserError(f"--shape gives input {key!r} a batch of {axes[0]}; at most {_LARGEST_BATCH} is read, and 1 is enough")
    if math.prod(size for size in axes[1:] if isinstance(size, int)) > LARGEST_ACTIVATION:
        raise UserError(f"--shape gives input {key!r} more than {LARGEST_ACTIVATION} elements a sample; use smaller sizes")


def _declare(value: onnx.ValueInfoProto, axes: tuple[int | str, ...] | None, bound: Mapping[str, int | str]) -> None:
    shape = value.type.tensor_type.shape
    if axes is not None:
        del shape.dim[:]
        for size in axes:
            axis = shape.dim.add()
            if isinstance(size, int):
                axis.dim_value = size
            else:
                axis.dim_param = size
        return
    for axis in shape.dim:
        size = bound.get(axis.dim_param) if axis.dim_param else None
        if isinstance(size, int):
            axis.dim_value = size
        elif isinstance(size, str):
            axis.dim_param = size


def _infer(model: onnx.ModelProto, name: str) -> None:
    """Write the shapes that follow from the inputs' into the model."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_standard_shapes(model), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        # Only a convenience for executors: lowering computes every shape itself, and names the node where one does not fit.
        return
    known = {value.name: value for value in (*inferred.value_info, *inferred.output, *inferred.input)}
    _check_reshapes(model.graph, known, name)
    for value in model.graph.output:
        found = known.get(value.name)
        if found is not None and found.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(found.type.tensor_type.shape)
        else:
            value.type.tensor_type.shape.SetInParent()
    outputs = {value.name for value in model.graph.output}
    made = [output for node in model.graph.node for output in node.output if output in known and output not in outputs]
    model.graph.value_info.extend(known[output] for output in made)


def _check_reshapes(graph: onnx.GraphProto, known: Mapping[str, onnx.ValueInfoProto], name: str) -> None:
    """Refuse constant shapes that do not hold the elements that now arrive."""
    constants = constants_of(graph)
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain or len(node.input) < 2 or node.input[1] not in constants or node.input[0] not in known:
            continue
        old = [axis.dim_value for axis in known[node.input[0]].type.tensor_type.shape.dim]
        target = [int(size) for size in np.ravel(constants[node.input[1]])]
        if not old or 0 in old or not target or min(target) < -1:
            continue
        filled = [old[place] if size == 0 and place < len(old) else size for place, size in enumerate(target)]
        fixed, total = math.prod(size for size in filled if size != -1), math.prod(old)
        if fixed != total if -1 not in filled else fixed == 0 or total % fixed:
            raise ModelError(
                f"{name}: node {node.name or node.output[0]!r} (Reshape) has the sizes {target} written into it, which do not hold the tensor of shape {old} "
                "that --shape gives it; keep the sizes that the model was exported with, or export it with Flatten or a Reshape to (0, -1)"
            )


def _standard_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference: custom operators become standard ones that give the same shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for number, node in enumerate(nodes):
        copy.graph.node.extend(_channels_last(node, number) if node.domain == _CHANNELS_LAST else [_same_shape(node)])
    return copy


def _same_shape(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.domain not in CUSTOM_DOMAINS or not node.input:
        return node
    return onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]])


def _channels_last(node: onnx.NodeProto, number: int) -> list[onnx.NodeProto]:
    """A window operator between two transpositions; anything else of that domain keeps its operand's shape."""
    kernel = next((attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"), None)
    if kernel is None:
        return [_same_shape(node)]
    rank = len(kernel) + 2
    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    names = [f"{text}_sizes_{number}" for text in node.input]
    made = [onnx.helper.make_node("Transpose", [node.input[place]], [names[place]], perm=first) for place in range(min(2, len(node.input)))]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.domain = ""
    del inner.input[:], inner.output[:]
    inner.input.extend(names[: len(made)])
    inner.output.append(f"{node.output[0]}_sizes_{number}")
    return [*made, inner, onnx.helper.make_node("Transpose", [inner.output[0]], [node.output[0]], perm=last)]
