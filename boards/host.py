"""The host's side of the link: load a program, run it, read results, stop after any instruction.

The same driver speaks to a board over a serial port, to the Verilator library and to Amaranth's simulator: they differ only in
their :class:`Transport`. Frames and opcodes: :mod:`tritloom.hw.arch.link`.

One request is outstanding at a time. A request that gets no undamaged answer is sent again, except START: a core that has run
twice may have overwritten its own inputs, so the whole inference is repeated instead. No call waits for ever.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

import numpy as np

from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule, tensor_from_bytes, tensor_to_bytes
from tritloom.errors import LinkError, MissingToolError
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import END, ERROR_OPCODE, MAX_DATA, REPLY, ErrorCode, Fault, Frame, FrameReader, LinkOpcode, Space, State, encode

__all__ = ["Host", "SerialTransport", "Status", "Transport", "has_whole_frame"]

_Result = TypeVar("_Result")

_ATTEMPTS = 4
"""Times that a request is sent before the link counts as broken."""

_RUNS = 8
"""Times that a whole inference is begun; only one whose START got no answer is begun again."""

_WRITE_HEADER_BYTES = 5
"""Space and address in front of the data of a WRITE."""

_PATIENCE = 64
"""STATUS polls of a running core, each after a quarter of the expected time, before it counts as stuck."""

LARGEST_LIMIT = (1 << 16) - 1
"""Instructions after which START can stop."""

_WORD_BYTES = {Space.PROGRAM: PROGRAM_WORD_BYTES, Space.ACTIVATIONS: 1, Space.ARTEFACT: 8}
"""Bytes of a word of the spaces that are the same on every core."""
_DAMAGED = (ErrorCode.CRC, ErrorCode.LENGTH, ErrorCode.OVERRUN)


class Transport(Protocol):
    """A byte pipe to a core."""

    def exchange(self, data: bytes, *, timeout: float) -> bytes:
        """Send ``data``, then return the bytes that the core sent, as soon as they hold a whole frame.

        ``timeout`` is in seconds. A simulated core counts clocks instead and returns when it could have answered long ago.
        Whatever has arrived by then is returned, possibly nothing. Bytes that come later are returned by the next call.
        """
        ...

    def pause(self, clocks: int) -> None:
        """Let about ``clocks`` clocks of the core pass: a simulator advances, a board is waited for."""
        ...

    def close(self) -> None:
        """Release the port or the simulator; a closed transport is not used again."""
        ...


class _LostReply(LinkError):
    """No undamaged answer: the request may or may not have been carried out."""


def has_whole_frame(data: bytes | bytearray) -> bool:
    """Whether a frame with a body ends in ``data``: an END with something other than END in front of it, after an earlier END."""
    start = data.find(END)
    while start >= 0:
        stop = data.find(END, start + 1)
        if stop > start + 1:
            return True
        start = stop
    return False


@dataclass(frozen=True)
class Status:
    """Answer to STATUS: what the core does, why it stopped, program word, clocks spent in state RUNNING."""

    state: State
    fault: Fault
    pc: int
    cycles: int


class Host:
    """Driver of one core.

    Parameters
    ----------
    transport
        Where the frames go.
    timeout
        Seconds to wait for the answer to one frame (a frame of the largest size takes 0.1 s at 115 200 baud).
    """

    def __init__(self, transport: Transport, *, timeout: float = 2.0) -> None:
        self._transport = transport
        self._timeout = timeout
        self._sequence = 0
        self._word_bytes = dict(_WORD_BYTES)

    def identity(self) -> tuple[bytes, bytes]:
        """Digests (8 bytes each) of the core's parameters and of the artefact that was loaded last."""
        data = self._request(LinkOpcode.IDENTITY, b"", reply=16)
        return data[:8], data[8:]

    def status(self) -> Status:
        data = self._request(LinkOpcode.STATUS, b"", reply=12)
        try:
            state, fault = State(data[0]), Fault(data[1])
        except ValueError:
            raise LinkError(f"the core reported state {data[0]} and fault {data[1]}, which this version does not know") from None
        return Status(state, fault, int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:], "little"))

    def write(self, space: Space, address: int, data: bytes) -> None:
        """Store ``data`` at ``address`` (bytes for activations, words elsewhere), in as many frames as it takes.

        WEIGHTS and RECORDS can be written after :meth:`load` only, which knows their words. Raises :class:`LinkError` when the data is no whole
        number of words, or the core refuses the address.
        """
        word = self._word_bytes.get(space)
        if word is None:
            raise LinkError(f"the word size of {space.name} is not known, so a schedule must be loaded first")
        if len(data) % word:
            raise LinkError(f"data for {space.name} must be whole words of {word} bytes, not {len(data)} bytes")
        words = (MAX_DATA - _WRITE_HEADER_BYTES) // word
        if words == 0:
            raise LinkError(
                f"a word of {space.name} has {word} bytes, more than the {MAX_DATA - _WRITE_HEADER_BYTES} that a frame can carry"
            )
        if word == 1:
            words -= words % 64  # whole activation words, whatever the core's rows are
        for start in range(0, len(data), words * word):
            header = bytes([space]) + (address + start // word).to_bytes(4, "little")
            self._request(LinkOpcode.WRITE, header + data[start : start + words * word], reply=0)

    def read(self, address: int, count: int) -> bytes:
        """``count`` bytes of the activation memory from byte ``address``, in as many frames as it takes."""
        data = bytearray()
        while len(data) < count:
            size = min(count - len(data), MAX_DATA // 64 * 64)
            header = bytes([Space.ACTIVATIONS]) + (address + len(data)).to_bytes(4, "little") + size.to_bytes(2, "little")
            data += self._request(LinkOpcode.READ, header, reply=size)
        return bytes(data)

    def start(self, pc: int = 0, limit: int = 0, clear: bool = True) -> None:
        """Run from program word ``pc`` to HALT, or for ``limit`` instructions; ``clear`` zeroes the cycle counter first.

        Sent once only. Raises :class:`LinkError` when no answer came, in which case the core may or may not run.
        """
        data = pc.to_bytes(2, "little") + limit.to_bytes(2, "little") + bytes([clear])
        self._request(LinkOpcode.START, data, reply=0, attempts=1)

    def abort(self) -> None:
        """Stop the core where it is; nothing happens to one that does not run."""
        self._request(LinkOpcode.ABORT, b"", reply=0)

    def load(self, schedule: Schedule, artefact_digest: bytes = bytes(8)) -> None:
        """Write program, weights, records and tables of a schedule.

        Raises :class:`LinkError` when the core was built from other parameters than the schedule was made for.
        """
        parameters = schedule.parameters
        digest, _ = self.identity()
        if digest != parameters.digest:
            raise LinkError(
                f"the core has digest {digest.hex()}, but the schedule was made for digest {parameters.digest.hex()}: "
                "build the bitstream that belongs to it, or compile for this core"
            )
        self._word_bytes.update({Space.WEIGHTS: parameters.weight_word_bytes, Space.RECORDS: parameters.record_word_bytes})
        self.abort()
        self.write(Space.PROGRAM, 0, b"".join(int(word).to_bytes(PROGRAM_WORD_BYTES, "little") for word in schedule.program_words))
        self.write(Space.WEIGHTS, 0, np.ascontiguousarray(schedule.weights, np.uint8).tobytes())
        self.write(Space.RECORDS, 0, schedule.records)
        for address, table in schedule.tables:
            self.write(Space.ACTIVATIONS, address, table)
        self.write(Space.ARTEFACT, 0, artefact_digest)

    def clear(self, schedule: Schedule, names: Iterable[str]) -> None:
        """Zeros in the tensors of these names."""
        for name in names:
            self.write(Space.ACTIVATIONS, schedule.placements[name].address, bytes(schedule.placements[name].bytes))

    def infer(
        self, schedule: Schedule, codes: Mapping[str, np.ndarray], outputs: Iterable[str], *, clocks: int | None = None
    ) -> tuple[dict[str, np.ndarray], int]:
        """Run one sample: tensor name -> codes (C, H, W) in; the tensors named ``outputs`` and the core's clocks out.

        ``clocks`` is what the run takes where it is not :attr:`Schedule.cycles`."""
        names = list(outputs)

        def run() -> tuple[dict[str, np.ndarray], int]:
            self._write_inputs(schedule, codes)
            self.start()
            status = self._wait(schedule.cycles if clocks is None else clocks)
            return {name: self._read_tensor(schedule, name) for name in names}, status.cycles

        return self._repeated(run)

    def trace(
        self, schedule: Schedule, program: Program, codes: Mapping[str, np.ndarray], *, clocks: Sequence[int] | None = None
    ) -> tuple[dict[str, np.ndarray], int]:
        """Run one sample layer by layer and read each tensor as soon as its layer has written it, before its memory is reused.

        Returns every integer tensor (C, H, W), inputs included, of what loops write one for every trip (trips, C, H, W), and the core's clocks: :attr:`Schedule.stopped_cycles`
        where there are no loops. ``clocks`` are those of each layer, where they are not what the schedule says.
        """
        repeated = {name for layer in schedule.layers if layer.times > 1 for name in layer.outputs}

        def run() -> tuple[dict[str, np.ndarray], int]:
            self._write_inputs(schedule, codes)
            tensors: dict[str, list[np.ndarray]] = {spec.tensor: [self._read_tensor(schedule, spec.tensor)] for spec in program.inputs}
            clear, number = True, 0
            while number < len(schedule.layers):
                layer = schedule.layers[number]
                number += 1
                if layer.steps:
                    self.start(layer.pc, layer.steps, clear)
                    clear = False
                    status = self._wait(layer.cycles // layer.times if clocks is None else clocks[number - 1])
                    if layer.back is not None and status.pc == schedule.layers[layer.back].pc:
                        number = layer.back
                for name in layer.outputs:
                    tensors.setdefault(name, []).append(self._read_tensor(schedule, name))
            self.start(schedule.halt_word, 0, clear)  # the HALT, which counts too
            cycles = self._wait(0).cycles
            return {name: np.stack(values) if name in repeated else values[-1] for name, values in tensors.items()}, cycles

        return self._repeated(run)

    def trips(
        self, schedule: Schedule, codes: Mapping[str, np.ndarray], loop: str, outputs: Iterable[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Run one sample, stopping behind each trip of the outer loop named ``loop``: the tensors named ``outputs``, (C, H, W), as they are there.

        Raises :class:`LinkError` also for a lost START: what a trip has overwritten cannot be run again.
        """
        first = next(number for number, layer in enumerate(schedule.layers) if layer.name == loop and layer.back is None and layer.outputs)
        last = next(number for number, layer in enumerate(schedule.layers) if layer.back == first)
        trips = schedule.layers[last].times
        once = sum(layer.steps * layer.times // trips for layer in schedule.layers[first : last + 1])
        clocks = sum(layer.cycles for layer in schedule.layers[first : last + 1]) // trips
        self._write_inputs(schedule, codes)
        pc, steps = 0, sum(layer.steps for layer in schedule.layers[:first])
        names = list(outputs)
        while True:
            steps += once
            whole = steps
            while steps:
                part = min(steps, LARGEST_LIMIT)
                self.start(pc, part)
                pc = self._wait(clocks * part // whole).pc
                steps -= part
            yield {name: self._read_tensor(schedule, name) for name in names}
            if pc != schedule.layers[first].pc:
                return

    def draw_tokens(self, schedule: Schedule, *, count: int, constant: tuple[int, int], state: int) -> None:
        """Let the core draw tokens among the ``count`` largest logits (0: take the largest one), by the rule of :class:`tritloom.compiler.golden.Sampler`."""
        place = schedule.generation
        if place is None:
            raise LinkError("the schedule generates no tokens")
        words = (4 * count, constant[0], constant[1] & 0xFFFFFFFF, state)
        self.write(Space.ACTIVATIONS, place.choices, b"".join(word.to_bytes(4, "little") for word in words))

    def generate(self, schedule: Schedule, *, prompt: int, total: int, clocks: int) -> tuple[list[int], int]:
        """Let the core run by itself until ``total`` tokens have been read, the first ``prompt`` of which :meth:`write_tokens` has written.

        Returns all ``total + 1`` tokens and the core's clocks, about ``clocks``. The core begins where it stopped the last time.
        """
        place = schedule.generation
        if place is None:
            raise LinkError("the schedule generates no tokens")
        self.write(Space.ACTIVATIONS, place.prompt, prompt.to_bytes(4, "little"))
        self.write(Space.ACTIVATIONS, place.total, total.to_bytes(4, "little"))
        self.start()
        status = self._wait(clocks)
        self.write(Space.ACTIVATIONS, place.total, bytes(4))
        words = self.read(place.tokens, 4 * (total + 1))
        return [int.from_bytes(words[start : start + 4], "little") for start in range(0, len(words), 4)], status.cycles

    def write_tokens(self, schedule: Schedule, tokens: Sequence[int]) -> None:
        """The tokens of a prompt."""
        if schedule.generation is None:
            raise LinkError("the schedule generates no tokens")
        self.write(Space.ACTIVATIONS, schedule.generation.tokens, b"".join(int(token).to_bytes(4, "little") for token in tokens))

    def close(self) -> None:
        self._transport.close()

    def _write_inputs(self, schedule: Schedule, codes: Mapping[str, np.ndarray]) -> None:
        for name, values in codes.items():
            placement = schedule.placements[name]
            self.write(Space.ACTIVATIONS, placement.address, tensor_to_bytes(placement, values, schedule.parameters))

    def _read_tensor(self, schedule: Schedule, name: str) -> np.ndarray:
        placement = schedule.placements[name]
        return tensor_from_bytes(placement, self.read(placement.address, placement.bytes), schedule.parameters)

    def _wait(self, clocks: int) -> Status:
        """Wait until the core stands still; ``clocks`` is what it should take."""
        self._transport.pause(clocks)
        for _ in range(_PATIENCE):
            status = self.status()
            if status.state == State.FAULT:
                raise LinkError(f"the core stopped with fault {status.fault.name} at program word {status.pc}")
            if status.state != State.RUNNING:
                return status
            self._transport.pause(clocks // 4 + 64)
        self.abort()
        raise LinkError(f"the core still ran at program word {status.pc} after {status.cycles} clocks, where {clocks} were expected")

    def _repeated(self, run: Callable[[], _Result]) -> _Result:
        for _ in range(_RUNS - 1):
            try:
                return run()
            except _LostReply:
                self.abort()
        return run()

    def _request(self, opcode: LinkOpcode, data: bytes, *, reply: int, attempts: int = _ATTEMPTS) -> bytes:
        trouble = "no undamaged answer"
        for _ in range(attempts):
            self._sequence = self._sequence % 255 + 1  # never 0, which stands for "unknown" in error replies
            frame = self._receive(encode(Frame(self._sequence, opcode, data)))
            if frame is None:
                continue
            if frame.opcode == ERROR_OPCODE:
                code = frame.data[0] if frame.data else 0
                reason = ErrorCode(code).name if code in set(ErrorCode) else f"error {code}"
                if code in _DAMAGED:
                    trouble = f"error {reason}"
                    self._drain()
                    continue
                raise LinkError(f"the core refused {opcode.name} with error {reason}")
            if frame.opcode != opcode | REPLY or len(frame.data) != reply:
                raise LinkError(
                    f"the core answered {opcode.name} with opcode {frame.opcode:#04x} and {len(frame.data)} bytes "
                    f"instead of {opcode | REPLY:#04x} and {reply}: is it a tritloom core of this version?"
                )
            return frame.data
        raise _LostReply(f"the core gave {trouble} to {opcode.name}" + (f" in {attempts} attempts" if attempts > 1 else ""))

    def _receive(self, request: bytes) -> Frame | None:
        """The answer to ``request``, or ``None``. Late answers to earlier requests are passed over."""
        reader = FrameReader()
        deadline = monotonic() + self._timeout
        received = self._transport.exchange(request, timeout=self._timeout)
        while received:
            for frame in reader.feed(received):
                if frame.sequence == self._sequence or (frame.sequence == 0 and frame.opcode == ERROR_OPCODE):
                    return frame
            if reader.damaged:
                self._drain()
                return None
            received = self._transport.exchange(b"", timeout=max(0.0, deadline - monotonic()))
        return None

    def _drain(self) -> None:
        """Close whatever the core takes for the beginning of a frame, and drop what it still says."""
        data = bytes([END])
        for _ in range(_ATTEMPTS):
            if not self._transport.exchange(data, timeout=self._timeout / 10):
                return
            data = b""


class SerialTransport:
    """A board's serial port.

    Parameters
    ----------
    port
        Device name, such as ``/dev/ttyUSB0`` or ``COM3``.
    baud
        Bits a second; must be what the bitstream was built for.
    clock_mhz
        The core's clock, to know how long a run takes.
    """

    def __init__(self, port: str, baud: int, *, clock_mhz: float = 12.0) -> None:
        try:
            serial: Any = import_module("serial")
        except ImportError:
            raise MissingToolError("pyserial is not installed: pip install 'tritloom[board]'") from None
        self._clock_mhz = clock_mhz
        try:
            self._serial = serial.Serial(port, baud, timeout=0)
        except (serial.SerialException, ValueError) as error:
            raise LinkError(f"serial port {port} cannot be opened: {error}") from None
        self._failure = serial.SerialException
        self._port = port

    def exchange(self, data: bytes, *, timeout: float) -> bytes:
        """As :meth:`Transport.exchange`. Raises :class:`LinkError` when the port fails, for example because it was unplugged."""
        deadline = monotonic() + timeout
        received = bytearray()
        try:
            if data:
                self._serial.write(data)
            while not has_whole_frame(received) and (left := deadline - monotonic()) > 0:
                self._serial.timeout = min(left, 0.1)
                received += self._serial.read(max(1, self._serial.in_waiting))
        except (self._failure, OSError) as error:
            raise LinkError(f"serial port {self._port} failed: {error}") from None
        return bytes(received)

    def pause(self, clocks: int) -> None:
        sleep(clocks / (self._clock_mhz * 1e6))

    def close(self) -> None:
        self._serial.close()
