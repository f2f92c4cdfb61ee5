"""Comparison of every integer tensor: simulators against golden, and golden against an independent reading of the model.

Golden is the definition of every integer. A candidate (a simulator of the gateware) must equal it on every tensor. The
outside witness (ONNX Runtime, or the qonnx executor for custom operators) computes the model in float32; it is
compared in integer codes of each graph output, and may differ only where float rounding decides a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tritloom.compiled import DEFAULT_BOARD, CompiledModel, Source, open_model
from tritloom.compiler import golden
from tritloom.compiler.frontend.sequence import MASK, POSITIONS
from tritloom.compiler.ir.block import Store
from tritloom.compiler.ir.loop import has_loops
from tritloom.errors import UserError
from tritloom.session import PROVIDERS, InferenceSession
from tritloom.sim.backends import open_backend
from tritloom.sim.compare import Difference, TensorComparison, compare_tensors, first_difference, joined
from tritloom.sim.disagreements import Disagreement, trace_disagreements
from tritloom.sim.witness import run_witness
from tritloom.witnessing import against_witness, agreement, on_grid

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
            found, details[name] = _compare(compiled, name, board, codes, expected, tell)
            comparisons += found
    tell("outside witness", 0, count)
    # ONNX Runtime wants every declared input, also those that nothing reads.
    unread = {name: unread.get(name, np.zeros((count, *shape))) for name, shape in compiled.unread_inputs.items()}
    given = {**on_grid(program, feeds, codes), **unread}
    if any(spec.scale_tensor for spec in program.outputs):
        details["onnx"] = agreement(compiled, given, expected)
        tell("outside witness", count, count)
        return Verification(count, tuple(comparisons), {name: text for name, text in details.items() if text})
    against = against_witness(compiled, given, expected)
    differing = sorted({sample for comparison in against for sample in comparison.differing})
    # The quantisers of a loop's body lie inside its node, where a witness shows nothing.
    traced = trace_disagreements(program, compiled.source, given, expected, differing) if differing and not has_loops(program) else []
    tell("outside witness", count, count)
    return Verification(count, (*comparisons, *against), {name: text for name, text in details.items() if text}, tuple(traced))


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


def _compare(
    compiled: CompiledModel, name: str, board: str, codes: dict[str, np.ndarray], expected: dict[str, np.ndarray], tell: Progress
) -> tuple[list[TensorComparison], str]:
    """A candidate against golden on every tensor, of loops in every trip, and the candidate's details."""
    parts: list[dict[str, np.ndarray]] = []
    program, digest, schedule = compiled.program, bytes.fromhex(compiled.digest), compiled.schedule(board)
    count = len(next(iter(codes.values())))
    # A backend counts the samples of one chunk; here all of them are counted.
    opening = True

    def progress(text: str) -> None:
        if opening:
            tell(text, 0, 0)

    looped, samples = has_loops(program), []
    with open_backend(name, program, schedule, board=board, digest=digest, progress=progress) as backend:
        opening = False
        tell(name, 0, count)
        # Samples make as many trips as they need, so each is compared by itself.
        size = 1 if looped else CHUNK
        for start in range(0, count, size):
            some = {tensor: array[start : start + size] for tensor, array in codes.items()}
            parts.append(backend.trace(some))
            if looped:
                wanted = {key: values for key, values in golden.trace(program, some).items() if key not in codes}
                samples.append(compare_tensors(program, wanted, parts.pop(), candidate=name))
            tell(name, min(start + size, count), count)
    if looped:
        return joined(samples), backend.details
    got = {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in parts[0]}
    return compare_tensors(program, {key: expected[key] for key in expected if key not in codes}, got, candidate=name), backend.details
