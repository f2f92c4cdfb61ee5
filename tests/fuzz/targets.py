"""What is called with each damaged file. Nothing but tritloom's own errors may come out of :func:`run`, each one sentence."""

import contextlib
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx

from tritloom.compiled import CompiledModel
from tritloom.compiler import golden
from tritloom.compiler.frontend import check, lower, with_sizes
from tritloom.compiler.image import Artefact, decode_artefact, encode_artefact
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.errors import TritloomError
from tritloom.files import read_arrays
from tritloom.session import InferenceSession

__all__ = ["Finding", "run"]

_LARGEST_SAMPLES = 1 << 16
_LARGEST_RUN = 1 << 20
_MOST_TRIPS = 64


class Finding(Exception):
    """An error of tritloom's own that does not keep its form."""


def run(target: str, data: bytes) -> str:
    """``accepted`` or ``refused``. Whatever else comes out is a defect."""
    try:
        {"onnx": lambda: _onnx(data), "loom": lambda: _loom(data), "npz": lambda: _npz(data)}[target]()
    except TritloomError as error:
        text = str(error)
        if not text or "\n" in text or "\r" in text or len(text) > 4000:
            raise Finding(f"an error that is not one sentence: {text[:300]!r}") from error
        return "refused"
    return "accepted"


def _onnx(data: bytes) -> None:
    """Check, declare sizes anew, lower with samples, schedule, write and read the artefact."""
    report = check(data, name="net")
    samples = _samples(data)
    if all(array.ndim > 1 for array in samples.values()):
        try:
            check(
                with_sizes(data, {name: (2, *(size + 1 for size in array.shape[1:])) for name, array in samples.items()}, "net"), name="net"
            )
        except TritloomError:
            pass
    lowered = lower(data, name="net", calibration=samples if report.facts["calibration_needed_for"] else None, planes=2)
    if not report.supported:
        raise Finding("check refuses what lower accepts")
    program = lowered.program
    if obstacles(program) or program.states:
        if program.states:
            with contextlib.suppress(TritloomError):
                schedule(program, sim_parameters(program))
        stored = encode_artefact(Artefact(source=data, program=program, schedules={}, settings={"unscheduled": "golden only"}))
    else:
        plan = schedule(program, sim_parameters(program))
        stored = encode_artefact(Artefact(source=data, program=program, schedules={"sim": plan}))
    try:
        decode_artefact(stored, "net.loom")
    except TritloomError as error:
        raise Finding(f"the compiler writes what its own reader refuses: {error}") from error
    _compute(stored)


def _samples(data: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name for tensor in graph.initializer}
    samples = {}
    for value in graph.input:
        shape = [4, *(max(axis.dim_value, 1) for axis in value.type.tensor_type.shape.dim[1:])]
        if value.name not in constants and math.prod(shape) <= _LARGEST_SAMPLES:
            samples[value.name] = np.random.default_rng(0).normal(size=shape)
    return samples


def _loom(data: bytes) -> None:
    """Read, run two samples in golden, write again."""
    model = CompiledModel.load(data)
    _compute(data)
    if encode_artefact(model.artefact) != data:
        encode_artefact(decode_artefact(encode_artefact(model.artefact), "again"))


def _compute(data: bytes) -> None:
    """Golden on two samples of small models: what ``run`` and ``verify`` do with the file."""
    model = CompiledModel.load(data)
    if sum(tensor.elements for tensor in model.program.tensors.values()) > _LARGEST_RUN:
        return
    if model.program.states:
        (given,) = model.program.inputs
        InferenceSession(model).run(None, {given.name: np.zeros((2, 3), np.int64)})
        return
    if math.prod(operation.limit for operation in model.program.walk() if isinstance(operation, Loop)) > _MOST_TRIPS:
        return
    if not model.golden_only and model.schedule().macs > _LARGEST_RUN:
        return
    feeds = golden.random_feeds(model.program, 2, seed=0)
    InferenceSession(model).run(None, feeds)


def _npz(data: bytes) -> None:
    handle, name = tempfile.mkstemp(suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        for array in read_arrays(name, "input file").values():
            assert not array.dtype.hasobject
    finally:
        Path(name).unlink()
