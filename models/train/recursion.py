"""Training of a :class:`~tritloom.models.nets.recursive.RecursiveNet` by deep supervision: repeatable, and after an interruption the same to the last bit.

Every row of the batch has its own count of supervision steps. After each step of the optimiser a row that has had all of them, or whose halting head says
that its answer is right, is replaced by another puzzle and the first states; the others go on from their states. One row in ten must go on for a random number of steps, so that
late steps are learned too. The loss is the mean cross-entropy of all cells and half the binary cross-entropy of the halting head, whose target is whether every cell is right.
AdamW, a linear start and a cosine down to a tenth; a running mean of the weights is what is judged and exported.
"""

import copy
import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from tritloom.errors import UserError
from tritloom.models.data.puzzles import Puzzles
from tritloom.models.data.sudoku import shuffled
from tritloom.models.methods.layers import flips, weight_codes
from tritloom.models.nets.recursion import PRESETS, RecursiveShape
from tritloom.models.nets.recursive import RecursiveNet
from tritloom.models.nets.recursive_export import recursive_model
from tritloom.models.train.checkpoints import Resumable, pack, unpack
from tritloom.models.train.recursion_settings import RecursionSettings

__all__ = ["RecursionTrainer"]

WARMUP = 0.05
EXPLORING = 0.1
HALT_WEIGHT = 0.5


class RecursionTrainer(Resumable):
    """A training between two epochs.

    Parameters
    ----------
    settings
        All that decides the result.
    data
        The puzzles; the held-out ones are looked at by :meth:`rates` only.
    device
        Where to compute.
    """

    settings: RecursionSettings
    net: RecursiveNet

    def __init__(self, settings: RecursionSettings, data: Puzzles, *, device: torch.device | None = None) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(device is None or device.type == "cpu")
        torch.manual_seed(settings.seed)
        self.settings, self.data, self.device = settings, data, device or torch.device("cpu")
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.shape = RecursiveShape.of(PRESETS[settings.net], data.cells, data.symbols)
        self.net = RecursiveNet(self.shape, settings.method).to(self.device)
        self.mean = copy.deepcopy(self.net)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
        )
        total, start = settings.epochs * settings.steps, max(1, round(WARMUP * settings.epochs * settings.steps))

        def share(step: int) -> float:
            cosine = 0.55 + 0.45 * math.cos(math.pi * min(1.0, max(0, step - start) / max(1, total - start)))
            return min(1.0, (step + 1) / start) * cosine

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, share)
        self.history: list[dict[str, float]] = []
        count = settings.batch
        puzzles, answers = self._draw(count)
        y, z = self.net.start(count)
        zero = torch.zeros(count, dtype=torch.int64)
        self.rows = {"puzzles": puzzles, "answers": answers, "y": y, "z": z, "done": zero, "least": self._least(count)}
        self.rows = {name: value.to(self.device) for name, value in self.rows.items()}

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Puzzles for training and their answers, (count, cells)."""
        data = self.data
        chosen = torch.randint(len(data.train), (count,), generator=self.generator).numpy()
        puzzles, answers = data.train[chosen], data.train_answers[chosen]
        if data.shuffles:
            rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=self.generator)))
            square = (-1, data.size, data.size)
            puzzles, answers = (part.reshape(count, data.cells) for part in shuffled(puzzles.reshape(square), answers.reshape(square), rng))
        return torch.from_numpy(puzzles), torch.from_numpy(answers)

    def _least(self, count: int) -> Tensor:
        """The steps that rows must have before they may halt, (count,): 0 for most."""
        exploring = torch.rand(count, generator=self.generator) < EXPLORING
        steps = torch.randint(min(2, self.shape.supervision), self.shape.supervision + 1, (count,), generator=self.generator)
        return torch.where(exploring, steps, 0)

    def run_epoch(self) -> dict[str, float]:
        """Some steps of the optimiser.

        Returns ``epoch``, mean ``loss``, ``flips``, the share of weight codes that changed, and of the training rows the share ``solved`` among those that ended.
        """
        before = weight_codes(self.net)
        total, ended, right = 0.0, 0, 0
        for _ in range(self.settings.steps):
            rows = self.rows
            answer = self.net(rows["puzzles"], rows["y"], rows["z"])
            with torch.no_grad():
                solved = answer.solved(rows["answers"])
            loss = functional.cross_entropy(answer.logits.flatten(0, 1), rows["answers"].flatten())
            loss = loss + HALT_WEIGHT * functional.binary_cross_entropy_with_logits(answer.halt, solved.to(answer.halt))
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            total += loss.item()
            with torch.no_grad():
                for mean, weight in zip(self.mean.parameters(), self.net.parameters(), strict=True):
                    mean.lerp_(weight, 1 - self.settings.decay)
                done = rows["done"] + 1
                halted = (done >= self.shape.supervision) | ((answer.halt > 0) & (done >= rows["least"]))
                ended, right = ended + int(halted.sum()), right + int((halted & solved).sum())
                self.rows = self._next(rows | {"y": answer.y, "z": answer.z, "done": done}, halted)
        mean_loss = total / self.settings.steps
        if not math.isfinite(mean_loss):
            raise UserError(f"the loss is no longer finite in epoch {self.epoch + 1}; take a smaller learning_rate")
        entry = {
            "epoch": self.epoch + 1,
            "loss": mean_loss,
            "flips": flips(before, weight_codes(self.net)),
            "solved": right / max(1, ended),
        }
        self.history.append(entry)
        return entry

    def _next(self, rows: dict[str, Tensor], halted: Tensor) -> dict[str, Tensor]:
        """The rows of the next step, with new puzzles where one has halted."""
        where = halted.nonzero()[:, 0]
        count = len(where)
        puzzles, answers = self._draw(count)
        y, z = self.net.start(count)
        fresh = {"puzzles": puzzles, "answers": answers, "y": y, "z": z, "least": self._least(count)}
        fresh["done"] = torch.zeros(count, dtype=torch.int64)
        return {name: value.clone().index_copy_(0, where, fresh[name].to(value)) for name, value in rows.items()}

    def checkpoint(self) -> bytes:
        """Everything that the next epochs depend on."""
        parts = {"net": self.net, "mean": self.mean, "optimiser": self.optimiser, "schedule": self.schedule}
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return pack(state | {"generator": self.generator.get_state(), "rows": self.rows, "history": self.history}, self.settings)

    def resume(self, checkpoint: bytes) -> None:
        """Go on from :meth:`checkpoint`. Raises :class:`UserError` for another file, or one of other settings."""
        state = unpack(checkpoint, self.settings, self.device)
        for name in ("net", "mean", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"].cpu())
        self.rows, self.history = state["rows"], state["history"]

    @torch.no_grad()
    def every_step(self, puzzles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the mean weights, after every supervision step: logits (steps, N, cells, symbols) and halting logits (steps, N), float32."""
        self.mean.eval()
        found = []
        for part in torch.from_numpy(puzzles).split(250):
            steps = self.mean.every_step(part.to(self.device))
            found.append([torch.stack([getattr(step, name) for step in steps]).cpu().numpy() for name in ("logits", "halt")])
        logits, halt = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
        return logits, halt

    def answers(self, puzzles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the mean weights where the halting head decides: logits (N, cells, symbols), halting logits (N,), and steps taken (N,)."""
        logits, halt = self.every_step(puzzles)
        last, rows = _last(halt), np.arange(len(puzzles))
        return logits[last, rows], halt[last, rows], last + 1

    def rates(self) -> dict[str, Any]:
        """Figures of the held-out puzzles: share solved after each step, accuracy of the halting head, and number solved and mean steps when it decides."""
        logits, halt = self.every_step(self.data.test)
        solved = (logits.argmax(3) == self.data.test_answers).all(2)
        last = _last(halt)
        return {
            "solved_after_step": solved.mean(1).tolist(),
            "halt_accuracy": float(((halt > 0) == solved).mean()),
            "solved_halting": int(solved[last, np.arange(len(last))].sum()),
            "mean_steps": float(last.mean() + 1),
        }

    def told(self) -> str:
        """The last epoch for people."""
        last = self.history[-1]
        return f"loss {last['loss']:.4f}, {last['solved']:.2%} of the ended rows solved, {last['flips']:.2%} of the weights changed"

    def curves(self) -> list[tuple[str, list[float]]]:
        """Loss and share of solved rows over the epochs."""
        return [("loss", [entry["loss"] for entry in self.history]), ("solved", [entry["solved"] for entry in self.history])]

    def model(self, name: str, metadata: dict[str, str]) -> onnx.ModelProto:
        """The ONNX model of the mean weights, with all quantisers inside."""
        weights = self.mean.to("cpu").exported()
        self.mean.to(self.device)
        return recursive_model(name, self.shape, weights, metadata=metadata)

    def finish(self, name: str, command: str) -> tuple[bytes, dict[str, np.ndarray], dict[str, Any]]:
        """Model, samples and figures: :func:`tritloom.models.train.recursion_results.finish`."""
        from tritloom.models.train.recursion_results import finish

        return finish(self, name, command)


def _last(halt: np.ndarray) -> np.ndarray:
    """Index of the first step whose halting logit (steps, N) is above 0, or of the last one, (N,)."""
    return np.where((halt > 0).any(0), (halt > 0).argmax(0), len(halt) - 1)
