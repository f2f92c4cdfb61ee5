"""Writes the folder of ``compile --emit verilog``; its files are described in ``docs/formats.md``."""

import json
import os
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.boards.toolchain import to_verilog
from tritloom.compiled import DEFAULT_BOARD, CompiledModel
from tritloom.compiler import golden
from tritloom.compiler.ir.loop import Loop
from tritloom.compiler.schedule import Placement, Schedule
from tritloom.emission.registers import TOP, register_map
from tritloom.errors import UserError
from tritloom.files import write_bytes
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import Space
from tritloom.hw.link.uart import MIN_DIVISOR
from tritloom.hw.top import UartCore

__all__ = ["emit_verilog"]

_SAMPLES = 3
_SEED = 1

_IMAGES = {Space.PROGRAM: "program.hex", Space.WEIGHTS: "weights.hex", Space.RECORDS: "records.hex"}

_BENCH_FILES = ("Makefile", "test_core.py")
"""Copied as they are."""

_CORE_FILE = f"""\
CAPI=2:
name: "tritloom:cores:{{name}}:{{version}}"
description: "Ternary neural network core with a serial link, and a network for it"
filesets:
  rtl:
    files:
      - {TOP}.v: {{{{file_type: verilogSource-2005}}}}
  tb:
    files:
{{bench}}
targets:
  default: &default
    filesets: [rtl]
    toplevel: {TOP}
  sim:
    <<: *default
    description: "cocotb bench: fusesoc run --target sim tritloom:cores:{{name}}"
    filesets: [rtl, tb]
    flow: sim
    flow_options:
      tool: icarus
      cocotb_module: test_core
      timescale: 1ns/1ps
"""


def emit_verilog(
    model: CompiledModel, folder: str | os.PathLike[str], *, board: str = DEFAULT_BOARD, divisor: int = MIN_DIVISOR
) -> tuple[Path, ...]:
    """Write Verilog of the core for ``model`` and all that other tools need to simulate and load it; returns the files.

    Parameters
    ----------
    folder
        Made when absent; files of these names are replaced, others stay.
    board
        Whose schedule gives the core. The Verilog has no cells of a family, clock generator or pins.
    divisor
        Clocks in a bit of the serial line, fixed in the Verilog.

    The same model, board and divisor give the same bytes. Raises :class:`UserError`, :class:`ModelError` when nothing fits the board,
    :class:`MissingToolError` without yosys, which writes the Verilog.
    """
    schedule = model.schedule(board)
    registers = register_map(schedule.parameters, divisor=divisor)
    contents = {
        f"{TOP}.v": to_verilog(UartCore(schedule.parameters, divisor=divisor), name=TOP, portable=True),
        "regmap.json": _json(registers),
        "vectors.json": _json(_vectors(model, schedule)),
        **_images(schedule),
        **{name: files("tritloom.emission").joinpath("bench", name).read_text(encoding="utf-8") for name in _BENCH_FILES},
    }
    contents[f"{TOP}.core"] = _core_file(model.program.name, [name for name in contents if name not in (f"{TOP}.v", "Makefile")])
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {os.fspath(folder)!r} cannot be made: {error.strerror or error}") from error
    for name, text in contents.items():
        write_bytes(target / name, text.encode())
    return tuple(target / name for name in contents)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _images(schedule: Schedule) -> dict[str, str]:
    """One word a line in hexadecimal digits, the most significant first, as ``$readmemh`` takes them."""
    data = {
        Space.PROGRAM: (PROGRAM_WORD_BYTES, b"".join(int(word).to_bytes(PROGRAM_WORD_BYTES, "little") for word in schedule.program_words)),
        Space.WEIGHTS: (schedule.parameters.weight_word_bytes, np.ascontiguousarray(schedule.weights, np.uint8).tobytes()),
        Space.RECORDS: (schedule.parameters.record_word_bytes, schedule.records),
    }
    return {
        _IMAGES[space]: "".join(content[start : start + size][::-1].hex() + "\n" for start in range(0, len(content), size))
        for space, (size, content) in data.items()
    }


def _vectors(model: CompiledModel, schedule: Schedule) -> dict[str, Any]:
    """Random samples as golden computes them: codes of every input and output tensor, flattened from (C, H, W)."""
    program = model.program
    if program.states:
        raise UserError("a language model runs token by token, so it has no test vectors; leave out --emit verilog")
    inputs = sorted({spec.tensor for spec in program.inputs})
    outputs = sorted({name for spec in program.outputs for name in (spec.tensor, spec.scale_tensor) if name})
    loops = [operation for operation in program.operations if isinstance(operation, Loop)]
    codes = golden.quantise_inputs(program, golden.random_feeds(program, _SAMPLES, _SEED))
    expected = golden.run(program, codes, keep=[*outputs, *(loop.output for loop in loops)])

    def values(tensors: dict[str, np.ndarray], names: list[str], sample: int) -> dict[str, list[int]]:
        return {name: [int(code) for code in tensors[name][sample].reshape(-1)] for name in names}

    return {
        "model": program.name,
        "artefact_digest": model.digest,
        "images": {space.name: name for space, name in _IMAGES.items()},
        "tables": [{"address": address, "bytes": table.hex()} for address, table in schedule.tables],
        "tensors": {name: _layout(schedule.placements[name]) for name in sorted({*inputs, *outputs})},
        "samples": [
            {
                "inputs": values(codes, inputs, sample),
                "outputs": values(expected, outputs, sample),
                "cycles": schedule.cycles_of({loop.name: int(expected[loop.output][sample].item()) for loop in loops}),
            }
            for sample in range(_SAMPLES)
        ],
    }


def _layout(placement: Placement) -> dict[str, Any]:
    """Where the elements of a tensor lie: ``elements`` holds the index of every stored one in (C, H, W) order, -1 for the padding code."""
    channels, height, width = placement.stored_shape
    elements = placement.stored_elements
    return {
        "address": placement.address,
        "element_bytes": placement.element_bytes,
        "pixel_bytes": placement.pixel_bytes,
        "pixels": height * width,
        "elements": (np.arange(channels * height * width) if elements is None else elements).reshape(channels, -1).tolist(),
        "pad_code": 0 if placement.patches is None else placement.patches.pad_code,
    }


def _core_file(title: str, bench: list[str]) -> str:
    """FuseSoC's description; the files of the bench are copied beside the simulator, where cocotb looks for them."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", title).strip("_") or "model"
    lines = "\n".join(f"      - {file}: {{file_type: user, copyto: {file}}}" for file in sorted(bench))
    return _CORE_FILE.format(name=name, version=version("tritloom"), bench=lines)
