import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tritloom.cli.console import Console
from tritloom.errors import BuildError, LinkError, MissingToolError

VERBS = ("demo", "check", "estimate", "compile", "run", "verify", "sim", "build", "boards", "doctor")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(cli, verb):
    done = cli(verb, "--help")
    assert done.code == 0
    assert f"tritloom {verb}" in done.out.partition("Examples")[2]


def test_help_does_not_load_the_compiler():
    code = "import sys, tritloom, tritloom.cli.main; sys.exit(any(name in sys.modules for name in ('numpy', 'onnx', 'amaranth', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_words_at_all_print_the_help(cli):
    done = cli()
    assert done.code == 1
    assert "Usage: tritloom" in done.out and done.err == ""


def test_version(cli):
    from importlib.metadata import version

    assert cli("--version").out.strip() == version("tritloom")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("verfy",), "no such command 'verfy'. Did you mean 'verify'?; see 'tritloom --help'"),
        (("check",), "missing argument 'MODEL'; see 'tritloom check --help'"),
        (("check", "m.onnx", "--jsn"), "no such option: --jsn"),
        (("verify", "m.onnx", "--samples", "many"), "invalid value for '--samples'"),
        (("build", "m.loom"), "missing option '--board'"),
        (("compile", "absent.onnx"), "model 'absent.onnx' cannot be read: No such file or directory"),
        (("run", "absent.loom", "--input", "a.npz", "--output", "b.npz"), "input file 'a.npz' cannot be read"),
        (("boards", "extra"), "got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exits_with_1(cli, words, sentence):
    done = cli(*words)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith(f"tritloom: {sentence}")
    assert done.err.count("\n") == 1


def test_errors_are_json_too(cli):
    done = cli("check", "absent.onnx", "--json")
    assert done.code == 1
    assert done.json == {"schema": 1, "error": "model 'absent.onnx' cannot be read: No such file or directory", "exit_code": 1}


@pytest.mark.parametrize(
    ("error", "code"), [(BuildError("no room"), 2), (MissingToolError("absent"), 3), (LinkError("silent"), 1), (KeyboardInterrupt(), 130)]
)
def test_each_kind_of_error_has_its_exit_code(cli, mlp, monkeypatch, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("tritloom.compiler.frontend.check", fail)
    done = cli("check", mlp)
    assert done.code == code
    assert done.err == f"tritloom: {error if str(error) else 'interrupted'}\n"


def test_a_defect_of_our_own_asks_for_a_report(cli, mlp, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("broken inside")

    monkeypatch.setattr("tritloom.compiler.frontend.check", fail)
    done = cli("check", mlp)
    assert done.code == 1
    assert done.err.startswith("tritloom: internal error (RuntimeError: broken inside); please report it")
    assert done.err.count("\n") == 1
    assert "Traceback" in cli("check", mlp, "-vv").err


def test_boards(cli):
    found = cli("boards", "--json").json
    assert [board["name"] for board in found["boards"]] == [
        "icebreaker", "hx8k", "ulx3s-25f", "ulx3s-85f", "tang-nano-9k", "tang-nano-20k", "sim",
    ]  # fmt: skip


def test_doctor_names_what_is_missing(cli, monkeypatch):
    monkeypatch.setenv("YOSYS", "no-such-program")
    done = cli("doctor", "--json")
    assert done.code == 3
    yosys = next(tool for tool in done.json["tools"] if tool["name"] == "yosys")
    assert yosys["version"] is None
    assert "no-such-program" in yosys["fix"]


def test_doctor_measures_the_cache(cli, monkeypatch, tmp_path):
    """Finished builds count; locks and what is being built only fill the disk."""
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    empty = {"count": 0, "bytes": 0}
    assert cli("doctor", "--json").json["cache"] == {"folder": str(tmp_path / "cache"), "bitstreams": empty, "simulators": empty}
    for name, size in (
        ("bitstreams/aa/top.bit", 1000), ("bitstreams/aa/deep/log", 20), ("bitstreams/aa.lock", 0), ("bitstreams/bb.unfinished/top.il", 300),
        ("verilator/cc/core.so", 4000), ("verilator/dd/core.so", 50), ("icarus/ee/core.vvp", 6), ("verilator-library/ff/library.o", 700),
    ):  # fmt: skip
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    done = cli("doctor", "--json")
    assert done.json["cache"]["bitstreams"] == {"count": 1, "bytes": 1320}
    assert done.json["cache"]["simulators"] == {"count": 3, "bytes": 4756}
    assert "1 bitstream (0.0 MB), 3 simulators (0.0 MB)" in done.err


def test_doctor_lists_serial_ports(cli, monkeypatch):
    from serial.tools import list_ports
    from serial.tools.list_ports_common import ListPortInfo

    port = ListPortInfo("/dev/no-such-port")
    port.vid, port.pid, port.product = 0x0403, 0x6015, "ULX3S FPGA 85K v3.0.8"
    monkeypatch.setattr(list_ports, "comports", lambda: [port])
    done = cli("doctor", "--json")
    (found,) = done.json["ports"]
    assert found["device"] == "/dev/no-such-port" and found["usb"] == "0403:6015" and found["boards"] == ["ulx3s-85f"]
    assert "plug it in again" in found["fix"] and "ulx3s-85f" in done.err
    monkeypatch.setattr(list_ports, "comports", list)
    done = cli("doctor", "--json")
    assert done.json["ports"] == [] and "serial ports on USB: none" in done.err
    monkeypatch.setitem(sys.modules, "serial.tools.list_ports", None)
    done = cli("doctor", "--json")
    assert done.json["ports"] is None and done.code == 0
    assert "pyserial is not installed: pip install 'tritloom[board]'" in done.err


def test_check_accepts(cli, mlp):
    done = cli("check", mlp, "--json")
    assert done.code == 0
    assert done.json["supported"] is True
    assert done.json["problems"] == []
    assert done.json["layers"]


def test_check_says_what_a_model_is(cli, mlp, float_mlp, unsupported):
    done = cli("check", mlp, "--json")
    facts = done.json["facts"]
    assert (facts["dialect"], facts["parameters"], facts["macs"]) == (["QDQ"], 30 + 5 + 15, 45)
    host = {"inputs": {"x": ["Quantize"]}, "outputs": {"y": ["Dequantize"]}}
    assert facts["runs"] == {"core": {"Dense": 2}, "golden only": {}, "host": host}
    first, second = facts["precision"]
    assert (first["layer"], first["weights"], first["weight_bits"], first["ternary"]) == ("hidden", 30, 2, True)
    assert (second["layer"], second["weights"], second["weight_bits"], second["ternary"]) == ("classifier", 15, 4, False)
    assert (first["input_bits"], first["output_bits"], second["input_bits"], second["output_bits"]) == (8, 8, 8, 32)
    model = onnx.load(mlp)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert first["zeros"] == round(float(np.mean(stored["first_codes"] == 0)), 4)
    for words in (
        "dialect",
        "QDQ",
        "x (1, 6)",
        "y (1, 3)",
        "2 Dense",
        "4 bits, ternary; 1 of 2 layers ternary",
        "8 to sums",
        "before x: Quantize",
    ):
        assert words in done.err, words
    floats = cli("check", float_mlp, "--json")
    assert floats.json["facts"]["dialect"] == ["float"] and floats.json["facts"]["precision"][0]["weight_bits"] is None
    assert "not supported, 2 problems" in cli("check", unsupported).err and "float" in cli("check", unsupported).err


def test_check_gives_one_advice_for_all_nodes_of_one_kind(cli, unsupported):
    model = onnx.load(unsupported)
    model.graph.node.insert(1, onnx.helper.make_node("Sin", ["a"], ["b"], "wave2"))
    model.graph.node[2].input[0] = "b"
    onnx.save(model, unsupported)
    done = cli("check", unsupported, "--json")
    assert [problem["node"] for problem in done.json["problems"]] == ["wave", "wave2", "volume"]
    assert "wave, wave2" in done.err and done.err.count("operator Sin is not supported") == 1


def test_check_says_that_samples_are_needed(cli, mlp, float_mlp):
    sentence = "without a quantiser: give samples of the inputs to compile with --calibration samples.npz"
    assert f"2 tensors {sentence}" in cli("check", float_mlp).err
    assert sentence not in cli("check", mlp).err


def test_check_lists_every_problem(cli, unsupported):
    done = cli("check", unsupported, "--json")
    assert done.code == 1
    assert done.json["supported"] is False
    assert [(problem["node"], problem["op"]) for problem in done.json["problems"]] == [("wave", "Sin"), ("volume", "Det")]
    assert all(problem["reason"] and problem["hint"] for problem in done.json["problems"])


def _damage(data: bytes, kind: str) -> bytes:
    if kind == "flipped":
        flipped = bytearray(data)
        for position in np.random.default_rng(1).integers(0, len(data), 60):
            flipped[position] ^= 1 << (position % 8)
        return bytes(flipped)
    return {"empty": b"", "truncated": data[: len(data) // 2], "text": b"not a model\n" * 40}[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "flipped"])
def test_a_damaged_model_is_refused_and_leaves_no_file(cli, mlp, tmp_path, kind):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(_damage(mlp.read_bytes(), kind))
    before = sorted(path.name for path in tmp_path.iterdir())
    for words in (("compile", bad, "-o", "bad.loom"), ("verify", bad, "--on", "golden")):
        done = cli(*words)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "internal error" not in done.err
    done = cli("check", bad, "--json")
    assert done.code == 1
    assert done.json["supported"] is False
    assert done.json["problems"][0]["reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "flipped"])
def test_a_damaged_artefact_is_refused(cli, loom, tmp_path, kind):
    bad = tmp_path / "bad.loom"
    bad.write_bytes(_damage(loom.read_bytes(), kind))
    for words in (("estimate", bad), ("verify", bad, "--on", "golden")):
        done = cli(*words)
        assert done.code == 1
        assert done.err.count("\n") == 1
        assert "internal error" not in done.err


def test_compile_is_repeatable_and_says_what_it_did(cli, mlp, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        done = cli("compile", mlp, "-o", f"{folder}/m.loom", "--json")
        assert done.code == 0
        assert done.json["macs"] == 6 * 5 + 5 * 3
    assert (tmp_path / "a" / "m.loom").read_bytes() == (tmp_path / "b" / "m.loom").read_bytes()


def test_compile_names_the_file_after_the_model(cli, mlp, tmp_path):
    assert cli("compile", mlp).code == 0
    assert (tmp_path / "mlp.loom").exists()


def test_unknown_board_and_method(cli, mlp, tmp_path):
    done = cli("compile", mlp, "--board", "ulx3s-25")
    assert done.code == 1
    assert "did you mean 'ulx3s-25f'?" in done.err
    done = cli("compile", mlp, "--method", "magic")
    assert done.code == 1
    assert done.err == "tritloom: method must be one of auto, twn, absmean, planes, not 'magic'\n"
    assert not (tmp_path / "mlp.loom").exists()


def test_a_float_model_needs_calibration(cli, float_mlp, tmp_path):
    done = cli("compile", float_mlp, "-o", "f.loom")
    assert done.code == 1
    assert "calibration" in done.err
    assert not (tmp_path / "f.loom").exists()
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    assert cli("compile", float_mlp, "-o", "f.loom", "--calibration", "samples.npz", "--planes", "3").code == 0
    assert cli("verify", "f.loom", "--on", "golden").code == 0


def _feeds(samples: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-4, 4, (samples, 6)).astype(np.float32)


def test_run_gives_the_models_outputs_for_any_batch(cli, loom, tmp_path):
    np.savez(tmp_path / "in.npz", x=_feeds(3))
    done = cli("run", loom, "--input", "in.npz", "--output", "out.npz", "--json")
    assert done.code == 0
    assert done.json["samples"] == 3
    with np.load(tmp_path / "out.npz") as outputs:
        assert list(outputs) == ["y"]
        assert outputs["y"].shape == (3, 3)
        assert outputs["y"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"z": _feeds(1)}, "x"),
        ({"x": _feeds(1), "extra": _feeds(1)}, "extra"),
        ({"x": np.zeros((2, 7), np.float32)}, "7"),
        ({"x": np.zeros(6, np.float32)}, "6"),
        ({"x": np.zeros((0, 6), np.float32)}, "sample"),
        ({"x": np.full((1, 6), np.nan, np.float32)}, "finite"),
        ({"x": np.full((1, 6), np.inf, np.float32)}, "finite"),
        ({"x": np.array([["a"] * 6])}, "x"),
        ({"x": np.zeros((1, 6), np.complex64)}, "complex"),
    ],
)
def test_wrong_inputs_are_refused_and_leave_no_file(cli, loom, tmp_path, arrays, word):
    np.savez(tmp_path / "in.npz", **arrays)
    done = cli("run", loom, "--input", "in.npz", "--output", "out.npz")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "internal error" not in done.err
    assert word in done.err
    assert not (tmp_path / "out.npz").exists()


def test_run_on_something_unknown(cli, loom, tmp_path):
    np.savez(tmp_path / "in.npz", x=_feeds(1))
    done = cli("run", loom, "--on", "gpu", "--input", "in.npz", "--output", "out.npz")
    assert done.code == 1
    assert done.err == "tritloom: provider must be one of golden, amaranth, verilator, netlist, bitstream, not 'gpu'\n"


def test_estimate(cli, loom):
    found = cli("estimate", loom, "--json").json
    assert found["macs"] == 6 * 5 + 5 * 3
    assert found["cycles"] > 0
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert sum(layer["cycles"] for layer in found["layers"]) <= found["cycles"]
    assert all(0 <= layer["utilisation"] <= 1 for layer in found["layers"])
    assert found["clock_mhz"] is None


def test_estimate_for_a_board_has_a_clock_and_cells(cli, loom):
    found = cli("estimate", loom, "--board", "ulx3s-25f", "--json").json
    assert found["clock_mhz"] > 0
    assert found["cells"] > 0


def test_verify_compares_golden_with_the_witness(cli, loom):
    done = cli("verify", loom, "--on", "golden", "--samples", "50", "--seed", "3", "--json")
    assert done.code == 0
    assert done.json["exact"] is True
    assert done.json["samples"] == 50
    (witness,) = done.json["comparisons"]
    assert witness == {
        "reference": "onnx", "candidate": "golden", "tensor": "y", "values": 150, "mismatches": 0, "top1_agreement": 1.0,
    }  # fmt: skip


def test_verify_with_inputs_of_a_file(cli, mlp, tmp_path):
    np.savez(tmp_path / "in.npz", x=_feeds(9))
    assert cli("verify", mlp, "--on", "golden", "--input", "in.npz", "--samples", "4", "--json").json["samples"] == 4


def test_verify_finds_one_wrong_value_and_exits_with_4(cli, loom, monkeypatch):
    from tritloom.sim.backends import GoldenBackend

    class Wrong(GoldenBackend):
        def trace(self, codes):
            tensors = super().trace(codes)
            name = list(tensors)[-1]
            tensors[name] = tensors[name].copy()
            tensors[name][-1, -1, 0, 0] += 1
            return tensors

    monkeypatch.setattr("tritloom.verification.open_backend", lambda name, program, schedule, **options: Wrong(program, schedule))
    done = cli("verify", loom, "--on", "golden,verilator", "--samples", "5", "--json")
    assert done.code == 4
    assert done.json["exact"] is False
    assert sum(c["mismatches"] for c in done.json["comparisons"] if c["reference"] == "golden") == 1
    assert "sample 4" in done.err
    assert "replay: tritloom sim" in done.err


def test_json_stays_alone_on_stdout(cli, loom):
    assert json.loads(cli("estimate", loom, "--json", "-v").out)["schema"] == 1
    assert cli("estimate", loom).out == ""
    assert cli("estimate", loom, "-q").err == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sim", "--simulator", "modelsim"), "--simulator must be one of verilator, icarus, not 'modelsim'"),
        (("build", "--board", "icebreaker", "-o", "out", "--array", "8by8"), "--array must be ROWSxCOLS such as 16x8, not '8by8'"),
        (("build", "--board", "sim", "-o", "out"), "board 'sim'"),
        (("verify", "--on", "golden,fpga"), "candidate must be one of golden, amaranth, verilator, netlist, bitstream, not 'fpga'"),
        (
            ("verify", "--on", "netlist"),
            "board 'sim' has no netlist, as it is only simulated: choose one with an FPGA, --board icebreaker for example",
        ),
        (
            ("verify", "--on", "bitstream", "--board", "ulx3s-25f"),
            "a bitstream of ulx3s-25f cannot be simulated: no tool unpacks ECP5 to logic, only to configuration text; use netlist",
        ),
        (("verify", "--on", ""), "name at least one candidate of golden, amaranth, verilator, netlist, bitstream"),
        (("verify", "--samples", "0"), "samples must be 1 or more, not 0"),
    ],
)
def test_wrong_values_of_options(cli, loom, tmp_path, words, sentence):
    done = cli(words[0], loom, *words[1:])
    assert done.code == 1
    assert done.err.startswith(f"tritloom: {sentence}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sim", "m.loom", "--waves"], ["sim", "m.loom", "--waves", "always"]),
        (["sim", "--waves", "m.loom"], ["sim", "--waves", "always", "m.loom"]),
        (["sim", "--waves", "fail", "m.loom"], ["sim", "--waves", "fail", "m.loom"]),
        (["sim", "--waves=fail", "m.loom"], ["sim", "--waves=fail", "m.loom"]),
    ],
)
def test_waves_alone_means_always(words, expected):
    from tritloom.cli.main import _with_waves_value

    assert _with_waves_value(words) == expected


def test_texts_of_progress_are_not_repeated_line_by_line(capsys):
    console = Console(verbose=1)
    with console.progress() as progress:
        for text in ("compiling", "compiling", "loading", "compiling"):
            progress(text, 0, 0)
        for done in (1, 2, 2):
            progress("samples", done, 2)
    assert capsys.readouterr().err.split("\n") == ["compiling", "loading", "compiling", "samples: 2 of 2", ""]


def test_sim_says_how_to_look_at_the_waves(cli, loom, monkeypatch, tmp_path):
    """From the folder of the files: GTKWave finds what a save file names in the current folder only."""
    from tritloom.sim import cocotb_bench

    folder = tmp_path / "bench"
    result = cocotb_bench.BenchResult(
        simulator="verilator",
        seed=0,
        tests=(cocotb_bench.BenchTest(name="a", passed=True, seconds=1.0, message=""),),
        log=folder / "bench.log",
        waves=folder / "core.vcd",
        views=(folder / "core.gtkw", folder / "core.sucl"),
    )
    monkeypatch.setattr(cocotb_bench, "run_bench", lambda *arguments, **options: result)
    done = cli("sim", loom, "--waves", "-o", "bench")
    assert done.code == 0, done.err
    look = "look at the waves: cd bench && gtkwave core.gtkw (or surfer --command-file core.sucl core.vcd)"
    assert look in done.err
    monkeypatch.setattr(cocotb_bench, "run_bench", lambda *arguments, **options: replace(result, waves=None, views=()))
    assert "look at" not in cli("sim", loom).err
