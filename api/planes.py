"""The cheapest method and number of digit planes of each layer whose accuracy is good enough: ``compile --planes auto``.

Greedy, from sensitivity. All layers start with :data:`MOST_PLANES` digit planes. Each layer alone is tried at every smaller setting;
then, in the combination found so far, the layer that saves most for what it lost alone gets one plane less, and stays where it is for
good when the whole would lose too much. Accuracy is that of golden on samples that made no grid and corrected no bias.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tritloom.boards import Board, fit, get_board
from tritloom.compiled import DEFAULT_BOARD, CompiledModel, assemble
from tritloom.compiler import golden
from tritloom.compiler.frontend import Lowered, Lowering
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.ir.program import Program
from tritloom.compiler.quantize.weights import IntegerWeights, WeightChoice
from tritloom.compiler.schedule import schedule
from tritloom.errors import ModelError, UserError
from tritloom.sim.witness import run_witness

__all__ = ["MOST_PLANES", "PlaneSearch", "Point", "choose_planes"]

MOST_PLANES = 4
_LADDER = (
    *(WeightChoice(method="planes", planes=planes) for planes in range(MOST_PLANES, 0, -1)),
    WeightChoice(method="twn", planes=1),
    WeightChoice(method="absmean", planes=1),
)
"""Settings of a layer; the last three make one plane."""

_ONE_PLANE = MOST_PLANES - 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Point:
    """One setting that was tried.

    ``layers`` are the choices of the layers with float weights. ``cycles`` are those of an inference on the board, ``weight_bytes`` what
    the weight memory holds then; both are ``None`` where the program does not fit. ``accuracy`` is the share of right answers.
    """

    name: str
    layers: Mapping[str, WeightChoice]
    correct: int
    samples: int
    cycles: int | None
    weight_bytes: int | None

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples

    @property
    def cost(self) -> tuple[float, float]:
        """Cycles, then bytes of weights."""
        return (np.inf, np.inf) if self.cycles is None or self.weight_bytes is None else (self.cycles, self.weight_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layers": {layer: {"method": choice.method, "planes": choice.planes} for layer, choice in self.layers.items()},
            "correct": self.correct,
            "accuracy": self.accuracy,
            "cycles": self.cycles,
            "weight_bytes": self.weight_bytes,
        }


@dataclass(frozen=True)
class PlaneSearch:
    """Result of :func:`choose_planes`.

    ``points`` are all settings that were tried, in order; ``chosen`` is one of them. ``reasons`` says by layer why it has no plane less.
    ``weights`` are the integer weights of each layer in the chosen one. ``float_correct`` are the right answers of the float model in
    ONNX Runtime, of as many samples as each point's.
    """

    model: CompiledModel
    board: str
    max_loss: float
    float_correct: int
    samples: int
    points: tuple[Point, ...]
    chosen: Point
    reasons: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, IntegerWeights] = field(default_factory=dict)

    def loss(self, point: Point) -> float:
        """Accuracy that the float model has more, 0.01 for one point."""
        return (self.float_correct - point.correct) / self.samples

    def to_json(self) -> dict[str, Any]:
        return {
            "board": self.board,
            "max_loss": self.max_loss,
            "validation_samples": self.samples,
            "float_correct": self.float_correct,
            "float_accuracy": self.float_correct / self.samples,
            "chosen": self.points.index(self.chosen),
            "reasons": dict(self.reasons),
            "points": [{**point.to_json(), "loss": self.loss(point)} for point in self.points],
        }


def choose_planes(
    model: bytes,
    *,
    name: str,
    calibration: Mapping[str, np.ndarray],
    labels: np.ndarray,
    max_loss: float,
    board: str = DEFAULT_BOARD,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> PlaneSearch:
    """The model with the fewest cycles (then the smallest weights) that loses at most ``max_loss`` of its accuracy.

    Parameters
    ----------
    model, name
        Bytes of an ONNX file with one output of class scores (or ``ArgMax`` of them), and how it is called.
    calibration
        Inputs by name, first axis the samples. The first, third, ... make grids and correct biases, the others judge.
    labels
        The right class of each sample, integers (samples,).
    max_loss
        Right answers of the float model in ONNX Runtime less those of golden, over the samples that judge: 0.01 is one point of top-1.
    settings
        Everything but ``method`` and ``planes``; its ``layers`` keep what they have.

    Raises :class:`UserError` for wrong arguments and when no setting is good enough, :class:`ModelError` for a model that cannot be
    lowered.
    """
    if not 0 <= max_loss < 1:
        raise UserError(f"the largest loss must be at least 0 and below 1 (100%), not {max_loss!r}")
    rows = {key: np.asarray(array) for key, array in calibration.items()}
    count = len(next(iter(rows.values()))) if rows else 0
    answers = _checked_labels(np.asarray(labels), count)
    trial = _Trial(
        lowering=Lowering(model, name=name, calibration={key: array[::2] for key, array in rows.items()}),
        feeds={key: array[1::2] for key, array in rows.items()},
        labels=answers[1::2],
        board=get_board(board),
        settings=settings or Settings(),
    )
    expected = run_witness(model, trial.feeds)
    if len(expected) != 1:
        raise UserError(f"{name} has {len(expected)} outputs; top-1 accuracy needs a model with one")
    float_correct = _correct(next(iter(expected.values())), trial.labels, name)
    search = _Search(trial, float_correct, max_loss, progress or (lambda text, done, total: None))
    chosen, reasons = search.run()
    best = replace(trial.settings, layers={**trial.settings.layers, **chosen.layers})
    lowered = trial.lowering.lower(best)
    compiled = assemble(model, lowered, best, calibration).with_schedule(trial.board.name)
    points = tuple(search.points.values())
    return PlaneSearch(compiled, trial.board.name, max_loss, float_correct, len(trial.labels), points, chosen, reasons, lowered.weights)


def _checked_labels(labels: np.ndarray, count: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.size != count or labels.ndim not in (1, 2):
        raise UserError(f"labels must be integers, one for each of the {count} calibration samples, not {labels.dtype} {labels.shape}")
    if count < 2:
        raise UserError("at least 2 labelled samples are needed: half of them make grids, the other half judges")
    return labels.ravel().astype(np.int64)


def _correct(scores: np.ndarray, labels: np.ndarray, name: str) -> int:
    """Right answers of class scores (N, classes), or of class numbers (N,) of an integer type."""
    flat = np.asarray(scores).reshape(len(labels), -1)
    if flat.dtype.kind in "iu" and flat.shape[1] == 1:
        return int((flat[:, 0] == labels).sum())
    if flat.shape[1] < 2:
        raise UserError(f"{name} has one score a sample; top-1 accuracy needs one score for each class")
    if labels.min() < 0 or labels.max() >= flat.shape[1]:
        raise UserError(f"labels must be from 0 to {flat.shape[1] - 1}, the classes of {name}, not {labels.min()}..{labels.max()}")
    return int((flat.argmax(axis=1) == labels).sum())


@dataclass(kw_only=True)
class _Trial:
    """Runs one setting."""

    lowering: Lowering
    feeds: dict[str, np.ndarray]
    labels: np.ndarray
    board: Board
    settings: Settings

    def lower(self, layers: Mapping[str, WeightChoice]) -> Lowered:
        return self.lowering.lower(replace(self.settings, layers={**self.settings.layers, **layers}))

    def point(self, name: str, layers: Mapping[str, WeightChoice]) -> Point:
        program = self.lower(layers).program
        cycles = weight_bytes = None
        try:
            made = schedule(program, fit(self.board, program))
            cycles, weight_bytes = made.cycles, int(made.weights.nbytes)
        except ModelError:
            # A board that is too small for this setting may hold another.
            pass
        return Point(name, dict(layers), _correct(self.scores(program), self.labels, program.name), len(self.labels), cycles, weight_bytes)

    def scores(self, program: Program) -> np.ndarray:
        names = {spec.name for spec in program.inputs}
        codes = golden.quantise_inputs(program, {key: array for key, array in self.feeds.items() if key in names})
        tensors = golden.run(program, codes, keep=[spec.tensor for spec in program.outputs])
        return next(iter(golden.dequantise_outputs(program, tensors).values()))


class _Search:
    """The greedy search. A state is the place of each layer on the ladder."""

    def __init__(self, trial: _Trial, float_correct: int, max_loss: float, progress: Progress) -> None:
        self._trial, self._float, self._max_loss, self._progress = trial, float_correct, max_loss, progress
        weights = trial.lower({}).weights
        self._layers = [layer for layer, made in weights.items() if made.method != "exact" and layer not in trial.settings.layers]
        if not self._layers:
            raise UserError(f"{trial.lowering.name} has no layer with float weights to choose planes for; leave out --planes auto")
        self.points: dict[tuple[int, ...], Point] = {}
        self._most = 1 + (len(_LADDER) - 1) * len(self._layers) + MOST_PLANES + _ONE_PLANE * len(self._layers)

    def _point(self, state: tuple[int, ...], name: str) -> Point:
        if state not in self.points:
            self.points[state] = self._trial.point(name, {layer: _LADDER[at] for layer, at in zip(self._layers, state, strict=True)})
        self._progress("settings", len(self.points), self._most)
        return self.points[state]

    def _loss(self, point: Point) -> float:
        return (self._float - point.correct) / point.samples

    def _accurate(self, point: Point) -> bool:
        # In whole answers, so that no rounding of the product decides.
        return self._float - point.correct <= self._max_loss * point.samples + 1e-9

    def run(self) -> tuple[Point, dict[str, str]]:
        """The chosen point, and by layer why it has no plane less."""
        count = len(self._layers)
        for at in range(MOST_PLANES):
            self._point((at,) * count, f"all layers: {_words(at)}")
        alone = [self._alone(index) for index in range(count)]
        state, reasons = self._descend(alone)
        good = [point for point in self.points.values() if self._accurate(point) and point.cycles is not None]
        if not good:
            raise UserError(self._nothing())
        chosen = min(good, key=lambda point: (*point.cost, -point.correct))
        if chosen is not self.points[state]:
            found = next(key for key, point in self.points.items() if point is chosen)
            reasons = {layer: "this combination was the cheapest" for layer, at in zip(self._layers, found, strict=True) if at < _ONE_PLANE}
        self._progress("settings", self._most, self._most)
        return chosen, reasons

    def _alone(self, index: int) -> dict[int, Point]:
        """The layer's points at every place of the ladder, the others at the top."""
        found = {}
        for at in range(len(_LADDER)):
            state = tuple(at if other == index else 0 for other in range(len(self._layers)))
            found[at] = self._point(state, f"{self._layers[index]} alone: {_words(at)}" if at else "")
        return found

    def _descend(self, alone: list[dict[int, Point]]) -> tuple[tuple[int, ...], dict[str, str]]:
        state = [0] * len(self._layers)
        reasons: dict[str, str] = {}
        step = 0
        while True:
            moves = []
            for index, layer in enumerate(self._layers):
                if state[index] >= _ONE_PLANE or layer in reasons:
                    continue
                at = state[index] + 1
                if at == _ONE_PLANE:
                    # Of the methods that make one plane the one that loses least alone, then the one of the smaller index.
                    at = max(range(_ONE_PLANE, len(_LADDER)), key=lambda place, found=alone[index]: (found[place].correct, -place))
                moves.append((self._worth(alone[index][state[index]], alone[index][at]), -index, index, at))
            if not moves:
                return tuple(state), reasons
            _, _, index, at = max(moves)
            step += 1
            tried = tuple(at if other == index else place for other, place in enumerate(state))
            point = self._point(tried, f"step {step}: {self._layers[index]} to {_words(at)}")
            if self._accurate(point):
                state[index] = at
            else:
                lost = f"{self._loss(alone[index][at]):.2%} alone, {self._loss(point):.2%} together with the others"
                reasons[self._layers[index]] = f"{_words(at)} would lose {lost}, more than {self._max_loss:.2%}"

    def _worth(self, before: Point, after: Point) -> float:
        """Cycles saved for each answer lost; bytes of weights count where cycles are equal."""
        if before.cycles is None or after.cycles is None or before.weight_bytes is None or after.weight_bytes is None:
            saved = 1.0
        else:
            saved = before.cycles - after.cycles + 1e-6 * (before.weight_bytes - after.weight_bytes)
        return saved / (max(before.correct - after.correct, 0) + 0.5)

    def _nothing(self) -> str:
        fitting = [point for point in self.points.values() if point.cycles is not None]
        if not fitting:
            return f"no setting of 1 to {MOST_PLANES} planes fits {self._trial.board.name}; choose a larger board with --board"
        best = max(fitting, key=lambda point: point.correct)
        return (
            f"no setting of up to {MOST_PLANES} planes loses at most {self._max_loss:.2%}: "
            f"the best ({best.name}) loses {self._loss(best):.2%}, {self._float - best.correct} of {best.samples} answers; allow more with --max-loss, or give more --activation-bits"
        )


def _words(at: int) -> str:
    choice = _LADDER[at]
    return f"{choice.planes} plane{'' if choice.planes == 1 else 's'}" + ("" if choice.method == "planes" else f" by {choice.method}")
