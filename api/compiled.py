"""From a trained model to a compiled one: the integer program, its source, and a schedule for each board."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.boards import fit, get_board
from tritloom.compiler.frontend import Lowered, Lowering, Sizes, with_sizes
from tritloom.compiler.frontend.reader import parse_proto
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.image import Artefact, artefact_digest, decode_artefact, encode_artefact
from tritloom.compiler.ir.loop import has_loops
from tritloom.compiler.ir.program import Program
from tritloom.compiler.ir.vector import obstacles
from tritloom.compiler.quantize.calibration import DEFAULT_CALIBRATION, DEFAULT_PERCENTILE
from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.compiler.schedule import Schedule, schedule
from tritloom.errors import UserError
from tritloom.files import read_arrays, read_bytes, write_bytes
from tritloom.layers import read_layers

__all__ = ["DEFAULT_BOARD", "CompiledModel", "assemble", "compile", "open_model", "read_samples"]

DEFAULT_BOARD = "sim"
"""A core of fixed array whose memories are as large as the model needs: for simulation, on no real part."""

_ARTEFACT_MAGIC = b"PK\x03\x04"

Source = str | os.PathLike[str] | bytes
Calibration = str | os.PathLike[str] | Mapping[str, np.ndarray]
Layers = str | os.PathLike[str] | Mapping[str, WeightChoice]


class CompiledModel:
    """A compiled model: what a ``.loom`` file holds, with schedules for further boards made when they are asked for.

    Parameters
    ----------
    artefact
        Source model, integer program and stored schedules.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self._schedules: dict[str, Schedule] = dict(artefact.schedules)

    @classmethod
    def load(cls, source: Source) -> "CompiledModel":
        """Read a ``.loom`` file, or its bytes. Raises :class:`UserError` or :class:`ModelError`."""
        if isinstance(source, bytes):
            return cls(decode_artefact(source, "compiled model"))
        return cls(decode_artefact(read_bytes(source, "compiled model"), os.fspath(source)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.loom`` file, whole or not at all; the same model gives the same bytes."""
        write_bytes(path, encode_artefact(self._artefact))

    @property
    def artefact(self) -> Artefact:
        return self._artefact

    @property
    def program(self) -> Program:
        return self._artefact.program

    @property
    def source(self) -> bytes:
        """The ONNX model that this was compiled from."""
        return self._artefact.source

    @cached_property
    def unread_inputs(self) -> dict[str, tuple[int, ...]]:
        """Inputs that the model declares although no layer reads them: the shape of a sample by name, unknown sizes as 1."""
        graph = parse_proto(self.source, "the ONNX model inside the compiled one").graph
        known = {spec.name for spec in self.program.inputs} | {tensor.name for tensor in graph.initializer}
        return {
            value.name: tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim[1:])
            for value in graph.input
            if value.name not in known
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What the compiler chose, one sentence each."""
        return tuple(self._artefact.settings.get("notes", ()))

    @property
    def boards(self) -> tuple[str, ...]:
        """Boards whose schedules are stored."""
        return tuple(self._artefact.schedules)

    @property
    def digest(self) -> str:
        """Digest of everything in the file, 16 hexadecimal digits; a loaded core reports it."""
        return artefact_digest(self._artefact).hex()

    @cached_property
    def golden_only(self) -> tuple[str, ...]:
        """One sentence for each layer that no core can run yet, so that there is no schedule; empty for a model that cores run."""
        return obstacles(self.program)

    def schedule(self, board: str = DEFAULT_BOARD) -> Schedule:
        """The schedule for ``board``, made if it is not stored.

        Raises :class:`UserError`, or :class:`ModelError` when nothing fits or a layer runs in golden only.
        """
        found = get_board(board)
        if found.name not in self._schedules:
            self._schedules[found.name] = schedule(self.program, fit(found, self.program))
        return self._schedules[found.name]

    def with_schedule(self, board: str, made: Schedule | None = None) -> "CompiledModel":
        """The same model with the schedule of ``board`` stored; ``made`` replaces the default one."""
        name = get_board(board).name
        chosen = self.schedule(name) if made is None else made
        return CompiledModel(replace(self._artefact, schedules={**self._artefact.schedules, name: chosen}))


_SCHEDULED_LATER = "a program with states or loops is scheduled when it runs"


def compile(
    model: Source,
    *,
    board: str = DEFAULT_BOARD,
    calibration: Calibration | None = None,
    method: str = "auto",
    planes: int | None = None,
    activation_bits: int = 8,
    layers: Layers | None = None,
    calibration_method: str = DEFAULT_CALIBRATION,
    percentile: float = DEFAULT_PERCENTILE,
    bias_correction: bool = True,
    compensation: bool = True,
    name: str | None = None,
    shapes: Sizes | None = None,
    context: int | None = None,
) -> CompiledModel:
    """Lower an ONNX model to ternary integers and schedule it for a board.

    Parameters
    ----------
    model
        Path or bytes of an ONNX model.
    board
        Whose core to schedule for; the default is the simulated core.
    calibration
        Samples of the inputs, by name and with a batch axis, or the path of an ``.npz`` file of them. Needed when the model
        does not quantise its own activations.
    method, planes
        How float weights become digits (:data:`METHODS`) and how many digit planes they may take.
    activation_bits
        Width of activations that the model itself does not quantise, 2 to 8.
    layers
        Other methods and planes for single layers: :class:`WeightChoice` by the name of the node, or the path of a TOML file of them.
    calibration_method, percentile
        How the grids of these activations follow from the samples, see :func:`tritloom.compiler.quantize.calibration.choose_grid`.
    bias_correction
        Whether the mean error that ternarised weights make over the samples is folded into the bias of each output channel.
    compensation
        Whether, with bias correction, the codes of a layer's float weights are chosen together so that its outputs over the samples come close to the float
        model's; else each weight gets its nearest code. For methods ``auto`` and ``planes``.
    name
        Name of the program; by default the file's name without its extension.
    shapes
        Sizes of inputs to declare anew, by input name, first axis the batch (a name there leaves it free): see
        :func:`tritloom.compiler.frontend.with_sizes`. The model with these sizes is what is stored and compared with.
    context
        Tokens that the caches of a language model hold; by default 192, or as many as its tables of angles have.

    A model with a layer that no core can run yet (:attr:`CompiledModel.golden_only`) has no schedule and runs in golden.
    Raises :class:`UserError` for a wrong argument and :class:`ModelError` for a model that cannot be lowered or scheduled.
    """
    found = get_board(board)
    if not 2 <= activation_bits <= 8:
        raise UserError(f"activation_bits must be from 2 to 8, not {activation_bits}")
    choice = WeightChoice(method=method, planes=planes)
    settings = Settings(
        method=choice.method,
        planes=choice.planes,
        layers=layers if isinstance(layers, Mapping) else {} if layers is None else read_layers(layers),
        activation_bits=activation_bits,
        calibration_method=calibration_method,
        percentile=percentile,
        bias_correction=bias_correction,
        context=context,
        compensation=compensation,
    )
    data = model if isinstance(model, bytes) else read_bytes(model, "model")
    title = name or ("model" if isinstance(model, bytes) else Path(model).stem)
    if shapes:
        data = with_sizes(data, shapes, title)
    samples = read_samples(calibration)
    lowered = Lowering(data, name=title, calibration=samples).lower(settings)
    compiled = assemble(data, lowered, settings, samples)
    if not compiled.golden_only and not compiled.program.states and not has_loops(compiled.program):
        return compiled.with_schedule(found.name)
    reason = compiled.golden_only[0] if compiled.golden_only else _SCHEDULED_LATER
    artefact = compiled.artefact
    return CompiledModel(replace(artefact, settings={**artefact.settings, "unscheduled": reason}))


def read_samples(calibration: Calibration | None) -> Mapping[str, np.ndarray] | None:
    """Calibration samples by input name from a mapping or a file."""
    return calibration if calibration is None or isinstance(calibration, Mapping) else read_arrays(calibration, "calibration file")


def assemble(source: bytes, lowered: Lowered, settings: Settings, samples: Mapping[str, np.ndarray] | None) -> CompiledModel:
    """The compiled model of a lowered one, without a schedule; settings and the digest of the samples are recorded."""
    recorded = {
        **asdict(settings),
        "layers": {layer: asdict(choice) for layer, choice in settings.layers.items()},
        "calibration": None if samples is None else _digest_of(samples),
        "notes": list(lowered.notes),
    }
    return CompiledModel(Artefact(source=source, program=lowered.program, schedules={}, settings=recorded))


def open_model(
    model: "CompiledModel | Source", *, calibration: Calibration | None = None, shapes: Sizes | None = None, **options: Any
) -> CompiledModel:
    """A compiled model from itself, a ``.loom`` file, an ONNX model, or the bytes of either.

    An ONNX model is compiled; ``options`` are further keywords of :func:`compile`, which a compiled model has behind it.
    ``shapes`` is for ONNX models only: :class:`UserError` where the sizes are fixed already.
    """
    data = None if isinstance(model, CompiledModel) else model if isinstance(model, bytes) else read_bytes(model, "model")
    stored = (
        data is None or data.startswith(_ARTEFACT_MAGIC) or (not isinstance(model, bytes | CompiledModel) and Path(model).suffix == ".loom")
    )
    if stored and shapes:
        raise UserError("--shape is for ONNX models: the sizes of a compiled model are fixed; compile its ONNX model again with --shape")
    if isinstance(model, CompiledModel):
        return model
    if stored:
        return CompiledModel.load(model)
    return compile(model, calibration=calibration, shapes=shapes, **options)


def _digest_of(samples: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and values of the calibration samples: ranges are recorded inputs."""
    digest = hashlib.sha256()
    for name in sorted(samples):
        array = np.ascontiguousarray(samples[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
