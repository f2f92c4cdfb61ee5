"""What of ``tritloom train`` and ``tritloom zoo`` needs no PyTorch: settings, the chart, messages, the packaged models."""

import subprocess
import sys
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from tritloom.cli.main import app
from tritloom.errors import UserError
from tritloom.models import zoo
from tritloom.models.train.chart import chart
from tritloom.models.train.recursion_settings import RecursionSettings
from tritloom.models.train.settings import Settings, read_settings


def test_settings_from_a_file_and_options():
    text = 'method = "bitnet"\nlearning_rate = 1\nhidden = []\npooled = [2]\nseed = 4\nnet = "cnn"'
    found = read_settings(text, "run.toml", {"seed": 7, "epochs": None})
    assert found == Settings("bitnet", net="cnn", learning_rate=1.0, hidden=(), pooled=(2,), seed=7)
    assert isinstance(found.learning_rate, float)
    assert read_settings("", "", {"method": "twn"}) == Settings("twn")
    assert Settings("twn", shift=0, rotation=0, stretch=0).distorted is False


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("method = ", "^run.toml is not valid TOML: "),
        ('method = "twn"\nepoch = 3', "^run.toml has the unknown key 'epoch'; known are method, net, data, seed, epochs, "),
        ("epochs = 3", "^run.toml must name the method$"),
        ('method = "twn"\nepochs = 3.0', r"^epochs in run.toml must be a whole number, not 3\.0$"),
        ('method = "twn"\nepochs = true', "^epochs in run.toml must be a whole number, not True$"),
        ('method = "twn"\nshift = "1"', "^shift in run.toml must be a number, not '1'$"),
        ("method = 3", "^method in run.toml must be a text, not 3$"),
        ('method = "twn"\nhidden = 64', "^hidden in run.toml must be a list of whole numbers, not 64$"),
        ('method = "twn"\nhidden = [64.5]', "^hidden in run.toml must be a list of whole numbers"),
        ('method = "twn"\nhidden = [0]', r"^hidden must list numbers from 1 to 4096, not \[0\]$"),
        ('method = "twn"\nepochs = 0', r"^epochs must lie in 1\.\.100000, not 0$"),
        ('method = "twn"\nlearning_rate = nan', "^learning_rate must lie in"),
        ('method = "twn"\nnet = "rnn"', "^net must be one of mlp, cnn, llama, bitnet, drna, trm-sudoku4, .*, layered, ring, not 'rnn'$"),
        ('method = "twn"\nnet = ["mlp"]', r"^net must be one of mlp, .*, not \['mlp'\]$"),
        ('method = "tnw"', "^method must be one of twn, .*, not 'tnw'$"),
        ('method = "twn"\nnet = "cnn"\npooled = [4]', "^pooled names convolution 4, but there are only 3$"),
        ('method = "twn"\nnet = "cnn"\nchannels = []', "^channels must list numbers"),
    ],
)
def test_settings_that_make_no_sense(text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_settings(text, "run.toml", {})


def test_settings_of_a_recursive_network():
    found = read_settings('net = "trm-sudoku4"\nsteps = 5\ndecay = 0.5', "run.toml", {"method": "float", "epochs": 2})
    assert found == RecursionSettings("float", epochs=2, steps=5, decay=0.5)
    assert (found.name, RecursionSettings("bitnet").name) == ("trm_sudoku4_float", "trm_sudoku4")
    assert RecursionSettings("twn", net="trm-small", data="maze").name == "trm_small_maze_twn"
    for text, sentence in (
        ('net = "trm-x"', r"^net must be one of mlp, .*, trm-sudoku4, .*, not 'trm-x'$"),
        ('net = "trm-small"\ndata = "digits"', "^data of a recursive network must be one of sudoku4, sudoku9, maze, not 'digits'$"),
        ('net = "trm-small"\nhidden = [3]', "^run.toml has the unknown key 'hidden'; known are method, net, data, seed, epochs, steps"),
        ('net = "trm-small"\ndecay = 1.0', r"^decay must lie in 0\.\.0\.99999, not 1\.0$"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_settings(text, "run.toml", {"method": "bitnet"})
    with pytest.raises(UserError, match=r"^method of a recursive network must be one of float, bitnet, .*, not 'quest-w1a1'$"):
        read_settings('net = "trm-small"', "run.toml", {"method": "quest-w1a1"})


@pytest.mark.parametrize("values", [([1.0, 0.5, 0.25], [0.2, 0.1, 0.0]), ([2.0], [0.0]), ([], [])])
def test_chart_is_well_formed(values):
    root = ElementTree.fromstring(chart("a < b", [("loss", values[0]), ("weights changed", values[1])]))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert [len((line.get("points") or "").split()) for line in lines] == [len(series) for series in values]
    for line in lines:
        for point in (line.get("points") or "").split():
            x, y = map(float, point.split(","))
            assert 60 <= x <= 660 and 40 <= y <= 320
    if len(values[0]) == 3:
        assert (lines[0].get("points") or "").split()[0].endswith(",40.0") and "a &lt; b" in chart("a < b", [])


NO_TORCH = """import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Absent)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line where PyTorch cannot be imported."""
    code = f"{NO_TORCH}from tritloom.cli.main import main; main(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def test_training_without_pytorch_names_the_command_that_installs_it(tmp_path):
    done = run("train", "twn", "-o", str(tmp_path / "out"))
    assert done.returncode == 3 and done.stderr == "tritloom: training needs PyTorch; install it with: pip install 'tritloom[train]'\n"
    assert not list(tmp_path.iterdir())
    code = NO_TORCH + "import tritloom.models.methods as m\ntry: m.TwnWeights\nexcept Exception as e: print(type(e).__name__, e)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "MissingToolError the training methods need PyTorch; install it with: pip install 'tritloom[train]'\n"


def test_every_packaged_model_says_where_it_comes_from():
    for name in zoo.names():
        found = zoo.properties(name)
        assert {"training", "seed", "method", "data", "accuracy"} <= found.keys(), name
        card = zoo.path(name).with_suffix(".md").read_text()
        percent, counts = f"{float(found['accuracy'].split()[0]):.2%}".replace("%", " %"), found["accuracy"].split("(")[1].rstrip(")")
        assert card.startswith(f"# {name}\n") and percent in card and counts in card, name


def test_zoo_lists_and_fetches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    listed = runner.invoke(app, ["zoo", "--json"])
    assert listed.exit_code == 0 and [name in listed.output for name in zoo.names()] == [True] * len(zoo.names())
    assert runner.invoke(app, ["zoo", "digits_cnn_twn", "-q"]).exit_code == 0
    assert (tmp_path / "digits_cnn_twn.onnx").read_bytes() == zoo.path("digits_cnn_twn").read_bytes()
    with pytest.raises(UserError, match=r"^the zoo has no model 'digits'; it has: "):
        runner.invoke(app, ["zoo", "digits"], catch_exceptions=False)
    with pytest.raises(UserError, match=r"^--output needs the NAME of a model"):
        runner.invoke(app, ["zoo", "-o", "a.onnx"], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["digits_cnn_twn.onnx"]
