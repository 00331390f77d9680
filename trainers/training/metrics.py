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

    def __init__(
        self,
        task: Task,
        num_labels: int,
        shift: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.task, self._shift = task, None if shift is None else torch.from_numpy(shift)
        shapes: dict[Task, tuple[int, ...]] = {
            "classification": (num_labels, num_labels),
            "multi-label": (num_labels, 2, 2),
            "regression": (3,),
            "masked-lm": (0,),
        }
        # Sums stay on the device until all rows are counted; not every device has fp64.
        has_fp64 = device is None or device.type in ("cpu", "cuda")
        kind: Any = {"dtype": torch.float64 if has_fp64 else torch.float32, "device": device}
        self._sums = torch.zeros(shapes[task], **kind)
        self._totals = torch.zeros(3, **kind)  # rows, loss, correct rows
        self._compared = torch.zeros(2, **kind)  # rows, those that agree with the teacher

    def add_batch(self, logits: Tensor, targets: Tensor) -> None:
        """Count predictions from logits [b, num_labels] against targets of the task's shape."""
        losses = sample_losses(self.task, logits, targets)
        chosen = logits.float()
        if self._shift is not None:
            chosen = chosen - self._shift.to(chosen)
        correct = _COUNTERS[self.task](chosen, targets, self._sums)
        self._add_totals(losses, correct)

    def add_tokens(self, losses: Tensor, correct: Tensor) -> None:
        """Count predictions of masked tokens: losses [n] and whether each is correct [n] bool."""
        self._add_totals(losses, correct)

    def _add_totals(self, losses: Tensor, correct: Tensor) -> None:
        kind = self._totals.dtype
        self._totals[0] += len(losses)
        self._totals[1] += losses.to(kind).sum()
        self._totals[2] += correct.to(kind).sum()

    def add_agreement(self, logits: Tensor, teacher: Tensor, deviation: float) -> None:
        """Count how often logits [b, num_labels] predict what a teacher's do.

        deviation: the standard deviation of a regression's targets.
        """
        reference, outputs = (tensor.float().cpu().numpy() for tensor in (teacher, logits))
        agree = predictions_agree(self.task, reference, outputs, deviation)
        self._compared[0] += len(agree)
        self._compared[1] += float(agree.sum())

    def all_reduce(self) -> None:
        """Sum over all ranks."""
        for sums in (self._sums, self._totals, self._compared):
            if sums.numel():
                dist.all_reduce(sums)

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
        counts = self._sums.cpu().numpy()
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


def _count_classes(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """Add to `sums`; return which rows [b] are correct. So do the others."""
    predicted = logits.argmax(dim=1)
    cells = targets * sums.shape[1] + predicted
    sums.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=sums.dtype))
    return predicted == targets


def _count_labels(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    predicted, true = logits > 0, targets > 0.5
    for t in (False, True):
        for p in (False, True):
            sums[:, int(t), int(p)] += ((true == t) & (predicted == p)).sum(dim=0)
    return (predicted == true).all(dim=1)


def _sum_errors(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    error, true = (logits[:, 0] - targets).to(sums.dtype).abs(), targets.to(sums.dtype)
    sums += torch.stack([error.sum(), true.sum(), true.square().sum()])
    return torch.zeros(0, device=logits.device)


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
