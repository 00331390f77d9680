"""Run one process of a training run: data, model, loop, metrics, checkpoints, and the bundle.

Every rank calls `run_worker`. Except for its shard of a checkpoint, rank 0 alone writes. It goes on
from the newest complete checkpoint of the run directory, whoever restarted it. Runs the same under
Ray, under `torchrun`, in bare gloo processes and in one process.
"""

import json
import os
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cluster.costmodel.model_shape import ModelShape
from cluster.errors import BerthaError
from trainers.checkpoint import checkpoint
from trainers.checkpoint.checkpoint import Checkpoint
from trainers.config.defaults import stated_settings
from trainers.data import prepare
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import gather_from_ranks, get_world_size, run_on_rank0
from trainers.models.bert import TextModel
from trainers.models.build import build_on_meta, materialize
from trainers.models.heads import plan_head
from trainers.models.shape import shape_from_config
from trainers.parallel.parallelize import parallelize
from trainers.runtime.conclusion import write_result
from trainers.runtime.worker_config import WorkerConfig
from trainers.storage.filesystem import StoreError
from trainers.tracking import provenance
from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.tracking.throughput import ThroughputMeter, device_peak_flops
from trainers.training import distillation, parity_check
from trainers.training.events import EvalEvent, SaveEvent, WarningEvent
from trainers.training.linear_probe import output_layer, set_head
from trainers.training.loop import TrainingLoop
from trainers.training.target_scale import TargetScale

MAX_CHARACTERS = 300  # of an error that nobody foresaw
ReportMetrics = Callable[[Mapping[str, float]], None]


def run_attempt(
    config: WorkerConfig,
    report: ReportMetrics,
    is_leaving: Callable[[], bool] | None = None,
    prepared: PreparedDataset | None = None,
) -> None:
    """Run `run_worker`; keep what a retry cannot cure from whoever would try again.

    A mistake of the user's or a diverged loss is written to the run directory and this returns as
    if it had succeeded; `fit` finds the file and raises. A store that fails may come back, so its
    error is raised. Where another driver has taken the run over, all ranks return, and `fit`
    raises.
    """
    if not run_on_rank0(lambda: config.run.is_held):
        return
    try:
        run_worker(config, report, is_leaving, prepared)
    except StoreError:
        raise
    except BerthaError as error:
        config.run.write_error(str(error))


class WorkerError(RunError):
    """A failure that nobody foresaw, in a sentence; the traceback is in the run directory."""


def worker_error(error: Exception, run: RunDirectory, text: str | None = None) -> WorkerError:
    """Return what nobody foresaw as one sentence, and write its traceback to the run directory.

    text: the traceback, of an error that came from another process.
    """
    what = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_CHARACTERS].rstrip(": ")
    try:
        run.write_traceback(text or "".join(traceback.format_exception(error)))
        where = f"its traceback is in {run.address}/{run.traceback_path.name}"
    except (BerthaError, OSError) as second:
        where = f"its traceback could not be kept ({second})"
    return WorkerError(
        f"{run.address}: {what}; {where}. What is saved is kept: go on with --resume"
    )


def storage_error(error: Exception, run: RunDirectory) -> RunError:
    """Return the error of a disk or a store as one that names the run and the way out."""
    where = "" if run.address in str(error) else f"{run.address}: "
    return RunError(f"{where}{error}; fix that, then go on with --resume")


def run_worker(
    config: WorkerConfig,
    report: ReportMetrics = lambda metrics: None,
    is_leaving: Callable[[], bool] | None = None,
    prepared: PreparedDataset | None = None,
) -> None:
    """Train to the end; write the result and, if asked for, the bundle to the run directory.

    report: called on every rank after each evaluation, once its checkpoint is saved, with its
    scalar metrics, the step, and the tokens seen. is_leaving: see `TrainingLoop.run`. prepared: the
    dataset with its teacher's logits, where this very process has prepared it.
    """
    config = config.for_world_size(get_world_size())
    recipe, run = config.recipe, config.run
    encoder = prepare.load_recipe_encoder(recipe, config.cache)
    if prepared is None:  # else this process has checked the run directory, too
        gather_from_ranks(run.check_access)
        key = config.data_fingerprint
        prepared = prepare.load_or_build_dataset(recipe, encoder, key, config.cache)
        prepared = distillation.attach_teacher_logits(recipe, prepared, config.cache)
    run_on_rank0(lambda: run.fetch_files(run.metrics_path.name, run.record_path.name))
    loop = _build_loop(config, prepared, encoder)
    newest = checkpoint.find_latest(run.checkpoints)
    if newest is not None:
        newest.restore(loop.parallel, loop.optimizer)
        loop.load_state_dict(newest.load_state())
    parity = _take_parity_report(run, loop, encoder, newest)
    recorder = None
    if loop.rank == 0:
        settings = recipe.model_dump(mode="json")
        meter = _build_meter(config, loop)
        recorder = MetricLogger(run, loop.progress.step, recipe.tracking, settings, meter)
        _write_record(config, loop, parity)
        recorder.log_start(
            step=loop.progress.step,
            total_steps=loop.total_steps,
            metric=recipe.metric,
            pid=os.getpid(),
            workers=loop.mesh.layout.world_size,
            layout=str(loop.mesh.layout),
            lost_steps=recorder.lost_steps,
            lost_seconds=recorder.lost_seconds,
        )
    try:
        _run_loop(loop, run, recorder, report, is_leaving)
        if recorder is not None:
            if config.write_bundle:
                recorder.log_conclusion(loop.progress.step)
            recorder.flush()
        write_result(config, loop, encoder, partial(_log_warning, loop, recorder))
        if recorder is not None:
            recorder.log_result(run.read_result() or {})
    finally:
        if recorder is not None:
            recorder.close()
    run.free_local_copy()


def _log_warning(loop: TrainingLoop, recorder: MetricLogger | None, text: str) -> None:
    if recorder is not None:
        recorder.log_event(WarningEvent(loop.progress.step, text))


def _run_loop(
    loop: TrainingLoop,
    run: RunDirectory,
    recorder: MetricLogger | None,
    report: ReportMetrics,
    is_leaving: Callable[[], bool] | None,
) -> None:
    """Train to the end: log events, save checkpoints, report metrics."""
    # An evaluation is reported only after the next checkpoint: whoever acts on the report (a search
    # that ends this trial) then finds the weights that it is about.
    unreported: dict[str, float] = {}
    for event in loop.run(is_leaving):
        if isinstance(event, SaveEvent):
            if recorder is not None:
                recorder.upload_now()
            _save_checkpoint(loop, run)
            if recorder is not None and event.preempted:
                recorder.log_interruption(event.step)
        elif recorder is not None:
            recorder.log_event(event)
        if isinstance(event, EvalEvent):
            scalars = {k: v for k, v in event.metrics.items() if isinstance(v, float)}
            if event.step:  # that of a fitted head before the first step compares no settings
                unreported = {**scalars, "step": event.step, "tokens": event.tokens}
        elif isinstance(event, SaveEvent) and unreported:
            report(unreported)
            unreported = {}


def _build_loop(config: WorkerConfig, prepared: PreparedDataset, encoder: Encoder) -> TrainingLoop:
    """Build the loop of this process, with its part of the model on its device."""
    recipe, device = config.recipe, DEVICES[config.device]
    mesh, place = Mesh.from_layout(config.layout, device.kind), device.torch_device()
    num_features = int(prepared.train.samples.lengths[0])
    model = build_on_meta(recipe, prepared.labels, num_features, encoder)
    if config.head is not None:
        set_head(model, config.head)
    elif plan_head(recipe, prepared.labels).is_number:  # which it gives in the user's unit
        TargetScale.for_recipe(recipe, prepared).unfold_from(output_layer(model))
    parallel = parallelize(
        model,
        mesh,
        lambda part: materialize(part, recipe.seed, place),
        autocast_dtype(device, recipe.precision),
    )
    return TrainingLoop(
        recipe, prepared, encoder, parallel, device, config.token_budget, config.head
    )


def _build_meter(config: WorkerConfig, loop: TrainingLoop) -> ThroughputMeter:
    """Return what tells how well the steps of `loop` use its devices."""
    recipe, device = config.recipe, DEVICES[config.device]
    model, labels = next(iter(loop.parallel.stage_modules.values())), loop.data.labels
    frozen = None
    if isinstance(model, TextModel):
        frozen = model.count_frozen_layers(recipe.model.freeze)
        shape = shape_from_config(model.config, recipe.task, len(labels))
    else:
        shape = ModelShape.for_linear(model.linear.in_features, model.linear.out_features)
    peak = device_peak_flops(device.kind, autocast_dtype(device, recipe.precision))
    devices, share = loop.mesh.layout.world_size, recipe.masking.share
    return ThroughputMeter(shape, devices, peak, share, frozen)


def _save_checkpoint(loop: TrainingLoop, run: RunDirectory) -> None:
    store, progress = run.checkpoints, loop.progress
    checkpoint.save_checkpoint(
        store, progress.step, loop.parallel, loop.optimizer, loop.state_dict()
    )
    if loop.rank == 0:
        needed = [progress.best_step, *loop.averaged_steps()]
        checkpoint.prune_checkpoints(store, loop.recipe.checkpoints.keep, needed)


def _take_parity_report(
    run: RunDirectory, loop: TrainingLoop, encoder: Encoder, restored: Checkpoint | None
) -> dict[str, Any] | None:
    """Return the parity report of this layout: the one that the run has, or a new one."""
    known = run_on_rank0(lambda: run.read_record().get("parity"))
    layout = loop.mesh.layout.model_dump(mode="json")
    if isinstance(known, dict) and known.get("layout") == layout:
        return known
    return parity_check.check_parity(loop, encoder, restored)


def _describe_growth(run: RunDirectory, step: int) -> list[dict[str, Any]]:
    """Return how often the run was made longer than it began, and from which step on."""
    return [{"from_step": step} | each for each in run.read_record().get("longer") or []]


def _write_record(config: WorkerConfig, loop: TrainingLoop, parity: dict[str, Any] | None) -> None:
    """Write record.json: everything needed to repeat this run."""
    prepared, layout = loop.data, loop.mesh.layout
    record = {
        "data_fingerprint": prepared.fingerprint,
        "data": prepared.report.to_json(),
        "teacher": prepared.teacher,
        "settings": stated_settings(config.recipe),
        "longer": _describe_growth(config.run, loop.progress.step),
        "accelerator": config.device,
        "revision": config.revision,
        "environment": provenance.describe_environment(),
        "workers": layout.world_size,
        "layout": layout.model_dump(mode="json"),
        "token_budget": loop.token_budget,
        "parity": parity,
    }
    config.run.write_file(config.run.record_path, json.dumps(record, indent=2) + "\n")
