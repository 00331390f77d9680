"""What a model has to beat: the commonest answer, and a bag of words with a linear model.

Both are fitted to the whole texts of the very split that the run trains on, by scikit-learn: TF-IDF
of words and word pairs with logistic regression, one for each label where a row has several, or
with ridge regression. Their strength of regularization is chosen by cross-validation on training
rows. Of many rows a selection does.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.recipe import Task
from trainers.data.corpus import Corpus
from trainers.data.splits import spread_indices

MAX_TRAINING_ROWS = 20_000
MAX_TUNING_ROWS = 2_000  # by which the regularization is chosen
FEW_ROWS = 500  # up to so many in five folds, more in three
MANY_ROWS = 10_000  # of which terms of a single row are left out, to save memory
MAX_TERMS = 100_000
MAX_WEIGHTS = 2_000_000  # of all labels together
MAX_LABELS = 200
STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regressions
PENALTIES = (0.03, 0.3, 1.0, 3.0)  # alpha of ridge
_LEAST_LOG = -30.0  # of the probability of a class that no training row has

Outputs = np.ndarray  # [n, num_labels]: logits, or values of a regression


@dataclass(frozen=True)
class Baseline:
    """What two simple models answer for the test rows, in their order.

    name: of the bag of words, "" where there is none, and then `reason` says why. train_rows: those
    that it saw. majority, words: [n, num_labels], as in `Answers`; words is empty without a name.
    """

    majority: Outputs
    words: Outputs
    name: str
    reason: str
    train_rows: int
    seconds: float


def fit_baselines(
    corpus: Corpus, task: Task, rows: np.ndarray, are_numbers: bool = False
) -> Baseline:
    """Fit both to the training rows of `corpus`, and answer the `rows` of its test rows.

    are_numbers: whether the texts are numbers, and no words. A bag of words that cannot be fitted,
    whatever the data are like, has a reason and raises nothing.
    """
    started = time.monotonic()
    train, width = corpus.splits["train"], max(1, len(corpus.names))
    majority = np.repeat(_commonest(corpus)[None], len(rows), axis=0)
    kept = spread_indices(len(train.texts), MAX_TRAINING_ROWS)
    texts = [corpus.splits["test"].texts[int(row)] for row in rows]
    name = "TF-IDF + ridge" if task == "regression" else "TF-IDF + logistic regression"
    reason, words = "", np.empty((0, width), dtype=np.float32)
    if are_numbers:
        reason = "the texts are numbers"
    elif width > MAX_LABELS:
        reason = f"it is fitted for at most {MAX_LABELS} labels, and there are {width}"
    else:
        try:
            seen = [train.texts[int(row)] for row in kept]
            targets = corpus.build_targets("train", kept)
            words = _answer_by_words(task, seen, targets, texts, width)
        except (ImportError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
            reason = " ".join(f"it could not be fitted: {error}".split())
    seconds = time.monotonic() - started
    used = len(kept)
    return Baseline(majority, words, "" if reason else name, reason, used, seconds)


def _commonest(corpus: Corpus) -> Outputs:
    """Return the one answer [num_labels] that is best without reading: frequencies, or the mean."""
    if corpus.task == "regression":
        return np.array([corpus.build_targets("train").mean()], dtype=np.float32)
    counts = np.array(list(corpus.count_labels("train").values()))
    num_rows = len(corpus.splits["train"].texts)
    if corpus.task == "multi-label":
        shares = (counts + 0.5) / (num_rows + 1)
        return np.asarray(np.log(shares / (1 - shares)), dtype=np.float32)
    return np.asarray(np.log((counts + 0.5) / (num_rows + 0.5 * len(counts))), dtype=np.float32)


def _answer_by_words(
    task: Task, train: Sequence[str], targets: np.ndarray, test: Sequence[str], width: int
) -> Outputs:
    """Return the outputs [n, num_labels] of a bag of words for the texts of `test`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2 if len(train) > MANY_ROWS else 1,
        max_features=min(MAX_TERMS, MAX_WEIGHTS // width),
        dtype=np.float32,
    )
    with warnings.catch_warnings():
        # That a label is in all rows, a class in few, a score without a row: the data are as they
        # are, and what comes of it is measured.
        warnings.simplefilter("ignore")
        features = vectorizer.fit_transform(train)
        model = _choose_model(task, features, targets).fit(features, targets)
        if not test:
            return np.empty((0, width), dtype=np.float32)
        return _read_outputs(task, model, vectorizer.transform(test), width)


def _choose_model(task: Task, features: Any, targets: np.ndarray) -> Any:
    """Return the model, not fitted, whose regularization is best in cross-validation."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.multiclass import OneVsRestClassifier

    rows = spread_indices(len(targets), MAX_TUNING_ROWS)
    features, targets = features[rows], targets[rows]
    most = 5 if len(rows) <= FEW_ROWS else 3
    folds: Any = KFold(min(most, len(rows)), shuffle=True, random_state=0)
    if task == "regression":
        model: Any = Ridge()
        grid, scoring = {"alpha": list(PENALTIES)}, "neg_mean_squared_error"
    else:
        # One against all others for classes, too: the dual solver takes a second and one thread
        # where a joint one takes a minute of all cores.
        one = LogisticRegression(
            solver="liblinear", dual=True, class_weight="balanced", max_iter=300, random_state=0
        )
        model, grid = OneVsRestClassifier(one), {"estimator__C": list(STRENGTHS)}
        scoring = "f1_macro"
        if task == "classification":
            least = int(np.unique(targets, return_counts=True)[1].min())
            folds = StratifiedKFold(max(2, min(most, least)), shuffle=True, random_state=0)
            if least < 2:
                return model.set_params(estimator__C=STRENGTHS[1])
    if len(rows) < 4:
        return model
    search = GridSearchCV(model, grid, scoring=scoring, cv=folds, refit=False, error_score=-np.inf)
    search.fit(features, targets)
    return model.set_params(**search.best_params_)


def _read_outputs(task: Task, model: Any, features: Any, width: int) -> Outputs:
    if task == "regression":
        return np.asarray(model.predict(features), dtype=np.float32).reshape(-1, 1)
    if task == "multi-label":
        shares = np.clip(model.predict_proba(features), 1e-6, 1 - 1e-6)
        return np.asarray(np.log(shares / (1 - shares)), dtype=np.float32)
    outputs = np.full((features.shape[0], width), _LEAST_LOG, dtype=np.float32)
    logs = np.log(np.clip(model.predict_proba(features), np.exp(_LEAST_LOG), 1))
    outputs[:, model.classes_] = logs
    return outputs
