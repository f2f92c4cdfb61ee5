"""The outside witness: the float model as others execute it, ONNX Runtime or, for QONNX operators, the executor of ``qonnx``.

Batches run at once although most models declare a batch of one: the batch axis of the graph's inputs is changed and every
constant ``Reshape`` that repeats the declared batch keeps the axis of its operand instead. The first and the last sample are then
run alone, also where the batch is declared free; where a batch gives something else, or fails, every sample is run alone.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime

from tritloom.compiler.frontend.constants import name_nodes_apart, rebatch_reshapes
from tritloom.compiler.frontend.reader import parse_proto
from tritloom.compiler.frontend.versions import upgraded, without_newer_opsets
from tritloom.errors import MissingToolError, ModelError, UserError

__all__ = ["run_witness", "uses_custom_operators"]

_RUNTIME_IR_VERSION = 13
"""Newest file format version that the supported releases of ONNX Runtime read."""

_WARNINGS, _FATAL = 2, 4

Feeds = Mapping[str, np.ndarray]
_Executor = Callable[[Feeds], list[np.ndarray]]
_Result = TypeVar("_Result")

_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_OLD_QONNX_DOMAINS = ("onnx.brevitas", "finn.custom_op.general")
_QONNX_DOMAIN = "qonnx.custom_op.general"
_CHANNELS_LAST_DOMAIN = "qonnx.custom_op.channels_last"
_CHUNK_ELEMENTS = 1 << 22
"""Input elements that are executed together at most."""


def uses_custom_operators(model: onnx.ModelProto) -> bool:
    """Whether a node lies in a domain that ONNX Runtime does not execute."""
    return any(node.domain not in _STANDARD_DOMAINS for node in model.graph.node)


def _channels_last(model: onnx.ModelProto) -> bool:
    """Whether shapes of another batch would have to be inferred for channels-last operators."""
    return any(node.domain == _CHANNELS_LAST_DOMAIN for node in model.graph.node)


def _free_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that are not initializers."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in fixed]


def _declared_batch(model: onnx.ModelProto) -> int | None:
    sizes = {value.type.tensor_type.shape.dim[0].dim_value for value in _free_inputs(model) if value.type.tensor_type.shape.dim}
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose graph outputs are ``names``, in that order. Raises :class:`UserError` for a name that no node computes."""
    known = {output for node in model.graph.node for output in node.output}
    known |= {value.name for value in model.graph.input}
    for name in names:
        if name not in known:
            raise UserError(f"the model has no value {name!r}")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {value.name: value for value in [*model.graph.output, *model.graph.value_info, *model.graph.input]}
    inner = [value for value in model.graph.value_info if value.name not in names]
    del copy.graph.output[:], copy.graph.value_info[:]
    # ONNX Runtime infers the type of an output that states none; the qonnx executor needs one, and knows float only.
    undeclared = onnx.TensorProto.FLOAT if uses_custom_operators(model) else onnx.TensorProto.UNDEFINED
    copy.graph.output.extend([declared.get(name) or _undeclared(name, undeclared) for name in names])
    copy.graph.value_info.extend(inner)
    used = {*names, *(name for node in copy.graph.node for name in node.input)}
    for value in [value for value in copy.graph.input if value.name not in used]:
        copy.graph.input.remove(value)
    return copy


def _undeclared(name: str, kind: int) -> onnx.ValueInfoProto:
    if kind == onnx.TensorProto.UNDEFINED:
        return onnx.helper.make_empty_tensor_value_info(name)
    return onnx.helper.make_tensor_value_info(name, kind, None)


def _with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy whose inputs have ``batch`` samples; shapes behind them are left to inference."""
    declared = _declared_batch(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for value in _free_inputs(copy):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in graph.output:
        if not value.type.HasField("tensor_type"):
            continue
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_value == declared:
            sizes[0].dim_value = batch
        else:
            value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    rebatch_reshapes(graph, declared, 0)
    return copy


def _onnxruntime(model: onnx.ModelProto) -> _Executor:
    copy = onnx.ModelProto()
    copy.CopyFrom(upgraded(model, "the model"))
    copy.ir_version = min(copy.ir_version, _RUNTIME_IR_VERSION)
    without_newer_opsets(copy)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    # Fused kernels for quantised operators compute something else than the float graph says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: [np.asarray(array) for array in session.run(None, dict(feeds))]


def _qonnx(model: onnx.ModelProto) -> _Executor:
    try:
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.util.cleanup import cleanup_model
    except ImportError as error:
        raise MissingToolError(
            f"this model has QONNX operators and the qonnx package is missing ({error}); run: pip install 'tritloom[qonnx]'"
        ) from error
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain in _OLD_QONNX_DOMAINS:
            node.domain = _QONNX_DOMAIN
    names = [value.name for value in _free_inputs(copy)]
    fixed = {tensor.name for tensor in copy.graph.initializer}
    for value in [value for value in copy.graph.input if value.name in fixed]:
        copy.graph.input.remove(value)
    wrapper = ModelWrapper(copy)
    # The clean-up is needed for shapes only, and takes minutes for large images in channels-last order.
    if not wrapper.check_all_tensor_shapes_specified():
        wrapper = cleanup_model(wrapper)
    # The clean-up renames inputs and outputs and keeps their order.
    inputs, outputs = ([value.name for value in values] for values in (wrapper.graph.input, wrapper.graph.output))

    def execute(feeds: Feeds) -> list[np.ndarray]:
        results = execute_onnx(wrapper, {new: feeds[name] for name, new in zip(names, inputs, strict=True)})
        return [np.asarray(results[name]) for name in outputs]

    return execute


def _executor(model: onnx.ModelProto) -> _Executor:
    """A function from feeds to the graph's outputs. It and this function raise :class:`ModelError` for what the executor refuses."""
    custom = uses_custom_operators(model)

    def guarded(function: Callable[[], _Result]) -> _Result:
        # qonnx makes one-node models in the newest format that onnx knows, which ONNX Runtime may not read yet.
        newest, onnx.IR_VERSION = onnx.IR_VERSION, min(onnx.IR_VERSION, _RUNTIME_IR_VERSION)
        # The sessions that qonnx opens, one a node, print warnings about its old operator sets, and errors that are raised as well.
        onnxruntime.set_default_logger_severity(_FATAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function()
        except MissingToolError:
            raise
        except Exception as error:
            # Neither executor has a base class for its errors; qonnx raises bare Exception.
            executor = "the qonnx executor" if custom else "ONNX Runtime"
            raise ModelError(f"{executor} cannot run this model: {' '.join(str(error).split())[:300]}") from error
        finally:
            onnx.IR_VERSION = newest
            onnxruntime.set_default_logger_severity(_WARNINGS)

    execute = guarded(lambda: _qonnx(model) if custom else _onnxruntime(model))
    return lambda feeds: guarded(lambda: execute(feeds))


def _agree(batch: Sequence[np.ndarray], alone: Sequence[np.ndarray], sample: int) -> bool:
    """Whether a sample of a batch is what it is alone, but for float rounding and the few quantiser steps that it may move."""
    for whole, single in zip(batch, alone, strict=True):
        one, other = np.asarray(whole[sample], np.float64).ravel(), np.asarray(single, np.float64).ravel()
        if one.shape != other.shape:
            return False
        tolerance = 1e-3 * (np.abs(other).max(initial=0.0) + 1e-6)
        if np.count_nonzero(np.abs(one - other) > tolerance) > 0.1 * one.size:
            return False
    return True


def _one_by_one(execute: _Executor, feeds: Feeds, samples: Iterable[int]) -> list[list[np.ndarray]]:
    return [execute({name: array[index : index + 1] for name, array in feeds.items()}) for index in samples]


def _run_chunk(model: onnx.ModelProto, feeds: Feeds, samples: int) -> list[np.ndarray]:
    declared = _declared_batch(model)
    if declared == samples:
        return _executor(model)(feeds)
    if declared not in (None, 1):
        return _executor(_with_batch(model, samples))(feeds)
    batch = None
    if samples > 1 and not (declared == 1 and _channels_last(model)):
        try:
            batch = _executor(_with_batch(model, samples))(feeds)
        except ModelError:
            pass  # a graph that says that its batch is free may still be made for one sample
    single = _executor(model if declared == 1 else _with_batch(model, 1))
    if batch is not None and all(array.ndim and len(array) == samples for array in batch):
        ends = (0, samples - 1)
        if all(_agree(batch, alone, index) for index, alone in zip(ends, _one_by_one(single, feeds, ends), strict=True)):
            return batch
    return [np.concatenate(arrays) for arrays in zip(*_one_by_one(single, feeds, range(samples)), strict=True)]


def run_witness(data: bytes, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Values of an ONNX model, computed in float by ONNX Runtime or the ``qonnx`` executor.

    ``feeds`` maps the model's inputs to arrays whose first axis is the batch, of any size from 1; they are converted to
    the declared types; inputs that no node reads may be left out. ``outputs`` names values of the graph (intermediate ones too), by default the graph's outputs. Raises
    :class:`UserError` for unknown names, :class:`ModelError` when the executor refuses the model, :class:`MissingToolError` when the
    model needs ``qonnx`` and it is not installed.
    """
    model = parse_proto(data, "the model")
    names = list(outputs) if outputs is not None else [value.name for value in model.graph.output]
    declared = {value.name for value in _free_inputs(model)}
    name_nodes_apart(model.graph)
    model = _with_outputs(model, names)
    inputs = {value.name: value for value in _free_inputs(model)}
    feeds = {name: array for name, array in feeds.items() if name in inputs or name not in declared}
    if sorted(feeds) != sorted(inputs):
        raise UserError(f"inputs must be {', '.join(inputs)}; given are {', '.join(sorted(feeds)) or 'none'}")
    arrays = {
        name: np.ascontiguousarray(feeds[name], onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for name, value in inputs.items()
    }
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"inputs must have one batch size of at least 1, not {sorted(counts)}")
    samples = counts.pop()
    largest = max(array.size // samples for array in arrays.values())
    step = max(1, min(samples, _CHUNK_ELEMENTS // max(1, largest)))
    parts = []
    for begin in range(0, samples, step):
        chunk = {name: array[begin : begin + step] for name, array in arrays.items()}
        parts.append(_run_chunk(model, chunk, min(step, samples - begin)))
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
