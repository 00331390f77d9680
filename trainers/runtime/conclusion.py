"""The end of a run: judge the best weights on the test rows; write bundle, result and plots."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainers.checkpoint import checkpoint
from trainers.checkpoint.averaging import CheckpointAverage
from trainers.checkpoint.checkpoint import Checkpoint
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.evaluation.assessment import Assessment, assess
from trainers.evaluation.calibration import thresholds_to_shift
from trainers.models import bundle
from trainers.models.build import meta_model
from trainers.models.card import CARD_FORMAT, ModelCard
from trainers.models.profile import RowProfile, profile_rows
from trainers.runtime.worker_config import WorkerConfig
from trainers.tracking import provenance
from trainers.tracking.run_directory import RunDirectory
from trainers.training.linear_probe import output_layer_name
from trainers.training.loop import TrainingError, TrainingLoop
from trainers.training.metrics import MAX_DENSE, without_tables
from trainers.training.target_scale import TargetScale, describe_targets

MAX_CARD_LABELS = 10_000  # with figures of their own in a card, whose size is limited


def write_result(
    config: WorkerConfig,
    loop: TrainingLoop,
    encoder: Encoder,
    warn: Callable[[str], None] = warnings.warn,
) -> None:
    """Write result.json; where asked for, first evaluate the test rows and write the bundle.

    Plots come last. warn: called where they cannot be drawn.
    """
    run, progress = config.run, loop.progress
    best_step, value = progress.step, progress.best_value
    if progress.best_step is not None:
        best_step = progress.best_step
    found = average = None
    if config.write_bundle:
        best = _load_best_checkpoint(run, best_step, progress.step)
        best_step, average = best.step, _average_checkpoints(loop, run)
        found = _test_and_write_bundle(config, loop, encoder, best, average)
        if average is not None and average.is_better:
            value = average.value
    if loop.rank != 0:
        return
    result: dict[str, Any] = {
        "steps": progress.step,
        "best_step": best_step,
        "stopped_early": progress.stopped,
        "validation": {loop.recipe.metric: value},
        "test": None if found is None else found.metrics,
        "verdict": {} if found is None else found.verdict,
    }
    if average is not None:
        result["average"] = average.to_json()
    run.write_file(run.result_path, json.dumps(result, indent=2) + "\n")
    if found is not None:
        _draw_plots(loop, run, found, warn)


def _load_best_checkpoint(run: RunDirectory, best_step: int, last: int) -> Checkpoint:
    """Return the best checkpoint, or the last if it is gone. Raises TrainingError without both."""
    for step in (best_step, last):
        found = checkpoint.find_checkpoint(run.checkpoints, step)
        if found is not None:
            return found
    raise TrainingError(
        f"{run.checkpoints}: the last checkpoint is gone or damaged; go on with --resume"
    )


@dataclass(frozen=True)
class _JudgedAverage:
    """The mean of checkpoints, its `value` of the recipe's metric, and that of the best one."""

    weights: CheckpointAverage
    value: float
    best: float | None
    is_better: bool

    def to_json(self) -> dict[str, Any]:
        steps = [each.step for each in self.weights.checkpoints]
        return {"steps": steps, "value": self.value, "best": self.best, "kept": self.is_better}


def _average_checkpoints(loop: TrainingLoop, run: RunDirectory) -> _JudgedAverage | None:
    """Evaluate the mean of the last checkpoints on the validation rows, and leave it in the model.

    None where the recipe asks for none, or fewer than two are there.
    """
    steps = loop.averaged_steps()
    found = [checkpoint.find_checkpoint(run.checkpoints, step) for step in steps]
    there = tuple(each for each in found if each is not None)
    if len(there) < 2:
        return None
    weights, metric, progress = CheckpointAverage(there), loop.recipe.metric, loop.progress
    weights.restore(loop.parallel)
    metrics = loop.evaluate(loop.data.validation, is_exact=False)  # as that of the best was
    is_better = progress.is_better(metrics[metric], metric, metrics["loss"])
    return _JudgedAverage(weights, metrics[metric], progress.best_value, is_better)


def _test_and_write_bundle(
    config: WorkerConfig,
    loop: TrainingLoop,
    encoder: Encoder,
    best: Checkpoint,
    average: _JudgedAverage | None,
) -> Assessment:
    """Assess the best weights on the test rows; write the bundle.

    average: its weights are in the model, where there is one.
    """
    recipe, run, prepared = config.recipe, config.run, loop.data
    weights: Checkpoint | CheckpointAverage = best
    candidate = "fine-tuned" if best.step else "frozen encoder"
    if average is not None and average.is_better:
        weights, candidate = average.weights, "mean of checkpoints"
    elif average is not None or best.step != loop.progress.step:
        best.restore(loop.parallel)
    judged = None if average is None else average.to_json()
    found = assess(loop, encoder.clean, config.cache, run, candidate, judged)
    if loop.rank != 0:
        return found
    few_tables = without_tables(found.metrics, MAX_CARD_LABELS)
    card = ModelCard(
        format=CARD_FORMAT,
        task=recipe.task,
        labels=prepared.labels,
        cleaning=recipe.data.cleaning,
        max_length=recipe.batch.max_length,
        windows=recipe.data.windows,
        metrics=found.metrics if len(prepared.labels) <= MAX_DENSE else few_tables,
        verdict=found.verdict,
        thresholds=found.thresholds,
        temperature=found.temperature,
        profile=_profile(loop, found, encoder),
        examples=found.examples,
        target=describe_targets(recipe, prepared),
        recipe=recipe.model_dump(mode="json"),
        data=prepared.report.to_json(),
        data_fingerprint=prepared.fingerprint,
        revision=config.revision,
        environment=provenance.describe_environment(),
        files={},
    )
    run.check_lease()
    num_features = int(prepared.train.samples.lengths[0])
    shapes = meta_model(recipe, prepared.labels, num_features, encoder)
    layer = output_layer_name(shapes)
    tensors = loop.scale.fold_into(weights.iter_tensors(), layer)
    # So whoever computes the bundle, by whatever engine, has the probabilities that were measured.
    tensors = TargetScale(deviation=1 / found.temperature).fold_into(tensors, layer)
    bundle.write_bundle(run.bundle_path, shapes, tensors, encoder, card)
    run.publish_files(run.bundle_path.name)
    return found


def _profile(loop: TrainingLoop, found: Assessment, encoder: Encoder) -> RowProfile | None:
    """Return what the test rows look like; None where there are none."""
    if found.predictions is None:
        return None
    task, labels, samples = loop.recipe.task, loop.data.labels, loop.data.test.samples
    answers = found.predictions.to_answers(task, thresholds_to_shift(found.thresholds, labels))
    rows = [samples[row] for row in found.predictions.rows.tolist()]
    unknown = encoder.tokenizer.unk_token_id if isinstance(encoder, TextEncoder) else None
    return profile_rows(task, labels, rows, answers.outputs, answers.predicted, unknown)


def _draw_plots(
    loop: TrainingLoop, run: RunDirectory, found: Assessment, warn: Callable[[str], None]
) -> None:
    """Draw the plots of a run that has its result, which no picture is worth losing."""
    try:
        # They import matplotlib: a second, and needed only here.
        from trainers.tracking import plots
        from trainers.tracking.answer_plots import TestRows

        recipe, rows = loop.recipe, None
        if found.predictions is not None:
            logits, targets = found.predictions.logits, found.predictions.targets
            rows = TestRows(recipe.task, logits, targets, found.thresholds, found.temperature)
        plots.draw_plots(run, recipe.metric, loop.data.labels, found.metrics, rows)
        run.publish_files("plots")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warn(f"a plot could not be drawn, and all else of the run is there: {reason}")
