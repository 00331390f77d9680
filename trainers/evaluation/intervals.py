"""Figures of held-out rows with 95% intervals, and paired differences between two models.

A Bayesian bootstrap (Rubin 1981, doi 10.1214/aos/1176345338): each draw weighs every row by a
standard exponential. For few rows three things make it honest, as simulations in the tests show:

- Half a right and half a wrong row are added, Jeffreys' prior of a proportion. Without them 35
  right answers out of 35 would promise that no answer is ever wrong.
- Each label gets one more row, answered as well as those of all labels together. A macro average
  counts a label of two rows, or of none, as much as the others, though hardly anything is known of
  it.
- The percentiles widen as Student's t does (Hesterberg 2015, arXiv 1411.5279, section 5.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.recipe import Task

Interval = tuple[float, float]

FIGURES: dict[str, tuple[str, ...]] = {  # by task, the main ones first
    "classification": ("f1", "accuracy", "precision", "recall", "loss"),
    "multi-label": ("f1", "accuracy", "precision", "recall", "loss"),
    "regression": ("r2", "mae", "loss"),
    "masked-lm": ("loss", "accuracy", "perplexity"),
}
DRAWS, MIN_DRAWS = 1000, 250
LEVEL = 0.95
_CELLS = 1_000_000  # weights drawn at once
_ALL_CELLS = 20_000_000  # and in all: of many rows fewer draws do
_PRIOR_ROWS = 0.5  # of each kind, right and wrong
_LABEL_ROWS = 1.0  # for each label


@dataclass(frozen=True)
class Answers:
    """What a model says of rows, and what is true of them.

    outputs: [n, num_labels], logits or, of a regression, values. targets: class indices [n], for
    multi-label 0 or 1 [n, num_labels], or values [n]. shift: [num_labels] or [n, num_labels], what
    a label's logit has to exceed, or, for classification, what is taken off before the largest
    wins; None: 0.
    """

    task: Task
    outputs: np.ndarray
    targets: np.ndarray
    shift: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def shifted(self) -> np.ndarray:
        """The outputs by which labels are chosen, [n, num_labels]."""
        shifted: np.ndarray = self.outputs if self.shift is None else self.outputs - self.shift
        return shifted

    @property
    def predicted(self) -> np.ndarray:
        """The answers in the form of the targets."""
        if self.task == "classification":
            predicted: np.ndarray = self.shifted.argmax(axis=1)
        elif self.task == "multi-label":
            predicted = self.shifted > 0
        else:
            predicted = self.outputs[:, 0]
        return predicted

    @property
    def losses(self) -> np.ndarray:
        """The loss of each row [n], as `trainers.training.losses.sample_losses` has it."""
        outputs = self.outputs.astype(np.float64)
        if self.task == "regression":
            losses: np.ndarray = np.square(outputs[:, 0] - self.targets)
        elif self.task == "multi-label":
            losses = (np.logaddexp(0, outputs) - outputs * self.targets).mean(axis=1)
        else:
            own = np.take_along_axis(outputs, self.targets[:, None], axis=1)[:, 0]
            losses = np.logaddexp.reduce(outputs, axis=1) - own
        return losses


def compute_figures(answers: Answers) -> dict[str, float]:
    """Return each figure of the rows, as `trainers.training.metrics` computes it."""
    tally = _Tally(answers)
    figures = tally.compute_figures(tally.add_up(np.ones((1, len(answers)))))
    return {name: float(values[0]) for name, values in figures.items()}


def bootstrap_intervals(answers: Answers, seed: int = 0) -> dict[str, Interval]:
    """Return the 95% interval of each figure."""
    figures = _draw_figures([answers], seed)[0]
    return {name: find_interval(values, len(answers)) for name, values in figures.items()}


def bootstrap_difference(ours: Answers, theirs: Answers, metric: str, seed: int = 0) -> Interval:
    """Return the 95% interval of `metric` of ours minus theirs, of the same rows in one order.

    Both are weighed alike in each draw, so that rows that are hard for both do not count.
    """
    one, other = _draw_figures([ours, theirs], seed)
    return find_interval(one[metric] - other[metric], len(ours))


def bootstrap_chance(ours: Answers, theirs: Answers, metric: str, seed: int = 0) -> float:
    """Return the share of draws in which `metric` of ours is higher than theirs."""
    one, other = _draw_figures([ours, theirs], seed)
    return float((one[metric] > other[metric]).mean())


def find_interval(draws: np.ndarray, rows: int, value: float | None = None) -> Interval:
    """Return the percentiles of bootstrapped `draws` that hold 95% for a sample of `rows`.

    value: of all rows, which the interval is stretched to include.
    """
    from scipy.special import ndtr, stdtrit

    freedom = max(1, rows - 1)
    tail = ndtr(math.sqrt(1 + 1 / freedom) * stdtrit(freedom, (1 - LEVEL) / 2))
    low, high = (float(bound) for bound in np.quantile(draws, [tail, 1 - tail]))
    return (low, high) if value is None else (min(low, value), max(high, value))


def _draw_figures(models: Sequence[Answers], seed: int) -> list[dict[str, np.ndarray]]:
    """Return the figures [draws] of one model, or of two on the same draws."""
    tallies, rows = [_Tally(answers) for answers in models], len(models[0])
    draw, found = np.random.default_rng(seed), [list[dict[str, np.ndarray]]() for _ in models]
    draws = min(DRAWS, max(MIN_DRAWS, _ALL_CELLS // max(1, rows)))
    per_turn = max(1, min(draws, _CELLS // max(1, rows, 3 * models[0].outputs.shape[1])))
    for start in range(0, draws, per_turn):
        count = min(per_turn, draws - start)
        weights = draw.standard_exponential((count, rows))
        prior = draw.standard_gamma(_PRIOR_ROWS, (2, count, 1))
        for place, tally in enumerate(tallies):
            # Where one model has the row right, the other has it wrong: that they agree is for
            # the data to say.
            right, wrong = prior if place == 0 else prior[::-1]
            sums = tally.add_label_rows(tally.add_up(weights, right, wrong), draw)
            found[place].append(tally.compute_figures(sums))
    return [
        {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}
        for turns in found
    ]


class _Tally:
    """Per-row terms of the sums [draws, terms] from which figures are computed."""

    def __init__(self, answers: Answers) -> None:
        self._task, self._width = answers.task, answers.outputs.shape[1]
        if answers.task == "regression":
            true = answers.targets.astype(np.float64)
            error = np.abs(answers.outputs[:, 0] - true)
            centred = true - true.mean()  # so that the spread is no difference of large numbers
            terms = [np.ones_like(true), np.square(error), error, centred, np.square(centred)]
            self._terms = np.stack(terms)
            self._right = self._wrong = np.zeros(len(terms))
            return
        self._set_labels(answers)

    def _set_labels(self, answers: Answers) -> None:
        from scipy import sparse

        if answers.task == "classification":
            true, predicted = (
                _one_hot(classes, self._width) for classes in (answers.targets, answers.predicted)
            )
            wrong_share = 1.0  # of the labels of a row that is not right
        else:
            true = sparse.csr_array((answers.targets > 0.5).astype(np.int8))
            predicted = sparse.csr_array(answers.predicted.astype(np.int8))
            differing = (answers.targets > 0.5) != answers.predicted
            rows_wrong = differing.any(axis=1)
            share = float(differing[rows_wrong].mean()) if rows_wrong.any() else 0.0
            wrong_share = max(share, 1 / self._width)
        hits = true.multiply(predicted)
        correct = abs(true - predicted).sum(axis=1) == 0
        scalars = np.stack([np.ones(len(answers)), answers.losses, correct.astype(np.float64)])
        blocks = [sparse.csr_array(scalars), hits.T, predicted.T, true.T]
        self._terms = sparse.vstack(blocks).tocsr().astype(np.float64)
        self._set_prior(answers, np.asarray(true.sum(axis=0)) / len(answers), wrong_share)

    def _set_prior(self, answers: Answers, shares: np.ndarray, wrong_share: float) -> None:
        """Set the terms of a right and of a wrong row. shares: of the rows, by label, [labels]."""
        loss = answers.losses.mean()
        self._right = np.concatenate([[1, loss, 1], shares, shares, shares])
        hits = shares * (1 - wrong_share)
        false = (1 - shares) * wrong_share
        if self._task == "classification":
            false /= max(1, self._width - 1)
        self._wrong = np.concatenate([[1, loss, 0], hits, hits + false, shares])

    def add_up(
        self, weights: np.ndarray, right: np.ndarray | float = 0.0, wrong: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """Return sums [draws, terms] under weights [draws, n] and those of the prior [draws, 1]."""
        sums: np.ndarray = (self._terms @ weights.T).T
        return sums + right * self._right + wrong * self._wrong

    def add_label_rows(self, sums: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Return sums with a row more of each label, answered at the rates of all labels."""
        if self._task == "regression":
            return sums
        hits, predicted, true = np.split(sums[:, 3:], 3, axis=1)
        found, answered, there = (each.sum(axis=1) for each in (hits, predicted, true))
        recall, precision = (_divide(found, each).clip(1e-6, 1) for each in (there, answered))
        false = np.minimum(recall * (1 - precision) / precision, 1)
        rates = (recall, 1 - recall, false)
        right, missed, wrong = (
            draw.standard_gamma(_LABEL_ROWS * rate[:, None], hits.shape) for rate in rates
        )
        more = [sums[:, :3], hits + right, predicted + right + wrong, true + right + missed]
        return np.concatenate(more, axis=1)

    def compute_figures(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [draws] of sums [draws, terms]."""
        rows = sums[:, 0]
        if self._task == "regression":
            spread = sums[:, 4] - np.square(sums[:, 3]) / rows
            r2 = 1 - np.divide(sums[:, 1], spread, out=np.ones_like(rows), where=spread > 0)
            return {"r2": r2, "mae": sums[:, 2] / rows, "loss": sums[:, 1] / rows}
        hits, predicted, true = np.split(sums[:, 3:], 3, axis=1)
        ratios = {
            "f1": _divide(2 * hits, predicted + true),
            "precision": _divide(hits, predicted),
            "recall": _divide(hits, true),
        }
        figures = {name: ratio.mean(axis=1) for name, ratio in ratios.items()}
        return figures | {"accuracy": sums[:, 2] / rows, "loss": sums[:, 1] / rows}


def _one_hot(classes: np.ndarray, width: int) -> Any:
    """Return a sparse matrix [n, width] with a 1 in each row."""
    from scipy import sparse

    ones, starts = np.ones(len(classes), dtype=np.int8), np.arange(len(classes) + 1)
    return sparse.csr_array((ones, classes, starts), shape=(len(classes), width))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing to divide by."""
    ratio: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio
