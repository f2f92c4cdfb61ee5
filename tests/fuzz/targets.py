"""What is called with each damaged file. Nothing but tritloom's own errors may come out of :func:`run`, each one sentence."""

import contextlib
import hashlib
import io
import math
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import typer

from tritloom.boards import BOARDS
from tritloom.cli.check import check as check_verb
from tritloom.compiled import CompiledModel, compile
from tritloom.compiler import golden
from tritloom.compiler.frontend import CheckReport, check
from tritloom.compiler.image import decode_artefact, encode_artefact
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.quantize.calibration import CALIBRATION_METHODS
from tritloom.compiler.quantize.weights import MAX_PLANES, METHODS, WeightChoice
from tritloom.errors import TritloomError
from tritloom.files import read_arrays
from tritloom.layers import format_layers, read_layers
from tritloom.models.train.settings import read_settings
from tritloom.planes import choose_planes
from tritloom.report.exactness import exactness
from tritloom.session import InferenceSession
from tritloom.sim.witness import uses_custom_operators
from tritloom.verification import verify

__all__ = ["Finding", "chosen_settings", "run"]

_LARGEST_SAMPLES = 1 << 16
_LARGEST_RUN = 1 << 20
_MOST_TRIPS = 64
_STRANGE = 0.15
"""How often calibration samples are such as nobody should give."""


class Finding(Exception):
    """An error of tritloom's own that does not keep its form."""


def run(target: str, data: bytes) -> str:
    """``accepted`` or ``refused``. Whatever else comes out is a defect."""
    with _refusable() as refusals:
        {"onnx": _onnx, "loom": _loom, "npz": _npz, "toml": _toml}[target](data)
    return "refused" if refusals else "accepted"


@contextlib.contextmanager
def _refusable() -> Iterator[list[str]]:
    """What may end in an error of tritloom's own, which must be one sentence; it is in the list then."""
    refusals: list[str] = []
    try:
        yield refusals
    except TritloomError as error:
        text = str(error)
        if not text or "\n" in text or "\r" in text or len(text) > 4000:
            raise Finding(f"an error that is not one sentence: {text[:300]!r}") from error
        refusals.append(text)


def chosen_settings(data: bytes, layers: list[str]) -> dict[str, Any]:
    """Keywords of :func:`tritloom.compile` for a model with the weighted layers ``layers``; they depend on the bytes alone."""
    rng = random.Random(hashlib.sha256(data).digest())
    often = rng.random() < 0.5
    settings: dict[str, Any] = {
        "board": "sim" if rng.random() < 0.7 else rng.choice(sorted(BOARDS)),
        "planes": rng.choice((None, 1, 2, 3, MAX_PLANES)),
        "compensation": often or rng.random() < 0.5,
        "bias_correction": often or rng.random() < 0.5,
        "activation_bits": 8 if often else rng.randrange(2, 9),
        "calibration_method": rng.choice(CALIBRATION_METHODS),
        "percentile": rng.choice((50.001, 90.0, 99.99, 100.0)),
        "context": rng.choice((None, None, 3, 12, 4096)),
    }
    settings["method"] = rng.choice(("auto", "planes") if often or settings["planes"] not in (None, 1) else METHODS)
    if layers and rng.random() < 0.3:
        settings["layers"] = {rng.choice(layers): rng.choice((WeightChoice(method="twn"), WeightChoice(method="planes", planes=4)))}
    return settings


def _onnx(data: bytes) -> None:
    """Check, compile with other sizes and with samples, write and read the artefact, run it and compare it with ONNX Runtime."""
    rng = random.Random(hashlib.sha256(data).digest())
    report = check(data, name="net")
    if rng.random() < 0.25:
        _shown(data, report)
    samples = _samples(data)
    if rng.random() < _STRANGE:
        samples = _strange(samples, rng)
    settings = chosen_settings(data, [row["layer"] for row in report.facts["precision"]])
    wanted = bool(report.facts["calibration_needed_for"])
    settings |= {"name": "net", "calibration": samples if wanted or rng.random() < 0.3 else None}
    if all(array.ndim > 1 for array in samples.values()):
        grown = {name: (rng.choice((1, 2, "N")), *(size + 1 for size in array.shape[1:])) for name, array in samples.items()}
        with _refusable():
            if rng.random() < 0.2:
                compile(data, shapes=grown, **{**settings, "calibration": None})
    if wanted and rng.random() < 0.03:
        _searched(data, samples, rng)
    model = compile(data, **settings)
    if not report.supported:
        raise Finding("check refuses what compile accepts")
    if model.program.states:
        with _refusable():
            model.schedule()
    exactness(model.program)
    stored = encode_artefact(model.artefact)
    try:
        decode_artefact(stored, "net.loom")
    except TritloomError as error:
        raise Finding(f"the compiler writes what its own reader refuses: {error}") from error
    _compute(stored, witness=rng.random() < 0.25)


def _shown(data: bytes, report: CheckReport) -> None:
    """What ``check`` prints, in text and in JSON."""
    with _stored(data, ".onnx") as path, contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            check_verb(path, shape=None, json=True, verbose=1, quiet=0)
        except typer.Exit as end:
            if report.supported:
                raise Finding(f"check ends with exit code {end.exit_code} for a model that is supported") from end


def _searched(data: bytes, samples: dict[str, np.ndarray], rng: random.Random) -> None:
    """``--planes auto``; no classes, wrong ones and models of another kind are refused."""
    count = len(next(iter(samples.values()), ()))
    labels = np.array([rng.randrange(-1 if rng.random() < 0.1 else 0, 3) for _ in range(count)], np.int64)
    with _refusable():
        choose_planes(data, name="net", calibration=samples, labels=labels, max_loss=rng.choice((0.0, 0.5, 0.99)))


def _samples(data: bytes) -> dict[str, np.ndarray]:
    """Calibration samples for every input that is not large."""
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name for tensor in graph.initializer}
    samples = {}
    for value in graph.input:
        shape = [4, *(max(axis.dim_value, 1) for axis in value.type.tensor_type.shape.dim[1:])]
        if value.name not in constants and math.prod(shape) <= _LARGEST_SAMPLES:
            samples[value.name] = np.random.default_rng(0).normal(size=shape)
    return samples


def _strange(samples: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """Samples such as nobody should give: of other types and sizes, huge, none at all."""
    made = {}
    for name, array in samples.items():
        array = array[: rng.choice((0, 1, 4))] * rng.choice((0.0, 1.0, 1e-40, 1e30, 1e300, math.inf, math.nan))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            array = array.astype(rng.choice((np.float32, np.float64, np.int8, np.bool_, np.complex64)))
        made[name] = array if rng.random() < 0.7 else array[..., : rng.randrange(2)]
    return made


def _loom(data: bytes) -> None:
    """Read, run two samples in golden, write again."""
    model = CompiledModel.load(data)
    _compute(data)
    if encode_artefact(model.artefact) != data:
        encode_artefact(decode_artefact(encode_artefact(model.artefact), "again"))


def _toml(data: bytes) -> None:
    """Layers of ``compile``, which are written and read again, or else settings of ``train``."""
    with _stored(data, ".toml") as path:
        layers = None
        with _refusable():
            layers = read_layers(path)
    if layers is None:
        read_settings(data.decode("utf-8", "replace"), "the settings file", {})
        return
    with _stored(format_layers(layers).encode(), ".toml") as path:
        if read_layers(path) != layers:
            raise Finding("the layers that are written are not those that are read again")


def _compute(data: bytes, *, witness: bool = False) -> None:
    """Golden on two samples of small models: what ``run`` and, with ``witness``, ``verify`` do with the file."""
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
    # The qonnx executor takes seconds where it looks for shapes, and is not ours.
    if witness and not uses_custom_operators(onnx.load_from_string(model.source)):
        with _refusable():
            verify(model, on=["golden"], samples=2)


def _npz(data: bytes) -> None:
    with _stored(data, ".npz") as path:
        for array in read_arrays(path, "input file").values():
            assert not array.dtype.hasobject


@contextlib.contextmanager
def _stored(data: bytes, suffix: str) -> Iterator[Path]:
    """A file of these bytes for as long as it is needed."""
    handle, name = tempfile.mkstemp(suffix=suffix)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        yield Path(name)
    finally:
        Path(name).unlink()
