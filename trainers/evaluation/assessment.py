"""Assess the weights of a training loop on the test rows, at the end of a run.

Temperature and thresholds are found on the validation rows, so the test rows are looked at once.
Every rank calls `assess`; rank 0 alone judges, and writes predictions.npz and errors.csv to the run
directory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.dataset_cache import DatasetSplit
from trainers.distributed.object_collectives import run_on_rank0
from trainers.evaluation import calibration
from trainers.evaluation.collector import PredictionCollector
from trainers.evaluation.errors_file import ERRORS_FILE, write_errors
from trainers.evaluation.held_out import HeldOut, load_held_out
from trainers.evaluation.intervals import Answers
from trainers.evaluation.learning import Training
from trainers.evaluation.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    StoredPredictions,
    write_predictions,
)
from trainers.evaluation.slices import load_slices
from trainers.evaluation.temperature import fit_temperature
from trainers.evaluation.verdict import Verdict, judge, main_metric
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training.loop import TrainingLoop
from trainers.training.metrics import Metrics, for_result

NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = (15, 240)  # the shortest and the longest text that is a good example


@dataclass(frozen=True)
class Assessment:
    """What became known of a model; on ranks but the first, the metrics alone.

    metrics: of the test rows, {} where there are none. thresholds: by label, as in the card of a
    bundle. examples: up to three test texts. temperature: that the logits were divided by, before
    all else.
    """

    metrics: Metrics
    verdict: Verdict = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    predictions: Predictions | None = None
    temperature: float = 1.0


def assess(
    loop: TrainingLoop,
    clean: Callable[[str], str],
    cache: Path,
    run: RunDirectory,
    candidate: str = "fine-tuned",
    average: Mapping[str, Any] | None = None,
) -> Assessment:
    """Evaluate the weights that `loop` has now and judge them. Collective.

    clean: the cleaning of texts, for reading the test rows again. candidate: what the weights are
    called. average: see `Training`. Raises RunError where the run directory cannot be written.
    """
    recipe, data = loop.recipe, loop.data
    temperature, thresholds, tuned_rows = _tune(loop)
    shift = calibration.thresholds_to_shift(thresholds, data.labels)
    metrics, predictions = _evaluate(loop, data.test, shift, temperature)
    if loop.rank != 0:
        return Assessment(for_result(metrics), temperature=temperature)
    rows = load_held_out(recipe, data, clean, cache)
    training = Training(
        recipe,
        run.address,
        list(run.metric_rows("step")),
        list(run.metric_rows("evaluation")),
        loop.progress.stopped,
        thresholds,
        tuned_rows,
        candidate,
        temperature,
        average,
    )
    slices = load_slices(recipe, rows)
    verdict = judge(
        training, data.labels, metrics, predictions, shift, rows.baseline, rows.reason, slices
    )
    examples: tuple[str, ...] = ()
    if predictions is not None and len(rows):
        answers = predictions.to_answers(recipe.task, shift)
        _write_files(run, loop, rows, predictions, answers)
        examples = choose_examples(rows.texts, answers)
    return Assessment(for_result(metrics), verdict, thresholds, examples, predictions, temperature)


def choose_examples(texts: tuple[str, ...], answers: Answers) -> tuple[str, ...]:
    """Return up to three short texts whose true labels differ; of a regression low, middle, high.

    Where they can be, they are texts that were answered rightly.
    """
    least, most = EXAMPLE_CHARACTERS
    short = [row for row, text in enumerate(texts) if least <= len(text) <= most]
    if answers.task == "regression":
        short.sort(key=lambda row: float(answers.targets[row]))
        if not short:
            return ()
        places = np.linspace(0, len(short) - 1, NUM_EXAMPLES).round().astype(int)
        return tuple(texts[short[place]] for place in dict.fromkeys(places.tolist()))
    true = answers.targets.reshape(len(answers), -1) > 0.5
    kinds = answers.targets if answers.task == "classification" else [bytes(row) for row in true]
    right = answers.predicted == answers.targets
    right = right if right.ndim == 1 else right.all(axis=1)
    short.sort(key=lambda row: (not right[row], len(texts[row]), row))
    chosen: dict[object, int] = {}
    for row in short:
        chosen.setdefault(kinds[row], row)
    return tuple(texts[row] for row in list(chosen.values())[:NUM_EXAMPLES])


def _tune(loop: TrainingLoop) -> tuple[float, dict[str, float], int]:
    """Fit the temperature and tune thresholds on the validation rows, of which the number is last.

    Collective.
    """
    recipe, labels, validation = loop.recipe, loop.data.labels, loop.data.validation
    is_several = recipe.task == "multi-label"
    has_thresholds = is_several or (recipe.task == "classification" and len(labels) == 2)
    calibrates = recipe.evaluation.calibrate and (is_several or recipe.task == "classification")
    if not len(validation) or not (has_thresholds or calibrates):
        return 1.0, {}, 0
    _, predictions = _evaluate(loop, validation)

    def tune() -> tuple[float, dict[str, float]]:
        assert predictions is not None
        answers = predictions.to_answers(recipe.task)
        temperature = fit_temperature(answers) if calibrates else 1.0
        scaled = replace(answers, outputs=answers.outputs / np.float32(temperature))
        return temperature, calibration.tune_thresholds(scaled, labels, main_metric(recipe))

    return *run_on_rank0(tune), len(validation)


def _evaluate(
    loop: TrainingLoop,
    split: DatasetSplit,
    shift: np.ndarray | None = None,
    temperature: float = 1.0,
) -> tuple[Metrics, Predictions | None]:
    """Return the metrics of a split, {} of an empty one, and on rank 0 predictions. Collective."""
    if not len(split):
        return {}, None
    if loop.recipe.task == "masked-lm":
        return loop.evaluate(split), None
    collector = PredictionCollector(split, len(loop.data.labels))
    metrics = loop.evaluate(split, collector.add, shift, temperature=temperature)
    return metrics, collector.gather()


def _write_files(
    run: RunDirectory, loop: TrainingLoop, rows: HeldOut, found: Predictions, answers: Answers
) -> None:
    """Write predictions.npz and errors.csv. Raises RunError."""
    recipe, labels = loop.recipe, loop.data.labels
    metric = main_metric(recipe)
    stored = StoredPredictions(recipe.task, labels, metric, rows.digests, found, answers.shift)
    run.check_lease()
    try:
        write_predictions(run.path / PREDICTIONS_FILE, stored)
        write_errors(run.path / ERRORS_FILE, rows, answers, labels, recipe.data.label_separator)
    except OSError as error:
        raise RunError(
            f"{run.path}: what the test rows were answered cannot be written: "
            f"{error.strerror or error}; make room, then go on with --resume"
        ) from None
    run.publish_files(PREDICTIONS_FILE, ERRORS_FILE)
