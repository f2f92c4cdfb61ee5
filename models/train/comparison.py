"""The comparison of the methods: which trainings it is made of, their stored results, and the tables made of them; needs no PyTorch but to train.

A result belongs to its recipe, everything that decides it: where that changes the training runs again, all others are kept.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.errors import UserError
from tritloom.files import read_bytes, write_bytes
from tritloom.models.methods.names import BASELINES
from tritloom.models.train.evolution_settings import LayeredSettings
from tritloom.models.train.language_settings import LanguageSettings
from tritloom.models.train.settings import Settings

__all__ = ["DIGITS", "SPLITS", "TEXT", "Run", "Store", "digits_runs", "digits_table", "text_runs", "text_table", "train_run", "with_table"]

DIGITS = {
    "float": "float", "twn-float": "TWN, one scale a layer, float activations", "twn-tensor": "TWN, one scale a layer", "twn": "TWN, one scale a row",
    "bitnet": "BitNet b1.58", "quest-w4a4": "QuEST W4A4", "quest-w3a3": "QuEST W3A3", "quest-w2a2": "QuEST W2A2", "quest-w1.58a1.58": "QuEST W1.58A1.58",
    "quest-w1a1": "QuEST W1A1", "drna-reference": "D-RNA as published", "drna-repaired": "D-RNA repaired", "int8": "8-bit integers",
    "int4": "4-bit integers", "evolved": "evolved trits, no gradients",
}  # fmt: skip
"""Methods of the digits' comparison, with their titles."""

SPLITS = {"random": "digits:random:{seed}", "writers": "digits"}
"""Data by split; the random one takes another permutation for every seed."""

TEXT = {
    ("float", "llama"): "float", ("twn", "llama"): "TWN, 8-bit activations", ("bitnet", "bitnet"): "BitNet b1.58", ("quest-w4a4", "llama"): "QuEST W4A4",
    ("quest-w2a2", "llama"): "QuEST W2A2", ("quest-w1.58a1.58", "llama"): "QuEST W1.58A1.58", ("quest-w1a1", "llama"): "QuEST W1A1", ("float", "drna"): "float",
    ("drna-reference", "drna"): "D-RNA as published", ("drna-repaired", "drna"): "D-RNA repaired, float activations",
}  # fmt: skip
"""Method and blocks of the language models, with their titles."""

Judge = Callable[[bytes, np.ndarray], np.ndarray]
"""Logits of an ONNX model for images, in golden."""


@dataclass(frozen=True)
class Run:
    """One training; ``recipe`` holds plain values alone."""

    task: str
    method: str
    seed: int
    recipe: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed


def digits_runs(seeds: int) -> list[Run]:
    """Every method with the seeds ``0 .. seeds - 1`` on both splits; one recipe for all, the default settings."""
    runs = []
    for split, data in SPLITS.items():
        for method in DIGITS:
            for seed in range(seeds):
                source = data.format(seed=seed)
                settings = LayeredSettings(data=source, seed=seed) if method == "evolved" else Settings(method, data=source, seed=seed)
                runs.append(Run(f"digits-{split}", method, seed, settings.as_dict()))
    return runs


def text_runs(seeds: int) -> list[Run]:
    """Character models with the seeds ``0 .. seeds - 1``; what the publications leave in floats is float: embeddings, head, cache, and D-RNA's activations."""
    runs = []
    for method, net in TEXT:
        for seed in range(seeds):
            activations = "float" if method.startswith("drna") else "auto"
            settings = LanguageSettings(method, net=net, seed=seed, activations=activations, head="float", embedding="float", cache="float")
            runs.append(Run("text", f"{net}/{method}", seed, settings.as_dict()))
    return runs


def train_run(run: Run, judge: Judge) -> dict[str, Any]:
    """Train it, and count the held-out rows that the trained network, the exported one in ONNX Runtime, and golden by ``judge`` get right.

    A baseline has no exported network. Of a language model the held-out nats a character are told, trained and exported. Raises :class:`MissingToolError` without scikit-learn, and what PyTorch's import raises without PyTorch.
    """
    if run.task == "text":
        from tritloom.models.train.language import train_language

        rest = {key: value for key, value in run.recipe.items() if key not in ("method", "net", "seed")}
        figures = train_language(run.recipe["method"], run.recipe["net"], run.recipe["seed"], **rest)
        return {key: figures[key] for key in ("nats_pytorch", "nats_exported", "characters", "correct", "weights", "zeros")}
    from tritloom.models.data.pictures import load_pictures

    data = load_pictures(run.recipe["data"])

    def right(logits: np.ndarray) -> int:
        return int((logits.argmax(1) == data.test_labels).sum())

    found: dict[str, Any] = {"held_out_rows": len(data.test_labels)}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in run.recipe.items()}
    if run.method == "evolved":
        from tritloom.models.train.evolution import LayeredEvolution

        evolved = LayeredEvolution(LayeredSettings(**values), data)
        while evolved.epoch < evolved.settings.epochs:
            evolved.run_epoch()
        found["correct_trained"] = right(evolved.net.logits(data.test_images.reshape(len(data.test_images), -1).astype(np.int64)))
        integers = [evolved.net.first, evolved.net.second]
        model = evolved.finish(run.method, "")[0]
    else:
        from tritloom.models.train.loop import Trainer

        trainer = Trainer(Settings(**values), data)
        while trainer.epoch < trainer.settings.epochs:
            trainer.run_epoch()
        found["correct_trained"] = trainer.correct()
        if run.method in BASELINES:
            return found
        integers = [stage.layer.trits for stage in trainer.net.stages()]
        model = trainer.model(run.method, {}).SerializeToString(deterministic=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found["correct_exported"] = right(np.asarray(session.run(None, {"image": data.test_images})[0]))
    found["correct_golden"] = right(judge(model, data.test_images))
    found["weights"] = sum(array.size for array in integers)
    found["zeros"] = sum(int((array == 0).sum()) for array in integers)
    return found


class Store:
    """Results by run, in a JSON file that is rewritten after each.

    Raises :class:`UserError` for a file that is not one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple[str, str, int], dict[str, Any]] = {}
        if not path.exists():
            return
        try:
            rows = json.loads(read_bytes(path, "results file"))["runs"]
            for row in rows:
                run = Run(row["task"], row["method"], row["seed"], row["recipe"])
                self._rows[run.key] = {**asdict(run), "result": dict(row["result"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"results file {str(path)!r} was not written by 'tritloom bench methods'; name another, or move it away"
            ) from error

    def result(self, run: Run) -> dict[str, Any] | None:
        """What is stored for exactly this run, or None."""
        row = self._rows.get(run.key)
        return row["result"] if row is not None and row["recipe"] == dict(run.recipe) else None

    def add(self, run: Run, result: Mapping[str, Any]) -> None:
        """Store a result in place of an older one of the same task, method and seed, and write the file."""
        self._rows[run.key] = {**asdict(run), "result": dict(result)}
        lines = ",\n".join(json.dumps(self._rows[key]) for key in sorted(self._rows))
        write_bytes(self.path, f'{{"runs": [\n{lines}\n]}}\n'.encode())

    def results(self, task: str, method: str) -> list[dict[str, Any]]:
        """All results of a method, by rising seed."""
        return [self._rows[key]["result"] for key in sorted(self._rows) if key[:2] == (task, method)]


def digits_table(store: Store) -> str:
    """Markdown: accuracy on both splits, trained and exported, as mean and range over the seeds."""
    lines = [
        "| method | random split, % | to float | exported, golden | other writers, % | to float | exported, golden | zeros | runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reference = {split: _mean(_accuracy(store.results(f"digits-{split}", "float"), "correct_trained")) for split in SPLITS}
    for method, title in DIGITS.items():
        cells, runs = [], 0
        for split in SPLITS:
            results = store.results(f"digits-{split}", method)
            runs += len(results)
            trained, golden = _accuracy(results, "correct_trained"), _accuracy(results, "correct_golden")
            base = reference[split]
            gap = f"{_mean(trained) - base:+.2f}" if trained and base and method != "float" else ""
            cells += [_spread(trained), gap, f"{_mean(golden):.2f}" if golden else ""]
        zeros = [row["zeros"] / row["weights"] for split in SPLITS for row in store.results(f"digits-{split}", method) if "weights" in row]
        if runs:
            lines.append(f"| {title} | {' | '.join(cells)} | {f'{_mean(zeros):.0%}' if zeros else ''} | {runs} |")
    return "\n".join(lines)


def text_table(store: Store) -> str:
    """Markdown: held-out nats a character, trained and exported, as mean and range over the seeds."""
    lines = ["| method | blocks | held-out nats | to float | exported | zeros | runs |", "| --- | --- | --- | --- | --- | --- | --- |"]
    reference = {net: _mean([row["nats_pytorch"] for row in store.results("text", f"{net}/float")]) for net in ("llama", "drna")}
    for (method, net), title in TEXT.items():
        results = store.results("text", f"{net}/{method}")
        if not results:
            continue
        trained, base = [row["nats_pytorch"] for row in results], reference["drna" if net == "drna" else "llama"]
        gap = f"{_mean(trained) - base:+.3f}" if base and method != "float" else ""
        exported = f"{_mean([row['nats_exported'] for row in results]):.3f}"
        zeros = "" if method == "float" else f"{_mean([row['zeros'] for row in results]):.0%}"
        spread = f"**{_mean(trained):.3f}** ({min(trained):.3f} .. {max(trained):.3f})"
        lines.append(f"| {title} | {net} | {spread} | {gap} | {exported} | {zeros} | {len(results)} |")
    return "\n".join(lines)


def _accuracy(results: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    return [100 * row[key] / row["held_out_rows"] for row in results if key in row]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"**{_mean(values):.2f}** ({min(values):.2f} .. {max(values):.2f})" if values else ""


def with_table(page: str, name: str, table: str) -> str:
    """``page`` with what stands between ``<!-- name -->`` and ``<!-- end of name -->`` replaced. Raises :class:`UserError` where the marks are missing."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"the page has no place for the table {name!r}; it needs the lines '{start.strip()}' and '{end}'")
    return f"{before}{start}\n{table}\n\n{end}{after}"
