"""A method and a number of planes for each layer, and the options of calibration, from Python and from the command line."""

import numpy as np
import pytest

import tritloom
from tritloom.compiler.ir.program import Convolution
from tritloom.compiler.quantize.weights import WeightChoice
from tritloom.errors import UserError
from tritloom.layers import format_layers, read_layers

SAMPLES = {"x": np.random.default_rng(1).gamma(1.0, size=(50, 4)).astype(np.float32)}


def planes_of(compiled):
    return {op.name: (op.weight_method, op.planes) for op in compiled.program.operations if isinstance(op, Convolution)}


def test_layers_have_their_own_planes(cli, float_mlp, tmp_path):
    (tmp_path / "layers.toml").write_text('[hidden]\nplanes = 3\n\n["classifier"]\nmethod = "twn"\n')
    np.savez(tmp_path / "samples.npz", **SAMPLES)
    done = cli("compile", float_mlp, "-o", "a.loom", "--calibration", "samples.npz", "--layers", "layers.toml", "--json")
    assert done.code == 0, done.err
    one = tritloom.CompiledModel.load(tmp_path / "a.loom")
    assert planes_of(one) == {"hidden": ("planes", 3), "classifier": ("twn", 1)}
    choices = {"classifier": WeightChoice(method="twn"), "hidden": WeightChoice(planes=3)}
    other = tritloom.compile(float_mlp, calibration=SAMPLES, layers=choices)
    assert other.program == one.program
    rest = tritloom.compile(float_mlp, calibration=SAMPLES, planes=4, layers={"hidden": WeightChoice(method="absmean")})
    assert planes_of(rest) == {"hidden": ("absmean", 1), "classifier": ("planes", 4)}


def test_layers_are_written_as_they_are_read(tmp_path):
    choices = {"/a.b/Conv [1]": WeightChoice(planes=2), 'quo"te\\\n\x7f\u00e9': WeightChoice(method="absmean"), "c": WeightChoice()}
    (tmp_path / "layers.toml").write_text(format_layers(choices), encoding="utf-8")
    assert read_layers(tmp_path / "layers.toml") == choices


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[hidden\n", r"^layers file '.*' is not valid TOML: "),
        ("[hidden]\nplane = 2\n", r"^layers file '.*': layer 'hidden' has an unknown key 'plane'; keys are method and planes$"),
        ("hidden = 3\n", r"^layers file '.*': 'hidden' must be a table such as \[\"hidden\"\] with planes or method below it$"),
        ("[hidden]\nplanes = 7\n", r"^layers file '.*': layer 'hidden': planes must be from 1 to 6, not 7$"),
        ("[hidden]\nplanes = true\n", r"planes must be from 1 to 6, not True$"),
        ("[hidden]\nplanes = '2'\n", r"planes must be from 1 to 6, not '2'$"),
        ("[hidden]\nmethod = 3\n", r"method must be one of auto, twn, absmean, planes, not 3$"),
        ("[hidden]\nmethod = []\n", r"method must be one of auto, twn, absmean, planes, not \[\]$"),
        ("[hidden]\nmethod = 'twn'\nplanes = 2\n", r"layer 'hidden': method twn makes one plane, not 2; use method planes$"),
    ],
)
def test_wrong_layers_files(tmp_path, text, sentence):
    (tmp_path / "layers.toml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_layers(tmp_path / "layers.toml")


def test_unknown_layers_and_options_are_refused_before_a_file_is_written(cli, float_mlp, tmp_path):
    np.savez(tmp_path / "samples.npz", **SAMPLES)
    (tmp_path / "layers.toml").write_text("[last]\nplanes = 3\n")
    words = ("compile", float_mlp, "-o", "a.loom", "--calibration", "samples.npz")
    for extra, sentence in (
        (("--layers", "layers.toml"), "float_mlp has no layer 'last' with weights; its layers are hidden, classifier"),
        (("--layers", "absent.toml"), "layers file 'absent.toml' cannot be read: No such file or directory"),
        (("--calibration-method", "mean"), "calibration method must be one of minmax, percentile, mse, not 'mean'"),
        (("--percentile", "50"), "percentile must be above 50 and at most 100, not 50.0"),
        (("--percentile", "nan"), "percentile must be above 50 and at most 100, not nan"),
    ):
        done = cli(*words, *extra)
        assert done.code == 1 and sentence in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "a.loom").exists()


def test_calibration_options_reach_the_grids(cli, float_mlp, tmp_path):
    samples = np.append(SAMPLES["x"], [[1000.0, 0, 0, 0]], axis=0)
    np.savez(tmp_path / "samples.npz", x=samples)
    words = ("compile", float_mlp, "--calibration", "samples.npz", "-o")
    scales = {}
    for name, extra in {"minmax": (), "percentile": ("--percentile", "90"), "mse": ()}.items():
        assert cli(*words, f"{name}.loom", "--calibration-method", name, *extra).code == 0
        program = tritloom.CompiledModel.load(f"{name}.loom").program
        scales[name] = float(program.tensors["x"].scale[0])
    assert scales["minmax"] == pytest.approx(1000 / 255)
    assert scales["percentile"] == pytest.approx(np.percentile(samples, 90) / 255)
    assert cli(*words, "default.loom").code == 0
    default = tritloom.CompiledModel.load("default.loom").program
    assert float(default.tensors["x"].scale[0]) == scales["mse"]


def test_bias_correction_is_on_and_can_be_left_out(cli, float_mlp, tmp_path):
    np.savez(tmp_path / "samples.npz", **SAMPLES)
    words = ("compile", float_mlp, "--calibration", "samples.npz", "--json", "-o")
    on, off = cli(*words, "on.loom"), cli(*words, "off.loom", "--no-bias-correction")
    assert "mean errors over the calibration samples were taken out of the biases of hidden, classifier" in on.json["notes"]
    assert not any("mean errors" in note for note in off.json["notes"])
    for verb in ("verify", "estimate"):
        extra = ("--on", "golden") if verb == "verify" else ()
        assert cli(verb, float_mlp, "--calibration", "samples.npz", "--no-bias-correction", *extra).code == 0


def test_compensation_is_on_and_can_be_left_out(cli, float_mlp, tmp_path):
    np.savez(tmp_path / "samples.npz", **SAMPLES)
    words = ("compile", float_mlp, "--calibration", "samples.npz", "--json", "-o")
    on, off = cli(*words, "on.loom"), cli(*words, "off.loom", "--no-compensation")
    assert (
        "weights were rounded so that their errors cancel in the outputs over the calibration samples: hidden, classifier"
        in on.json["notes"]
    )
    assert not any("errors cancel" in note for note in off.json["notes"])
    assert any("mean errors" in note for note in off.json["notes"])
    for verb in ("verify", "estimate"):
        extra = ("--on", "golden") if verb == "verify" else ()
        assert cli(verb, float_mlp, "--calibration", "samples.npz", "--no-compensation", *extra).code == 0
