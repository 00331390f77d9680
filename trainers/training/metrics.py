"""Evaluation metrics from sums that add up exactly over micro-batches and ranks.

Only counts are kept, never logits, so ten million rows need no more memory than ten.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainers.config.recipe import Task
from trainers.training.losses import sample_losses

Metrics = dict[str, Any]

REGRESSION_TOLERANCE = 0.01  # of the standard deviation of a regression's targets
MIN_COSINE = 0.999  # of two embeddings that agree
_LARGEST_EXPONENT = 700.0  # exp of more is infinite, which JSON cannot write


class MetricAccumulator:
    """Accumulates the loss of one evaluation, and counts or moments by task.

    classification: counts [num_labels, num_labels] of (true, predicted). multi-label: counts
    [num_labels, 2, 2] of (true, predicted), and rows with every label correct. regression: sums of
    |error|, target and target^2. masked-lm: nothing more; it counts tokens instead of rows.
    shift: [num_labels], taken off the logits before labels are chosen, as thresholds ask; the loss
    is that of the logits themselves.
    """

    def __init__(self, task: Task, num_labels: int, shift: np.ndarray | None = None) -> None:
        self.task, self._shift = task, None if shift is None else torch.from_numpy(shift)
        shapes: dict[Task, tuple[int, ...]] = {
            "classification": (num_labels, num_labels),
            "multi-label": (num_labels, 2, 2),
            "regression": (3,),
            "masked-lm": (0,),
        }
        self._sums = torch.zeros(shapes[task], dtype=torch.float64)
        self._totals = torch.zeros(3, dtype=torch.float64)  # rows, loss, correct rows
        self._compared = torch.zeros(
            2, dtype=torch.float64
        )  # rows, those that agree with the teacher

    def add_batch(self, logits: Tensor, targets: Tensor) -> None:
        """Count predictions from logits [b, num_labels] against targets of the task's shape."""
        losses = sample_losses(self.task, logits, targets).double()
        chosen = logits.float()
        if self._shift is not None:
            chosen = chosen - self._shift.to(chosen)
        correct, sums = _COUNTERS[self.task](chosen, targets, self._sums)
        self._sums += sums
        self._totals += torch.tensor([len(losses), losses.sum().item(), correct])

    def add_tokens(self, losses: Tensor, correct: Tensor) -> None:
        """Count predictions of masked tokens: losses [n] and whether each is correct [n] bool."""
        sums = [losses.double().sum().item(), float(correct.sum().item())]
        self._totals += torch.tensor([len(losses), *sums], dtype=torch.float64)

    def add_agreement(self, logits: Tensor, teacher: Tensor, deviation: float) -> None:
        """Count how often logits [b, num_labels] predict what a teacher's do.

        deviation: the standard deviation of a regression's targets.
        """
        reference, outputs = (tensor.float().cpu().numpy() for tensor in (teacher, logits))
        agree = predictions_agree(self.task, reference, outputs, deviation)
        self._compared += torch.tensor([len(agree), float(agree.sum())], dtype=torch.float64)

    def all_reduce(self, device: torch.device) -> None:
        """Sum over all ranks; in fp64 on devices that have it, else fp32."""
        dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        for sums in (self._sums, self._totals, self._compared):
            if not sums.numel():
                continue
            moved = sums.to(device, dtype)
            dist.all_reduce(moved)
            sums.copy_(moved)

    def compute_metrics(self, labels: tuple[str, ...]) -> Metrics:
        """Return the metrics by name; precision, recall and f1 are macro averages.

        A ratio with nothing to divide by is 0, as in scikit-learn's zero_division=0. masked-lm:
        tokens, loss, accuracy, and perplexity = exp(loss). With a teacher also teacher_agreement,
        the share of rows on which the predictions agree.
        """
        rows, loss, correct = self._totals.tolist()
        if self.task == "masked-lm":
            return _masked_lm_metrics(int(rows), loss, correct)
        compared, agreeing = self._compared.tolist()
        agreement = {"teacher_agreement": agreeing / compared} if compared else {}
        metrics: Metrics = {"rows": int(rows), "loss": loss / rows}
        if self.task == "regression":
            absolute, target, square = self._sums.tolist()
            spread = square - target * target / rows
            r2 = 1 - loss / spread if spread else 0.0
            return metrics | {"mae": absolute / rows, "r2": r2} | agreement
        counts = self._sums.numpy()
        per_class = _per_class_scores(counts, self.task)
        metrics["accuracy"] = correct / rows
        for index, name in enumerate(("precision", "recall", "f1")):
            metrics[name] = float(per_class[index].mean())
        metrics |= agreement
        metrics["per_class"] = {
            label: dict(zip(("precision", "recall", "f1"), figures[:3], strict=True))
            | {"support": int(figures[3])}
            for label, figures in zip(labels, per_class.T.tolist(), strict=True)
        }
        metrics["confusion"] = counts.astype(int).tolist()
        return metrics


def _masked_lm_metrics(tokens: int, loss: float, correct: float) -> Metrics:
    """Return the metrics of `tokens` predictions; NaN where there are none."""
    mean, accuracy = (loss / tokens, correct / tokens) if tokens else (math.nan, math.nan)
    perplexity = math.exp(min(mean, _LARGEST_EXPONENT))
    return {"tokens": tokens, "loss": mean, "accuracy": accuracy, "perplexity": perplexity}


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


def _per_class_scores(counts: np.ndarray, task: Task) -> np.ndarray:
    """Return precision, recall, f1 and support [4, num_labels]."""
    if task == "classification":
        hits, predicted, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    else:
        hits, predicted = counts[:, 1, 1], counts[:, :, 1].sum(axis=1)
        true = counts[:, 1].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = np.stack([hits / predicted, hits / true, 2 * hits / (predicted + true), true])
    finite: np.ndarray = np.nan_to_num(figures, nan=0.0, posinf=0.0)
    return finite


def predictions_agree(
    task: str, reference: np.ndarray, outputs: np.ndarray, deviation: float = 1.0
) -> np.ndarray:
    """Return in which rows [n] bool two models' outputs [n, width] predict the same.

    classification: the likeliest label. multi-label: every label. regression: within 1% of
    `deviation`, that of the targets. embedding: a cosine of 0.999 or more. masked-lm: the likeliest
    token of each mask.
    """
    if task == "multi-label":
        agree: np.ndarray = ((reference > 0) == (outputs > 0)).all(axis=1)
    elif task == "regression":
        agree = np.abs(reference - outputs)[:, 0] <= REGRESSION_TOLERANCE * deviation
    elif task == "embedding":
        agree = (reference * outputs).sum(axis=1) >= MIN_COSINE
    else:
        agree = reference.argmax(axis=1) == outputs.argmax(axis=1)
    return agree
