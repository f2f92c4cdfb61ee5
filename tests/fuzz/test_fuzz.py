"""The bounded run of the fuzzer, and whether the fuzzer itself would notice."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import targets
from corpus import TARGETS, corpus

from tritloom.errors import ModelError

INPUTS = 200
"""Of each target; nights try millions: docs/security.md."""


def _call(*words: object, hash_seed: str = "0", cwd: Path | None = None) -> subprocess.CompletedProcess:
    # A fresh process: workers are forked from it, which wants no threads of other tests.
    command = [sys.executable, str(Path(fuzz.__file__)), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONHASHSEED": hash_seed})


def test_damaged_files_give_sentences_within_their_bounds(tmp_path: Path) -> None:
    done = _call("--inputs", INPUTS, "--seed", 7, "--findings", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr + "".join(path.read_text() for path in tmp_path.glob("*.txt"))
    counts = json.loads(done.stdout)["targets"]
    assert {name: found["inputs"] for name, found in counts.items()} == dict.fromkeys(TARGETS, INPUTS)
    # Mutations that nothing understands would try only the outermost layer of each reader.
    least = {"onnx": INPUTS // 50, "loom": 1, "npz": INPUTS // 50, "toml": INPUTS // 50}
    assert all(found["accepted"] >= least[name] and found["refused"] > INPUTS // 2 for name, found in counts.items()), counts


def test_the_whole_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_STRANGE", 0.0)
    for target in TARGETS:
        outcomes = [outcome for outcome, _ in fuzz.examine(target, corpus(target))]
        # The model of nested graphs is there to be refused.
        assert outcomes == ["accepted"] * (len(outcomes) - 1) + ["refused" if target == "onnx" else "accepted"]


def test_an_input_depends_on_its_number_alone() -> None:
    files = {target: corpus(target) for target in TARGETS}
    made = [fuzz.damaged(target, files[target], 3, number) for target in TARGETS for number in range(60)]
    again = [fuzz.damaged(target, files[target], 3, number) for target in TARGETS for number in reversed(range(60))]
    assert sorted(made) == sorted(again)
    assert len(set(made)) > 150
    script = "import fuzz, hashlib; print(hashlib.sha256(b''.join(fuzz.damaged('onnx', fuzz.corpus('onnx'), 3, n) for n in range(60))).hexdigest())"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    other = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(fuzz.__file__).parent, env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == hashlib.sha256(b"".join(made[:60])).hexdigest()


def _defects(data: bytes) -> None:
    match data:
        case b"endless":
            while True:
                pass
        case b"waits":
            time.sleep(60)
        case b"memory":
            np.empty(2 * fuzz.MEMORY, np.uint8)
        case b"leaves":
            os._exit(3)
        case b"native":
            os.abort()
        case b"error":
            raise KeyError("x")
        case b"lines":
            raise ModelError("one\ntwo")
        case b"refused":
            raise ModelError("no")


@pytest.mark.parametrize(("kind", "words"), [
    ("endless", "more than 0.3 s of CPU time"),
    ("waits", "no answer in 0.05 s"),
    ("memory", "MemoryError in "),
    ("leaves", "the process ended by itself"),
    ("native", "killed by SIGABRT"),
    ("error", "KeyError in "),
    ("lines", "Finding in "),
])  # fmt: skip
def test_each_kind_of_defect_is_noticed_and_the_next_input_is_tried(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    monkeypatch.setattr(targets, "_onnx", _defects)
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 0.3)
    monkeypatch.setattr(fuzz, "WALL_SECONDS", 0.05)  # no defect of what computes for longer
    outcomes = [outcome for outcome, _ in fuzz.examine("onnx", [b"refused", kind.encode(), b"", kind.encode()])]
    assert [outcomes[0], outcomes[2]] == ["refused", "accepted"]
    assert all(outcome.startswith(words) for outcome in (outcomes[1], outcomes[3])), outcomes
