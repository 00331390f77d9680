"""The error of probabilities, and the thresholds from which a label is the answer.

A threshold is tuned on validation rows, and kept only where it is better there beyond chance;
anything else stays at 0.5, or with the likeliest class.
"""

import math
from dataclasses import replace

import numpy as np

from trainers.evaluation.intervals import Answers, bootstrap_chance, compute_figures
from trainers.training.figures import bin_confidence, compute_confidence, sigmoid

LEAST_POSITIVES = 5  # validation rows with and without a label, for its threshold to be tuned
LEAST_CHANCE = 0.99  # that a tuned threshold is the better one; most models are right at 0.5
MARGIN = 0.02  # by how much, at least
LOWEST, HIGHEST = 0.02, 0.98
FOLDS = 5


def expected_calibration_error(answers: Answers) -> float:
    """Return by how much confidence and correctness differ on average, in [0, 1].

    Guo et al. 2017, arXiv 1706.04599, section 2, with ten bins of equal width. classification: of
    the probability of the likeliest class. multi-label: of every label's.
    """
    return bin_confidence(*compute_confidence(answers.task, answers.outputs, answers.targets))[0]


def tune_thresholds(answers: Answers, labels: tuple[str, ...], metric: str) -> dict[str, float]:
    """Return the probabilities from which labels are answered, where that is better than 0.5.

    answers: of validation rows, without a shift. multi-label: for each label by its F1. Two
    classes: for the second, by accuracy where that is `metric`, else by macro-F1. {} for any other
    task.
    """
    found: dict[str, float] = {}
    if answers.task == "multi-label":
        for column, label in enumerate(labels):
            scores, true = answers.outputs[:, column], answers.targets[:, column] > 0.5
            threshold = _tune_one(_one_label(scores, true), true, "f1")
            if threshold is not None:
                found[label] = threshold
    elif answers.task == "classification" and len(labels) == 2:
        by = "accuracy" if metric in ("accuracy", "f1_micro") else "f1"
        scores = answers.outputs[:, 1] - answers.outputs[:, 0]
        both = np.stack([np.zeros_like(scores), scores], axis=1)
        threshold = _tune_one(replace(answers, outputs=both), answers.targets == 1, by)
        if threshold is not None:
            found[labels[1]] = threshold
    return found


def thresholds_to_shift(thresholds: dict[str, float], labels: tuple[str, ...]) -> np.ndarray | None:
    """Return what thresholds take off the logits [num_labels] float32; None where there are none.

    A probability is at least t where its logit, or the difference of two classes' logits, is at
    least log(t / (1 - t)).
    """
    if not thresholds:
        return None
    shares = np.array([thresholds.get(label, 0.5) for label in labels])
    return np.asarray(np.log(shares / (1 - shares)), dtype=np.float32)


def _one_label(scores: np.ndarray, true: np.ndarray) -> Answers:
    return Answers("multi-label", scores[:, None], true[:, None].astype(np.float32))


def _tune_one(answers: Answers, true: np.ndarray, metric: str) -> float | None:
    """Return the best threshold of the last column of `answers`; None where 0.5 is as good.

    The best of many thresholds looks better than 0.5 on the rows that chose it, even where all are
    alike. So each fold is answered by the threshold of the other folds, and compared with 0.5.
    """
    if min(true.sum(), (~true).sum()) < LEAST_POSITIVES:
        return None
    scores = answers.outputs[:, -1].astype(np.float64)
    is_binary = answers.task == "classification"
    order = np.lexsort((np.random.default_rng(0).random(len(true)), true))
    fold = np.empty(len(true), dtype=np.int64)
    fold[order] = np.arange(len(true)) % FOLDS  # each with as many rows of the label
    shift = np.zeros_like(answers.outputs, dtype=np.float64)
    for number in range(FOLDS):
        others = fold != number
        shift[~others, -1] = _best_cut(scores[others], true[others], metric, is_binary)
    held_out = replace(answers, shift=shift)
    now, before = (compute_figures(each, [metric])[metric] for each in (held_out, answers))
    gain = now - before
    if gain < MARGIN or bootstrap_chance(held_out, answers, metric) < LEAST_CHANCE:
        return None
    return round(float(sigmoid(np.array(_best_cut(scores, true, metric, is_binary)))), 4)


def _best_cut(scores: np.ndarray, true: np.ndarray, metric: str, is_binary: bool) -> float:
    """Return the logit from which a label is best given; 0, a probability of 0.5, where none is.

    scores: [n] logits. true: [n] bool. is_binary: whether F1 is the mean of both classes'.
    """
    values, place = np.unique(scores, return_inverse=True)
    hits = np.bincount(place, true, minlength=len(values))
    counts = np.bincount(place, minlength=len(values))
    # From cut i on, between values i and i + 1, all higher scores are given the label.
    right = (hits.sum() - hits.cumsum())[:-1]
    given = (counts.sum() - counts.cumsum())[:-1]
    positives, rows = true.sum(), len(true)
    refused = rows - given - (positives - right)  # rightly
    if metric == "accuracy":
        reached = (right + refused) / rows
    else:
        reached = 2 * right / (given + positives)
        if is_binary:
            reached = (reached + 2 * refused / (2 * rows - given - positives)) / 2
    # Between two neighbouring scores every threshold is as good; the middle has most room.
    cuts = (values[1:] + values[:-1]) / 2
    limits = (math.log(share / (1 - share)) for share in (LOWEST, HIGHEST))
    low, high = limits
    allowed = (cuts >= low) & (cuts <= high)
    if not allowed.any():
        return 0.0
    best = np.flatnonzero(allowed & (reached >= reached[allowed].max() - 1e-12))
    # Of several that are equally good the one nearest to 0.5.
    return float(cuts[best[np.abs(cuts[best]).argmin()]])
