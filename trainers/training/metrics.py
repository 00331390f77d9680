"""How good predictions are: sums that add up exactly over micro-batches and ranks.

A `Tally` keeps counts, never logits, so an evaluation costs the same memory for ten rows as for ten
million. Knows no model and no Ray.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainers.config.recipe import Task
from trainers.training.answers import agreeing
from trainers.training.losses import sample_losses

Metrics = dict[str, Any]

_LARGEST_EXPONENT = 700.0  # exp of more is infinite, which JSON cannot write


class Tally:
    """Sums of one evaluation: loss, and counts or moments by task.

    classification: counts [num_labels, num_labels] of (true, predicted). multi-label: counts
    [num_labels, 2, 2] of (true, predicted), and rows wholly right. regression: sums of |error|,
    target and target^2. masked-lm: nothing more; it counts guessed tokens instead of rows.
    """

    def __init__(self, task: Task, num_labels: int) -> None:
        self.task = task
        shapes: dict[Task, tuple[int, ...]] = {
            "classification": (num_labels, num_labels),
            "multi-label": (num_labels, 2, 2),
            "regression": (3,),
            "masked-lm": (0,),
        }
        self._sums = torch.zeros(shapes[task], dtype=torch.float64)
        self._totals = torch.zeros(3, dtype=torch.float64)  # rows, loss, rows wholly right
        self._compared = torch.zeros(2, dtype=torch.float64)  # rows, those answered alike

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count predictions from logits [b, num_labels] against targets of the task's shape."""
        losses = sample_losses(self.task, logits, targets).double()
        right, sums = _COUNTERS[self.task](logits.float(), targets, self._sums)
        self._sums += sums
        self._totals += torch.tensor([len(losses), losses.sum().item(), right])

    def add_tokens(self, losses: Tensor, right: Tensor) -> None:
        """Count guesses of masked tokens: losses [n] and whether each was right [n] bool."""
        found = [losses.double().sum().item(), float(right.sum().item())]
        self._totals += torch.tensor([len(losses), *found], dtype=torch.float64)

    def compare(self, logits: Tensor, teacher: Tensor, deviation: float) -> None:
        """Count how often logits [b, num_labels] mean what those of a teacher do.

        deviation: the standard deviation of a regression's targets.
        """
        told, found = (each.float().cpu().numpy() for each in (teacher, logits))
        same = agreeing(self.task, told, found, deviation)
        self._compared += torch.tensor([len(same), float(same.sum())], dtype=torch.float64)

    def all_reduce(self, device: torch.device) -> None:
        """Add up the tallies of all ranks. fp64 sums on devices that have it, else fp32."""
        dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        for sums in (self._sums, self._totals, self._compared):
            if not sums.numel():
                continue
            moved = sums.to(device, dtype)
            dist.all_reduce(moved)
            sums.copy_(moved)

    def metrics(self, labels: tuple[str, ...]) -> Metrics:
        """The figures of all rows counted, by name; precision, recall and f1 are macro averages.

        A ratio with nothing to divide by is 0, as in scikit-learn's zero_division=0. For masked-lm:
        tokens guessed, loss, accuracy and perplexity, which is exp(loss). Where there was something
        to compare with: teacher_agreement, the share of rows answered alike.
        """
        rows, loss, right = self._totals.tolist()
        if self.task == "masked-lm":
            return _guesses(int(rows), loss, right)
        compared, alike = self._compared.tolist()
        shared = {"teacher_agreement": alike / compared} if compared else {}
        found: Metrics = {"rows": int(rows), "loss": loss / rows}
        if self.task == "regression":
            absolute, target, square = self._sums.tolist()
            spread = square - target * target / rows
            r2 = 1 - loss / spread if spread else 0.0
            return found | {"mae": absolute / rows, "r2": r2} | shared
        counts = self._sums.numpy()
        per_class = _per_class(counts, self.task)
        found["accuracy"] = right / rows
        for index, name in enumerate(("precision", "recall", "f1")):
            found[name] = float(per_class[index].mean())
        found |= shared
        found["per_class"] = {
            label: dict(zip(("precision", "recall", "f1"), figures[:3], strict=True))
            | {"support": int(figures[3])}
            for label, figures in zip(labels, per_class.T.tolist(), strict=True)
        }
        found["confusion"] = counts.astype(int).tolist()
        return found


def _guesses(tokens: int, loss: float, right: float) -> Metrics:
    """The figures of `tokens` guessed ones. NaN where there was none to guess."""
    mean, share = (loss / tokens, right / tokens) if tokens else (math.nan, math.nan)
    perplexity = math.exp(min(mean, _LARGEST_EXPONENT))
    return {"tokens": tokens, "loss": mean, "accuracy": share, "perplexity": perplexity}


def _count_classes(logits: Tensor, targets: Tensor, sums: Tensor) -> tuple[float, Tensor]:
    predicted = logits.argmax(dim=1)
    counts = torch.zeros_like(sums)
    ones = torch.ones(len(targets), dtype=sums.dtype)
    counts.index_put_((targets.cpu(), predicted.cpu()), ones, accumulate=True)
    return float((predicted == targets).sum()), counts


def _count_labels(logits: Tensor, targets: Tensor, sums: Tensor) -> tuple[float, Tensor]:
    predicted, true = (logits > 0).cpu(), (targets > 0.5).cpu()
    counts = torch.stack(
        [
            torch.stack([((true == t) & (predicted == p)).sum(dim=0) for p in (False, True)], dim=1)
            for t in (False, True)
        ],
        dim=1,
    )
    return float((predicted == true).all(dim=1).sum()), counts.to(sums.dtype)


def _sum_errors(logits: Tensor, targets: Tensor, sums: Tensor) -> tuple[float, Tensor]:
    error, true = (logits[:, 0] - targets).double().abs(), targets.double()
    return 0.0, torch.stack([error.sum(), true.sum(), true.square().sum()]).cpu()


_COUNTERS = {
    "classification": _count_classes,
    "multi-label": _count_labels,
    "regression": _sum_errors,
}


def _per_class(counts: np.ndarray, task: Task) -> np.ndarray:
    """Precision, recall, f1 and support [4, num_labels]."""
    if task == "classification":
        hit, said, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    else:
        hit, said, true = counts[:, 1, 1], counts[:, :, 1].sum(axis=1), counts[:, 1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = np.stack([hit / said, hit / true, 2 * hit / (said + true), true])
    finite: np.ndarray = np.nan_to_num(figures, nan=0.0, posinf=0.0)
    return finite
