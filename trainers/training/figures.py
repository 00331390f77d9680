"""Figures of answers, from counts of each label, from moments, and from ranked scores.

Names and meaning are scikit-learn's and SciPy's; NumPy alone. Evaluation over ranks
(`trainers.training.metrics`) and bootstrapped intervals (`trainers.evaluation.intervals`) take
them from here, so both mean the same. Sums may have leading axes, as one of draws.
"""

from collections.abc import Iterator

import numpy as np

from trainers.data.splits import spread_indices

RATIOS = ("precision", "recall", "f1")  # of each label; their mean over labels is the figure
RANKED = ("auroc", "average_precision", "spearman")  # of the order of scores, which no sum holds
MAX_ROWS = 50_000  # whose scores are kept
MAX_LOGITS = 8_000_000  # kept
BINS = 10  # of confidence

Figures = dict[str, np.ndarray]


def select_rows(total: int, num_labels: int) -> np.ndarray:
    """Return which of `total` rows keep their scores, [n] int64, rising: all, or an even part."""
    return spread_indices(total, max(1, min(MAX_ROWS, MAX_LOGITS // max(1, num_labels))))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing to divide by, as scikit-learn's zero_division=0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), below)
    ratio: np.ndarray = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


def label_ratios(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> Figures:
    """Return precision, recall and f1 of each label, from counts [..., num_labels]."""
    return {
        "precision": divide(hits, predicted),
        "recall": divide(hits, true),
        "f1": divide(2 * hits, predicted + true),
    }


def find_present(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return which labels [num_labels] bool averages are taken over.

    Those that are true or predicted of any row, as scikit-learn does for classes.
    """
    return np.asarray((predicted > 0) | (true > 0))


def macro_averages(
    hits: np.ndarray, predicted: np.ndarray, true: np.ndarray, present: np.ndarray
) -> Figures:
    """Return the means [...] of the ratios over the labels that are `present`; 0 without any."""
    kept = [counts[..., present] for counts in (hits, predicted, true)]
    return {
        name: ratio.mean(axis=-1) if present.any() else ratio.sum(axis=-1)
        for name, ratio in label_ratios(*kept).items()
    }


def count_figures(
    hits: np.ndarray, predicted: np.ndarray, true: np.ndarray, is_one_class: bool
) -> Figures:
    """Return f1_micro and f1_weighted [...], and of one class a row also mcc and kappa.

    mcc: Matthews' correlation of many classes (Gorodkin 2004, doi
    10.1016/j.compbiolchem.2004.09.006). kappa: Cohen's. Either is 0 where all rows are, or are
    said to be, of one class.
    """
    rows = true.sum(axis=-1)
    f1 = label_ratios(hits, predicted, true)["f1"]
    figures = {
        "f1_micro": divide(2 * hits.sum(axis=-1), predicted.sum(axis=-1) + rows),
        "f1_weighted": divide((f1 * true).sum(axis=-1), rows),
    }
    if is_one_class:
        chance = (true * predicted).sum(axis=-1)
        covariance = hits.sum(axis=-1) * rows - chance
        spreads = [rows**2 - np.square(counts).sum(axis=-1) for counts in (true, predicted)]
        # Rounding leaves a little where there is no spread at all.
        spreads = [np.where(spread > 1e-12 * rows**2, spread, 0.0) for spread in spreads]
        figures["mcc"] = divide(covariance, np.sqrt(spreads[0] * spreads[1]))
        figures["kappa"] = divide(covariance, rows**2 - chance)
    return figures


def correlation(
    rows: np.ndarray,
    sums: tuple[np.ndarray, np.ndarray],
    squares: tuple[np.ndarray, np.ndarray],
    products: np.ndarray,
) -> np.ndarray:
    """Return Pearson's correlation [...] of two numbers from sums [...] over rows.

    0 where either is constant.
    """
    spreads = [
        square - np.square(total) / rows for total, square in zip(sums, squares, strict=True)
    ]
    spreads = [
        np.where(spread > 1e-12 * square, spread, 0.0)
        for spread, square in zip(spreads, squares, strict=True)
    ]
    return divide(products - sums[0] * sums[1] / rows, np.sqrt(spreads[0] * spreads[1]))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks [n] of values [n] from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return Spearman's rank correlation of [n] and [n]; 0 where either is constant."""
    one, other = (average_ranks(values) - (len(values) + 1) / 2 for values in (predicted, true))
    both = np.array(float(one @ other))
    spread = np.sqrt(float(one @ one) * float(other @ other))
    return float(divide(both, np.asarray(spread)))


def ranked_columns(
    task: str, outputs: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the scores [n] and truth [n] bool of each label that is ranked.

    outputs: logits [n, num_labels]. Of two classes the second alone; of more each against all
    others, by its probability; multi-label each by its logit.
    """
    outputs = outputs.astype(np.float64)
    if task == "multi-label":
        yield from zip(outputs.T, (targets > 0.5).T, strict=True)
    elif outputs.shape[1] == 2:
        yield outputs[:, 1] - outputs[:, 0], targets == 1
    else:
        # Rounded: equal probabilities are ties, whatever the order of their sums was.
        logs = np.round(outputs - np.logaddexp.reduce(outputs, axis=1)[:, None], 12)
        yield from ((column, targets == index) for index, column in enumerate(logs.T))


class RankedColumn:
    """The rows of one label from the highest score down, for weighted figures of their order."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order]
        # Rows of one score are above a threshold together, or not at all.
        self._last = np.flatnonzero(np.append(np.diff(scores[self._order]) != 0, True))

    def compute_figures(
        self, weights: np.ndarray, right: np.ndarray | float = 0.0, wrong: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return auroc and average precision [draws] of rows weighed by `weights` [draws, n].

        right, wrong: [draws], weight of a positive and a negative row more that are ranked rightly,
        and of such that are not. Either figure is NaN where there is nothing to rank.
        """
        weighed = weights[:, self._order]
        found = np.cumsum(weighed * self._positive, axis=1)[:, self._last]
        given = np.cumsum(weighed, axis=1)[:, self._last]
        false = given - found
        gains = np.diff(found, axis=1, prepend=0)
        positives, negatives = found[:, -1], false[:, -1]
        pairs = (np.diff(false, axis=1, prepend=0) * (found - gains / 2)).sum(axis=1)
        more = right + wrong
        pairs = pairs + right * (positives + negatives + more)
        all_pairs = (positives + more) * (negatives + more)
        precise = (gains * divide(found, given)).sum(axis=1)
        precise = precise + right + wrong * divide(positives, positives + negatives)
        with np.errstate(invalid="ignore"):
            auroc = np.where((positives > 0) & (negatives > 0), pairs / all_pairs, np.nan)
            precision = np.where(positives > 0, precise / (positives + more), np.nan)
        return auroc, precision


def rank_figures(task: str, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return auroc and average_precision of logits [n, num_labels], of a regression spearman.

    Means over the labels for which each is defined: auroc wants rows with the label and without,
    average precision rows with it. 0 where there is none.
    """
    if task == "regression":
        return {"spearman": spearman(outputs[:, 0], targets)}
    ones = np.ones((1, len(outputs)))
    columns = ranked_columns(task, outputs, targets)
    pairs = [RankedColumn(*each).compute_figures(ones) for each in columns]
    found = np.array(pairs).reshape(-1, 2)
    names = ("auroc", "average_precision")
    return {name: mean_defined(column) for name, column in zip(names, found.T, strict=True)}


def mean_defined(values: np.ndarray) -> float:
    """Return the mean of the values that are no NaN; 0 without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logits)), fp64; 0 where exp overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def compute_confidence(
    task: str, outputs: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability [m] of what is answered, and whether it is so [m] bool.

    classification: of the likeliest class of each row. multi-label: of every label of each row.
    """
    outputs = outputs.astype(np.float64)
    if task == "classification":
        shares = np.exp(outputs - np.logaddexp.reduce(outputs, axis=1)[:, None])
        return shares.max(axis=1), shares.argmax(axis=1) == targets
    return sigmoid(outputs).ravel(), targets.ravel() > 0.5


def bin_confidence(
    confidence: np.ndarray, hits: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return the expected calibration error, and of each bin confidence, share of hits and count.

    Guo et al. 2017, arXiv 1706.04599, section 2, with BINS bins of equal width; a bin without a
    row has zeros.
    """
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    said, right = (np.bincount(place, each, minlength=BINS) for each in (confidence, hits))
    error = float(np.abs(said - right).sum() / len(confidence))
    return error, divide(said, counts), divide(right, counts), counts
