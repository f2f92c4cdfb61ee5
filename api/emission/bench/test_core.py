"""cocotb bench of the core: loads the network through the serial line, runs the samples of vectors.json and compares the results.

It needs cocotb 2 and the files beside it, nothing else. Every constant of the link comes from regmap.json, so it is also an example of a
host: frames are made in ``Link.request``, the steps of an inference stand in ``Link.load`` and ``Link.infer``.
"""

import json
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import Event, FallingEdge, First, Timer

FOLDER = Path(__file__).resolve().parent
REGISTERS = json.loads((FOLDER / "regmap.json").read_text())
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
FRAME, SPACES, STATES = REGISTERS["frame"], REGISTERS["spaces"], REGISTERS["states"]

CLOCK_NS = 10
BIT_NS = CLOCK_NS * REGISTERS["serial"]["divisor"]
PATIENCE_NS = 4096 * BIT_NS  # silence after which no answer will come
POLLS = 16


def crc(data: bytes) -> int:
    """CRC over the body of a frame, most significant bit first."""
    value = FRAME["crc"]["initial"]
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = value << 1 ^ (FRAME["crc"]["polynomial"] if value & 0x8000 else 0)
            value &= 0xFFFF
    return value


def stuff(body: bytes) -> bytes:
    """Bytes on the line for a frame's body and its CRC."""
    delimiter, escape = bytes([FRAME["delimiter"]]), bytes([FRAME["escape"]])
    body = body.replace(escape, escape + bytes([FRAME["escaped_escape"]]))
    return delimiter + body.replace(delimiter, escape + bytes([FRAME["escaped_delimiter"]])) + delimiter


def unstuff(raw: bytes) -> bytes:
    """Inverse of :func:`stuff` without the delimiters."""
    escape = bytes([FRAME["escape"]])
    body = raw.replace(escape + bytes([FRAME["escaped_delimiter"]]), bytes([FRAME["delimiter"]]))
    return body.replace(escape + bytes([FRAME["escaped_escape"]]), escape)


def stored_elements(tensor: dict[str, Any]) -> list[tuple[int, int]]:
    """Offset from the tensor's address of every stored element, and its index in the order (channel, row, column), -1 for padding."""
    return [
        (pixel * tensor["pixel_bytes"] + channel * tensor["element_bytes"], index)
        for channel, indices in enumerate(tensor["elements"])
        for pixel, index in enumerate(indices)
    ]


class Link:
    """A host at the serial line of the core."""

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        self._sequence = 0
        self._received = bytearray()
        self._arrived = Event()
        dut.rx.value = 1
        Clock(dut.clk, CLOCK_NS, unit="ns").start()
        cocotb.start_soon(self._listen())

    async def reset(self) -> None:
        """Hold the core in reset for four clocks."""
        self._dut.rst.value = 1
        await Timer(4 * CLOCK_NS, "ns")
        self._dut.rst.value = 0
        await Timer(4 * CLOCK_NS, "ns")

    async def request(self, name: str, **values: Any) -> dict[str, Any]:
        """Send a request of regmap.json with its fields by name; returns the fields of the reply."""
        opcode = REGISTERS["opcodes"][name]
        self._sequence = self._sequence % 255 + 1
        data = b"".join(
            values[field["name"]] if field["bytes"] is None else values[field["name"]].to_bytes(field["bytes"], "little")
            for field in opcode["request"]
        )
        body = bytes([self._sequence, opcode["code"]]) + len(data).to_bytes(2, "little") + data
        reply = await self.talk(stuff(body + crc(body).to_bytes(2, "little")))
        assert reply[1] != FRAME["error_opcode"], f"the core refused {name} with error {reply[4]}"
        assert reply[:2] == bytes([self._sequence, opcode["code"] | FRAME["reply_bit"]]), f"answer to {name}: {reply.hex()}"
        fields, rest = {}, reply[4:-2]
        for field in opcode["reply"]:
            size = len(rest) if field["bytes"] is None else field["bytes"]
            fields[field["name"]], rest = rest[:size], rest[size:]
        assert not rest, f"the answer to {name} is {len(rest)} bytes too long"
        return fields

    async def talk(self, line: bytes) -> bytes:
        """Send bytes; returns the body of the frame that the core answers, CRC included."""
        self._received.clear()
        for byte in line:
            for bit in (0, *(byte >> index & 1 for index in range(8)), 1):
                self._dut.rx.value = bit
                await Timer(BIT_NS, "ns")
        delimiter = bytes([FRAME["delimiter"]])
        while not (self._received.endswith(delimiter) and self._received.strip(delimiter)):
            self._arrived.clear()
            silence = Timer(PATIENCE_NS, "ns")
            assert await First(self._arrived.wait(), silence) is not silence, "the core does not answer"
        body = unstuff(bytes(self._received).strip(delimiter))
        assert crc(body[:-2]) == int.from_bytes(body[-2:], "little"), f"the CRC of the answer {body.hex()} is wrong"
        assert int.from_bytes(body[2:4], "little") == len(body) - 6, f"the length of the answer {body.hex()} is wrong"
        return body

    async def write(self, space: str, data: bytes, address: int = 0) -> None:
        """Store whole words from ``address``, in as many frames as it takes."""
        header = sum(field["bytes"] or 0 for field in REGISTERS["opcodes"]["WRITE"]["request"])
        size = SPACES[space]["word_bytes"]
        step = (FRAME["maximum_data"] - header) // size
        for start in range(0, len(data), step * size):
            part = data[start : start + step * size]
            await self.request("WRITE", space=SPACES[space]["code"], address=address + start // size, bytes=part)

    async def read(self, address: int, count: int) -> bytes:
        """``count`` bytes of the activation memory, in as many frames as it takes."""
        data = b""
        while len(data) < count:
            part = min(count - len(data), FRAME["maximum_data"])
            reply = await self.request("READ", space=SPACES["ACTIVATIONS"]["code"], address=address + len(data), count=part)
            data += reply["bytes"]
        return data

    async def load(self) -> None:
        """Write the memory images of the network; a line of a file is a word, its most significant digit first."""
        for space, name in VECTORS["images"].items():
            await self.write(space, b"".join(bytes.fromhex(line)[::-1] for line in (FOLDER / name).read_text().split()))
        for table in VECTORS["tables"]:
            await self.write("ACTIVATIONS", bytes.fromhex(table["bytes"]), table["address"])
        await self.write("ARTEFACT", bytes.fromhex(VECTORS["artefact_digest"]))

    async def infer(self, sample: dict[str, Any]) -> tuple[dict[str, list[int]], int]:
        """Run one sample: codes of the output tensors and the core's clock count."""
        for name, codes in sample["inputs"].items():
            tensor = VECTORS["tensors"][name]
            size, data = tensor["element_bytes"], bytearray(tensor["pixels"] * tensor["pixel_bytes"])
            for offset, index in stored_elements(tensor):
                code = tensor["pad_code"] if index < 0 else codes[index]
                data[offset : offset + size] = code.to_bytes(size, "little", signed=True)
            await self.write("ACTIVATIONS", bytes(data), tensor["address"])
        await self.request("START", pc=0, limit=0, clear=1)
        for _ in range(POLLS):
            await Timer(max(1, sample["cycles"]) * CLOCK_NS, "ns")
            status = await self.request("STATUS")
            if status["state"][0] != STATES["RUNNING"]:
                break
        assert status["state"][0] == STATES["IDLE"], f"the core is in state {status['state'][0]}, fault {status['fault'][0]}"
        results = {}
        for name in sample["outputs"]:
            tensor = VECTORS["tensors"][name]
            data = await self.read(tensor["address"], tensor["pixels"] * tensor["pixel_bytes"])
            size, values = tensor["element_bytes"], {}
            for offset, index in stored_elements(tensor):
                values[index] = int.from_bytes(data[offset : offset + size], "little", signed=True)
            results[name] = [values[index] for index in sorted(values)]
        return results, int.from_bytes(status["cycles"], "little")

    async def _listen(self) -> None:
        while True:
            await FallingEdge(self._dut.tx)
            await Timer(BIT_NS + BIT_NS // 2, "ns")
            byte = 0
            for index in range(8):
                byte |= int(self._dut.tx.value) << index
                await Timer(BIT_NS, "ns")
            assert int(self._dut.tx.value) == 1, f"the core sent byte {byte:#04x} without a stop bit"
            self._received.append(byte)
            self._arrived.set()


@cocotb.test()
async def results_equal_the_vectors(dut: Any) -> None:
    """Every sample gives the stored codes, in the clocks that the schedule says."""
    link = Link(dut)
    await link.reset()
    await link.load()
    identity = await link.request("IDENTITY")
    assert identity["core_digest"].hex() == REGISTERS["core"]["digest"]
    assert identity["artefact_digest"].hex() == VECTORS["artefact_digest"]
    for number, sample in enumerate(VECTORS["samples"]):
        results, cycles = await link.infer(sample)
        assert results == sample["outputs"], f"sample {number}: {results} instead of {sample['outputs']}"
        assert cycles == sample["cycles"], f"sample {number} took {cycles} clocks instead of {sample['cycles']}"
        dut._log.info("sample %d is right, %d clocks", number, cycles)


@cocotb.test()
async def a_damaged_frame_is_refused(dut: Any) -> None:
    """A request with a wrong CRC gets the error code CRC, and the next one is answered as usual."""
    link = Link(dut)
    await link.reset()
    body = bytes([1, REGISTERS["opcodes"]["ABORT"]["code"], 0, 0])
    reply = await link.talk(stuff(body + (crc(body) ^ 1).to_bytes(2, "little")))
    assert reply[1] == FRAME["error_opcode"] and reply[4] == REGISTERS["error_codes"]["CRC"], reply.hex()
    status = await link.request("STATUS")
    assert status["state"][0] == STATES["IDLE"]
