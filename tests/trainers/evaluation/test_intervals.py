"""Figures are those of the metrics, and their intervals hold the truth as often as they promise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from trainers.config.metrics import METRICS
from trainers.evaluation.intervals import (
    Answers,
    bootstrap_chance,
    bootstrap_difference,
    bootstrap_intervals,
    compute_figures,
)
from trainers.training.metrics import MetricAccumulator

Population = Callable[[np.random.Generator, int], Answers]


def classes(number: int, accuracy: float, shares: list[float] | None = None) -> Population:
    """Rows of `number` classes, of which a model has a share right and mixes up the others."""

    def draw(source: np.random.Generator, rows: int) -> Answers:
        true = source.choice(number, rows, p=shares)
        other = (true + source.integers(1, number, rows)) % number
        said = np.where(source.random(rows) < accuracy, true, other)
        return Answers("classification", 3.0 * np.eye(number)[said], true)

    return draw


def several_labels(number: int, accuracy: float) -> Population:
    def draw(source: np.random.Generator, rows: int) -> Answers:
        true = source.random((rows, number)) < 0.3
        right = source.random((rows, number)) < accuracy
        return Answers("multi-label", np.where(right == true, 2.0, -2.0), true.astype(np.float32))

    return draw


def numbers(source: np.random.Generator, rows: int) -> Answers:
    said = source.normal(size=rows)
    return Answers("regression", said[:, None], said + 0.5 * source.normal(size=rows))


def collapsed(source: np.random.Generator, rows: int) -> Answers:
    """A model that knows two of four classes."""
    true = source.choice(4, rows)
    return Answers("classification", np.eye(4)[true % 2], true)


@pytest.mark.parametrize("shift", [None, np.array([0.4, -0.2, 0.0, 0.1], dtype=np.float32)])
@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_figures_are_those_of_the_metrics(task: str, shift: np.ndarray | None) -> None:
    source = np.random.default_rng(1)
    width = 1 if task == "regression" else 4
    logits = source.normal(size=(50, width)).astype(np.float32)
    targets = {
        "classification": source.integers(0, 4, 50),
        "multi-label": (source.random((50, 4)) < 0.4).astype(np.float32),
        "regression": source.normal(size=50).astype(np.float32),
    }[task]
    used = None if task == "regression" else shift
    metrics = MetricAccumulator(task, width, used)  # type: ignore[arg-type]
    metrics.add_batch(torch.from_numpy(logits), torch.from_numpy(targets))
    metrics.keep_scores(torch.from_numpy(logits), torch.from_numpy(targets))
    expected = metrics.compute_metrics(tuple("abcd"[:width]))
    found = compute_figures(Answers(task, logits, targets, used))  # type: ignore[arg-type]
    assert set(found) == set(METRICS[task])  # type: ignore[index]
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("population", "metric", "widest"),
    [
        (classes(4, 0.95), "f1", 0.20),
        (classes(4, 0.95), "accuracy", 0.18),
        (classes(4, 0.98, [0.6, 0.2, 0.15, 0.05]), "f1", 0.23),
        (classes(10, 0.9), "f1", 0.26),
        (classes(2, 0.7, [0.9, 0.1]), "f1", 0.38),
        (collapsed, "f1", 0.32),
        (several_labels(4, 0.95), "f1", 0.16),
        (numbers, "r2", 0.33),
    ],
)
def test_intervals_of_35_rows_hold_the_truth(
    population: Population, metric: str, widest: float
) -> None:
    truth = compute_figures(population(np.random.default_rng(10**6), 100_000))[metric]
    held, widths = 0, []
    for seed in range(100):
        answers = population(np.random.default_rng(seed), 35)
        value = compute_figures(answers)[metric]
        low, high = bootstrap_intervals(answers, seed)[metric]
        held += min(low, value) <= truth <= max(high, value)
        widths.append(high - low)
    # Of 100 intervals that hold the truth 95 times in 100, fewer than 90 do once in 35 times.
    assert held >= 90
    assert np.mean(widths) < widest


def test_35_right_answers_do_not_promise_perfection() -> None:
    answers = classes(4, 1.0)(np.random.default_rng(0), 35)
    assert compute_figures(answers)["f1"] == 1.0
    intervals = bootstrap_intervals(answers)
    # The rule of three: up to 3 errors in n answers may have been missed.
    assert 1 - 4 / 35 < intervals["accuracy"][0] < 1 - 2 / 35
    assert 0.8 < intervals["f1"][0] < 0.97


def test_more_rows_narrow_an_interval_by_their_square_root() -> None:
    widths = []
    for rows in (100, 400, 1600):
        low, high = bootstrap_intervals(classes(3, 0.8)(np.random.default_rng(3), rows))["f1"]
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.3)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.3)


def test_a_seed_decides_the_draws() -> None:
    answers = classes(3, 0.8)(np.random.default_rng(3), 60)
    assert bootstrap_intervals(answers, 1) == bootstrap_intervals(answers, 1)
    assert bootstrap_intervals(answers, 1) != bootstrap_intervals(answers, 2)


def test_many_rows_are_drawn_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = classes(3, 0.8)(np.random.default_rng(3), 500)
    whole = bootstrap_intervals(answers)["accuracy"]
    monkeypatch.setattr("trainers.evaluation.intervals._CELLS", 5_000)
    assert bootstrap_intervals(answers)["accuracy"] == pytest.approx(whole, abs=0.01)


def test_a_difference_is_paired() -> None:
    source = np.random.default_rng(5)
    true = source.integers(0, 2, 200)
    hard = source.random(200) < 0.3  # rows that both have wrong
    theirs = np.where(hard, 1 - true, true)
    ours = theirs.copy()
    fixed = np.flatnonzero(hard)[:16]
    ours[fixed] = true[fixed]
    one, other = (Answers("classification", np.eye(2)[said], true) for said in (ours, theirs))
    low, high = bootstrap_difference(one, other, "accuracy")
    assert 0.02 < low < 0.08 < high < 0.15  # 16 of 200 rows
    assert bootstrap_chance(one, other, "accuracy") > 0.99
    apart = bootstrap_intervals(one)["accuracy"], bootstrap_intervals(other)["accuracy"]
    assert apart[0][0] < apart[1][1]  # which intervals of each alone do not show
    assert bootstrap_difference(other, one, "accuracy")[1] < 0


def test_the_same_answers_differ_by_nothing() -> None:
    answers = classes(3, 0.8)(np.random.default_rng(3), 60)
    low, high = bootstrap_difference(answers, answers, "f1")
    assert -0.1 < low < 0 < high < 0.1
