"""Figures beside scikit-learn's and SciPy's: ties, absent classes, constants, weights."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as oracle

from trainers.config.metrics import METRICS, Metric
from trainers.training import figures
from trainers.training.metrics import MetricAccumulator, Metrics


def measure(task: Any, logits: np.ndarray, targets: np.ndarray) -> Metrics:
    width = logits.shape[1]
    found = MetricAccumulator(task, width)
    for start in range(0, len(logits), 7):
        part = slice(start, start + 7)
        batch = torch.from_numpy(logits[part]), torch.from_numpy(targets[part])
        found.add_batch(*batch)
        found.keep_scores(*batch)
    return found.compute_metrics(tuple(map(str, range(width))))


def draw_classes(seed: int, classes: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits [120, width] in steps of a half, so that many are equal, and classes [120]."""
    source = np.random.default_rng(seed)
    targets = source.integers(0, classes, 120)
    logits = source.normal(size=(120, width)) + 1.5 * np.eye(width)[targets]
    return (np.round(2 * logits) / 2).astype(np.float32), targets


@pytest.mark.parametrize(("classes", "width"), [(2, 2), (4, 4), (3, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_classes(seed: int, classes: int, width: int) -> None:
    logits, targets = draw_classes(seed, classes, width)
    found, said = measure("classification", logits, targets), logits.argmax(axis=1)
    assert found["mcc"] == pytest.approx(oracle.matthews_corrcoef(targets, said))
    assert found["kappa"] == pytest.approx(oracle.cohen_kappa_score(targets, said))
    for average in ("micro", "weighted"):
        expected = oracle.f1_score(targets, said, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    if width == 2:
        scores = (logits[:, 1] - logits[:, 0]).astype(np.float64)
        assert found["auroc"] == pytest.approx(oracle.roc_auc_score(targets, scores))
        expected = oracle.average_precision_score(targets, scores)
        assert found["average_precision"] == pytest.approx(expected)
        return
    # A class of no row has neither; the mean is that of the others.
    columns = [(targets == index, np.log(shares[:, index]).round(12)) for index in range(classes)]
    for name, score in (
        ("auroc", oracle.roc_auc_score),
        ("average_precision", oracle.average_precision_score),
    ):
        expected = np.mean([score(true, scores) for true, scores in columns])
        assert found[name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_labels(seed: int) -> None:
    source = np.random.default_rng(seed)
    targets = (source.random((90, 4)) < 0.4).astype(np.float32)
    logits = np.round(source.normal(size=(90, 4)) + targets, 1).astype(np.float32)
    found = measure("multi-label", logits, targets)
    assert "mcc" not in found and "kappa" not in found
    for average in ("micro", "weighted"):
        expected = oracle.f1_score(targets > 0, logits > 0, average=average)
        assert found[f"f1_{average}"] == pytest.approx(expected)
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(targets, logits))
    expected = oracle.average_precision_score(targets, logits)
    assert found["average_precision"] == pytest.approx(expected)


@pytest.mark.parametrize("offset", [0.0, 5000.0])
def test_figures_of_numbers(offset: float) -> None:
    source = np.random.default_rng(3)
    true = (np.round(source.normal(0, 2, 150)) + offset).astype(np.float32)
    said = (np.round(true + source.normal(0, 1, 150))).astype(np.float32)
    found = measure("regression", said[:, None], true)
    assert found["pearson"] == pytest.approx(stats.pearsonr(said, true)[0], rel=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, true)[0], rel=1e-9)


def test_what_is_constant_has_no_correlation_and_no_order() -> None:
    targets = np.array([0, 1, 2, 1])
    constant = np.tile(np.array([[3.0, 1.0, 0.0]], dtype=np.float32), (4, 1))
    found = measure("classification", constant, targets)
    assert (found["mcc"], found["kappa"], found["auroc"]) == (0.0, 0.0, 0.5)
    assert found["mcc"] == oracle.matthews_corrcoef(targets, np.zeros(4))
    one_class = measure("classification", np.eye(2, dtype=np.float32)[[1, 1]], np.array([1, 1]))
    assert (one_class["mcc"], one_class["auroc"], one_class["average_precision"]) == (0, 0, 1)
    said = np.full((4, 1), 2.5, dtype=np.float32)
    number = measure("regression", said, np.arange(4, dtype=np.float32))
    assert (number["pearson"], number["spearman"]) == (0.0, 0.0)


def test_weighted_order_is_that_of_repeated_rows() -> None:
    source = np.random.default_rng(5)
    scores, positive = np.round(source.normal(size=40), 1), source.random(40) < 0.4
    counts = source.integers(0, 4, 40)
    found = figures.RankedColumn(scores, positive).compute_figures(counts[None].astype(float))
    truth, given = np.repeat(positive, counts), np.repeat(scores, counts)
    assert found[0][0] == pytest.approx(oracle.roc_auc_score(truth, given))
    assert found[1][0] == pytest.approx(oracle.average_precision_score(truth, given))


def test_of_many_rows_an_even_part_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(figures.select_rows(10, 2)) == 10
    monkeypatch.setattr(figures, "MAX_LOGITS", 100)
    kept = figures.select_rows(1000, 20)
    assert len(kept) == 5 and (np.diff(kept) > 100).any() and kept[-1] >= 800


def test_every_metric_can_be_chosen_and_is_computed() -> None:
    assert {name for names in METRICS.values() for name in names} == set(get_args(Metric))
    logits, targets = draw_classes(0, 3, 3)
    wide = np.eye(3, dtype=np.float32)[targets]
    cases = {
        "classification": (logits, targets),
        "multi-label": (logits, wide),
        "regression": (logits[:, :1], logits[:, 1]),
    }
    for task, rows in cases.items():
        assert set(METRICS[task]) <= measure(task, *rows).keys()  # type: ignore[index]


def test_one_class_under_any_weights_has_no_correlation() -> None:
    weights = np.random.default_rng(0).standard_exponential((200, 30)) / 3
    true = np.stack([weights[:, :10].sum(axis=1), weights[:, 10:].sum(axis=1)], axis=1)
    predicted = np.stack([weights.sum(axis=1), np.zeros(200)], axis=1)
    hits = np.stack([true[:, 0], np.zeros(200)], axis=1)
    assert not figures.count_figures(hits, predicted, true, True)["mcc"].any()
