"""One interface over everything that can run an integer program: golden, the core's gateware, its netlist, a bitstream.

A backend never falls back to another one: what is missing is an error that names the command to install it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from tritloom.boards import get_board
from tritloom.boards.host import Host
from tritloom.compiler import golden
from tritloom.compiler.golden import Stream
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule
from tritloom.errors import UserError
from tritloom.sim.stream import CoreStream

__all__ = ["BACKENDS", "Backend", "CoreBackend", "GoldenBackend", "open_backend"]

Codes = Mapping[str, np.ndarray]
Progress = Callable[[str], None]


class Backend(ABC):
    """Runs batches of integer codes: tensor name -> int array (N, C, H, W)."""

    name: str
    details: str = ""
    """What exactly computes, where that is more than the name says: for reports."""

    @abstractmethod
    def run(self, codes: Codes) -> tuple[dict[str, np.ndarray], int | None]:
        """Output tensors (N, C, H, W) and the core's clocks from start to done, summed over the batch; ``None`` where no core runs the program."""

    @abstractmethod
    def trace(self, codes: Codes) -> dict[str, np.ndarray]:
        """Every integer tensor (N, C, H, W), inputs included; of one sample also what loops write in each trip, (trips, C, H, W)."""

    @abstractmethod
    def trips(self, codes: Codes, loop: str) -> Iterator[dict[str, np.ndarray]]:
        """Outputs and their scales, (1, C, H, W), of one sample behind each trip of the outer loop of this name."""

    @abstractmethod
    def stream(self) -> Stream | CoreStream:
        """A sequence of a program with states, from empty states; one at a time."""

    @abstractmethod
    def close(self) -> None:
        """Release what the backend holds; it is not used again."""

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GoldenBackend(Backend):
    """The definition of every integer. Its clocks are what the schedule says; there are none without one."""

    name = "golden"

    def __init__(self, program: Program, schedule: Schedule | None) -> None:
        self._program, self._schedule = program, schedule

    def run(self, codes: Codes) -> tuple[dict[str, np.ndarray], int | None]:
        samples = _samples(self._program, codes)
        cycles = None if self._schedule is None else samples * self._schedule.cycles
        return golden.run(self._program, dict(codes), keep=_output_tensors(self._program)), cycles

    def trace(self, codes: Codes) -> dict[str, np.ndarray]:
        if _samples(self._program, codes) == 1:
            return golden.trace(self._program, dict(codes))
        return golden.run(self._program, dict(codes))

    def trips(self, codes: Codes, loop: str) -> Iterator[dict[str, np.ndarray]]:
        """Each trip is computed from the first one anew."""
        program = self._program
        outer = next(part for part in program.operations if part.name == loop)
        assert isinstance(outer, Loop)
        for number in range(1, outer.limit + 1):
            operations = tuple(replace(part, limit=number) if part is outer else part for part in program.operations)
            tensors = golden.run(replace(program, operations=operations), dict(codes), keep=[*_output_tensors(program), outer.output])
            if tensors[outer.output].item() < number:
                return
            yield tensors

    def stream(self) -> Stream | CoreStream:
        return Stream(self._program)

    def close(self) -> None:
        """Nothing is held."""


class CoreBackend(Backend):
    """A real core behind a :class:`Host`: simulated, or on a board.

    Parameters
    ----------
    name
        For reports.
    host
        Driver of a core on which ``schedule`` is loaded.
    program, schedule
        What runs on it.
    details
        What exactly computes, for reports.
    progress
        Called with a few words now and then during long batches.
    """

    def __init__(
        self, name: str, host: Host, program: Program, schedule: Schedule, *, details: str = "", progress: Progress | None = None
    ) -> None:
        self.name, self.details = name, details
        self._host, self._program, self._schedule = host, program, schedule
        self._progress = progress or (lambda message: None)

    def run(self, codes: Codes) -> tuple[dict[str, np.ndarray], int | None]:
        samples = _samples(self._program, codes)
        names = _output_tensors(self._program)
        parts, cycles = [], 0
        for index in range(samples):
            outputs, taken = self._host.infer(self._schedule, self._inputs(codes, index), names)
            parts.append({name: values[None] for name, values in outputs.items()})
            cycles += taken
            self._tell(index, samples)
        return _joined(parts), cycles

    def trace(self, codes: Codes) -> dict[str, np.ndarray]:
        samples = _samples(self._program, codes)
        parts = []
        for index in range(samples):
            tensors, _ = self._host.trace(self._schedule, self._program, self._inputs(codes, index))
            parts.append({name: values if values.ndim == 4 else values[None] for name, values in tensors.items()})
            self._tell(index, samples)
        return _joined(parts)

    def trips(self, codes: Codes, loop: str) -> Iterator[dict[str, np.ndarray]]:
        _samples(self._program, codes)
        for tensors in self._host.trips(self._schedule, self._inputs(codes, 0), loop, _output_tensors(self._program)):
            yield {name: values[None] for name, values in tensors.items()}

    def stream(self) -> Stream | CoreStream:
        return CoreStream(self._host, self._program, self._schedule)

    def close(self) -> None:
        self._host.close()

    def _inputs(self, codes: Codes, index: int) -> dict[str, np.ndarray]:
        return {spec.tensor: codes[spec.tensor][index] for spec in self._program.inputs}

    def _tell(self, index: int, samples: int) -> None:
        if (index + 1) % 16 == 0 or index + 1 == samples:
            self._progress(f"{self.name}: {index + 1} of {samples} samples")


def _open_golden(program: Program, schedule: Schedule, board: str, digest: bytes, progress: Progress | None) -> Backend:
    return GoldenBackend(program, schedule)


def _open_verilator(program: Program, schedule: Schedule, board: str, digest: bytes, progress: Progress | None) -> Backend:
    from tritloom.sim.verilator import VerilatorCore

    host = Host(VerilatorCore(schedule.parameters, progress=progress))
    host.load(schedule, digest)
    return CoreBackend("verilator", host, program, schedule, progress=progress)


def _open_amaranth(program: Program, schedule: Schedule, board: str, digest: bytes, progress: Progress | None) -> Backend:
    from tritloom.sim.amaranth import AmaranthCore, contents_of

    host = Host(AmaranthCore(schedule.parameters, contents=contents_of(schedule)))
    return CoreBackend("amaranth", host, program, schedule, progress=progress)


def _open_netlist(program: Program, schedule: Schedule, board: str, digest: bytes, progress: Progress | None) -> Backend:
    from tritloom.sim.netlist import NetlistCore

    core = NetlistCore(get_board(board), schedule.parameters, progress=progress)
    host = Host(core)
    host.load(schedule, digest)
    return CoreBackend("netlist", host, program, schedule, details=str(core.netlist), progress=progress)


def _open_bitstream(program: Program, schedule: Schedule, board: str, digest: bytes, progress: Progress | None) -> Backend:
    from tritloom.sim.bitstream import BitstreamCore

    core = BitstreamCore(get_board(board), schedule.parameters, progress=progress)
    host = Host(core)
    host.load(schedule, digest)
    return CoreBackend("bitstream", host, program, schedule, details=str(core.unpacked), progress=progress)


BACKENDS: dict[str, Callable[[Program, Schedule, str, bytes, Progress | None], Backend]] = {
    "golden": _open_golden,
    "verilator": _open_verilator,
    "amaranth": _open_amaranth,
    "netlist": _open_netlist,
    "bitstream": _open_bitstream,
}


def open_backend(
    name: str,
    program: Program,
    schedule: Schedule | None,
    *,
    board: str = "sim",
    progress: Progress | None = None,
    digest: bytes = bytes(8),
) -> Backend:
    """A backend by name, with ``program`` loaded.

    ``board`` names the board that a netlist or a bitstream is made for; ``digest`` is the artefact's, 8 bytes. Only golden does without a
    ``schedule``. Raises :class:`UserError` for an unknown name, a missing schedule or a board without an FPGA, :class:`MissingToolError` and :class:`BuildError` from yosys and Verilator.
    """
    if name not in BACKENDS:
        close = get_close_matches(name, BACKENDS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BACKENDS)}"
        raise UserError(f"there is no provider {name!r}: {hint}")
    if schedule is None:
        if name != "golden":
            raise UserError(f"model {program.name!r} has no schedule, so that {name} cannot run it; use golden")
        return GoldenBackend(program, None)
    return BACKENDS[name](program, schedule, board, digest, progress)


def _output_tensors(program: Program) -> list[str]:
    """Outputs and their scales."""
    return list(dict.fromkeys(name for spec in program.outputs for name in (spec.tensor, spec.scale_tensor) if name))


def _samples(program: Program, codes: Codes) -> int:
    """Batch size. Raises :class:`UserError` when the arrays are not what the program's inputs need."""
    sizes = {}
    for spec in program.inputs:
        tensor = program.tensors[spec.tensor]
        if spec.tensor not in codes:
            raise UserError(f"codes for the input tensor {spec.tensor!r} are missing")
        shape = np.shape(codes[spec.tensor])
        if len(shape) != 4 or shape[1:] != tensor.shape:
            raise UserError(f"codes for {spec.tensor!r} must have the shape (samples, {', '.join(map(str, tensor.shape))}), not {shape}")
        sizes[spec.tensor] = shape[0]
    if len(set(sizes.values())) > 1:
        raise UserError(f"all inputs must have the same number of samples, not {sizes}")
    samples = next(iter(sizes.values()), 0)
    if samples == 0:
        raise UserError("there must be at least one sample")
    return samples


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
