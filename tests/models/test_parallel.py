"""Data parallel training in two processes on one CPU against one process. Needs ``pip install 'tritloom[train]'``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.training

TEXT = """method = "bitnet"
net = "bitnet"
data = "text"
epochs = 1
warmup = 2
batch = 4
sequence = 16
width = 32
hidden = 48
kv_heads = 2
layers = 1
"""
DIGITS = """method = "twn"
net = "mlp"
data = "digits"
epochs = 2
hidden = [16]
batch = 40
"""
RUN = "from tritloom.cli.main import main; main()"


def trained(folder: Path, config: str, processes: int, *, fails: str = "") -> list[float]:
    """Losses of a training on the command line."""
    folder.mkdir()
    (folder / "run.toml").write_text(config)
    (folder / "run.py").write_text(RUN)
    words = [sys.executable]
    if processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words += ["run.py", "train", "--config", "run.toml", "-o", "out"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if fails:
        assert done.returncode and fails in done.stderr
        return []
    assert done.returncode == 0, done.stderr[-2000:]
    return [entry["loss"] for entry in json.loads((folder / "out/metrics.json").read_text())["history"]]


def test_two_processes_learn_what_one_does(tmp_path):
    """Sums in another order only: the language model has no statistics of a batch."""
    alone, together = trained(tmp_path / "one", TEXT, 1), trained(tmp_path / "two", TEXT, 2)
    assert together == pytest.approx(alone, rel=2e-3)


def test_batch_normalisation_sees_its_share(tmp_path):
    alone, together = trained(tmp_path / "one", DIGITS, 1), trained(tmp_path / "two", DIGITS, 2)
    assert together != alone and together == pytest.approx(alone, rel=0.1)
    assert together[1] < together[0]


def test_what_cannot_be_shared_is_refused(tmp_path):
    trained(tmp_path / "odd", TEXT.replace("batch = 4", "batch = 3"), 2, fails="batch is 3, which 2 processes cannot share equally")
    trained(tmp_path / "puzzles", 'method = "bitnet"\nnet = "trm-small"\n', 2, fails="trm-small trains in one process")
