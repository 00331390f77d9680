"""What a model answers, and the sums and orders of rows from which weighted figures follow."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.recipe import Task
from trainers.training import figures
from trainers.training.figures import divide

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


class Ranking:
    """The figures of the order of scores, of every label that can be ranked."""

    def __init__(self, answers: Answers) -> None:
        self._columns = [
            figures.RankedColumn(scores, positive)
            for scores, positive in figures.ranked_columns(
                answers.task, answers.outputs, answers.targets
            )
            if positive.any()
        ]

    def compute_figures(
        self, weights: np.ndarray, right: np.ndarray, wrong: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the figures [draws] under weights [draws, n] and the prior [draws, 1]."""
        sums, known = np.zeros((2, len(weights))), np.zeros(2)
        for column in self._columns:
            pair = np.stack(column.compute_figures(weights, right[:, 0], wrong[:, 0]))
            is_known = ~np.isnan(pair).any(axis=1)
            known += is_known
            sums[is_known] += pair[is_known]
        means = sums / np.maximum(known, 1)[:, None]
        return dict(zip(("auroc", "average_precision"), means, strict=True))


class Tally:
    """Per-row terms of the sums [draws, terms] from which figures are computed."""

    def __init__(self, answers: Answers) -> None:
        self._task, self._width = answers.task, answers.outputs.shape[1]
        if answers.task == "regression":
            true = answers.targets.astype(np.float64)
            error = np.abs(answers.outputs[:, 0] - true)
            terms = [np.ones_like(true), np.square(error), error]
            said = answers.outputs[:, 0]
            ranks = figures.average_ranks(said), figures.average_ranks(true)
            for pair in ((said, true), ranks):
                one, other = (_center(values) for values in pair)
                terms += [other, np.square(other), one, np.square(one), one * other]
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
        counts = (np.asarray(each.sum(axis=0)).ravel() for each in (predicted, true))
        self._present = figures.find_present(*counts)
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
        recall, precision = (divide(found, each).clip(1e-6, 1) for each in (there, answered))
        false = np.minimum(recall * (1 - precision) / precision, 1)
        rates = (recall, 1 - recall, false)
        right, missed, wrong = (
            draw.standard_gamma(_LABEL_ROWS * rate[:, None], hits.shape) for rate in rates
        )
        more = [sums[:, :3], hits + right, predicted + right + wrong, true + right + missed]
        return np.concatenate(more, axis=1)

    def compute_figures(self, sums: np.ndarray, label_sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [draws] of sums [draws, terms].

        label_sums: with the rows of `add_label_rows`, which only macro averages want.
        """
        rows = sums[:, 0]
        if self._task == "regression":
            spread = sums[:, 4] - np.square(sums[:, 3]) / rows
            r2 = 1 - np.divide(sums[:, 1], spread, out=np.ones_like(rows), where=spread > 0)
            found = {"r2": r2, "mae": sums[:, 2] / rows, "loss": sums[:, 1] / rows}
            for name, place in (("pearson", 3), ("spearman", 8)):
                true, square, said, own_square, product = sums[:, place : place + 5].T
                found[name] = figures.correlation(rows, (said, true), (own_square, square), product)
            return found
        hits, predicted, true = np.split(label_sums[:, 3:], 3, axis=1)
        found = figures.macro_averages(hits, predicted, true, self._present)
        hits, predicted, true = np.split(sums[:, 3:], 3, axis=1)
        found |= figures.count_figures(hits, predicted, true, self._task == "classification")
        return found | {"accuracy": sums[:, 2] / rows, "loss": sums[:, 1] / rows}


def _one_hot(classes: np.ndarray, width: int) -> Any:
    """Return a sparse matrix [n, width] with a 1 in each row."""
    from scipy import sparse

    ones, starts = np.ones(len(classes), dtype=np.int8), np.arange(len(classes) + 1)
    return sparse.csr_array((ones, classes, starts), shape=(len(classes), width))


def _center(values: np.ndarray) -> np.ndarray:
    """Return values less their mean, so that no spread is a difference of large numbers."""
    centred: np.ndarray = values.astype(np.float64) - values.astype(np.float64).mean()
    return centred
