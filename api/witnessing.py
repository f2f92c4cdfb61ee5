"""The outside witness of a model: what it is given, and how its floats compare with golden's codes."""

from collections.abc import Mapping

import numpy as np
from onnx import helper, numpy_helper

from tritloom.compiled import CompiledModel
from tritloom.compiler import golden
from tritloom.compiler.frontend.reader import parse_proto
from tritloom.compiler.ir.loop import has_loops
from tritloom.compiler.ir.program import OutputSpec, Program, Tensor
from tritloom.sim.compare import Difference, TensorComparison, top1_agreement
from tritloom.sim.witness import run_witness

__all__ = ["against_floats", "against_witness", "agreement", "on_grid"]


def on_grid(program: Program, feeds: Mapping[str, np.ndarray], codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feeds for the witness: an input whose grid the model itself does not state is moved to the grid it was given."""
    moved = {}
    for spec in program.inputs:
        array = np.asarray(feeds[spec.name])
        tensor = program.tensors[spec.tensor]
        if tensor.source == "calibration" and len(spec.prologue) == 1:
            flat = codes[spec.tensor].reshape(len(array), -1)
            reals = _reals(tensor, flat, np.arange(flat.shape[1]))
            if spec.index is not None:
                # Elements that the model leaves out stay what they are.
                placed = array.reshape(len(array), -1).astype(np.float64)
                placed[:, spec.index.ravel()] = reals
                reals = placed
            array = reals.reshape(array.shape).astype(array.dtype)
        moved[spec.name] = array
    return moved


def _grid(tensor: Tensor, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point, float64, of elements given by their flat (C, H, W) index."""
    channels = elements // (tensor.shape[1] * tensor.shape[2])
    scale = np.array([float(value) for value in tensor.scale])
    zero = np.array(tensor.zero_point, dtype=np.float64)
    return scale[channels % len(scale)], zero[channels % len(zero)]


def _reals(tensor: Tensor, codes: np.ndarray, elements: np.ndarray) -> np.ndarray:
    scale, zero = _grid(tensor, elements)
    return scale * (codes - zero)


def against_witness(compiled: CompiledModel, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[TensorComparison]:
    specs = compiled.program.outputs
    names = [spec.witness or spec.name for spec in specs]
    found = _witnessed(compiled, feeds, list(dict.fromkeys(names)))
    return [
        against_floats(compiled.program, spec, expected[spec.tensor], np.asarray(found[name]))
        for spec, name in zip(specs, names, strict=True)
    ]


def _witnessed(compiled: CompiledModel, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Values of the source model. One with loops is given the samples one by one: in a batch they would all take as many trips as the slowest."""
    if not has_loops(compiled.program):
        return run_witness(compiled.source, feeds, outputs=names)
    source = _with_axes(compiled.source)
    count = len(next(iter(feeds.values())))
    parts = [
        run_witness(source, {name: array[sample : sample + 1] for name, array in feeds.items()}, outputs=names) for sample in range(count)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _with_axes(source: bytes) -> bytes:
    """The model with an axis of one element in outputs that have none, so that samples can be put one behind the other."""
    model = parse_proto(source, "the model")
    for value in model.graph.output:
        if not value.type.tensor_type.shape.dim:
            (node,) = (node for node in model.graph.node if value.name in node.output)
            inner, axes = f"{value.name}/single", f"{value.name}/axes"
            node.output[list(node.output).index(value.name)] = inner
            for other in model.graph.node:
                other.input[:] = [inner if name == value.name else name for name in other.input]
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), axes))
            model.graph.node.append(helper.make_node("Unsqueeze", [inner, axes], [value.name], name=f"{value.name}/axis"))
            value.type.tensor_type.shape.dim.add().dim_value = 1
    return model.SerializeToString()


def against_floats(program: Program, spec: OutputSpec, codes: np.ndarray, floats: np.ndarray) -> TensorComparison:
    """Codes of one graph output against the witness's floats on the same grid, ``clamp(rint(x / scale) + zero_point)``."""
    tensor = program.tensors[spec.tensor]
    samples = len(codes)
    elements = np.arange(tensor.elements) if spec.index is None else np.asarray(spec.index).ravel()
    ours = codes.reshape(samples, -1)[:, elements].astype(np.int64)
    reference = floats.reshape(samples, -1).astype(np.float64)
    # Steps that stand between the tensor and the value that the witness computes: they are no operators of the model.
    for step in reversed([step for step in spec.epilogue[1:] if step.attributes.get("head")]):
        reference = golden.invert_host(step, reference.reshape(floats.shape), floats.shape[1:]).reshape(samples, -1)
    result = {"reference": "onnx", "candidate": "golden", "tensor": spec.name, "values": ours.size}
    if reference.shape != ours.shape:
        return TensorComparison(**result, mismatches=ours.size, top1_agreement=0.0, first=None)
    scale, zero = _grid(tensor, elements)
    if floats.dtype.kind in "iu" and spec.epilogue and spec.epilogue[0].kind == "Dequantize" and tensor.source != "accumulator":
        # The witness gives codes as integers; the first step says which integer a code stands for.
        scale, zero = (np.asarray(spec.epilogue[0].constants[name]) for name in ("scale", "zero_point"))
    theirs = np.clip(np.rint(reference / scale) + zero, tensor.low, tensor.high).astype(np.int64)
    wrong = np.argwhere(theirs != ours)
    first = None
    if len(wrong):
        sample, position = (int(value) for value in wrong[0])
        index = tuple(int(value) for value in np.unravel_index(int(elements[position]), tensor.shape))
        producers = program.producer(spec.tensor)
        first = Difference(
            layer=producers[-1].name if producers else spec.name,
            tensor=spec.name,
            sample=sample,
            index=(index[0], index[1], index[2]),
            expected=int(theirs[sample, position]),
            got=int(ours[sample, position]),
        )
    agreement = top1_agreement(_reals(tensor, theirs, elements), _reals(tensor, ours, elements))
    differing = tuple(np.unique(wrong[:, 0]).tolist())
    return TensorComparison(**result, mismatches=len(wrong), top1_agreement=agreement, first=first, differing=differing)


def agreement(compiled: CompiledModel, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    """How often golden and the float model hold the same element of each output for the largest, and of outputs of integers the same value.

    For a model that finds scales at run time: golden rounds to 8 bits again and again what the witness computes in floats.
    """
    specs = compiled.program.outputs
    floats = _witnessed(compiled, feeds, [spec.name for spec in specs])
    ours = golden.dequantise_outputs(compiled.program, expected)
    parts = []
    for spec in specs:
        theirs = np.asarray(floats[spec.name]).reshape(ours[spec.name].shape)
        if theirs.ndim > 1 and theirs[0].size > 1:
            same, noun = theirs.argmax(axis=-1) == ours[spec.name].argmax(axis=-1), "the same largest element"
        elif theirs.dtype.kind in "iub":
            same, noun = theirs == ours[spec.name], "the same number"
        else:
            same, noun = (theirs > 0) == (ours[spec.name] > 0), "the same sign"
        parts.append(f"{spec.name!r} has {noun} at {int(same.sum())} of {same.size} places")
    return "golden and the float model: " + ", ".join(parts)
