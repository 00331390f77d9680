"""RUN/label-issues.csv: the training rows whose label is likely wrong, for a person to read.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068, sections 3.1 and 3.2): each row is
answered by a classifier that has not seen it, logistic regression on features of the frozen
encoder. How many rows of one label are another's follows from those that the other claims with at
least the probability that it has in its own rows, on average; so many, by the margin of the two
probabilities, are issues.
"""

import csv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data.corpus import gather_corpus
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.splits import spread_indices
from trainers.storage.atomic import atomic_file

LABEL_ISSUES_FILE = "label-issues.csv"
COLUMNS = ("row", "text", "given", "suggested", "confidence", "given_confidence")
FOLDS = 5
LEAST_ROWS = 5  # of a label, to be given or suggested
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
MAX_TUNING_ROWS = 2_000  # by which it is chosen

# Row, labels given and suggested, probability of what is suggested and of what is given.
Issue = tuple[int, list[int], list[int], float, float]


def write_label_issues(
    path: Path,
    recipe: Recipe,
    data: PreparedDataset,
    features: np.ndarray,
    clean: Callable[[str], str],
) -> int:
    """Write the issues of the training rows, the most certain first; return how many there are.

    features: [n, width] of the training rows. Raises BerthaError where the source cannot be read
    again as it was, and OSError.
    """
    corpus = gather_corpus(recipe, clean)
    rows = corpus.splits["train"]
    if corpus.names != data.labels or len(rows.texts) != len(data.train):
        raise BerthaError(f"{recipe.data.source} has changed since it was encoded; train anew")
    issues = find_label_issues(features, np.asarray(data.train.targets), len(data.labels))
    separator = recipe.data.label_separator
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, given, suggested, confidence, own in issues:
            names = (
                separator.join(data.labels[each] for each in one) for one in (given, suggested)
            )
            shares = (f"{share:.4f}" for share in (confidence, own))
            writer.writerow([rows.numbers[row], rows.texts[row], *names, *shares])
    return len(issues)


def find_label_issues(features: np.ndarray, targets: np.ndarray, num_labels: int) -> list[Issue]:
    """Return the issues, the most certain first: row, labels given and suggested, probabilities.

    features: [n, width]. targets: class indices [n], or 0 and 1 [n, num_labels]. The probabilities
    are those of what is suggested and of what is given; of several labels in one row, of the one
    label that is most certainly wrong.
    """
    spread = np.maximum(features.std(axis=0), 1e-6)
    features = (features - features.mean(axis=0)) / spread
    if targets.ndim == 1:
        shares = predict_out_of_fold(features, targets, num_labels)
        issues = list(_class_issues(shares, targets))
    else:
        issues = list(_label_issues(features, targets > 0.5))
    return sorted(issues, key=lambda issue: issue[4] - issue[3])


def _class_issues(shares: np.ndarray, targets: np.ndarray) -> Iterator[Issue]:
    suggested = suggest_labels(shares, targets)
    for row in np.flatnonzero(suggested != targets):
        given, other = int(targets[row]), int(suggested[row])
        yield int(row), [given], [other], float(shares[row, other]), float(shares[row, given])


def _label_issues(features: np.ndarray, given: np.ndarray) -> Iterator[Issue]:
    suggested, certainty = given.copy(), np.zeros(given.shape)
    for column, there in enumerate(given.T):
        shares = predict_out_of_fold(features, there.astype(np.int64), 2)
        wrong = suggest_labels(shares, there.astype(np.int64)) != there
        suggested[wrong, column] = ~there[wrong]
        certainty[wrong, column] = shares[wrong, suggested[wrong, column].astype(np.int64)]
    for row in np.flatnonzero((suggested != given).any(axis=1)):
        own, other = (np.flatnonzero(each[row]).tolist() for each in (given, suggested))
        most = float(certainty[row].max())
        yield int(row), own, other, most, 1 - most


def suggest_labels(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the label [n] of each row: its own, or of an issue another (pruning by noise rate).

    shares: probabilities [n, num_labels], out of fold.
    """
    claimed, suggested = confident_labels(shares, targets), targets.copy()
    width, known = shares.shape[1], claimed >= 0
    pairs, joint = np.unique(targets[known] * width + claimed[known], return_counts=True)
    counts, confident = (np.bincount(rows, minlength=width) for rows in (targets, targets[known]))
    best = np.zeros(len(targets))
    for pair, rows in zip(pairs, joint, strict=True):
        given, other = divmod(int(pair), width)
        wrong = round(rows * counts[given] / confident[given])
        if given == other or not wrong:
            continue
        places = np.flatnonzero(targets == given)
        margins = shares[places, other] - shares[places, given]
        for place in np.argsort(-margins, kind="stable")[:wrong]:
            if margins[place] > best[places[place]]:
                best[places[place]], suggested[places[place]] = margins[place], other
    return suggested


def confident_labels(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the label [n] that each row is confidently of, -1 where it is of none.

    shares: probabilities [n, num_labels], out of fold. A label claims a row with at least the mean
    probability that the label has in its own rows; of several claims the highest wins. Labels of
    fewer than LEAST_ROWS rows neither claim a row nor lose one.
    """
    counts = np.bincount(targets, minlength=shares.shape[1])
    own = np.bincount(targets, shares[np.arange(len(targets)), targets], len(counts))
    needed = np.where(counts >= LEAST_ROWS, own / np.maximum(counts, 1), np.inf)
    claims = np.where(shares >= needed, shares, -1.0)
    claimed = np.where(claims.max(axis=1) >= 0, claims.argmax(axis=1), -1)
    claimed[counts[targets] < LEAST_ROWS] = -1
    return claimed


def predict_out_of_fold(features: np.ndarray, targets: np.ndarray, num_labels: int) -> np.ndarray:
    """Return probabilities [n, num_labels] of a classifier that has not seen the row.

    Each fold has as many rows of each label; the strength of regularization is that of the lowest
    loss out of fold.
    """
    some = spread_indices(len(targets), MAX_TUNING_ROWS)
    losses = []
    for strength in STRENGTHS:
        shares = _predict(features[some], targets[some], num_labels, strength)
        own = shares[np.arange(len(some)), targets[some]]
        losses.append(-np.log(np.maximum(own, 1e-6)).mean())
    return _predict(features, targets, num_labels, STRENGTHS[int(np.argmin(losses))])


def _predict(
    features: np.ndarray, targets: np.ndarray, num_labels: int, strength: float
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    order = np.lexsort((np.random.default_rng(0).random(len(targets)), targets))
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % FOLDS
    shares = np.zeros((len(targets), num_labels))
    for number in range(FOLDS):
        own, others = fold == number, fold != number
        known = np.unique(targets[others])
        if not own.any() or not len(known):
            continue
        if len(known) == 1:  # nothing to tell apart
            shares[own, known[0]] = 1.0
            continue
        model: Any = LogisticRegression(C=strength, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features[others], targets[others])
        shares[np.ix_(own, known)] = model.predict_proba(features[own])
    return shares
