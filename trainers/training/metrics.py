"""Evaluation metrics from sums that add up exactly over micro-batches and ranks.

Only counts are kept, so ten million rows need no more memory than ten. Figures of the order of
scores, as auroc, need the scores themselves: those of as many rows as `figures.select_rows` keeps.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainers.config.recipe import Task
from trainers.distributed.object_collectives import gather_from_ranks, run_on_rank0
from trainers.training import figures
from trainers.training.losses import sample_losses

Metrics = dict[str, Any]

REGRESSION_TOLERANCE = 0.01  # of the standard deviation of a regression's targets
MIN_COSINE = 0.999  # of two embeddings that agree
MAX_DENSE = 100  # labels, beyond which only cells of the confusion matrix that count are listed
_CELLS = ("true", "predicted", "rows")  # of a confusion matrix that is listed
MAX_LISTED = 10_000  # cells in a result
MAX_MATRIX = 2_000  # labels, beyond which no confusion matrix is counted
_LARGEST_EXPONENT = 700.0  # exp of more is infinite, which JSON cannot write


class MetricAccumulator:
    """Accumulates the loss of one evaluation, and counts or moments by task.

    classification: counts [num_labels, num_labels] of (true, predicted); beyond MAX_MATRIX labels
    [3, num_labels] of hits, predicted and true. multi-label: counts [num_labels, 2, 2] of (true,
    predicted), and rows with every label correct. regression: sums of |error|, target, target^2,
    output, output^2 and output * target. masked-lm: nothing more; it counts tokens instead of rows.
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
            "regression": (6,),
            "masked-lm": (0,),
        }
        if task == "classification" and num_labels > MAX_MATRIX:
            shapes[task] = (3, num_labels)
        # Sums stay on the device until all rows are counted; not every device has fp64.
        has_fp64 = device is None or device.type in ("cpu", "cuda")
        kind: Any = {"dtype": torch.float64 if has_fp64 else torch.float32, "device": device}
        self._sums = torch.zeros(shapes[task], **kind)
        self._totals = torch.zeros(3, **kind)  # rows, loss, correct rows
        self._compared = torch.zeros(2, **kind)  # rows, those that agree with the teacher
        self._scores: list[tuple[np.ndarray, np.ndarray]] = []
        self._ranked: dict[str, float] | None = None  # of all ranks

    def add_batch(self, logits: Tensor, targets: Tensor) -> None:
        """Count predictions from logits [b, num_labels] against targets of the task's shape."""
        losses = sample_losses(self.task, logits, targets)
        chosen = logits.float()
        if self._shift is not None:
            chosen = chosen - self._shift.to(chosen)
        correct = _COUNTERS[self.task](chosen, targets, self._sums)
        self._add_totals(losses, correct)

    def keep_scores(self, logits: Tensor, targets: Tensor) -> None:
        """Keep the scores of rows that `add_batch` has counted, for the figures of their order."""
        self._scores.append((logits.float().cpu().numpy(), targets.cpu().numpy()))

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
        parts = gather_from_ranks(lambda: self._scores)
        scores = [part for of_rank in parts for part in of_rank]
        self._ranked = run_on_rank0(lambda: self._rank(scores))

    def _rank(self, scores: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        if not scores:
            return {}
        logits, targets = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        return figures.rank_figures(self.task, logits, targets)

    def compute_metrics(self, labels: tuple[str, ...]) -> Metrics:
        """Return the metrics by name; precision, recall and f1 are macro averages.

        They are taken over the labels that are true or predicted of any row; `absent_labels` counts
        the others, where there are some. A ratio with nothing to divide by is 0, as in
        scikit-learn's zero_division=0. Figures of the order of scores are there where scores were
        kept. masked-lm: tokens, loss, accuracy, and perplexity = exp(loss). With a teacher also
        teacher_agreement, the share of rows on which the predictions agree.
        """
        rows, loss, correct = self._totals.tolist()
        if self.task == "masked-lm":
            return _masked_lm_metrics(int(rows), loss, correct)
        compared, agreeing = self._compared.tolist()
        agreement = {"teacher_agreement": agreeing / compared} if compared else {}
        metrics: Metrics = {"rows": int(rows), "loss": loss / rows}
        ranked = self._rank(self._scores) if self._ranked is None else self._ranked
        sums = self._sums.cpu().numpy()
        if self.task == "regression":
            return metrics | _regression_metrics(rows, loss, sums) | ranked | agreement
        metrics["accuracy"] = correct / rows
        return metrics | _label_metrics(self.task, sums, labels, ranked | agreement)


def _regression_metrics(rows: float, loss: float, sums: np.ndarray) -> Metrics:
    absolute, target, square, *others = sums.tolist()
    spread = square - target * target / rows
    total, own_square, product = (np.asarray(each) for each in others)
    pearson = figures.correlation(
        np.asarray(rows), (total, np.asarray(target)), (own_square, np.asarray(square)), product
    )
    r2 = 1 - loss / spread if spread else 0.0
    return {"mae": absolute / rows, "r2": r2, "pearson": float(pearson)}


def _label_metrics(
    task: Task, counts: np.ndarray, labels: tuple[str, ...], more: dict[str, float]
) -> Metrics:
    """Return the metrics of counted labels. more: single numbers that come before the tables."""
    hits, predicted, true = _split_counts(counts, task)
    present = figures.find_present(predicted, true)
    averages = figures.macro_averages(hits, predicted, true, present)
    averages |= figures.count_figures(hits, predicted, true, task == "classification")
    metrics: Metrics = {name: float(value) for name, value in averages.items()} | more
    if not present.all():
        metrics["absent_labels"] = int((~present).sum())
    ratios = figures.label_ratios(hits, predicted, true)
    columns = [*(each.tolist() for each in ratios.values()), true.astype(int).tolist()]
    names = (*ratios, "support")
    rows = zip(*columns, strict=True)
    metrics["per_class"] = {
        label: dict(zip(names, row, strict=True)) for label, row in zip(labels, rows, strict=True)
    }
    never = np.flatnonzero((predicted == 0) & (true > 0))
    metrics["never_predicted"] = [labels[place] for place in never]
    if task == "multi-label" or len(counts) == len(labels):
        metrics["confusion"] = _list_confusion(counts.astype(int), task)
    return metrics


def _list_confusion(counts: np.ndarray, task: Task) -> Any:
    """Return counts as lists; of many classes as {true, predicted, rows}, the most rows first."""
    if task == "multi-label" or len(counts) <= MAX_DENSE:
        return counts.tolist()
    true, predicted = np.nonzero(counts)
    rows = counts[true, predicted]
    order = np.argsort(-rows, kind="stable")
    cells = (column[order].tolist() for column in (true, predicted, rows))
    return dict(zip(_CELLS, cells, strict=True))


def list_confused_pairs(confusion: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true, predicted and rows of each pair of classes that were mixed up, most rows first.

    confusion: of the metrics of a classification.
    """
    if isinstance(confusion, dict):
        true, predicted, rows = (np.array(confusion[name]) for name in _CELLS)
    else:
        counts = np.array(confusion, dtype=np.int64).reshape(len(confusion), -1)
        true, predicted = np.nonzero(counts)
        rows = counts[true, predicted]
    mixed = np.flatnonzero(true != predicted)
    mixed = mixed[np.argsort(-rows[mixed], kind="stable")]
    return true[mixed], predicted[mixed], rows[mixed]


def for_result(metrics: Metrics) -> Metrics:
    """Return the metrics as a result keeps them: of listed cells the MAX_LISTED with most rows."""
    kept = {name: value for name, value in metrics.items() if name != "never_predicted"}
    if isinstance(kept.get("confusion"), dict):
        kept["confusion"] = {k: cells[:MAX_LISTED] for k, cells in kept["confusion"].items()}
    return kept


def without_tables(metrics: Metrics, labels_kept: int = MAX_DENSE) -> Metrics:
    """Return metrics without the tables that grow with the labels, as each evaluation is logged.

    The confusion matrix is left out always, the figures of each label beyond `labels_kept`.
    """
    left_out = {"confusion", "never_predicted"}
    if len(metrics.get("per_class", ())) > labels_kept:
        left_out.add("per_class")
    return {name: value for name, value in metrics.items() if name not in left_out}


def _masked_lm_metrics(tokens: int, loss: float, correct: float) -> Metrics:
    """Return the metrics of `tokens` predictions; NaN where there are none."""
    mean, accuracy = (loss / tokens, correct / tokens) if tokens else (math.nan, math.nan)
    perplexity = math.exp(min(mean, _LARGEST_EXPONENT))
    return {"tokens": tokens, "loss": mean, "accuracy": accuracy, "perplexity": perplexity}


def _count_classes(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    """Add to `sums`; return which rows [b] are correct. So do the others."""
    predicted = logits.argmax(dim=1)
    hit = predicted == targets
    if len(sums) < sums.shape[1]:  # hits, predicted and true
        for row, counted in zip(sums, (targets[hit], predicted, targets), strict=True):
            row.index_add_(0, counted, torch.ones_like(counted, dtype=sums.dtype))
        return hit
    cells = targets * sums.shape[1] + predicted
    sums.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=sums.dtype))
    return hit


def _count_labels(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    predicted, true = logits > 0, targets > 0.5
    for t in (False, True):
        for p in (False, True):
            sums[:, int(t), int(p)] += ((true == t) & (predicted == p)).sum(dim=0)
    return (predicted == true).all(dim=1)


def _sum_errors(logits: Tensor, targets: Tensor, sums: Tensor) -> Tensor:
    error, true = (logits[:, 0] - targets).to(sums.dtype).abs(), targets.to(sums.dtype)
    said = logits[:, 0].to(sums.dtype)
    moments = (error, true, true.square(), said, said.square(), said * true)
    sums += torch.stack([each.sum() for each in moments])
    return torch.zeros(0, device=logits.device)


_COUNTERS = {
    "classification": _count_classes,
    "multi-label": _count_labels,
    "regression": _sum_errors,
}


def _split_counts(counts: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hits, predicted and true rows of each label, [num_labels] each."""
    if task == "multi-label":
        return counts[:, 1, 1], counts[:, :, 1].sum(axis=1), counts[:, 1].sum(axis=1)
    if len(counts) < counts.shape[1]:
        return counts[0], counts[1], counts[2]
    return np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)


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
