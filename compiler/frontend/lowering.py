"""The two things the front end does: lower a model to an integer program, and check whether that is possible."""

from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir

from tritloom.compiler.frontend.builder import Builder, Settings
from tritloom.compiler.frontend.calibrate import Calibration
from tritloom.compiler.frontend.execution import Execution, execute
from tritloom.compiler.frontend.problems import CheckReport, Lowered, Problem, problems_error
from tritloom.compiler.frontend.reader import read_model
from tritloom.compiler.ir.program import Convolution, Operation, Program
from tritloom.compiler.passes import PASSES

__all__ = ["check", "lower"]


def lower(
    data: bytes,
    *,
    name: str,
    calibration: dict[str, np.ndarray] | None = None,
    method: str = "auto",
    planes: int | None = None,
    activation_bits: int = 8,
) -> Lowered:
    """Lower an ONNX file to an integer program.

    Parameters
    ----------
    data
        The file's bytes.
    name
        Name of the program, used in messages.
    calibration
        Sample inputs by name, first axis the samples: needed where the model states no quantiser.
    method, planes
        How float weights become digit planes, see :func:`tritloom.compiler.quantize.weights.lower_weights`.
    activation_bits
        Width of calibrated activations, 2 to 8.

    Raises :class:`ModelError` for a model that cannot be read or lowered, :class:`UserError` for wrong options or samples.
    """
    settings = Settings(method=method, planes=planes, activation_bits=activation_bits)
    proto, model = read_model(data, name)
    wanted, _, plan = _plan(model, name)
    if plan.problems:
        raise problems_error(name, plan.problems)
    samples = Calibration(model=proto, name=name, samples=calibration)
    if wanted and calibration is None:
        samples.grid(wanted[0], settings.activation_bits)
    samples.prefetch(wanted)
    builder = Builder(settings=settings, grid_of=samples.grid, sampled=calibration is not None)
    done = execute(model, builder, name)
    if done.problems:
        raise problems_error(name, done.problems)
    program = _program(builder, done, name)
    for rewrite in PASSES:
        program = rewrite(program)
    notes = list(builder.notes)
    if wanted:
        notes.append(
            f"{len(wanted)} tensor{'' if len(wanted) == 1 else 's'} without a quantiser got {activation_bits}-bit grids from calibration samples: {', '.join(wanted)}"
        )
    return Lowered(program, notes)


def check(data: bytes, *, name: str = "model") -> CheckReport:
    """Say whether a model can be lowered, and if not, every node that is in the way.

    The rules are those of :func:`lower`. Raises :class:`ModelError` for bytes that are no valid model.
    """
    proto, model = read_model(data, name)
    wanted, builder, done = _plan(model, name)
    problems = done.problems
    facts: dict[str, Any] = {
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "ir_version": proto.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "nodes": len(model.graph),
        "inputs": {str(value.name): _dimensions(value) for value in model.graph.inputs},
        "outputs": {str(value.name): _dimensions(value) for value in model.graph.outputs},
        "calibration_needed_for": wanted,
    }
    layers = [] if problems else [_layer(operation, _program(builder, done, name)) for operation in builder.operations]
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


def _program(builder: Builder, done: Execution, name: str) -> Program:
    return Program(
        name=name, tensors=builder.tensors, operations=tuple(builder.operations), inputs=tuple(builder.inputs), outputs=tuple(done.outputs)
    )


def _dimensions(value: onnx_ir.Value) -> list[int | str]:
    return [] if value.shape is None else [size if isinstance(size, int) else str(size) for size in value.shape]


def _layer(operation: Operation, program: Program) -> dict[str, Any]:
    output = program.tensors[operation.output]
    macs = 0
    if isinstance(operation, Convolution):
        macs = int(np.prod(operation.weights.shape)) * output.shape[1] * output.shape[2]
    shape = program.tensors[operation.inputs[0]].shape
    kind = "Dense" if isinstance(operation, Convolution) and operation.is_dense(shape) else type(operation).__name__
    return {"name": operation.name, "op": kind, "input": list(shape), "output": list(output.shape), "macs": macs}
