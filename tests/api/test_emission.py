"""``compile --emit verilog``: the files agree with the model, and the emitted bench passes where tritloom cannot be imported."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tritloom.compiled import CompiledModel, compile
from tritloom.compiler import golden
from tritloom.compiler.schedule import memory_needs, schedule, tensor_from_bytes, tensor_to_bytes
from tritloom.emission import emit_verilog, register_map
from tritloom.errors import UserError
from tritloom.hw.arch import link
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.hw.model import CoreModel
from tritloom.models import zoo
from tritloom.sim.verilator_build import verilator_root

FILES = {
    "Makefile", "program.hex", "records.hex", "regmap.json", "test_core.py", "tritloom_core.core", "tritloom_core.v", "vectors.json", "weights.hex",
}  # fmt: skip


@pytest.fixture
def convolution(tmp_path) -> Path:
    """Two convolutions, input ``x`` (1, 3, 4, 5) on a grid of 1/16, output ``y`` (1, 2, 2, 3): tensors with channels, rows and columns."""
    rng = np.random.default_rng(8)
    constants = {
        "input_scale": np.float32(1 / 16),
        "hidden_scale": np.float32(1 / 8),
        "scale": np.float32(0.5),
        "zero": np.int8(0),
        "first_codes": rng.integers(-1, 2, (5, 3, 3, 3)).astype(np.int8),
        "second_codes": rng.integers(-1, 2, (2, 5, 3, 3)).astype(np.int8),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "input_scale", "zero"], ["x_codes"], "quantise_x"),
        node("DequantizeLinear", ["x_codes", "input_scale", "zero"], ["x_real"], "dequantise_x"),
        node("DequantizeLinear", ["first_codes", "scale", "zero"], ["first"], "first_weights"),
        node("Conv", ["x_real", "first"], ["sum"], "hidden", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["sum"], ["positive"], "relu"),
        node("QuantizeLinear", ["positive", "hidden_scale", "zero"], ["hidden_codes"], "quantise_hidden"),
        node("DequantizeLinear", ["hidden_codes", "hidden_scale", "zero"], ["hidden_real"], "dequantise_hidden"),
        node("DequantizeLinear", ["second_codes", "scale", "zero"], ["second"], "second_weights"),
        node("Conv", ["hidden_real", "second"], ["y"], "last", kernel_shape=[3, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "convolution.onnx")
    return tmp_path / "convolution.onnx"


def small(path: Path, **changes) -> CompiledModel:
    """The model at ``path`` on 4 x 2 columns with memories that are just large enough."""
    model = compile(path)
    shape = {"rows": 4, "columns": 2, "post_lanes": 1, "weight_encoding": "trit2", **changes}
    needs = memory_needs(model.program, **shape)
    parameters = CoreParameters(
        **shape, accumulator_bits=needs.accumulator_bits, weight_words=needs.weight_words, activation_words=needs.activation_words,
        record_words=needs.record_words, program_words=needs.program_words,
    )  # fmt: skip
    return model.with_schedule("sim", schedule(model.program, parameters))


def words(path: Path) -> list[int]:
    return [int(line, 16) for line in path.read_text().split()]


def test_same_model_same_bytes(mlp, tmp_path):
    first, second = (emit_verilog(small(mlp), tmp_path / name, divisor=7) for name in ("a", "b"))
    assert {path.name for path in first} == FILES == {path.name for path in (tmp_path / "a").iterdir()}
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        assert str(tmp_path).encode() not in one.read_bytes()
    assert json.loads((tmp_path / "a" / "regmap.json").read_text())["serial"]["divisor"] == 7
    verilog = (tmp_path / "a" / "tritloom_core.v").read_text()
    assert verilog.startswith("module tritloom_core(clk, rst, tx, rx);\n")
    # Icarus Verilog does not start such a block at time 0 when it reads only initial values.
    assert "always @*" not in verilog


@pytest.mark.parametrize("changes", [{}, {"rows": 8, "columns": 6, "post_lanes": 2, "weight_encoding": "trit5"}])
def test_images_and_vectors_agree_in_the_model_of_the_core(mlp, tmp_path, changes):
    """The images, loaded as the register map says, give the expected codes for the input codes, in the stored clocks."""
    assert_consistent(small(mlp, **changes), tmp_path)


def test_a_model_with_loops_makes_its_trips(tmp_path):
    """Tables of the vector unit, and samples that take unlike numbers of trips."""
    model = compile(zoo.path("ring"))
    vectors = assert_consistent(model, tmp_path)
    assert all(sample["cycles"] <= model.schedule().cycles for sample in vectors["samples"])


def test_a_language_model_has_no_vectors(tmp_path):
    with pytest.raises(UserError, match="runs token by token, so it has no test vectors"):
        emit_verilog(compile(zoo.path("charlm_bitnet")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_bench_refuses_language_models(cli):
    outcome = cli("sim", zoo.path("charlm_bitnet"))
    assert outcome.code == 1 and "a language model runs token by token; simulate it with 'tritloom verify'" in outcome.err


def assert_consistent(model, tmp_path):
    emit_verilog(model, tmp_path)
    registers, vectors = (json.loads((tmp_path / name).read_text()) for name in ("regmap.json", "vectors.json"))
    plan, parameters = model.schedule("sim"), CoreParameters.from_json(registers["core"]["parameters"])
    assert parameters == plan.parameters
    assert words(tmp_path / "program.hex") == plan.program_words
    core = CoreModel(parameters)
    for space, name in vectors["images"].items():
        size, image = registers["spaces"][space]["word_bytes"], words(tmp_path / name)
        assert len(image) <= registers["spaces"][space]["words"]
        core.write(link.Space[space], 0, b"".join(word.to_bytes(size, "little") for word in image))
    for table in vectors["tables"]:
        core.write(link.Space.ACTIVATIONS, table["address"], bytes.fromhex(table["bytes"]))
    assert len(vectors["samples"]) > 1
    for sample in vectors["samples"]:
        assert set(sample["inputs"]) == {spec.tensor for spec in model.program.inputs}
        for name, codes in sample["inputs"].items():
            placement = plan.placements[name]
            assert vectors["tensors"][name]["address"] == placement.address
            core.write(
                link.Space.ACTIVATIONS, placement.address, tensor_to_bytes(placement, np.reshape(codes, placement.shape), parameters)
            )
        core.run()
        assert core.cycles == sample["cycles"]
        for name, codes in sample["outputs"].items():
            placement = plan.placements[name]
            got = tensor_from_bytes(placement, core.read(placement.address, placement.bytes), parameters)
            np.testing.assert_array_equal(got.reshape(-1), codes)
    inputs = {
        name: np.array([np.reshape(s["inputs"][name], plan.placements[name].shape) for s in vectors["samples"]])
        for name in sample["inputs"]
    }
    expected = golden.run(model.program, inputs)
    for name in sample["outputs"]:
        np.testing.assert_array_equal(expected[name].reshape(len(vectors["samples"]), -1), [s["outputs"][name] for s in vectors["samples"]])
    return vectors


def layout(text: str) -> list[dict]:
    """Fields in a cell of the table of opcodes: ``space u8, address u32, bytes`` or ``core digest (8 bytes)``."""
    fields = []
    for part in () if text == "none" else text.split(", "):
        if bits := re.fullmatch(r"(\w+) u(\d+)", part):
            fields.append({"name": bits[1], "bytes": int(bits[2]) // 8})
        elif size := re.fullmatch(r"([\w ]+) \((\d+) bytes\)", part):
            fields.append({"name": size[1].replace(" ", "_"), "bytes": int(size[2])})
        else:
            fields.append({"name": "bytes", "bytes": None})
    return fields


def test_register_map_is_the_table_of_the_link():
    registers = register_map(CoreParameters(), divisor=4)
    rows = re.findall(r"^([A-Z]+) +(\S.*?)(?:  +| (?=none$))(\S.*)$", link.__doc__ or "", re.MULTILINE)
    assert [name for name, _, _ in rows] == list(registers["opcodes"]) == [code.name for code in link.LinkOpcode]
    for name, request, reply in rows:
        assert registers["opcodes"][name] == {"code": int(link.LinkOpcode[name]), "request": layout(request), "reply": layout(reply)}
    assert registers["frame"]["crc"]["check"] == 0x29B1 and registers["frame"]["crc"]["initial"] == 0xFFFF


def test_register_map_of_the_memories():
    spaces = register_map(CoreParameters(rows=8, columns=5, post_lanes=1, weight_encoding="trit5", activation_words=33), divisor=4)[
        "spaces"
    ]
    assert spaces["WEIGHTS"] == {"code": 1, "word_bytes": 8, "words": 2048, "readable": False}
    assert spaces["ACTIVATIONS"] == {"code": 3, "word_bytes": 1, "words": 264, "readable": True}
    assert register_map(CoreParameters(columns=4, post_lanes=4), divisor=4)["spaces"]["RECORDS"]["word_bytes"] == 64


def test_fusesoc_file_names_what_is_there(mlp, tmp_path):
    model = small(mlp)
    named = replace(model.artefact, program=replace(model.program, name="a model: 7%"))
    emit_verilog(CompiledModel(named), tmp_path)
    text = (tmp_path / "tritloom_core.core").read_text()
    assert text.startswith("CAPI=2:\n")
    assert re.search(r'^name: "tritloom:cores:a_model_7:[\d.]+"$', text, re.MULTILINE)
    named = re.findall(r"^ +- (\S+): \{", text, re.MULTILINE)
    assert sorted(named) == sorted(FILES - {"Makefile", "tritloom_core.core"})


def test_command_line(mlp, cli, tmp_path):
    done = cli("compile", mlp, "-o", tmp_path / "net.loom", "--board", "icebreaker", "--emit", "verilog", "--divisor", "9", "--json")
    assert done.code == 0, done.err
    folder = Path(done.json["verilog"])
    assert folder == tmp_path / "net-verilog" and {path.name for path in folder.iterdir()} == FILES
    registers = json.loads((folder / "regmap.json").read_text())
    model = CompiledModel.load(tmp_path / "net.loom")
    assert registers["core"]["digest"] == model.schedule("icebreaker").parameters.digest.hex()
    assert json.loads((folder / "vectors.json").read_text())["artefact_digest"] == model.digest == done.json["digest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--emit", "vhdl"), "--emit must be verilog, not 'vhdl'"),
        (("--divisor", "8"), "--divisor belongs to the serial line of the Verilog: add --emit verilog"),
        (("--emit", "verilog", "--divisor", "3"), "the divisor of the serial line must be at least 4 clocks a bit, not 3"),
    ],
)
def test_wrong_options(mlp, cli, tmp_path, options, message):
    done = cli("compile", mlp, "-o", tmp_path / "net.loom", *options)
    assert done.code == 1 and message in " ".join(done.err.split())
    assert not (tmp_path / "net.loom").exists() and not (tmp_path / "net-verilog").exists()


def test_folder_that_is_a_file(mlp, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"^folder '.*taken' cannot be made: "):
        emit_verilog(small(mlp), tmp_path / "taken")


def run_bench(folder: Path, tools: Path) -> str:
    """Output of ``make SIM=verilator`` in an emitted folder, in an environment without tritloom."""
    tools.mkdir(exist_ok=True)
    # cocotb's makefile wants a verilator on the search path that tells its version; that of the wheel tells none.
    root, release = verilator_root(), metadata.version("verilator").split(".")
    program = tools / "verilator"
    version = f"Verilator {release[0]}.{int(release[1]):03}"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\nexport VERILATOR_ROOT={root}\nexec {root}/bin/verilator_bin "$@"\n'
    )
    program.chmod(0o755)
    (tools / "tritloom.py").write_text("raise ImportError('this environment has no tritloom')\n")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(tools),
        # The wheel's makefile leaves this empty; without optimisation the compiler takes half the time.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
        "BUILD_ARGS": "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0",
    }
    assert subprocess.run([sys.executable, "-c", "import tritloom"], env=environment, capture_output=True).returncode
    done = subprocess.run(["make", "SIM=verilator"], cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_bench_needs_no_tritloom(convolution, tmp_path):
    """It passes on the core, and finds a weight that is wrong."""
    folder = tmp_path / "core"
    emit_verilog(small(convolution), folder)
    log = run_bench(folder, tmp_path / "tools")
    assert "TESTS=2 PASS=2 FAIL=0" in log, log[-4000:]
    weights = (folder / "weights.hex").read_text()
    (folder / "weights.hex").write_text(f"{int(weights.split()[0], 16) ^ 1:04x}" + weights[4:])
    log = run_bench(folder, tmp_path / "tools")
    assert "TESTS=2 PASS=1 FAIL=1" in log and re.search(r"AssertionError: sample \d: \{'y'", log), log[-4000:]
