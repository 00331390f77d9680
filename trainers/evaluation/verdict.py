"""The verdict on a run: figures with intervals beside baselines, what is wrong, and what to do.

A plain value, kept in result.json and in the card of the bundle, and sentences for people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trainers.config.recipe import Recipe
from trainers.evaluation.baseline import Baseline
from trainers.evaluation.calibration import expected_calibration_error
from trainers.evaluation.held_out import HeldOut
from trainers.evaluation.intervals import (
    FIGURES,
    Answers,
    bootstrap_difference,
    bootstrap_intervals,
    compute_figures,
)
from trainers.evaluation.learning import Training, is_loss_falling
from trainers.evaluation.predictions import Predictions, select_rows
from trainers.evaluation.sentences import next_command, write_sentences
from trainers.evaluation.slices import measure_slices
from trainers.tracking.verdict_lines import format_number
from trainers.training.metrics import Metrics, list_confused_pairs

Verdict = dict[str, Any]

MAX_CONFUSIONS = 3
MAX_NEVER = 1_000  # names of labels that are never predicted, in a card of limited size
DIGITS = 4


def judge(
    training: Training,
    labels: tuple[str, ...],
    test: Metrics,
    predictions: Predictions | None,
    shift: np.ndarray | None = None,
    baseline: Baseline | None = None,
    reason: str = "",
    slices: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """Return the verdict on a run.

    test: the metrics of all test rows, with `shift` where thresholds were tuned. predictions: of
    the kept test rows; None for masked-lm or without test rows. baseline: of the same rows; where
    it is None, `reason` says why, or it was turned off. slices: columns of cells, of the same rows.
    """
    recipe = training.recipe
    task, metric = recipe.task, main_metric(recipe)
    verdict: Verdict = {
        "metric": metric,
        "rows": test.get("rows", test.get("tokens", 0)),
        "figures": {name: {"value": _round(test[name])} for name in FIGURES[task] if name in test},
        "baselines": {},
        "never_predicted": [],
        "confusions": [],
        "calibration": {},
        "loss_falling": is_loss_falling(training.steps, training.evaluations),
        "candidate": training.candidate,
    }
    if predictions is not None and len(predictions) and test:
        answers = predictions.to_answers(task, shift)
        _add_intervals(verdict, answers, predictions.total)
        if task != "regression":
            verdict["never_predicted"] = test["never_predicted"][:MAX_NEVER]
            if "absent_labels" in test:
                verdict["absent_labels"] = test["absent_labels"]
            if task == "classification":
                verdict["confusions"] = _find_confusions(test, labels)
            verdict["calibration"] = _measure_calibration(answers, training.temperature)
        if shift is not None:
            plain = compute_figures(replace(answers, shift=None))
            verdict["without_thresholds"] = {
                name: _round(plain[name]) for name in ("f1", "accuracy")
            }
        if slices:
            verdict["slices"] = measure_slices(slices, answers, metric)
        if baseline is not None:
            verdict["baselines"] = _compare_with(baseline, answers, metric)
            reason = baseline.reason
    elif task == "masked-lm":
        reason = ""
    verdict["sentences"] = write_sentences(verdict, training, labels, reason)
    verdict["next"] = next_command(verdict, training)
    return verdict


def main_metric(recipe: Recipe) -> str:
    """Return the metric that a model is judged by: that of the recipe, or R² for regressions."""
    if recipe.task == "masked-lm":
        return recipe.metric
    if recipe.metric == "loss":
        return FIGURES[recipe.task][0]
    return recipe.metric


def _add_intervals(verdict: Verdict, answers: Answers, total: int) -> None:
    intervals = bootstrap_intervals(answers)
    if verdict["metric"] not in intervals:
        intervals |= bootstrap_intervals(answers, names=[verdict["metric"]])
    for name, figure in verdict["figures"].items():
        if name not in intervals:  # too many rows and labels to rank them in every draw
            continue
        low, high = intervals[name]
        value = figure["value"]
        figure |= {"low": _round(min(low, value)), "high": _round(max(high, value))}
    if len(answers) < total:
        verdict["interval_rows"] = len(answers)


def _measure_calibration(answers: Answers, temperature: float) -> dict[str, float]:
    """Return the expected calibration error, and where there is a temperature that without it."""
    found = {"ece": _round(expected_calibration_error(answers))}
    if temperature != 1:
        before = replace(answers, outputs=answers.outputs * np.float32(temperature))
        found |= {
            "temperature": temperature,
            "ece_before": _round(expected_calibration_error(before)),
        }
    return found


def _find_confusions(test: Metrics, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the pairs of classes that were mixed up most often."""
    pairs = list_confused_pairs(test.get("confusion", []))
    true, predicted, rows = (column[:MAX_CONFUSIONS] for column in pairs)
    return [
        {
            "true": labels[a],
            "predicted": labels[b],
            "rows": int(count),
            "of": test["per_class"][labels[a]]["support"],
        }
        for a, b, count in zip(true, predicted, rows, strict=True)
    ]


def _compare_with(baseline: Baseline, ours: Answers, metric: str) -> dict[str, Any]:
    majority = _main_figures(replace(ours, outputs=baseline.majority, shift=None))
    found: dict[str, Any] = {"mean" if ours.task == "regression" else "majority": majority}
    if not baseline.name:
        return found
    theirs = replace(ours, outputs=baseline.words, shift=None)
    figures, low_high = _main_figures(theirs), bootstrap_difference(ours, theirs, metric)
    value = compute_figures(ours, [metric])[metric] - compute_figures(theirs, [metric])[metric]
    found["bag-of-words"] = {
        "name": baseline.name,
        **figures,
        "seconds": round(baseline.seconds, 1),
        "train_rows": baseline.train_rows,
        "difference": {
            "value": _round(value),
            "low": _round(min(low_high[0], value)),
            "high": _round(max(low_high[1], value)),
        },
    }
    return found


def _main_figures(answers: Answers) -> dict[str, float]:
    figures = compute_figures(answers)
    return {name: _round(figures[name]) for name in FIGURES[answers.task]}


def describe_baselines(
    recipe: Recipe, labels: tuple[str, ...], targets: np.ndarray, rows: HeldOut
) -> list[str]:
    """Return the line that says what a run has to beat; none where the recipe wants no baseline.

    targets: of all test rows.
    """
    baseline, metric = rows.baseline, main_metric(recipe)
    if not recipe.baseline or recipe.task == "masked-lm":
        return []
    if baseline is None:
        return [f"baseline  none: {rows.reason}"]
    kept = np.asarray(targets)[select_rows(len(targets), max(1, len(labels)))]
    simple = compute_figures(Answers(recipe.task, baseline.majority, kept), [metric])[metric]
    commonest = "the mean" if recipe.task == "regression" else "the commonest answer"
    always = f"always {commonest}: {format_number(simple)}"
    if not baseline.name:
        return [f"baseline  {metric} {always}; no bag of words: {baseline.reason}"]
    words = compute_figures(Answers(recipe.task, baseline.words, kept), [metric])[metric]
    return [
        f"baseline  {metric} {format_number(words)} on {len(kept):,} test rows by a bag of words "
        f"({baseline.name}, {baseline.seconds:.1f}s), the bar to beat; {always}"
    ]


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS + 2}g}")
