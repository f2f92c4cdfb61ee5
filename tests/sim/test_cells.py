"""Models of FPGA cells against references in NumPy, on random inputs: every width, write mode and reset of the block RAMs."""

import ctypes
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib.memory import Memory

from tritloom.boards import get_board
from tritloom.boards.flow import synthesise
from tritloom.errors import BuildError
from tritloom.sim.structural import cell_counts, cell_models, structural_verilog, vendor_models
from tritloom.sim.verilator_build import build_library

WRAPPER = Path(__file__).with_name("cells_library.cpp")
CLOCKS = 250

FIELDS = {
    "ce_a": 1, "we_a": 1, "rst_a": 1, "sel_a": 3, "ad_a": 14, "di_a": 36,
    "ce_b": 1, "we_b": 1, "rst_b": 1, "sel_b": 3, "ad_b": 14, "di_b": 36,
}  # fmt: skip
"""The stimulus of all block RAMs at once, lowest bits first, and the widths of its parts."""


def run(verilog: str, stimulus: np.ndarray, response_bits: int) -> np.ndarray:
    """Rows of bits (clocks, response bits) for rows of bits (clocks, stimulus bits); both sides at least 65 bits wide."""
    library = ctypes.CDLL(str(build_library(verilog, WRAPPER, netlist=True)))
    inside = np.ascontiguousarray(_words(stimulus))
    outside = np.zeros((len(stimulus), -(-response_bits // 32)), np.uint32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (inside, outside)]
    library.bench_run(pointers[0], inside.shape[1], pointers[1], outside.shape[1], len(stimulus))
    return np.unpackbits(outside.view(np.uint8), axis=1, bitorder="little")[:, :response_bits]


def _words(bits: np.ndarray) -> np.ndarray:
    padded = np.pad(bits.astype(np.uint8), ((0, 0), (0, -bits.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


def number(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits.astype(np.uint8), bitorder="little").tobytes(), "little")


def bits_of(value: int, width: int) -> np.ndarray:
    return np.array([value >> index & 1 for index in range(width)], np.uint8)


@dataclass
class Port:
    """A port of the reference: its width, write mode (0 keeps the output, 1 shows the new word, 2 the old one), and what it shows."""

    width: int
    mode: int
    shown: np.ndarray
    known: np.ndarray


class ReferenceRam:
    """Two ports on 2048 bytes as a flat row of bits. What both ports write at once is not known until it is written again.

    What one port reads while the other one writes it is specified nowhere; here it is the complement of the old word, so that no
    design can come to rely on it.
    """

    def __init__(self, byte, width_a, width_b, *, modes=(0, 0), asynchronous=False, reset_stops_write=False, contents):
        self.byte, self.asynchronous, self.reset_stops_write = byte, asynchronous, reset_stops_write
        self.store, self.known = contents.copy(), np.ones(2048 * byte, bool)
        self.ports = [
            Port(width, mode, np.zeros(width, np.uint8), np.ones(width, bool))
            for width, mode in zip((width_a, width_b), modes, strict=True)
        ]

    def places(self, width: int, address: int) -> np.ndarray:
        """Bits of the store that a word is made of."""
        if width < 8:
            return address // 8 * self.byte + address % 8 // width * width + np.arange(width)
        lanes = width // self.byte
        return address // 8 // lanes * lanes * self.byte + np.arange(width)

    def step(self, requests: list[dict[str, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """One clock; what each port shows afterwards, and which bits of it are specified."""
        places = [self.places(port.width, request["ad"]) for port, request in zip(self.ports, requests, strict=True)]
        written = [self.written(port, request, word) for port, request, word in zip(self.ports, requests, places, strict=True)]
        shown = []
        for index, (port, request) in enumerate(zip(self.ports, requests, strict=True)):
            if request["rst"]:
                port.shown, port.known = np.zeros(port.width, np.uint8), np.ones(port.width, bool)
            elif request["ce"] and not (request["we"] and port.mode == 0):
                port.shown, port.known = self.store[places[index]], self.known[places[index]]
                port.shown ^= np.isin(places[index], written[1 - index])
                if port.mode == 1:
                    own = np.isin(places[index], written[index])
                    port.shown = np.where(own, bits_of(request["di"], port.width), port.shown)
                    port.known = port.known | own
            off = self.asynchronous and request["rst"]
            shown.append((np.zeros(port.width, np.uint8), np.ones(port.width, bool)) if off else (port.shown, port.known))
        for port, request, word, changed in zip(self.ports, requests, places, written, strict=True):
            self.store[changed] = bits_of(request["di"], port.width)[np.isin(word, changed)]
            self.known[changed] = True
        for byte in np.intersect1d(*(changed // self.byte for changed in written)):
            self.known[byte * self.byte : (byte + 1) * self.byte] = False  # both ports write to it
        return shown

    def written(self, port: Port, request: dict[str, int], places: np.ndarray) -> np.ndarray:
        """Bits of the store that a request changes, ascending."""
        if not request["ce"] or not request["we"] or (self.reset_stops_write and request["rst"]):
            return places[:0]
        lanes = port.width // self.byte
        return places if lanes < 2 else places[np.repeat(bits_of(request["ad"], lanes), self.byte) == 1]


def _stimulus(seed: int) -> np.ndarray:
    """Accesses to few addresses, so that words are met again and the ports meet; the first and the last address among them."""
    random = np.random.default_rng(seed)
    rows = {name: random.integers(0, 1 << width, CLOCKS) for name, width in FIELDS.items()}
    for side in "ab":
        few = np.concatenate([np.arange(48), (1 << 14) - 1 - np.arange(16)])
        rows[f"ad_{side}"] = few[random.integers(0, len(few), CLOCKS)] | random.integers(0, 2, CLOCKS) * 64
        rows[f"rst_{side}"] = random.random(CLOCKS) < 0.05
        rows[f"ce_{side}"] = random.random(CLOCKS) < 0.9
        rows[f"sel_{side}"] = np.where(random.random(CLOCKS) < 0.95, 0, rows[f"sel_{side}"])
    rows["ad_b"] = np.where(random.random(CLOCKS) < 0.3, rows["ad_a"], rows["ad_b"])
    columns = [(rows[name].astype(np.int64)[:, None] >> np.arange(width)) & 1 for name, width in FIELDS.items()]
    return np.concatenate(columns, axis=1).astype(np.uint8)


def _field(name: str) -> str:
    low = sum(list(FIELDS.values())[: list(FIELDS).index(name)])
    return f"stimulus[{low + FIELDS[name] - 1}:{low}]" if FIELDS[name] > 1 else f"stimulus[{low}]"


def _ecp5_ram(index, width_a, width_b, modes, reset, contents):
    names = ("NORMAL", "WRITETHROUGH", "READBEFOREWRITE")
    first = contents.reshape(64, 16, 18)
    init = [
        (f"INITVAL_{row:02X}", f"320'h{sum(number(word) << 20 * place for place, word in enumerate(words)):x}")
        for row, words in enumerate(first)
    ]
    parameters = {
        "DATA_WIDTH_A": width_a, "DATA_WIDTH_B": width_b, "RESETMODE": f'"{reset}"',
        "WRITEMODE_A": f'"{names[modes[0]]}"', "WRITEMODE_B": f'"{names[modes[1]]}"', **dict(init),
    }  # fmt: skip
    ports = {}
    for side in "ab":
        big = side.upper()
        ports |= {
            f"CLK{big}": "clk",
            f"CE{big}": _field(f"ce_{side}"),
            f"WE{big}": _field(f"we_{side}"),
            f"RST{big}": _field(f"rst_{side}"),
            f"OCE{big}": "1'b1",
        }
        ports |= {f"CS{big}{bit}": f"sel_{side}[{bit}]" for bit in range(3)} | {f"AD{big}{bit}": f"ad_{side}[{bit}]" for bit in range(14)}
        ports |= {f"DI{big}{bit}": f"di_{side}[{bit}]" for bit in range(18)} | {
            f"DO{big}{bit}": f"do_{side}_{index}[{bit}]" for bit in range(18)
        }
    if width_a == 36:
        ports |= {"WEB": "1'b0"} | {f"DIB{bit}": f"di_a[{18 + bit}]" for bit in range(18)}
    if width_b == 36:
        ports |= {f"DOA{bit}": f"do_b_{index}[{bit}]" for bit in range(18)} | {
            f"DOB{bit}": f"do_b_{index}[{18 + bit}]" for bit in range(18)
        }
    return "DP16KD", parameters, ports


def _gowin_ram(kind):
    def make(index, width_a, width_b, modes, reset, contents):
        byte = 9 if "X9" in kind else 8
        init = {f"INIT_RAM_{row:02X}": f"{32 * byte}'h{number(words):x}" for row, words in enumerate(contents.reshape(64, 32 * byte))}
        parameters = {"RESET_MODE": f'"{reset}"', **init}
        clock = {"CLK": "clk", "CE": _field("ce_a"), "RESET": _field("rst_a"), "AD": "ad_a", "BLKSEL": "sel_a"}
        if kind.startswith("SP"):
            parameters |= {"BIT_WIDTH": width_a, "WRITE_MODE": modes[0]}
            return kind, parameters, clock | {"OCE": "1'b1", "WRE": _field("we_a"), "DI": "di_a", "DO": f"do_a_{index}"}
        parameters |= {"BIT_WIDTH_0": width_a, "BIT_WIDTH_1": width_b}
        ports = {f"{name}{side.upper()}": text.replace("_a", f"_{side}") for side in "ab" for name, text in clock.items()}
        for side in "ab":
            ports |= {f"CE{side.upper()}": _field(f"ce_{side}"), f"RESET{side.upper()}": _field(f"rst_{side}")}
        if kind.startswith("SDP"):
            return kind, parameters, ports | {"OCE": "1'b1", "DI": "di_a", "DO": f"do_b_{index}"}
        parameters |= {"WRITE_MODE0": modes[0], "WRITE_MODE1": modes[1]}
        for side in "ab":
            big = side.upper()
            ports |= {f"OCE{big}": "1'b1", f"WRE{big}": _field(f"we_{side}"), f"DI{big}": f"di_{side}", f"DO{big}": f"do_{side}_{index}"}
        return kind, parameters, ports

    return make


def _pairs(widths):
    """Each width with an unlike one, every width on both sides; any other pair goes the same way through the model."""
    return [(width, widths[(index + len(widths) // 2) % len(widths)]) for index, width in enumerate(widths)]


CASES = {
    "DP16KD": ("ecp5", 9, _ecp5_ram, [*_pairs((1, 2, 4, 9, 18)), *((36, width) for width in (1, 2, 4, 9, 18, 36))]),
    "SDPB": ("gowin", 8, _gowin_ram("SDPB"), _pairs((1, 2, 4, 8, 16, 32))),
    "SDPX9B": ("gowin", 9, _gowin_ram("SDPX9B"), _pairs((9, 18, 36))),
    "DPB": ("gowin", 8, _gowin_ram("DPB"), _pairs((1, 2, 4, 8, 16))),
    "DPX9B": ("gowin", 9, _gowin_ram("DPX9B"), _pairs((9, 18))),
    "SP": ("gowin", 8, _gowin_ram("SP"), [(width, 8) for width in (1, 8, 32)]),
    "SPX9": ("gowin", 9, _gowin_ram("SPX9"), [(width, 9) for width in (9, 36)]),
}


def _instance(index: int, kind: str, parameters: dict, ports: dict) -> str:
    texts = [", ".join(f".{name}({value})" for name, value in entries.items()) for entries in (parameters, ports)]
    return f"  {kind} #({texts[0]}) cell_{index} ({texts[1]});"


def _requests(name: str, row: np.ndarray, one_way: bool) -> list[dict[str, int]]:
    """What a row of the stimulus asks of the two ports."""
    ends = np.cumsum([0, *FIELDS.values()])
    value = {field: number(row[ends[index] : ends[index + 1]]) for index, field in enumerate(FIELDS)}
    requests = [
        {key: value[f"{key}_{side}"] for key in ("ad", "di", "rst", "we")} | {"ce": value[f"ce_{side}"] and value[f"sel_{side}"] == 0}
        for side in "ab"
    ]
    if name.startswith("SDP"):
        requests[0]["we"] = 1
    if one_way:
        requests[1]["we"] = 0
    if name in ("SP", "SPX9"):
        requests[1]["ce"] = 0
    return requests


@pytest.mark.parametrize("family", ["ecp5", "gowin"])
def test_block_rams_and_multipliers(family):
    random = np.random.default_rng(len(family))
    stimulus = _stimulus(3)
    instances, outputs, references = [], [], []
    cases = [(name, case, pair) for name, case in CASES.items() if case[0] == family for pair in case[3]]
    for index, (name, (_, byte, make, _), (width_a, width_b)) in enumerate(cases):
        # A wide ECP5 block RAM has one port that writes and one that reads.
        one_way = name.startswith("SDP") or (name == "DP16KD" and 36 in (width_a, width_b))
        modes, reset = (0, 0) if one_way else (index % 3, (index + 1) % 3), ("SYNC", "ASYNC")[index % 2]
        contents = random.integers(0, 2, 2048 * byte).astype(np.uint8)
        instances.append(_instance(index, *make(index, width_a, width_b, modes, reset, contents)))
        outputs += [f"do_a_{index}", f"do_b_{index}"]
        stops = name == "DP16KD" and reset == "SYNC"
        reference = ReferenceRam(
            byte, width_a, width_b, modes=modes, asynchronous=reset == "ASYNC", reset_stops_write=stops, contents=contents
        )
        references.append((reference, one_way, name))
    multipliers = {"ecp5": {"MULT18X18D": 18}, "gowin": {"MULT9X9": 9, "MULT18X18": 18, "MULT36X36": 36}}[family]
    for index, (name, width) in enumerate(multipliers.items()):
        if family == "ecp5":
            ports = {f"{big}{bit}": f"di_{side}[{bit}]" for big, side in ("Aa", "Bb") for bit in range(18)} | {
                f"P{bit}": f"product_{index}[{bit}]" for bit in range(36)
            }
            ports |= {"SIGNEDA": "we_a", "SIGNEDB": "we_b", "SOURCEA": "1'b0", "SOURCEB": "1'b0"}
        else:
            ports = {"A": f"di_a[{width - 1}:0]", "B": f"di_b[{width - 1}:0]", "ASIGN": "we_a", "BSIGN": "we_b", "DOUT": f"product_{index}"}
            ports |= {"CE": "1'b0", "CLK": "1'b0", "RESET": "1'b0"}
        instances.append(_instance(len(instances), name, {}, ports))
    fields = [f"  wire [{width - 1}:0] {name} = {_field(name)};" for name, width in FIELDS.items()]
    wires = [f"  wire [35:0] {name};" for name in outputs] + [f"  wire [71:0] product_{index};" for index in range(len(multipliers))]
    joined = [f"product_{index}" for index in reversed(range(len(multipliers)))] + outputs[::-1]
    bits = 36 * len(outputs) + 72 * len(multipliers)
    head = f"module top (input clk, input [{sum(FIELDS.values()) - 1}:0] stimulus, output [{bits - 1}:0] response);"
    last = f"  assign response = {{{', '.join(joined)}}};"
    types = {name for name, _, _ in cases} | multipliers.keys()
    response = run("\n".join([head, *fields, *wires, *instances, last, "endmodule", cell_models(family, types)]), stimulus, bits)
    compared = 0
    for clock, row in enumerate(stimulus):
        for index, (reference, one_way, name) in enumerate(references):
            shown_by = reference.step(_requests(name, row, one_way))
            for side, (shown, known) in enumerate(shown_by):
                if (name in ("SP", "SPX9") and side == 1) or (one_way and side == 0):
                    continue
                start = 36 * (2 * index + side)
                got = response[clock, start : start + len(shown)]
                wrong = (got != shown) & known
                assert not wrong.any(), f"{name}, widths {cases[index][2]}, port {'ab'[side]}, clock {clock}: {got} instead of {shown}"
                compared += int(known.sum())
        a, b = _requests("", row, False)
        for index, width in enumerate(multipliers.values()):
            got = response[clock, 36 * len(outputs) + 72 * index :][: 2 * width]
            first, second = (_signed(operand["di"] % (1 << width), width, operand["we"]) for operand in (a, b))
            assert number(got) == first * second % (1 << 2 * width)
    assert compared > CLOCKS * len(cases)


def _signed(value: int, width: int, signed: int) -> int:
    return value - ((value >> width - 1 & signed) << width)


def test_lookup_tables_equal_those_of_yosys():
    """The models here and those that yosys ships, for random tables and all inputs."""
    random = np.random.default_rng(7)
    tables = {
        "ice40": ("LUT_INIT", "O", ("I0", "I1", "I2", "I3"), {"SB_LUT4": 4}),
        "ecp5": ("INIT", "Z", ("A", "B", "C", "D"), {"LUT4": 4}),
        "gowin": ("INIT", "F", ("I0", "I1", "I2", "I3"), {f"LUT{size}": size for size in (1, 2, 3, 4)}),
    }
    lines = ["module top (input clk, input [127:0] stimulus, output [287:0] response);"]
    models = {}
    for family, (parameter, output, pins, names) in tables.items():
        theirs = vendor_models(family)
        if family == "ecp5":
            models["LUT2"] = theirs["LUT2"].replace("module LUT2", "module LUT2_of_ecp5")  # a part of LUT4
        for name, inputs in names.items():
            # Families have cells of the same name.
            kinds = {f"{name}_{family}_own": cell_models(family, [name]), f"{name}_{family}_vendor": theirs[name]}
            for kind, text in kinds.items():
                models[kind] = re.sub(r"\bLUT2 ", "LUT2_of_ecp5 ", re.sub(rf"\bmodule {name}\b", f"module {kind}", text))
            for _ in range(24):
                table = int(random.integers(0, 1 << (1 << inputs)))
                for half, kind in enumerate(kinds):
                    place = (len(lines) - 1) // 2 + 144 * half
                    ports = {pin: f"stimulus[{bit}]" for bit, pin in enumerate(pins[:inputs])} | {output: f"response[{place}]"}
                    lines.append(_instance(len(lines), kind, {parameter: f"{1 << inputs}'d{table}"}, ports))
    stimulus = np.zeros((16, 128), np.uint8)
    stimulus[:, :4] = np.arange(16)[:, None] >> np.arange(4) & 1
    response = run("\n".join([*lines, "endmodule", *models.values()]), stimulus, 288)
    np.testing.assert_array_equal(response[:, :144], response[:, 144:])
    assert 0.2 < response.mean() < 0.8


@pytest.mark.parametrize(
    ("name", "family", "parameters", "message"),
    [
        ("DP16KD", "ecp5", {"REGMODE_A": '"OUTREG"'}, "no output registers"),
        ("DP16KD", "ecp5", {"DATA_WIDTH_B": 12}, "no ports of this width"),
        ("DP16KD", "ecp5", {"WRITEMODE_B": '"OTHER"'}, "no such WRITEMODE"),
        ("DP16KD", "ecp5", {"CSDECODE_A": '"0b001"'}, "selected by zeros only"),
        ("DP16KD", "ecp5", {"CLKBMUX": '"INV"'}, "no inverted clocks"),
        ("DP16KD", "ecp5", {"RESETMODE": '"NONE"'}, "no such RESETMODE"),
        ("MULT18X18D", "ecp5", {"REG_OUTPUT_CLK": '"CLK0"'}, "no registers"),
        ("SDPX9B", "gowin", {"READ_MODE": 1}, "no output register"),
        ("DPB", "gowin", {"WRITE_MODE1": 3}, "no such write mode"),
        ("SP", "gowin", {"RESET_MODE": '"NONE"'}, "no such RESET_MODE"),
        ("MULT18X18", "gowin", {"OUT_REG": 1}, "no registers"),
    ],
)
def test_what_a_model_does_not_implement_stops_the_build(name, family, parameters, message):
    head = "module top (input clk, input [95:0] stimulus, output [95:0] response);"
    with pytest.raises(BuildError, match=f"the (model of {name}|block RAM model) .*{message}"):
        build_library(
            "\n".join([head, _instance(0, name, parameters, {}), "endmodule", cell_models(family, [name])]), WRAPPER, netlist=True
        )


def test_a_cell_without_a_model_is_named():
    with pytest.raises(BuildError, match=r"^the netlist has a cell EHXPLLL, of which there is no simulation model$"):
        cell_models("ecp5", ["LUT4", "EHXPLLL"])


SHAPES = {
    "bits": (1, 16384, 1),
    "pairs": (2, 8192, 2),
    "nibbles": (4, 4096, 4),
    "bytes": (8, 2048, 8),
    "words": (16, 1024, 8),
    "wide": (32, 512, 8),
}
"""Memories of one block RAM each: width, depth, and bits of a write enable."""


class Memories(Elaboratable):
    """A memory of each shape behind one stimulus: read address (14), write address (14), data (32), enables (4); 32 bits of response each."""

    def __init__(self):
        self.stimulus, self.response = Signal(65), Signal(32 * len(SHAPES))

    def elaborate(self, platform) -> Module:
        m = Module()
        read_at, write_at, data, enables = (self.stimulus[low:high] for low, high in ((0, 14), (14, 28), (28, 60), (60, 64)))
        for index, (name, (width, depth, part)) in enumerate(SHAPES.items()):
            m.submodules[name] = memory = Memory(shape=width, depth=depth, init=[])
            write, read = memory.write_port(granularity=part), memory.read_port()
            m.d.comb += [
                read.addr.eq(read_at), read.en.eq(self.stimulus[64]), write.addr.eq(write_at), write.data.eq(data), write.en.eq(enables),
                self.response[32 * index :][:width].eq(read.data),
            ]  # fmt: skip
        return m


@pytest.mark.parametrize(("board", "kinds"), [("ulx3s-25f", {"DP16KD"}), ("tang-nano-9k", {"SDPB", "SDPX9B"}), ("hx8k", {"SB_RAM40_4K"})])
@pytest.mark.place_and_route
def test_memories_of_every_shape_after_synthesis(tmp_path, board, kinds):
    """What yosys makes of plain memories: its mapping and the models must mean the same by addresses, lanes and enables."""
    found = get_board(board)
    design = Memories()
    ports = {"stimulus": (design.stimulus, None), "response": (design.response, None)}
    (tmp_path / "top.il").write_text(rtlil.convert(design, name="top", ports=ports, emit_src=False))
    synthesise(found, tmp_path)
    netlist = json.loads((tmp_path / "top.json").read_text())
    used = cell_counts(netlist)
    assert kinds & used.keys()
    clocks = 2000
    random = np.random.default_rng(1)
    stimulus = random.integers(0, 2, (clocks, 65)).astype(np.uint8)
    few = random.integers(0, 1 << 14, 32)
    read_at, write_at = (few[random.integers(0, len(few), clocks)] for _ in range(2))
    for low, addresses in ((0, read_at), (14, write_at)):
        stimulus[:, low : low + 14] = addresses[:, None] >> np.arange(14) & 1
    response = run(structural_verilog(netlist) + cell_models(found.family, used), stimulus, 32 * len(SHAPES))
    for index, (width, depth, part) in enumerate(SHAPES.values()):
        store, shown = np.zeros((depth, width), np.uint8), None
        for clock, row in enumerate(stimulus):
            at, to = read_at[clock] % depth, write_at[clock] % depth
            enabled = np.repeat(row[60 : 60 + width // part], part) == 1
            if row[64]:
                shown = None if at == to and enabled.any() else store[at].copy()
            store[to, enabled] = row[28 : 28 + width][enabled]
            if shown is not None:
                np.testing.assert_array_equal(
                    response[clock, 32 * index : 32 * index + width], shown, err_msg=f"width {width}, clock {clock}"
                )
