"""cocotb tests of the whole core through its UART. The job, a JSON file, is named by the environment variable TRITLOOM_BENCH."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge
from cocotb.triggers import Timer

from tritloom.boards.host import Host
from tritloom.compiler import golden
from tritloom.compiler.ir.loop import Loop
from tritloom.errors import LinkError
from tritloom.hw.arch.link import (
    END,
    ERROR_OPCODE,
    ESC,
    ESC_END,
    ESC_ESC,
    MAX_DATA,
    ErrorCode,
    Frame,
    FrameReader,
    LinkOpcode,
    Space,
    State,
    crc16,
    encode,
)  # fmt: skip
from tritloom.sim.bench.job import CLOCK_NS, DIFFERENCE_FILE, Job
from tritloom.sim.bench.uart import UartTransport
from tritloom.sim.compare import compare_tensors, first_difference

__all__: list[str] = []

_RESET_CLOCKS = 4
_GARBAGE_BYTES = 10_000


class _Bench:
    """A reset core with the job's program loaded, its driver, and golden's tensors."""

    def __init__(self, dut: Any, name: str) -> None:
        self.job = Job.read(Path(os.environ["TRITLOOM_BENCH"]))
        self.program, self.schedule, self.digest = self.job.load()
        # A string seed depends on the seed and the test only, so a test that is run alone draws the same pauses.
        self.random = Random(f"{self.job.seed} {name}")
        self.dut = dut
        cocotb.log.info("seed %d, samples %d to %d", self.job.seed, self.job.first_sample, self.job.first_sample + self.job.samples - 1)
        self.codes = self.job.codes(self.program)
        self.outputs = [spec.tensor for spec in self.program.outputs]
        Clock(dut.clk, CLOCK_NS, unit="ns", impl="gpi").start()
        self.transport = UartTransport(dut, self.random)
        self.host = Host(self.transport)

    async def reset(self) -> None:
        self.dut.rst.value = 1
        await Timer(_RESET_CLOCKS * CLOCK_NS, "ns")
        self.dut.rst.value = 0
        await Timer(_RESET_CLOCKS * CLOCK_NS, "ns")

    async def load(self) -> None:
        await bridge(self.host.load)(self.schedule, self.digest)
        core, artefact = await bridge(self.host.identity)()
        assert core == self.schedule.parameters.digest, f"the core reports digest {core.hex()}"
        assert artefact == self.digest, f"the core reports artefact {artefact.hex()}"

    def sample(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[index] for name, values in self.codes.items()}

    async def check_inference(self, index: int = 0) -> None:
        """Run one sample without a stop; outputs and clocks must be golden's and the schedule's."""
        outputs, cycles = await bridge(self.host.infer)(self.schedule, self.sample(index), self.outputs)
        golden_tensors = self.golden(index)
        self.check({name: values[None] for name, values in outputs.items()}, {name: golden_tensors[name][-1:] for name in outputs}, index)
        said = self.schedule.cycles_of(self.trips(golden_tensors))
        assert cycles == said, f"the core counted {cycles} clocks, the schedule says {said}"

    def golden(self, index: int) -> dict[str, np.ndarray]:
        """Every tensor of a sample, of loops in every trip."""
        return golden.trace(self.program, {name: values[index : index + 1] for name, values in self.codes.items()})

    def trips(self, tensors: dict[str, np.ndarray]) -> dict[str, int]:
        """What the outer loops made of a sample."""
        return {loop.name: int(tensors[loop.output][-1].item()) for loop in self.program.operations if isinstance(loop, Loop)}

    def check(self, tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray], index: int) -> None:
        difference = first_difference(compare_tensors(self.program, expected, tensors, candidate="core"))
        if difference is not None:
            sample = self.job.first_sample + index
            Path(DIFFERENCE_FILE).write_text(json.dumps({"sample": sample, "layer": difference.layer, "tensor": difference.tensor}))
            raise AssertionError(f"sample {sample}: {difference}")

    async def expect_error(self, data: bytes, *codes: ErrorCode) -> None:
        """Send bytes that are no legal frame; the core must answer with one of ``codes`` and nothing else."""
        answer = await self.transport.talk(data) + await self.transport.silence()
        frames = list(FrameReader().feed(answer))
        assert len(frames) == 1, f"expected one error frame for {data[:16].hex()}.., got {answer.hex()}"
        assert frames[0].opcode == ERROR_OPCODE, f"expected an error frame for {data[:16].hex()}.., got opcode {frames[0].opcode:#04x}"
        assert frames[0].data and frames[0].data[0] in codes, f"expected {codes} for {data[:16].hex()}.., got {frames[0].data.hex()}"


async def _start(dut: Any, name: str) -> _Bench:
    bench = _Bench(dut, name)
    await bench.reset()
    await bench.load()
    return bench


@cocotb.test()
async def every_tensor_equals_golden(dut: Any) -> None:
    bench = await _start(dut, "tensors")
    for index in range(bench.job.samples):
        tensors, cycles = await bridge(bench.host.trace)(bench.schedule, bench.program, bench.sample(index))
        wanted = bench.golden(index)
        missing = sorted(set(wanted) - set(tensors))
        assert not missing, f"tensors {missing} were not read"
        bench.check({name: values if values.ndim == 4 else values[None] for name, values in tensors.items()}, wanted, index)
        expected = bench.schedule.cycles_of(bench.trips(wanted), stopped=True)
        assert cycles == expected, f"stopping after each layer gave {cycles} clocks instead of {expected}"
        await bench.check_inference(index)


@cocotb.test()
async def damaged_frames_change_nothing(dut: Any) -> None:
    bench = await _start(dut, "damaged")
    placement = bench.schedule.placements[bench.program.inputs[0].tensor]
    victim = bytes([Space.ACTIVATIONS]) + placement.address.to_bytes(4, "little") + bytes(8)
    good = encode(Frame(7, LinkOpcode.WRITE, victim))
    await bridge(bench.host.write)(Space.ACTIVATIONS, placement.address, bytes(range(1, 9)))

    wrong_crc = bytearray(good)
    wrong_crc[6] ^= 0x40
    await bench.expect_error(bytes(wrong_crc), ErrorCode.CRC, ErrorCode.LENGTH)
    await bench.expect_error(good[:9] + good[-1:], ErrorCode.CRC, ErrorCode.LENGTH)  # cut short
    await bench.expect_error(_frame(8, LinkOpcode.WRITE, victim, length=len(victim) + 1), ErrorCode.LENGTH)
    await bench.expect_error(_frame(9, LinkOpcode.IDENTITY, b"x"), ErrorCode.LENGTH)
    await bench.expect_error(_frame(10, 0x7E, b""), ErrorCode.OPCODE)
    await bench.expect_error(_frame(11, LinkOpcode.WRITE, bytes([99]) + victim[1:]), ErrorCode.ARGUMENT)
    await bench.expect_error(_frame(12, LinkOpcode.WRITE, bytes([Space.ACTIVATIONS]) + b"\xff" * 4 + b"x"), ErrorCode.ARGUMENT)
    too_long = bytes([END]) + bytes(MAX_DATA + 100) + bytes([END])
    await bench.expect_error(too_long, ErrorCode.OVERRUN, ErrorCode.LENGTH, ErrorCode.CRC)

    kept = await bridge(bench.host.read)(placement.address, 8)
    assert kept == bytes(range(1, 9)), f"a damaged frame changed memory: {kept.hex()}"
    status = await bridge(bench.host.status)()
    assert status.state == State.IDLE, f"a damaged frame left the core in state {status.state.name}"
    await bench.check_inference()


@cocotb.test()
async def garbage_is_survived(dut: Any) -> None:
    bench = await _start(dut, "garbage")
    await bench.transport.send(bench.random.randbytes(_GARBAGE_BYTES) + bytes([END]))
    await bench.transport.silence()
    await bench.check_inference()


@cocotb.test()
async def reset_in_a_frame(dut: Any) -> None:
    bench = await _start(dut, "reset in a frame")
    frame = encode(Frame(1, LinkOpcode.WRITE, bytes([Space.PROGRAM, 0, 0, 0, 0]) + bytes(64)))
    await bench.transport.send(frame[: bench.random.randint(2, len(frame) - 2)])
    await bench.reset()
    await bench.load()
    await bench.check_inference()


@cocotb.test()
async def reset_and_abort_in_a_run(dut: Any) -> None:
    bench = await _start(dut, "reset in a run")
    start = encode(Frame(1, LinkOpcode.START, bytes([0, 0, 0, 0, 1])))
    await bench.transport.send(start)
    await Timer(CLOCK_NS * bench.random.randint(1, max(2, bench.schedule.cycles // 2)), "ns")
    await bench.reset()
    await bench.load()
    await bench.check_inference()
    # The core must refuse a second START while it runs, and stop on ABORT.
    await bench.transport.talk(start)
    try:
        await bridge(bench.host.start)()
    except LinkError as error:
        assert "BUSY" in str(error), f"a second START gave: {error}"
    await bridge(bench.host.abort)()
    status = await bridge(bench.host.status)()
    assert status.state != State.RUNNING, "the core runs after ABORT"
    await bench.check_inference()


def _frame(sequence: int, opcode: int, data: bytes, *, length: int | None = None) -> bytes:
    """A frame with a correct CRC whose length field may lie."""
    body = bytes([sequence, opcode]) + (len(data) if length is None else length).to_bytes(2, "little") + data
    body += crc16(body).to_bytes(2, "little")
    return bytes([END]) + body.replace(bytes([ESC]), bytes([ESC, ESC_ESC])).replace(bytes([END]), bytes([ESC, ESC_END])) + bytes([END])
