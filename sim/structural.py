"""A synthesised netlist as Verilog that any simulator reads: its cells, and models of what they do.

The netlist is yosys' JSON, the very file that nextpnr reads. Models come from yosys itself, but those of the folder ``cells``
beside this module come first: of cells that yosys ships without contents, and of lookup tables, in the form that simulates fastest.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tritloom.boards.toolchain import run_yosys
from tritloom.errors import BuildError

__all__ = ["cell_counts", "cell_models", "structural_verilog", "vendor_models"]

_OWN_MODELS = {"ice40": ("ice40.v", "pll.v"), "ecp5": ("block_ram.v", "ecp5.v"), "gowin": ("block_ram.v", "gowin.v")}
_DEFINES = {"ice40": "-D NO_ICE40_DEFAULT_ASSIGNMENTS", "ecp5": "", "gowin": ""}
"""iCE40's models give inputs default values, which Verilog-2005 does not know."""

_DUMP = re.compile(r"^-- Verilog code after preprocessor --$(.*)^-- END OF DUMP --$", re.MULTILINE | re.DOTALL)


def cell_counts(netlist: Mapping[str, Any], top: str = "top") -> dict[str, int]:
    """How many cells of each type a netlist has, by name of the type."""
    counts = Counter(cell["type"] for cell in netlist["modules"][top]["cells"].values())
    return {name: counts[name] for name in sorted(counts) if not name.startswith("$")}


def structural_verilog(netlist: Mapping[str, Any], top: str = "top") -> str:
    """Verilog of the module ``top`` of a netlist in yosys' JSON format: ports, one wire a net, instances.

    Cells of the internal library (names with ``$``) say nothing about the circuit after synthesis and are left out. Only ports keep
    their names: those that yosys gives to cells and nets are long, and the simulator repeats them everywhere.
    """
    module = netlist["modules"][top]
    lines = [f"module {top} ({', '.join(_name(port) for port in module['ports'])});"]
    wires: set[int] = set()
    body: list[str] = []
    for name, port in module["ports"].items():
        bits = port["bits"]
        wires |= {bit for bit in bits if isinstance(bit, int)}
        width = f"[{len(bits) - 1}:0] " if len(bits) > 1 else ""
        lines.append(f"  {port['direction']} {width}{_name(name)};")
        body.append(
            f"  assign {_bits(bits)} = {_name(name)};" if port["direction"] == "input" else f"  assign {_name(name)} = {_bits(bits)};"
        )
    for index, cell in enumerate(cell for cell in module["cells"].values() if not cell["type"].startswith("$")):
        for bits in cell["connections"].values():
            wires |= {bit for bit in bits if isinstance(bit, int)}
        parameters = ", ".join(f".{key}({_value(value)})" for key, value in cell["parameters"].items())
        connections = ", ".join(f".{_name(port)}({_bits(bits)})" for port, bits in cell["connections"].items() if bits)
        body.append(f"  {_name(cell['type'])} {f'#({parameters}) ' if parameters else ''}c{index} ({connections});")
    lines += [f"  wire n{bit};" for bit in sorted(wires)]
    return "\n".join([*lines, *body, "endmodule", ""])


def cell_models(family: str, types: Iterable[str]) -> str:
    """Verilog modules of the cell types and of whatever these instantiate.

    Raises :class:`BuildError` when a cell has no model, and like :func:`tritloom.boards.toolchain.run_yosys`.
    """
    models = vendor_models(family)
    for name in _OWN_MODELS[family]:
        models |= _modules(files("tritloom.sim").joinpath("cells", name).read_text())
    chosen: set[str] = set()
    waiting = sorted(types)
    while waiting:
        name = waiting.pop()
        if name in chosen:
            continue
        if name not in models:
            raise BuildError(f"the netlist has a cell {name}, of which there is no simulation model")
        chosen.add(name)
        waiting += sorted(set(re.findall(r"\w+", models[name])) & models.keys() - chosen)
    return "\n".join(text for name, text in models.items() if name in chosen)


def vendor_models(family: str) -> dict[str, str]:
    """The models that come with yosys, by name of the cell; those without contents are left out."""
    with TemporaryDirectory(prefix="tritloom-") as folder:
        # Deferred, because yosys would take minutes to elaborate memories that are not used.
        script = f"read_verilog {_DEFINES[family]} -ppdump -defer -overwrite +/{family}/cells_sim.v\n"
        log = run_yosys(script, cwd=Path(folder), name="models")
    found = _DUMP.search(log)
    if found is None:
        raise BuildError("yosys did not print the cell models of its library")
    return _modules(re.sub(r"^`file_(push|pop)\b.*$", "", found[1], flags=re.MULTILINE))


def _modules(text: str) -> dict[str, str]:
    """Verilog modules with contents, by name, each with the attributes and comments in front of it."""
    modules = {}
    for chunk in re.findall(r".*?\bendmodule\b", text, re.DOTALL):
        head = re.search(r"^\s*(?:\(\*.*?\*\)\s*)?module\s+(\w+)", chunk, re.MULTILINE)
        if head and "blackbox" not in chunk[: head.end()]:
            modules[head[1]] = chunk
    return modules


def _name(name: str) -> str:
    """A Verilog identifier, escaped where it must be."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else f"\\{name} "


def _bits(bits: list[int | str]) -> str:
    """Bits of a connection, lowest first in JSON, highest first in Verilog."""
    texts = [f"n{bit}" if isinstance(bit, int) else f"1'b{bit}" for bit in reversed(bits)]
    return texts[0] if len(texts) == 1 else "{" + ", ".join(texts) + "}"


def _value(value: str | int) -> str:
    """A parameter: binary digits are a number, a space behind them marks text that only looks like one."""
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[01xz]+", value):
        return f"{len(value)}'b{value}"
    text = value[:-1] if re.fullmatch(r"[01xz]* +", value) else value
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
