"""One process of a run: data, model, loop, records, checkpoints, and at the end the bundle.

Every rank runs `work`; but for its part of a checkpoint, rank 0 alone writes. It goes on from the
newest whole checkpoint of the run directory, whoever started it again and why. Knows no Ray: under
`torchrun`, in bare gloo processes and in one process it is the same.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.costmodel.layout import Layout
from trainers.checkpoint import checkpoint
from trainers.checkpoint.checkpoint import Checkpoint
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import num_ranks, on_all, on_first
from trainers.models import bundle
from trainers.models.build import materialize, outline, shapes_of
from trainers.models.card import FORMAT, Card
from trainers.parallel.parallelize import parallelize
from trainers.planning.elastic import Elastic
from trainers.storage.atomic import write_file
from trainers.tracking import provenance
from trainers.tracking.metric_logger import Recorder
from trainers.tracking.run_directory import RunDirectory
from trainers.training import distillation, parity_check
from trainers.training.events import Evaluation, Save
from trainers.training.loop import Loop, TrainingError
from trainers.training.metrics import Metrics

Report = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Assignment:
    """What every worker of a run is told. cache: a directory of this node.

    layout: over all ranks. token_budget: None for the recipe's or the device's. elastic: what gives
    another layout while there are fewer ranks. judged: whether the test rows are looked at and a
    bundle is made, once the run has trained to its end.
    """

    recipe: Recipe
    run: RunDirectory
    cache: Path
    device: str
    revision: str
    layout: Layout
    token_budget: int | None = None
    elastic: Elastic | None = None
    judged: bool = True

    def on(self, num_workers: int) -> "Assignment":
        """The same with the layout for `num_workers`. Raises LayoutError where there is none."""
        if self.elastic is None or self.layout.world_size == num_workers:
            return self
        plan = self.elastic.plan(self.recipe, num_workers)
        return replace(self, layout=plan.layout, token_budget=plan.token_budget)


def work(
    assignment: Assignment,
    report: Report = lambda metrics: None,
    leaving: Callable[[], bool] | None = None,
) -> None:
    """Train to the end and leave the result, and where asked for the bundle, in the run directory.

    `report` is called on every rank after each evaluation, once its checkpoint is there, with its
    single numbers, the step, and the tokens seen. leaving: as of `Loop.run`.
    """
    assignment = assignment.on(num_ranks())
    recipe, run = assignment.recipe, assignment.run
    on_all(run.probe)
    on_first(lambda: run.fetch(run.metrics.name, run.facts.name))
    prepared = distillation.taught(
        recipe, prepare.prepare(recipe, assignment.cache), assignment.cache
    )
    encoder = prepare.encoder_of(recipe, assignment.cache)
    loop = _loop(assignment, prepared, encoder)
    newest = checkpoint.latest(run.checkpoints)
    if newest is not None:
        newest.restore(loop.parallel, loop.optimizer)
        loop.resume(newest.state())
    parity = _parity(run, loop, encoder, newest)
    recorder = Recorder(run, loop.progress.step) if loop.rank == 0 else None
    if recorder is not None:
        _describe(assignment, prepared, loop, parity)
        recorder.start(
            step=loop.progress.step,
            total_steps=loop.total_steps,
            pid=os.getpid(),
            workers=loop.mesh.layout.world_size,
            layout=str(loop.mesh.layout),
            lost_steps=recorder.lost_steps,
            lost_seconds=recorder.lost_seconds,
        )
    try:
        _train(loop, run, recorder, report, leaving)
    finally:
        if recorder is not None:
            recorder.close()
    _finish(assignment, prepared, loop, encoder)
    run.let_go()


def _train(
    loop: Loop,
    run: RunDirectory,
    recorder: Recorder | None,
    report: Report,
    leaving: Callable[[], bool] | None,
) -> None:
    """Record, save and report what happens until the run ends."""
    unreported: dict[str, float] = {}
    for event in loop.run(leaving):
        if isinstance(event, Save):
            if recorder is not None:
                recorder.publish()
            _save(loop, run)
            if recorder is not None and event.leaving:
                recorder.notice(event.step)
        elif recorder is not None:
            recorder.record(event)
        if isinstance(event, Evaluation):
            single = {k: v for k, v in event.metrics.items() if isinstance(v, float)}
            unreported = {**single, "step": event.step, "tokens": event.tokens}
        elif isinstance(event, Save) and unreported:
            report(unreported)
            unreported = {}


def _loop(assignment: Assignment, prepared: prepare.Data, encoder: Encoder) -> Loop:
    """The loop of this process, its part of the model on its device."""
    recipe, device = assignment.recipe, DEVICES[assignment.device]
    mesh, place = Mesh.of(assignment.layout, device.kind), device.torch_device()
    num_features = int(prepared.train.samples.lengths[0])
    parallel = parallelize(
        outline(recipe, prepared.labels, num_features, encoder),
        mesh,
        lambda part: materialize(part, recipe.seed, place),
        autocast_dtype(device, recipe.precision),
    )
    return Loop(recipe, prepared, encoder, parallel, device, assignment.token_budget)


def _save(loop: Loop, run: RunDirectory) -> None:
    step = loop.progress.step
    checkpoint.save(run.checkpoints, step, loop.parallel, loop.optimizer, loop.state())
    if loop.rank == 0:
        checkpoint.prune(run.checkpoints, loop.recipe.checkpoints.keep, loop.progress.best_step)


def _parity(
    run: RunDirectory, loop: Loop, encoder: Encoder, restored: Checkpoint | None
) -> dict[str, Any] | None:
    """The receipt of this layout: the one that the run has, or a new one."""
    known = on_first(lambda: run.record().get("parity"))
    if known is not None and known["layout"] == loop.mesh.layout.model_dump(mode="json"):
        return dict(known)
    return parity_check.take(loop, encoder, restored)


def _describe(
    assignment: Assignment, prepared: prepare.Data, loop: Loop, parity: dict[str, Any] | None
) -> None:
    """Write record.json: from what this run can be repeated."""
    layout = loop.mesh.layout
    record = {
        "data_fingerprint": prepared.fingerprint,
        "data": prepared.report.to_json(),
        "teacher": prepared.teacher,
        "revision": assignment.revision,
        "environment": provenance.environment(),
        "workers": layout.world_size,
        "layout": layout.model_dump(mode="json"),
        "token_budget": loop.token_budget,
        "parity": parity,
    }
    write_file(assignment.run.facts, json.dumps(record, indent=2) + "\n")
    assignment.run.publish(assignment.run.facts.name)


def _finish(assignment: Assignment, prepared: prepare.Data, loop: Loop, encoder: Encoder) -> None:
    """Write the result; where the run is judged, first look at the test rows and make a bundle."""
    run, progress = assignment.run, loop.progress
    best_step, test = progress.best_step or progress.step, None
    if assignment.judged:
        best = _best(run, best_step, progress.step)
        best_step, test = best.step, _judge(assignment, prepared, loop, encoder, best)
    if loop.rank != 0:
        return
    result: dict[str, Any] = {
        "steps": progress.step,
        "best_step": best_step,
        "stopped_early": progress.stopped,
        "validation": {loop.recipe.metric: progress.best_value},
        "test": test,
    }
    write_file(run.outcome, json.dumps(result, indent=2) + "\n")
    run.publish(run.outcome.name)


def _best(run: RunDirectory, best_step: int, last: int) -> Checkpoint:
    """The best checkpoint, or the last one where that is gone. Raises TrainingError without."""
    best = checkpoint.find(run.checkpoints, best_step) or checkpoint.find(run.checkpoints, last)
    if best is None:
        raise TrainingError(
            f"{run.checkpoints}: the last checkpoint is gone or damaged; go on with --resume"
        )
    return best


def _judge(
    assignment: Assignment, prepared: prepare.Data, loop: Loop, encoder: Encoder, best: Checkpoint
) -> Metrics:
    """The metrics of the best weights on the test rows; writes bundle and plots."""
    from trainers.tracking import plots  # a second of every start, and needed at the end

    recipe, run = assignment.recipe, assignment.run
    if best.step != loop.progress.step:
        best.restore(loop.parallel)
    test = loop.evaluate(prepared.test) if len(prepared.test) else {}
    if loop.rank != 0:
        return test
    card = Card(
        format=FORMAT,
        task=recipe.task,
        labels=prepared.labels,
        cleaning=recipe.data.cleaning,
        max_length=recipe.batch.max_length,
        metrics=test,
        recipe=recipe.model_dump(mode="json"),
        data_fingerprint=prepared.fingerprint,
        revision=assignment.revision,
        environment=provenance.environment(),
        files={},
    )
    num_features = int(prepared.train.samples.lengths[0])
    shapes = shapes_of(recipe, prepared.labels, num_features, encoder)
    bundle.write(run.bundle, shapes, best.tensors(), encoder, card)
    plots.draw(run, recipe.metric, prepared.labels, test)
    run.publish("plots", run.bundle.name)
    return test
