"""Sample values of any float in the graph, for the grids of tensors that the model itself does not quantise.

The float graph is run by ONNX Runtime, sample by sample with a batch of one; QONNX nodes are rewritten in standard operators first.
"""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from tritloom.compiler.frontend.constants import RUNTIME_ERRORS, WITNESS_IR_VERSION, quiet_session, rebatch_reshapes
from tritloom.compiler.frontend.operators_channels_last import CHANNELS_LAST
from tritloom.compiler.frontend.operators_quantise import QONNX_DOMAINS, ROUNDING_MODES
from tritloom.compiler.frontend.operators_threshold import threshold_axis
from tritloom.compiler.quantize.calibration import DEFAULT_CALIBRATION, DEFAULT_PERCENTILE, choose_grid
from tritloom.errors import ModelError, UserError

__all__ = ["LABELS", "Calibration", "standard_model"]

LABELS = "labels"
"""An array of the calibration samples that is no input: the right classes, for whoever judges accuracy."""

_MOST_SAMPLES = 1024
_MOST_VALUES = 1 << 24
"""Values of one tensor that are looked at; more samples than that are left out."""


class Calibration:
    """Grids from samples. Raises :class:`UserError` for samples that do not fit the model's inputs.

    Parameters
    ----------
    model
        The validated model.
    name
        How the model is called in messages.
    samples
        Arrays by input name, first axis the samples; ``None`` when there are none.
    """

    def __init__(self, *, model: onnx.ModelProto, name: str, samples: Mapping[str, np.ndarray] | None) -> None:
        self._model, self._name = model, name
        initializers = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [value for value in model.graph.input if value.name not in initializers]
        read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
        self._needed = [value for value in self._inputs if value.name in read]
        self._samples = None if samples is None else self._validated(samples)
        self._known: dict[str, np.ndarray] = {}
        self._means: dict[str, np.ndarray] = {}
        self._mean_count = 0
        self._grids: dict[tuple[str, int, str, float], tuple[Fraction, int]] = {}

    def grid(
        self, value: str, bits: int, *, method: str = DEFAULT_CALIBRATION, percentile: float = DEFAULT_PERCENTILE
    ) -> tuple[Fraction, int]:
        """Scale and zero point for an ONNX value, see :func:`choose_grid`. Raises :class:`ModelError` when there are no samples."""
        if self._samples is None:
            raise ModelError(self._advice(value))
        if value not in self._known:
            self.prefetch([value])
        key = (value, bits, method, percentile)
        if key not in self._grids:
            name = f"calibration values of {value!r}"
            self._grids[key] = choose_grid(self._known[value], bits, method=method, percentile=percentile, name=name)
        return self._grids[key]

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The first ``count`` samples, fewer where there are not so many."""
        assert self._samples is not None
        return {name: array[:count] for name, array in self._samples.items()}

    def outputs(self, values: list[str], count: int) -> dict[str, np.ndarray]:
        """ONNX values for each of the first ``count`` samples, (samples, elements) float32."""
        parts: dict[str, list[np.ndarray]] = {value: [] for value in values}
        for found in self._each_sample(values, count):
            for value, array in zip(values, found, strict=True):
                parts[value].append(array.ravel())
        return {value: np.stack(parts[value]) for value in values}

    def means(self, values: list[str], count: int) -> dict[str, np.ndarray]:
        """Means of ONNX values over the first ``count`` samples: float64, of the shape of one sample behind a batch of one."""
        if count != self._mean_count:
            self._means, self._mean_count = {}, count
        missing = [value for value in dict.fromkeys(values) if value not in self._means]
        if missing:
            sums: list[Any] = [0.0] * len(missing)
            samples = 0
            for found in self._each_sample(missing, count):
                samples += 1
                for index, array in enumerate(found):
                    sums[index] = sums[index] + array.astype(np.float64)
            self._means.update((value, np.asarray(total / samples)) for value, total in zip(missing, sums, strict=True))
        return {value: self._means[value] for value in values}

    def prefetch(self, values: list[str]) -> None:
        """Run the graph once for several values."""
        if self._samples is None:
            return
        missing = [value for value in dict.fromkeys(values) if value not in self._known]
        for value in missing:
            if value in self._samples:
                self._known[value] = self._samples[value]
        missing = [value for value in missing if value not in self._known]
        if missing:
            self._run(missing)

    def _advice(self, value: str) -> str:
        shapes = ", ".join(
            f"{entry.name}=array of shape (samples{''.join(f', {size}' for size in _sample_shape(entry))})" for entry in self._needed
        )
        keywords = shapes if all(entry.name.isidentifier() for entry in self._needed) else "**{" + ", ".join(
            f"{entry.name!r}: array of shape (samples{''.join(f', {size}' for size in _sample_shape(entry))})" for entry in self._needed
        ) + "}"  # fmt: skip
        return (
            f"{self._name} states no quantiser for {value!r}{self._origin(value)}, so it needs calibration samples: save a few hundred typical inputs with "
            f'numpy.savez("calibration.npz", {keywords}) and give --calibration calibration.npz'
        )

    def _origin(self, value: str) -> str:
        """Which node computes a value; nothing for an input."""
        node = next((node for node in self._model.graph.node if value in node.output), None)
        return "" if node is None else f" (the output of node {node.name or value!r}, {node.op_type})"

    def _validated(self, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [entry.name for entry in self._needed]
        unread = {entry.name: entry for entry in self._inputs if entry.name not in names}
        if LABELS not in (entry.name for entry in self._inputs):
            samples = {name: array for name, array in samples.items() if name != LABELS}
        if sorted(set(samples) - set(unread)) != sorted(names):
            raise UserError(f"calibration samples must be named {', '.join(names)}; given are {', '.join(sorted(samples)) or 'none'}")
        found, counts = {}, set()
        for entry in self._needed:
            array = np.asarray(samples[entry.name])
            expected = _sample_shape(entry)
            if array.dtype.kind not in "fiub" or array.ndim != len(expected) + 1 or array.shape[1:] != expected or not len(array):
                shape = f"(samples{''.join(f', {size}' for size in expected)})"
                raise UserError(f"calibration samples of {entry.name!r} must be numbers of shape {shape}, not {array.dtype} {array.shape}")
            if not np.isfinite(array.astype(np.float64)).all():
                raise UserError(f"calibration samples of {entry.name!r} must be finite, but they hold NaN or infinity")
            counts.add(len(array))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            found[entry.name] = array.astype(dtype)
        if len(counts) > 1:
            raise UserError(f"calibration samples must have one length for all inputs, not {sorted(counts)}")
        for name, entry in unread.items():
            # ONNX Runtime wants every declared input, also those that no node reads.
            shape = (counts.copy().pop(), *(size or 1 for size in _sample_shape(entry)))
            found[name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
        return found

    def _each_sample(self, values: list[str], count: int) -> Iterator[list[np.ndarray]]:
        """Values of the float graph for one sample after the other, float32."""
        assert self._samples is not None
        model = standard_model(self._model, values)
        try:
            session = quiet_session(model)
            for sample in range(min(len(next(iter(self._samples.values()))), count)):
                feeds = {name: array[sample : sample + 1] for name, array in self._samples.items()}
                yield [np.asarray(found, np.float32) for found in session.run(values, feeds)]
        except RUNTIME_ERRORS as error:
            raise ModelError(f"{self._name} cannot be run for calibration: {str(error).splitlines()[0]}") from None

    def _run(self, values: list[str]) -> None:
        parts: dict[str, list[np.ndarray]] = {value: [] for value in values}
        for sample, found in enumerate(self._each_sample(values, _MOST_SAMPLES)):
            for value, array in zip(values, found, strict=True):
                if (sample + 1) * array.size <= _MOST_VALUES or not sample:
                    parts[value].append(array.ravel())
        for value in values:
            self._known[value] = np.concatenate(parts[value])


def _sample_shape(entry: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in entry.type.tensor_type.shape.dim[1:])


def standard_model(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The model with other outputs, a batch of one, and QONNX nodes in standard operators."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    initializers = {tensor.name for tensor in graph.initializer}
    batch = 1
    for entry in graph.input:
        dimensions = entry.type.tensor_type.shape.dim
        if entry.name not in initializers and dimensions:
            batch = dimensions[0].dim_value or batch
            dimensions[0].dim_value = 1
    rebatch_reshapes(graph, batch, 1)
    del graph.value_info[:]
    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in outputs)
    opset = max((entry.version for entry in copied.opset_import if entry.domain in ("", "ai.onnx")), default=13)
    nodes = list(graph.node)
    del graph.node[:]
    for number, node in enumerate(nodes):
        if node.domain in QONNX_DOMAINS:
            rank = _rank(copied, node.input[0]) if node.op_type == "MultiThreshold" else 0
            graph.node.extend(_standard(node, f"calibration_{number}", opset, rank))
        elif node.domain == CHANNELS_LAST:
            graph.node.extend(_channels_first(node, f"calibration_{number}", _rank(copied, node.input[0])))
        else:
            graph.node.append(node)
    copied.ir_version = min(copied.ir_version, WITNESS_IR_VERSION)
    return copied


def _rank(model: onnx.ModelProto, value: str) -> int:
    """Axes of a value of a model whose inputs have fixed shapes, by running it on zeros."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.ir_version = min(part.ir_version, WITNESS_IR_VERSION)
    del part.graph.output[:]
    part.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    known = {tensor.name for tensor in part.graph.initializer}
    feeds = {
        entry.name: np.zeros((1, *_sample_shape(entry)), onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
        for entry in part.graph.input
        if entry.name not in known
    }
    return np.asarray(quiet_session(part).run([value], feeds)[0]).ndim


def _channels_first(node: onnx.NodeProto, prefix: str, rank: int) -> list[onnx.NodeProto]:
    """A channels-last node of QONNX as the standard one between transposes; a convolution's weights are channels last too."""
    made: list[onnx.NodeProto] = []
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.domain = ""
    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    for index in range(2 if node.op_type == "Conv" else 1):
        inner.input[index] = f"{prefix}_{index}"
        made.append(onnx.helper.make_node("Transpose", [node.input[index]], [inner.input[index]], perm=first))
    inner.output[0] = f"{prefix}_result"
    return [*made, inner, onnx.helper.make_node("Transpose", [inner.output[0]], [node.output[0]], perm=last)]


def _standard(node: onnx.NodeProto, prefix: str, opset: int, rank: int) -> list[onnx.NodeProto]:
    """A QONNX quantiser in standard operators of any opset from 9 on, on float32."""
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        result = output or f"{prefix}_{len(made)}"
        made.append(onnx.helper.make_node(op, list(inputs), [result], **attributes))
        return result

    def number(value: float) -> str:
        return add("Constant", value=onnx.numpy_helper.from_array(np.array(value, np.float32)))

    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "MultiThreshold":
        _thresholds(add, number, node, attributes, rank)
        return made
    x, scale = node.input[0], node.input[1]
    if node.op_type == "BipolarQuant":
        sign = _bipolar(add, number, x)
        add("Mul", sign, scale, output=node.output[0])
        return made
    zero, width = add("Cast", node.input[2], to=1), add("Cast", node.input[3], to=1)
    if node.op_type == "Trunc":
        codes = _rounded(add, number, add("Add", add("Div", x, scale), zero), "half_even", opset)
        newer = len(node.input) > 5
        power = add("Div", node.input[4], scale) if newer else add("Pow", number(2.0), add("Sub", width, add("Cast", node.input[4], to=1)))
        cut = _rounded(add, number, add("Div", codes, power), "ceil" if attributes.get("rounding_mode") == b"CEIL" else "floor", opset)
        shifted = add("Sub", cut, add("Div", zero, power) if newer else zero)
        add("Mul", shifted, node.input[4] if newer else scale, output=node.output[0])
        return made
    signed, narrow = int(attributes.get("signed", 1)), int(attributes.get("narrow", 0))
    two, one = number(2.0), number(1.0)
    shifted = add("Add", add("Div", x, scale), zero)
    if signed:
        half = add("Pow", two, add("Sub", width, one))
        high = add("Sub", half, one)
        low = add("Add", add("Neg", half), number(float(narrow)))
    else:
        high = add("Sub", add("Pow", two, width), number(1.0 + narrow))
        low = number(0.0)
    clamped = add("Max", add("Min", shifted, high), low)
    mode = attributes.get("rounding_mode", b"ROUND")
    rounded = _rounded(
        add,
        number,
        clamped,
        ROUNDING_MODES.get(mode.decode().upper() if isinstance(mode, bytes) else str(mode).upper(), "half_even"),
        opset,
    )
    add("Mul", add("Sub", rounded, zero), scale, output=node.output[0])
    return made


def _thresholds(
    add: Callable[..., str], number: Callable[[float], str], node: onnx.NodeProto, attributes: dict[str, Any], rank: int
) -> None:
    """MultiThreshold: the channels last, every value beside its thresholds, the reached ones counted by a product with ones."""
    layout = attributes.get("data_layout", b"")
    axis = threshold_axis(layout.decode() if isinstance(layout, bytes) else str(layout), rank)
    x, table = node.input

    def integers(*values: int) -> str:
        return add("Constant", value=onnx.numpy_helper.from_array(np.array(values, np.int64)))

    swapped = list(range(rank))
    swapped[axis], swapped[-1] = swapped[-1], swapped[axis]
    last = add("Transpose", x, perm=swapped)
    shape = add("Shape", last)
    beside = add("Reshape", last, add("Concat", shape, integers(1), axis=0))
    reached = add("Sub", number(1.0), add("Cast", add("Less", beside, table), to=1))
    steps = add("Gather", add("Shape", table), integers(1))
    ones = add("ConstantOfShape", add("Concat", steps, integers(1), axis=0), value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))
    count = add("Transpose", add("Reshape", add("MatMul", reached, ones), shape), perm=swapped)
    scaled = add("Mul", count, number(float(attributes.get("out_scale", 1.0))))
    add("Add", scaled, number(float(attributes.get("out_bias", 0.0))), output=node.output[0])


def _bipolar(add: Callable[..., str], number: Callable[[float], str], x: str) -> str:
    """1 where ``x >= 0``, else -1."""
    negative = add("Cast", add("Less", x, number(0.0)), to=1)
    return add("Sub", number(1.0), add("Mul", number(2.0), negative))


def _rounded(add: Callable[..., str], number: Callable[[float], str], x: str, rounding: str, opset: int) -> str:
    if rounding == "floor":
        return add("Floor", x)
    if rounding == "ceil":
        return add("Ceil", x)
    if rounding == "half_even" and opset >= 11:
        return add("Round", x)
    if rounding == "half_even":
        # Before Round existed: adding and taking away 1.5 * 2**23 rounds a float32 to an integer, ties to even.
        large = number(12582912.0)
        return add("Sub", add("Add", x, large), large)
    sign, size = add("Sign", x), add("Abs", x)
    whole = {
        "toward_zero": lambda: add("Floor", size),
        "away_from_zero": lambda: add("Ceil", size),
        "half_away": lambda: add("Floor", add("Add", size, number(0.5))),
        "half_toward_zero": lambda: add("Ceil", add("Sub", size, number(0.5))),
    }[rounding]()
    return add("Mul", sign, whole)
