"""Compare runs on the same test rows: figures, differences with intervals, settings that differ.

bertha compare runs/one runs/other
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.metrics import lower_is_better
from trainers.config.recipe import Recipe
from trainers.evaluation.intervals import (
    FIGURES,
    Answers,
    bootstrap_difference,
    bootstrap_intervals,
    compute_figures,
)
from trainers.evaluation.predictions import (
    PREDICTIONS_FILE,
    EvaluationError,
    StoredPredictions,
    read_predictions,
)
from trainers.tracking.resumption import differing_keys
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.verdict_lines import format_figure

NOT_COMPARED = ("layout", "batch.token_budget", "parity", "baseline", "tracking", "checkpoints")


@dataclass(frozen=True)
class ComparedRun:
    """A run, its settings, and what it answers for the rows that all runs share, in one order."""

    address: str
    recipe: Recipe
    stored: StoredPredictions
    answers: Answers


def compare_runs(addresses: Sequence[str], cache: Path, metric: str | None = None) -> list[str]:
    """Return the lines of a comparison of each run with the first.

    metric: default: that of the first run. Raises EvaluationError where the runs have not the same
    test rows, task and labels, or have kept no predictions.
    """
    if len(addresses) < 2:
        raise EvaluationError("name two runs or more, as in `bertha compare runs/one runs/other`")
    runs = [_load_run(address, cache) for address in addresses]
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    metric = metric or runs[0].stored.metric
    task = runs[0].stored.task
    known = FIGURES[task]
    if metric not in known:
        raise EvaluationError(
            f"--metric {metric!r} does not exist for {task}; choose one of {', '.join(known)}"
        )
    total = runs[0].stored.predictions.total
    rows = len(runs[0].answers)
    some = "" if rows == total else f" of {total:,}"
    lines = [f"{metric} on the same {rows:,} test rows{some}, with 95% intervals:"]
    lines += _format_figures(runs, metric)
    return [*lines, *_format_settings(runs)]


def _load_run(address: str, cache: Path) -> ComparedRun:
    run = RunDirectory.from_address(address.rstrip("/"), cache)
    run.fetch_files(PREDICTIONS_FILE, "recipe.yaml")
    path = run.path / "recipe.yaml"
    if not path.is_file():
        raise EvaluationError(f"{address}: no recipe.yaml, so this is not a run; name a RUN")
    try:
        recipe = recipes.load_recipe(path)
    except SettingsError as error:
        raise EvaluationError(f"{address}: {' '.join(str(error).split())}") from None
    stored = read_predictions(run.path / PREDICTIONS_FILE, address)
    order = np.argsort(stored.digests, kind="stable")
    answers = stored.answers
    sorted_answers = replace(
        answers, outputs=answers.outputs[order], targets=answers.targets[order]
    )
    return ComparedRun(
        address, recipe, replace(stored, digests=stored.digests[order]), sorted_answers
    )


def _check_comparable(first: ComparedRun, run: ComparedRun) -> None:
    """Raise EvaluationError unless both runs answer the same rows."""
    one, other = first.stored, run.stored
    names = f"{first.address} and {run.address}"
    if one.task != other.task or sorted(one.labels) != sorted(other.labels):
        raise EvaluationError(
            f"{names} answer with other labels or for another task, so they cannot be compared; "
            "compare runs of one task on the same data"
        )
    if not np.array_equal(one.digests, other.digests):
        shared = len(np.intersect1d(one.digests, other.digests))
        raise EvaluationError(
            f"{names} have not the same test rows ({shared:,} of {len(one.digests):,} and "
            f"{len(other.digests):,} are shared); train both with the same data settings"
        )


def _format_figures(runs: Sequence[ComparedRun], metric: str) -> list[str]:
    width, lines = max(len(run.address) for run in runs), []
    first = _in_label_order(runs[0], runs[0])
    better = "lower" if lower_is_better(metric) else "higher"
    for run in runs:
        answers = _in_label_order(run, runs[0])
        value = compute_figures(answers, [metric])[metric]
        low, high = bootstrap_intervals(answers, names=[metric])[metric]
        figure = {"value": value, "low": min(low, value), "high": max(high, value)}
        line = f"  {run.address:<{width}}  {format_figure(figure)}"
        if run is not runs[0]:
            line += f"   {_format_difference(answers, first, metric, better)}"
        lines.append(line)
    return lines


def _format_difference(ours: Answers, theirs: Answers, metric: str, better: str) -> str:
    one, other = (compute_figures(each, [metric])[metric] for each in (ours, theirs))
    value = one - other
    low, high = bootstrap_difference(ours, theirs, metric)
    low, high = min(low, value), max(high, value)
    sign = -1 if better == "lower" else 1
    verdict = "no clear difference"
    if low > 0 or high < 0:
        verdict = "better" if sign * value > 0 else "worse"
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g}): {verdict}"


def _in_label_order(run: ComparedRun, first: ComparedRun) -> Answers:
    """Return the answers of `run` with its labels in the order of those of `first`."""
    labels, wanted, answers = run.stored.labels, first.stored.labels, run.answers
    if labels == wanted or not labels:
        return answers
    order = np.array([labels.index(label) for label in wanted])
    shift = None if answers.shift is None else answers.shift[order]
    outputs = answers.outputs[:, order]
    if answers.task == "multi-label":
        return replace(answers, outputs=outputs, targets=answers.targets[:, order], shift=shift)
    places = np.argsort(order)  # of each label of the run among those of the first
    return replace(answers, outputs=outputs, targets=places[answers.targets], shift=shift)


def _format_settings(runs: Sequence[ComparedRun]) -> list[str]:
    settings = [run.recipe.model_dump(mode="json") for run in runs]
    keys = sorted({key for each in settings[1:] for key in differing_keys(settings[0], each)})
    keys = [key for key in keys if not key.startswith(NOT_COMPARED)]
    if not keys:
        return ["the settings are the same"]
    width = max(map(len, keys))
    return [
        "settings that differ:",
        *(
            f"  {key:<{width}}  {'   '.join(_format_setting(each, key) for each in settings)}"
            for key in keys
        ),
    ]


def _format_setting(settings: dict[str, Any], key: str) -> str:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return str(value)
