"""Schedules as entries of the artefact: ``parameters.json``, ``layers.json``, ``placements.json`` and three memory images."""

from typing import Any

import numpy as np

from tritloom.compiler.image.values import Malformed, integer, mapping, sequence
from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Placement, Schedule
from tritloom.compiler.schedule.bounds import check_instruction
from tritloom.compiler.schedule.layout import lifetimes
from tritloom.compiler.schedule.patches import input_patches
from tritloom.compiler.schedule.plan import accumulator_bits, scaled_bits
from tritloom.compiler.schedule.result import complete
from tritloom.errors import UserError
from tritloom.hw.arch.isa import ISA_VERSION, PROGRAM_WORD_BYTES, Instruction, Opcode, assemble, disassemble
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.arch.record import RECORD_BYTES, Record

__all__ = ["SCHEDULE_FILES", "decode_schedule", "encode_schedule"]

SCHEDULE_FILES = ("layers.json", "parameters.json", "placements.json", "program.bin", "records.bin", "weights.bin")


def encode_schedule(schedule: Schedule) -> dict[str, Any]:
    """File name to bytes, or to a JSON value for ``.json`` files."""
    return {
        "parameters.json": {"isa": ISA_VERSION, **schedule.parameters.to_json()},
        "layers.json": _layers(schedule),
        "placements.json": {
            name: {
                "address": place.address,
                "pixel_bytes": place.pixel_bytes,
                "element_bytes": place.element_bytes,
                "shape": list(place.shape),
                "patches": None if place.patches is None else list(place.patches.window.kernel),
            }
            for name, place in schedule.placements.items()
        },
        "program.bin": np.array(schedule.program_words, "<u8").tobytes(),
        "weights.bin": schedule.weights.tobytes(),
        "records.bin": schedule.records,
    }


def _layers(schedule: Schedule) -> dict[str, Any]:
    layers = [
        {
            "name": layer.name, "operation": layer.operation, "pc": layer.pc, "words": layer.words, "instructions": layer.instructions,
            "macs": layer.macs, "cycles": layer.cycles, "utilisation": layer.utilisation, "outputs": list(layer.outputs),
        }
        for layer in schedule.layers
    ]  # fmt: skip
    return {"cycles": schedule.cycles, "macs": schedule.macs, "layers": layers}


def decode_schedule(files: dict[str, Any], program: Program, where: str) -> Schedule:
    """Inverse of :func:`encode_schedule` for a validated program.

    Raises :class:`Malformed`, or :class:`ModelError` for an instruction that leaves the memories of the core.
    """
    parameters = _decode_parameters(files["parameters.json"])
    placements = _decode_placements(files["placements.json"], program, parameters)
    weights, records = files["weights.bin"], files["records.bin"]
    if len(weights) % parameters.weight_word_bytes or len(weights) // parameters.weight_word_bytes > parameters.weight_words:
        raise Malformed(f"weights.bin has {len(weights)} bytes for {parameters.weight_words} words of {parameters.weight_word_bytes}")
    record_words, rest = divmod(len(records), parameters.record_word_bytes)
    if rest or record_words > parameters.record_words:
        raise Malformed(f"records.bin has {len(records)} bytes for {parameters.record_words} words of {parameters.record_word_bytes}")
    for start in range(0, len(records), RECORD_BYTES):
        raw = records[start : start + RECORD_BYTES]
        try:
            sound = Record.from_bytes(raw).to_bytes() == raw
        except ValueError:
            sound = False
        if not sound:
            raise Malformed(f"records.bin has no record at {start // RECORD_BYTES}")
    bits = accumulator_bits(program)
    if bits > parameters.accumulator_bits:
        raise Malformed(f"the program needs accumulators of {bits} bits, the core has {parameters.accumulator_bits}")
    bits = scaled_bits(program)
    if bits > parameters.scaled_bits:
        raise Malformed(f"the program needs {bits} bits for its scaled accumulators, the core has {parameters.scaled_bits}")
    instructions = _decode_instructions(files["program.bin"], parameters)
    loaded = {"weight_words": len(weights) // parameters.weight_word_bytes, "record_words": record_words}
    for index, instruction in enumerate(instructions):
        check_instruction(instruction, parameters, f"{where}: instruction {index} ({instruction.opcode.name})", **loaded)
    counts = _instruction_counts(files["layers.json"], program)
    if sum(counts) != len(instructions):
        raise Malformed(f"layers.json counts {sum(counts)} instructions, program.bin has {len(instructions)}")
    groups, position = [], 0
    for count in counts:
        groups.append(instructions[position : position + count])
        position += count
    schedule = complete(
        program, parameters, groups=groups, placements=placements, records=records,
        weights=np.frombuffer(weights, np.uint8).reshape(-1, parameters.weight_word_bytes).copy(),
    )  # fmt: skip
    if _layers(schedule) != files["layers.json"]:
        raise Malformed("layers.json does not agree with the program and its instructions")
    return schedule


def _decode_parameters(value: Any) -> CoreParameters:
    if not isinstance(value, dict) or set(value) != {"isa", *CoreParameters.__dataclass_fields__}:
        raise Malformed("parameters.json has not exactly the fields of the core parameters")
    if value["isa"] != ISA_VERSION:
        raise Malformed(f"instruction set version {value['isa']!r} is unknown, this version knows {ISA_VERSION}")
    try:
        return CoreParameters.from_json({name: entry for name, entry in value.items() if name != "isa"})
    except UserError as error:
        raise Malformed(f"parameters.json: {error}") from None


def _decode_placements(value: Any, program: Program, parameters: CoreParameters) -> dict[str, Placement]:
    names, patches = lifetimes(program), input_patches(program, parameters.rows)
    if not isinstance(value, dict) or set(value) != set(names):
        raise Malformed("placements.json does not place exactly the program's tensors")
    placements = {}
    for name in names:
        parts = mapping(
            value[name],
            {
                "address": lambda entry: integer(entry, 0, 1 << 32),
                "pixel_bytes": lambda entry: integer(entry, 1, 1 << 32),
                "element_bytes": lambda entry: integer(entry, 1, 4),
                "shape": lambda entry: sequence(entry, lambda size: integer(size, 1), 3),
                "patches": lambda entry: None if entry is None else sequence(entry, lambda size: integer(size, 1), 2),
            },
        )
        kernel, tensor = parts.pop("patches"), program.tensors[name]
        if kernel != (None if name not in patches else patches[name].window.kernel):
            raise Malformed(f"placements.json stores tensor {name!r} in other patches than its layer reads")
        placement = Placement(**parts, patches=patches.get(name))
        element_bytes = 4 if tensor.bits > 8 else 1
        smallest = placement.stored_shape[0] * element_bytes
        padded = -(-smallest // parameters.rows) * parameters.rows
        if (
            placement.shape != tensor.shape
            or placement.element_bytes != element_bytes
            or placement.pixel_bytes not in (padded, smallest if element_bytes == 1 else padded)
            or placement.address % parameters.rows
            or placement.address + placement.bytes > parameters.activation_bytes
        ):
            raise Malformed(f"placements.json has an impossible place for tensor {name!r}")
        placements[name] = placement
    return placements


def _takes_registers(instruction: Instruction) -> bool:
    return instruction.opcode == Opcode.VECTOR or instruction.index_a or instruction.index_b or instruction.index_o or instruction.counted


def _decode_instructions(data: bytes, parameters: CoreParameters) -> list[Instruction]:
    """Instructions before the closing HALT."""
    size = PROGRAM_WORD_BYTES
    if len(data) % size or not data or len(data) // size > parameters.program_words:
        raise Malformed(f"program.bin has {len(data)} bytes for {parameters.program_words} words of {size}")
    words = np.frombuffer(data, "<u8").tolist()
    try:
        instructions = disassemble(words)
    except ValueError as error:
        raise Malformed(f"program.bin: {error}") from None
    if assemble(instructions) != words:
        raise Malformed("program.bin has bits that no instruction uses")
    plain = [instruction for instruction in instructions if isinstance(instruction, Instruction) and not _takes_registers(instruction)]
    if len(plain) < len(instructions):
        raise Malformed("program.bin has instructions of the vector unit or ones that take registers, which no stored program has")
    *body, last = plain
    if last.opcode != Opcode.HALT or any(instruction.opcode == Opcode.HALT for instruction in body):
        raise Malformed("program.bin does not end at its only HALT")
    return body


def _instruction_counts(value: Any, program: Program) -> list[int]:
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list) or len(value["layers"]) != len(program.operations):
        raise Malformed("layers.json has not one layer for each operation")
    return [integer(layer.get("instructions") if isinstance(layer, dict) else None, 0, 1 << 22) for layer in value["layers"]]
