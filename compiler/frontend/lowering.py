"""The two things the front end does: lower a model to an integer program, and check whether that is possible."""

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tritloom.compiler.frontend import (
    operators_attention,
    operators_blocks,
    operators_norms,
    operators_quantisers,
    operators_rotation,
    operators_sequence,
)
from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.calibrate import Calibration
from tritloom.compiler.frontend.compensation import Compensation
from tritloom.compiler.frontend.correction import BiasCorrection
from tritloom.compiler.frontend.execution import Execution, execute, operator_key
from tritloom.compiler.frontend.loops import is_loop_model
from tritloom.compiler.frontend.operators_loop import lower_loops
from tritloom.compiler.frontend.operators_sequence import lower_sequence, sequence_weights
from tritloom.compiler.frontend.patterns import recognise
from tritloom.compiler.frontend.portrait import dialect_of, parameters_of, precision_of, where_it_runs
from tritloom.compiler.frontend.problems import CheckReport, Lowered, Problem, problems_error
from tritloom.compiler.frontend.reader import read_model
from tritloom.compiler.frontend.registry import CORE, GOLDEN, HOST, OPERATORS
from tritloom.compiler.frontend.samples import SampleRun
from tritloom.compiler.frontend.sequence import is_sequence_model
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Convolution, HostOp, Operation, Program
from tritloom.compiler.ir.vector import GoldenOperation, obstacles
from tritloom.compiler.passes import PASSES
from tritloom.compiler.quantize.weights import IntegerWeights
from tritloom.errors import UserError

__all__ = ["SEQUENCE_FAMILIES", "Lowering", "check", "lower"]

SEQUENCE_FAMILIES = (operators_attention, operators_blocks, operators_norms, operators_quantisers, operators_rotation, operators_sequence)
"""The modules that put their handlers of language models into the tables when they are imported."""

_CONVERSIONS = ("Dequantize", "Gather", "Quantize", "Reshape", "Transpose")
"""Steps of the host that only turn values into codes and back, or move them."""


_CORRECTION_SAMPLES = 256
"""Samples of bias correction; more gave no better accuracy."""

_MOST_OUTPUTS = 1 << 25
"""Outputs of layers of the float model that are kept at a time."""

_MOST_CODES = 1 << 28
"""Codes of all tensors together that bias correction keeps."""


class Lowering:
    """A model that was read and checked, to be lowered with one or several settings.

    Parameters
    ----------
    data
        The file's bytes.
    name
        Name of the program, used in messages.
    calibration
        Sample inputs by name, first axis the samples: needed where the model states no quantiser.

    Raises :class:`ModelError` for a model that cannot be read or lowered, :class:`UserError` for wrong samples.
    """

    def __init__(self, data: bytes, *, name: str, calibration: Mapping[str, np.ndarray] | None = None) -> None:
        self._name = name
        proto, self._model = read_model(data, name)
        # Their readers walk the file itself, and need nothing that is planned here.
        self._sequence, self._loops = (proto if applies(proto) else None for applies in (is_sequence_model, is_loop_model))
        if self._sequence is not None or self._loops is not None:
            return
        recognise(self._model)
        self._wanted, plan, found = _plan(self._model, name)
        if found.problems:
            raise problems_error(name, found.problems)
        self._weighted = plan.weighted
        self._outputs: dict[str, np.ndarray] = {}
        self._known_weights: dict[tuple[Any, ...], IntegerWeights] = {}
        self._correctable = calibration is not None
        self._samples = Calibration(model=proto, name=name, samples=calibration)
        if self._wanted and calibration is None:
            self._samples.grid(self._wanted[0], Settings().activation_bits)
        codes = sum(tensor.elements for tensor in plan.tensors.values())
        self._count = max(1, min(_CORRECTION_SAMPLES, _MOST_CODES // max(1, codes)))

    @property
    def name(self) -> str:
        return self._name

    def lower(self, settings: Settings) -> Lowered:
        """The integer program. Raises :class:`ModelError` for what cannot be lowered, :class:`UserError` for unknown layers."""
        if self._sequence is not None:
            program = lower_sequence(self._sequence, self._name, settings.context)
            if isinstance(program, Problem):
                raise problems_error(self._name, [program])
            capacity = program.tensors[program.states[0].tensor].high + 1
            return Lowered(program, [f"the caches of keys and values hold {capacity} tokens"])
        if self._loops is not None:
            program = lower_loops(self._loops, self._name)
            if isinstance(program, Problem):
                raise problems_error(self._name, [program])
            loops = [operation for operation in program.walk() if isinstance(operation, Loop)]
            return Lowered(program, [_loop_note(loop) for loop in loops])
        unknown = [layer for layer in settings.layers if layer not in self._weighted]
        if unknown:
            raise UserError(f"{self._name} has no layer {unknown[0]!r} with weights; its layers are {', '.join(self._weighted)}")
        self._samples.prefetch(self._wanted)
        correction = compensation = None
        if settings.bias_correction and self._correctable:
            run = SampleRun(samples=self._samples.first(self._count))
            correction = BiasCorrection(run=run, mean=self._mean)
            compensation = Compensation(run=run, outputs=self._outputs_of, known=self._known_weights) if settings.compensation else None
        grid = partial(self._samples.grid, method=settings.calibration_method, percentile=settings.percentile)
        builder = Builder(
            settings=settings, grid_of=grid, correction=correction, compensation=compensation, sampled=self._correctable,
            known_weights=self._known_weights,
        )  # fmt: skip
        done = execute(self._model, builder, self._name)
        if done.problems:
            raise problems_error(self._name, done.problems)
        program = _program(builder, done, self._name)
        for rewrite in PASSES:
            program = rewrite(program)
        return Lowered(program, [*builder.notes, *self._notes(settings, correction, compensation)], builder.weights)

    def _mean(self, value: str) -> np.ndarray:
        return self._samples.means(list(dict.fromkeys([*(name for name, _ in self._weighted.values()), value])), self._count)[value]

    def _outputs_of(self, value: str) -> np.ndarray:
        """A layer's outputs for the samples of bias correction; those of the layers behind it come along as far as memory allows."""
        if value not in self._outputs:
            sizes = dict(self._weighted.values())
            names = list(sizes)
            behind = names[names.index(value) :] if value in names else [value]
            kept = np.cumsum([self._count * sizes.get(name, 0) for name in behind])
            self._outputs = self._samples.outputs(behind[: max(1, int((kept <= _MOST_OUTPUTS).sum()))], self._count)
        return self._outputs[value]

    def _notes(self, settings: Settings, correction: BiasCorrection | None, compensation: Compensation | None) -> Iterator[str]:
        if self._wanted:
            method = settings.calibration_method + (f" {settings.percentile:g}" if settings.calibration_method == "percentile" else "")
            yield (
                f"{len(self._wanted)} tensor{'' if len(self._wanted) == 1 else 's'} without a quantiser got "
                f"{settings.activation_bits}-bit grids ({method}) from calibration samples: {', '.join(self._wanted)}"
            )
        if compensation is not None and compensation.layers:
            yield f"weights were rounded so that their errors cancel in the outputs over the calibration samples: {', '.join(compensation.layers)}"
        if correction is not None and correction.corrected:
            yield f"mean errors over the calibration samples were taken out of the biases of {', '.join(correction.corrected)}"


def lower(data: bytes, *, name: str, calibration: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Lowered:
    """Lower an ONNX file to an integer program: :class:`Lowering` with the :class:`Settings` of the keywords ``settings``.

    Raises :class:`ModelError` for a model that cannot be read or lowered, :class:`UserError` for wrong options or samples.
    """
    chosen = Settings(**settings)
    return Lowering(data, name=name, calibration=calibration).lower(chosen)


def check(data: bytes, *, name: str = "model") -> CheckReport:
    """Say whether a model can be lowered, and if not, every node that is in the way.

    The rules are those of :func:`lower`. Raises :class:`ModelError` for bytes that are no valid model.
    """
    proto, model = read_model(data, name)
    sequence, own_reader = is_sequence_model(proto), is_sequence_model(proto) or is_loop_model(proto)
    if own_reader:
        found = lower_sequence(proto, name, Settings().context) if sequence else lower_loops(proto, name)
        problems, wanted, weighted = ([found], [], {}) if isinstance(found, Problem) else ([], [], sequence_weights(found))
        program = None if isinstance(found, Problem) else found
    else:
        recognise(model)
        wanted, builder, done = _plan(model, name)
        problems, weighted = done.problems, builder.weights_seen
        program = None if problems else _program(builder, done, name)
    facts: dict[str, Any] = {
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "ir_version": proto.ir_version,
        # As the file states them: what was read may have been converted.
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in onnx.ModelProto.FromString(data).opset_import},
        "nodes": len(model.graph),
        "inputs": {str(value.name): _dimensions(value) for value in model.graph.inputs},
        "outputs": {str(value.name): _dimensions(value) for value in model.graph.outputs},
        "calibration_needed_for": wanted,
        "dialect": dialect_of(proto),
        "parameters": parameters_of(proto),
    }
    facts["operators"] = _operators(model, _places(program) if own_reader and program is not None else None)
    layers = [] if program is None else _layers(program)
    facts["macs"] = None if program is None else sum(layer["macs"] for layer in layers)
    facts["precision"] = precision_of(weighted, program)
    facts["runs"] = None if program is None else where_it_runs(program, layers)
    return CheckReport(not problems, problems, layers, facts)


def _plan(model: onnx_ir.Model, name: str) -> tuple[list[str], Builder, Execution]:
    """Execute without deriving anything; the first result names the values that need grids from calibration."""
    wanted: list[str] = []

    def request(value: str, bits: int) -> tuple[Fraction, int]:
        if value not in wanted:
            wanted.append(value)
        return Fraction(1), 0

    builder = Builder(settings=Settings(), grid_of=request, dry=True)
    done = execute(model, builder, name)
    if not done.problems and not builder.operations:
        value = model.graph.outputs[0]
        node = value.producer()
        done.problems.append(
            Problem(
                str(value.name) if node is None else node.name or str(value.name),
                "" if node is None else node.op_type,
                "there is nothing for the core to compute: the model only moves, quantises or changes its inputs element by element, which the host does",
                "add a layer (Conv, Gemm, MatMul, a pool, Add), or a quantiser behind the elementwise operators",
            )
        )
    return wanted, builder, done


def _loop_note(loop: Loop) -> str:
    ends = f", fewer where {loop.condition!r} becomes 0" if loop.condition else ""
    return f"loop {loop.name!r} makes {loop.limit} trips{ends}"


def _program(builder: Builder, done: Execution, name: str) -> Program:
    return Program(
        name=name, tensors=builder.tensors, operations=tuple(builder.operations), inputs=tuple(builder.inputs), outputs=tuple(done.outputs)
    )


def _dimensions(value: onnx_ir.Value) -> list[int | str]:
    return [] if value.shape is None else [size if isinstance(size, int) else str(size) for size in value.shape]


def _places(program: Program) -> list[str]:
    """Where a program that has a reader of its own runs: on a core if all of it does."""
    return [GOLDEN] if obstacles(program) else [CORE]


def _operators(model: onnx_ir.Model, places: list[str] | None) -> list[dict[str, Any]]:
    """The operators of a model by domain and name: how many nodes, and where they may run, by the table of operators unless ``places`` are given."""
    counts = Counter(operator_key(node) for node in model.graph)
    return [
        {
            "domain": domain,
            "operator": name,
            "nodes": count,
            "runs": places or (list(OPERATORS[domain, name].runs) if (domain, name) in OPERATORS else []),
        }
        for (domain, name), count in sorted(counts.items())
    ]


def _layers(program: Program) -> list[dict[str, Any]]:
    """What the host computes before the first codes, the operations, and what it computes behind the last."""

    def on_host(name: str, steps: tuple[HostOp, ...], shape: tuple[int, int, int]) -> list[dict[str, Any]]:
        return [
            {"name": name, "op": step.kind, "input": list(shape), "output": list(shape), "macs": 0, "runs": HOST}
            for step in steps
            if step.kind not in _CONVERSIONS and not step.attributes.get("head")
        ]

    tensors = program.tensors
    before = [layer for given in program.inputs for layer in on_host(given.name, given.prologue, tensors[given.tensor].shape)]
    after = [layer for result in program.outputs for layer in on_host(result.name, result.epilogue, tensors[result.tensor].shape)]
    return [*before, *(_layer(operation, program, trips) for operation, trips in _repeated(program.operations, 1)), *after]


def _repeated(operations: tuple[Operation, ...], trips: int) -> Iterator[tuple[Operation, int]]:
    """Every operation, those in the bodies of loops too, and how often it is computed at most."""
    for operation in operations:
        yield operation, trips
        yield from _repeated(operation.parts, trips * operation.limit if isinstance(operation, Loop) else trips)


def _layer(operation: Operation, program: Program, trips: int) -> dict[str, Any]:
    output = program.tensors[operation.output]
    macs = 0
    if isinstance(operation, Convolution):
        macs = int(np.prod(operation.weights.shape)) * output.shape[1] * output.shape[2] * trips
    shape = program.tensors[operation.inputs[0]].shape
    kind = "Dense" if isinstance(operation, Convolution) and operation.is_dense(shape) else type(operation).__name__
    # No core repeats the body of a loop.
    in_loop = all(operation is not other for other in program.operations)
    runs = GOLDEN if in_loop or (isinstance(operation, GoldenOperation) and operation.missing) else CORE
    return {"name": operation.name, "op": kind, "input": list(shape), "output": list(output.shape), "macs": macs, "runs": runs}
