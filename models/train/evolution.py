"""Evolutions between two epochs: layered networks and rings, in NumPy; repeatable, and after an interruption the same to the last bit.

The random numbers of an epoch depend on the seed and the epoch's number only.
"""

import io
import json
from typing import Any, Generic, TypeVar

import numpy as np
import onnx

from tritloom.errors import UserError
from tritloom.models.data.distortion import distort
from tritloom.models.data.pictures import Pictures, load_pictures
from tritloom.models.methods import layered, ring
from tritloom.models.nets import ring_export
from tritloom.models.nets.classifier import INPUT, Grid, Stage, classifier
from tritloom.models.nets.export import FoldedLayer
from tritloom.models.train.accuracy import correct
from tritloom.models.train.base_settings import check_same
from tritloom.models.train.evolution_settings import EvolutionSettings, LayeredSettings, RingSettings

__all__ = ["LayeredEvolution", "RingEvolution", "evolution", "layered_model"]

Kind = TypeVar("Kind", bound=EvolutionSettings)

SAMPLES = 256
"""Training images that are stored beside the model."""


class _Evolution(Generic[Kind]):
    """What both kinds share. ``arrays`` and ``restore`` give and take what evolved."""

    def __init__(self, settings: Kind) -> None:
        self.settings = settings
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def arrays(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        raise NotImplementedError

    def checkpoint(self) -> bytes:
        """Everything that the next epochs depend on, an ``.npz`` file."""
        words = json.dumps({"settings": self.settings.as_dict(), "history": self.history})
        stream = io.BytesIO()
        np.savez(stream, words=np.frombuffer(words.encode(), np.uint8), **self.arrays())  # type: ignore[arg-type]
        return stream.getvalue()

    def resume(self, checkpoint: bytes) -> None:
        """Go on from :meth:`checkpoint`. Raises :class:`UserError` for another file, or one of other settings."""
        try:
            with np.load(io.BytesIO(checkpoint), allow_pickle=False) as archive:
                arrays = dict(archive)
            words = json.loads(arrays.pop("words").tobytes())
            found, history = words["settings"], words["history"]
        except Exception as error:  # what zipfile, NumPy and json raise has no common base
            raise UserError("the checkpoint cannot be read: it is damaged or was not written by 'tritloom train'") from error
        check_same(found, self.settings)
        self.restore(arrays)
        self.history = history


class LayeredEvolution(_Evolution[LayeredSettings]):
    """A layered network on training images and, anew every epoch, on distorted copies of them. Raises :class:`UserError` where pixels are no whole numbers."""

    def __init__(self, settings: LayeredSettings, data: Pictures) -> None:
        super().__init__(settings)
        if not data.whole:
            raise UserError(f"evolution needs images of whole numbers, which {settings.data!r} has not")
        if settings.batch > len(data.train_images):
            raise UserError(f"batch is {settings.batch}, but there are only {len(data.train_images)} rows for training")
        self.data = data
        self._images = data.train_images[:, 0].astype(np.int64)
        self.net = layered.random_net(self._images[0].size, settings.hidden, data.classes, seed=settings.seed)

    def run_epoch(self) -> dict[str, float]:
        """Some generations. Returns ``epoch``, ``loss`` for each sample of the epoch, and ``flips``, the share of trits that changed."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 2, self.epoch])
        rows, labels = self._images, self.data.train_labels
        if settings.batch:
            chosen = rng.permutation(len(rows))[: settings.batch]
            rows, labels = rows[chosen], labels[chosen]
        if settings.shift or settings.rotation or settings.stretch:
            moved = distort(rows, rng, shift=settings.shift, rotation=settings.rotation, stretch=settings.stretch)
            rows, labels = np.concatenate([rows, moved]), np.tile(labels, 2)
        before = self.net
        self.net, losses = layered.evolve(
            before,
            rows.reshape(len(rows), -1),
            labels,
            generations=settings.generations,
            seed=int(rng.integers(1 << 62)),
            margin=settings.margin,
        )
        pairs = ((before.first, self.net.first), (before.second, self.net.second))
        flips = sum(int((old != new).sum()) for old, new in pairs) / sum(old.size for old, _ in pairs)
        self.history.append({"epoch": self.epoch + 1, "loss": losses[-1] / len(labels), "flips": flips})
        return self.history[-1]

    def told(self) -> str:
        """The last epoch for people."""
        return f"loss {self.history[-1]['loss']:.1f} a sample, {self.history[-1]['flips']:.2%} of the trits changed"

    def curves(self) -> list[tuple[str, list[float]]]:
        """Loss and share of changed trits over the epochs."""
        return [("loss", [entry["loss"] for entry in self.history]), ("trits changed", [entry["flips"] for entry in self.history])]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"first": self.net.first, "second": self.net.second}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.net = layered.LayeredNet(arrays["first"], arrays["second"], self.net.shift, self.net.top)

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels that evolution does not see."""
        return self.data.test_images, self.data.test_labels

    def _right(self, images: np.ndarray, labels: np.ndarray) -> int:
        return int((self.net.logits(images.reshape(len(images), -1).astype(np.int64)).argmax(1) == labels).sum())

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """The ONNX file, samples of its input by name, and the figures."""
        data, highest = self.data, int(self._images.max())
        images, labels = self.pictures()
        rows, right = len(labels), self._right(images, labels)
        model = layered_model(
            name,
            self.net,
            data.shape,
            highest,
            {
                "training": command,
                "seed": str(self.settings.seed),
                "method": "(1+1) evolution of trits with neutral drift, integers only",
                "data": data.name,
                "accuracy": f"{right / rows:.4f} ({right} of {rows})",
            },
        ).SerializeToString(deterministic=True)
        trits = np.concatenate([self.net.first.ravel(), self.net.second.ravel()])
        figures = {
            "name": name,
            "settings": self.settings.as_dict(),
            "held_out_rows": rows,
            "correct_evolved": right,
            "correct_onnxruntime": correct(model, images, labels),
            "accuracy": right / rows,
            "correct_training_rows": self._right(data.train_images, data.train_labels),
            "weights": trits.size,
            "zeros": float((trits == 0).mean()),
            "history": self.history,
        }
        return model, {INPUT: data.train_images[:SAMPLES]}, figures


def layered_model(name: str, net: layered.LayeredNet, shape: tuple[int, ...], highest: int, metadata: dict[str, str]) -> onnx.ModelProto:
    """The ONNX model, which computes the same integers from pixels 0 .. ``highest``: ``floor(a / 8)`` is ``round((a - 3.5) / 8)``, never a tie."""
    step = 2**net.shift
    first = FoldedLayer(net.first, np.ones(len(net.first), np.float32), np.full(len(net.first), -(step - 1) / 2, np.float32))
    second = FoldedLayer(net.second, np.full(len(net.second), 1 / step, np.float32), np.zeros(len(net.second), np.float32))
    stages = [Stage(Grid(1.0, 0, highest), first), Stage(Grid(float(step), 0, net.top), second)]
    return classifier(name, stages, shape=shape, metadata=metadata)


class RingEvolution(_Evolution[RingSettings]):
    """Rings for the addition of signed numbers, scored on every pair."""

    def __init__(self, settings: RingSettings) -> None:
        super().__init__(settings)
        self.bits, self.wanted = ring.addition(settings.width)
        sizes = self.bits.shape[1], self.wanted.shape[1]
        self.rings = [ring.random_ring(*sizes, m=settings.weights, seed=self._seed(number)) for number in range(settings.tries)]

    def _seed(self, *numbers: int) -> int:
        return int(np.random.default_rng([self.settings.seed, *numbers]).integers(1 << 62))

    def _scores(self) -> list[ring.Score]:
        return [ring.score(each, self.bits, self.wanted, self.settings.ticks) for each in self.rings]

    def best(self) -> ring.Ring:
        """The ring with the best score, the first of equals."""
        scores = self._scores()
        return self.rings[scores.index(max(scores))]

    def run_epoch(self) -> dict[str, float]:
        """Some generations of every ring. Returns ``epoch``, and of the best ring the shares of ``right`` and ``unknown`` bits and the number of ``neurons``."""
        settings = self.settings
        for number, parent in enumerate(self.rings):
            self.rings[number], _ = ring.evolve_ring(
                parent, self.bits, self.wanted, generations=settings.generations, seed=self._seed(number, self.epoch), ticks=settings.ticks,
                limit=settings.neurons, changes=settings.changes,
            )  # fmt: skip
        right, unknown = max(self._scores())
        count, neurons = self.wanted.size, len(self.best().roles)
        self.history.append({"epoch": self.epoch + 1, "right": right / count, "unknown": unknown / count, "neurons": neurons})
        return self.history[-1]

    def told(self) -> str:
        """The last epoch for people."""
        last = self.history[-1]
        return f"{last['right']:.2%} of the bits right, {last['unknown']:.2%} unknown, {last['neurons']} neurons"

    def curves(self) -> list[tuple[str, list[float]]]:
        """Shares of right and of unknown bits over the epochs."""
        return [("bits right", [entry["right"] for entry in self.history]), ("bits unknown", [entry["unknown"] for entry in self.history])]

    def arrays(self) -> dict[str, np.ndarray]:
        parts = ((number, field, getattr(each, field)) for number, each in enumerate(self.rings) for field in ("weights", "skews", "roles"))
        return {f"{field}_{number}": array for number, field, array in parts}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.rings = [
            ring.Ring(*(arrays[f"{field}_{number}"] for field in ("weights", "skews", "roles"))) for number in range(self.settings.tries)
        ]

    def pictures(self) -> None:
        """No core runs loops yet."""

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """The ONNX file of the best ring, all its inputs, and the figures: there are no held-out rows, the score is that of the whole truth table."""
        best, settings = self.best(), self.settings
        right, unknown = ring.score(best, self.bits, self.wanted, settings.ticks)
        count = self.wanted.size
        model = ring_export.ring_model(
            name,
            best,
            settings.ticks,
            metadata={
                "training": command,
                "seed": str(settings.seed),
                "method": "(1+1) evolution of a ring of ternary neurons",
                "data": f"all sums of two signed {settings.width}-bit numbers, bit by bit; none held out",
                "accuracy": f"{right / count:.4f} ({right} of {count})",
            },
        ).SerializeToString(deterministic=True)
        figures = {
            "name": name,
            "settings": settings.as_dict(),
            "bits": count,
            "right_bits": right,
            "unknown_bits": unknown,
            "accuracy": right / count,
            "right_sums": int((best.run(self.bits, settings.ticks) == self.wanted).all(1).sum()),
            "sums": len(self.wanted),
            "neurons": len(best.roles),
            "weights": best.weights.size,
            "zeros": float((best.weights == 0).mean()),
            "history": self.history,
        }
        return model, {ring_export.INPUT: self.bits.astype(np.int8)}, figures


def evolution(settings: EvolutionSettings) -> LayeredEvolution | RingEvolution:
    """A new evolution."""
    if isinstance(settings, RingSettings):
        return RingEvolution(settings)
    assert isinstance(settings, LayeredSettings)
    return LayeredEvolution(settings, load_pictures(settings.data))
