"""One process of a run: data, model, loop, records, checkpoints, and at the end the bundle.

Every rank runs `work`; rank 0 alone writes. It goes on from the newest whole checkpoint of the run
directory, whoever started it again and why. Knows no Ray: under `torchrun`, in bare gloo processes
and in one process it is the same.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainers import bundle, checkpoint, data, plots, provenance
from trainers.card import FORMAT, Card
from trainers.device import DEVICES
from trainers.encoding import Encoder
from trainers.events import Evaluation, Event, Step
from trainers.loop import Loop
from trainers.model import build
from trainers.recipe import Recipe
from trainers.record import Recorder, RunDirectory
from trainers.sealed import write_file

Report = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Assignment:
    """What every worker of a run is told. cache: a directory of this node."""

    recipe: Recipe
    run: RunDirectory
    cache: Path
    device: str
    revision: str


def work(assignment: Assignment, report: Report = lambda metrics: None) -> None:
    """Train to the end and leave bundle and result in the run directory.

    `report` is called on every rank after each evaluation.
    """
    recipe, run, device = assignment.recipe, assignment.run, DEVICES[assignment.device]
    prepared = data.prepare(recipe, assignment.cache)
    encoder = data.encoder_of(recipe)
    num_features = int(prepared.train.samples.lengths[0])
    model = build(recipe, prepared.labels, num_features).to(device.torch_device())
    loop = Loop(recipe, prepared, encoder.pad, model, device)
    newest = checkpoint.latest(run.checkpoints)
    if newest is not None:
        newest.restore(model, loop.optimizer)
        loop.resume(newest.state())
    recorder = Recorder(run, loop.progress.step) if loop.rank == 0 else None
    if recorder is not None:
        _describe(assignment, prepared, loop)
        recorder.start(step=loop.progress.step, total_steps=loop.total_steps, pid=os.getpid())
    for event in loop.run():
        if recorder is not None:
            _write(event, recorder, loop, run)
        if isinstance(event, Evaluation):
            report({k: v for k, v in event.metrics.items() if isinstance(v, float)})
    if recorder is not None:
        recorder.close()
    _finish(assignment, prepared, loop, encoder)


def _write(event: Event, recorder: Recorder, loop: Loop, run: RunDirectory) -> None:
    if isinstance(event, Step):
        recorder.step(event)
    elif isinstance(event, Evaluation):
        recorder.evaluation(event)
    else:
        checkpoint.save(run.checkpoints, event.step, loop.model, loop.optimizer, loop.state())
        checkpoint.prune(run.checkpoints, loop.recipe.checkpoints.keep, loop.progress.best_step)


def _describe(assignment: Assignment, prepared: data.Data, loop: Loop) -> None:
    """Write record.json: from what this run can be repeated."""
    record = {
        "data_fingerprint": prepared.fingerprint,
        "data": prepared.report.to_json(),
        "revision": assignment.revision,
        "environment": provenance.environment(),
        "workers": loop.num_ranks,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "token_budget": loop.token_budget,
    }
    write_file(assignment.run.path / "record.json", json.dumps(record, indent=2) + "\n")


def _finish(assignment: Assignment, prepared: data.Data, loop: Loop, encoder: Encoder) -> None:
    """Judge the best weights once on the test rows; write bundle, plots and result."""
    recipe, run, best_step = assignment.recipe, assignment.run, loop.progress.best_step
    if dist.is_initialized():
        dist.barrier()
    if best_step is not None and best_step != loop.progress.step:
        best = checkpoint.find(run.checkpoints, best_step)
        if best is None:
            best_step = loop.progress.step
        else:
            best.restore(loop.model)
    test = loop.evaluate(prepared.test) if len(prepared.test) else {}
    if loop.rank != 0:
        return
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
    bundle.write(run.bundle, loop.model, encoder, card)
    plots.draw(run, recipe.metric, prepared.labels, test)
    result: dict[str, Any] = {
        "steps": loop.progress.step,
        "best_step": best_step or loop.progress.step,
        "stopped_early": loop.progress.stopped,
        "validation": {recipe.metric: loop.progress.best_value},
        "test": test,
    }
    write_file(run.path / "result.json", json.dumps(result, indent=2) + "\n")
