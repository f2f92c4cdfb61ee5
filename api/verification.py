"""Comparison of every integer tensor: simulators against golden, and golden against an independent reading of the model.

Golden is the definition of every integer. A candidate (a simulator of the gateware) must equal it on every tensor. The
outside witness (ONNX Runtime, or the qonnx executor for custom operators) computes the model in float32; it is
compared in integer codes of each graph output, and may differ only where float rounding decides a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import helper, numpy_helper

from tritloom.compiled import DEFAULT_BOARD, CompiledModel, Source, open_model
from tritloom.compiler import golden
from tritloom.compiler.frontend.reader import parse_proto
from tritloom.compiler.frontend.sequence import MASK, POSITIONS
from tritloom.compiler.ir.block import Store
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import OutputSpec, Program, Tensor
from tritloom.errors import UserError
from tritloom.session import PROVIDERS, InferenceSession
from tritloom.sim.backends import open_backend
from tritloom.sim.compare import Difference, TensorComparison, compare_tensors, first_difference, top1_agreement
from tritloom.sim.disagreements import Disagreement, trace_disagreements
from tritloom.sim.witness import run_witness

__all__ = ["DEFAULT_SAMPLES", "Verification", "verify"]

DEFAULT_SAMPLES = 20

CHUNK = 16
"""Samples traced between two reports of progress."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many samples are done, and how many there are (0 when that is not known)."""


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify`. ``exact`` speaks of the candidates against golden, not of the outside witness."""

    samples: int
    comparisons: tuple[TensorComparison, ...]
    details: Mapping[str, str] = field(default_factory=dict)
    """What exactly computed, by candidate, where that is more than its name says."""
    disagreements: tuple[Disagreement, ...] = ()
    """Where the outside witness first differs from golden in each differing sample, and what it rounded there."""

    @property
    def exact(self) -> bool:
        return all(comparison.mismatches == 0 for comparison in self.against("golden"))

    @property
    def first(self) -> Difference | None:
        """The first difference between a candidate and golden."""
        return first_difference(list(self.against("golden")))

    def against(self, reference: str) -> tuple[TensorComparison, ...]:
        """Comparisons with one reference, ``golden`` or ``onnx``."""
        return tuple(comparison for comparison in self.comparisons if comparison.reference == reference)


def verify(
    model: CompiledModel | Source,
    *,
    on: Sequence[str] = ("golden", "verilator"),
    board: str = DEFAULT_BOARD,
    feeds: Mapping[str, np.ndarray] | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Compare every tensor of every candidate in ``on`` with golden, and golden with the outside witness.

    Parameters
    ----------
    model
        A compiled model, or whatever :class:`tritloom.InferenceSession` accepts.
    on
        Names from :data:`tritloom.session.PROVIDERS`; golden is always the reference.
    board
        Whose core computes; a netlist or a bitstream needs one with an FPGA.
    feeds
        Inputs by name, first axis the batch. By default ``samples`` (20) random inputs on the model's own input grid.
    samples
        With ``feeds``, only so many of them from the first.
    seed
        Of the random inputs.

    Raises :class:`UserError` for a wrong argument, :class:`MissingToolError` when a candidate cannot run.
    """
    if not on:
        raise UserError(f"name at least one candidate of {', '.join(PROVIDERS)}")
    for name in on:
        if name not in PROVIDERS:
            raise UserError(f"candidate must be one of {', '.join(PROVIDERS)}, not {name!r}")
    if samples is not None and samples < 1:
        raise UserError(f"samples must be 1 or more, not {samples}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}")
    tell = progress or (lambda name, done, total: None)
    compiled = open_model(model)
    program = compiled.program
    if program.states:
        if feeds is not None:
            raise UserError("a language model is verified on random tokens; leave the inputs out and say how many with --samples")
        return verify_tokens(compiled, on, board, samples or DEFAULT_SAMPLES, seed, tell)
    if any(spec.scale_tensor for spec in program.outputs):
        raise UserError(
            "a model that scales its activations at run time cannot be verified yet: no core runs it, and golden's own rounding of every token differs from "
            "the float model's; compare the outputs of 'tritloom run' with ONNX Runtime's"
        )
    if feeds is None:
        feeds = golden.random_feeds(program, samples or DEFAULT_SAMPLES, seed)
    elif samples is not None:
        feeds = {name: np.asarray(array)[:samples] for name, array in feeds.items()}
    unread = {name: np.asarray(feeds[name]) for name in compiled.unread_inputs if name in feeds}
    feeds = {name: array for name, array in feeds.items() if name not in unread}
    codes = golden.quantise_inputs(program, dict(feeds))
    count = len(next(iter(codes.values())))
    expected = golden.run(program, codes)
    comparisons: list[TensorComparison] = []
    details: dict[str, str] = {}
    for name in dict.fromkeys(on):
        if name != "golden":
            got, details[name] = _trace(compiled, name, board, codes, count, tell)
            comparisons += compare_tensors(program, {key: expected[key] for key in expected if key not in codes}, got, candidate=name)
    tell("outside witness", 0, count)
    # ONNX Runtime wants every declared input, also those that nothing reads.
    unread = {name: unread.get(name, np.zeros((count, *shape))) for name, shape in compiled.unread_inputs.items()}
    given = {**_on_grid(program, feeds, codes), **unread}
    against = _against_witness(compiled, given, expected)
    differing = sorted({sample for comparison in against for sample in comparison.differing})
    # The quantisers of a loop's body lie inside its node, where a witness shows nothing.
    found = trace_disagreements(program, compiled.source, given, expected, differing) if differing and not _has_loops(program) else []
    tell("outside witness", count, count)
    return Verification(count, (*comparisons, *against), {name: text for name, text in details.items() if text}, tuple(found))


def verify_tokens(compiled: CompiledModel, on: Sequence[str], board: str, count: int, seed: int, tell: Progress) -> Verification:
    """Compare every tensor behind every one of ``count`` random tokens of one sequence, as far as the caches go. The sample of a difference is the number of its token.

    The outside witness computes in floats what golden rounds to 8 bits again and again, so it is not compared code by code: the details say how often both hold the
    same token for the likeliest.
    """
    program, spec = compiled.program, compiled.program.outputs[0]
    count = min(count, InferenceSession(compiled).context)
    tokens = np.random.default_rng(seed).integers(0, program.tensors[program.inputs[0].tensor].high + 1, count)
    stream, logits, parts = golden.Stream(program), [], []
    for token in tokens:
        logits.append(stream.step(token[None])[spec.name])
        parts.append(stream.tensors)
    written = [name for name in parts[0] if name not in {state.tensor for state in program.states} and name != program.inputs[0].tensor]
    comparisons: list[TensorComparison] = []
    details: dict[str, str] = {}
    for name in dict.fromkeys(on):
        if name == "golden":
            continue
        session = InferenceSession(compiled, providers=[(name, {"board": board})], progress=lambda text: tell(text, 0, 0))
        candidate = session.stream()
        found: dict[str, list[np.ndarray]] = {tensor: [] for tensor in written}
        for index, token in enumerate(tokens):
            candidate.trace(token[None])
            for tensor in written:
                found[tensor].append(candidate.tensors[tensor])
            tell(name, index + 1, count)
        expected = {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in written}
        comparisons += compare_tensors(program, expected, {tensor: np.concatenate(rows) for tensor, rows in found.items()}, candidate=name)
    tell("outside witness", 0, count)
    rest = {MASK: np.ones((1, count), np.int64), POSITIONS: np.arange(count)[None]}
    # Caches begin without columns; other states, the key before, as zeros.
    caches = {operation.cache for operation in program.operations if isinstance(operation, Store)}
    past = {
        name: rest.get(name, np.zeros((1, *shape), np.float32)[..., : 0 if name in caches else None, :])
        for name, shape in compiled.unread_inputs.items()
    }
    floats = run_witness(compiled.source, {program.inputs[0].name: tokens[None], **past}, outputs=[spec.name])[spec.name]
    same = int((np.asarray(floats)[0].argmax(axis=-1) == np.concatenate(logits).argmax(axis=-1)).sum())
    details["onnx"] = f"golden and the float model hold the same token for the likeliest at {same} of {count} places"
    tell("outside witness", count, count)
    return Verification(count, tuple(comparisons), details)


def _trace(
    compiled: CompiledModel, name: str, board: str, codes: dict[str, np.ndarray], count: int, tell: Progress
) -> tuple[dict[str, np.ndarray], str]:
    """Every tensor of a candidate, and its details."""
    parts: list[dict[str, np.ndarray]] = []
    digest, schedule = bytes.fromhex(compiled.digest), compiled.schedule(board)
    # A backend counts the samples of one chunk; here all of them are counted.
    opening = True

    def progress(text: str) -> None:
        if opening:
            tell(text, 0, 0)

    with open_backend(name, compiled.program, schedule, board=board, digest=digest, progress=progress) as backend:
        opening = False
        tell(name, 0, count)
        for start in range(0, count, CHUNK):
            parts.append(backend.trace({tensor: array[start : start + CHUNK] for tensor, array in codes.items()}))
            tell(name, min(start + CHUNK, count), count)
    return {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in parts[0]}, backend.details


def _on_grid(program: Program, feeds: Mapping[str, np.ndarray], codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
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


def _against_witness(compiled: CompiledModel, feeds: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[TensorComparison]:
    specs = compiled.program.outputs
    names = [spec.witness or spec.name for spec in specs]
    found = _witnessed(compiled, feeds, list(dict.fromkeys(names)))
    return [
        _against_floats(compiled.program, spec, expected[spec.tensor], np.asarray(found[name]))
        for spec, name in zip(specs, names, strict=True)
    ]


def _has_loops(program: Program) -> bool:
    return any(isinstance(operation, Loop) for operation in program.operations)


def _witnessed(compiled: CompiledModel, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Values of the source model. One with loops is given the samples one by one: in a batch they would all take as many trips as the slowest."""
    if not _has_loops(compiled.program):
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


def _against_floats(program: Program, spec: OutputSpec, codes: np.ndarray, floats: np.ndarray) -> TensorComparison:
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
