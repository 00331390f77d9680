"""One trial as Ray Tune runs it: a run of the trainer that reports its evaluations to Tune.

A trial on one device trains in this very process. One on several devices trains in workers of its
own, and this process relays their evaluations from the run directory. Either waits after an
evaluation until the search has decided on it, and starts from the newest checkpoint in its run
directory, so a restart repeats no step that was saved.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray.tune

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers.checkpoint import checkpoint
from trainers.config.recipe import Recipe
from trainers.runtime.fit import fit
from trainers.runtime.worker import WorkerError
from trainers.storage.filesystem import StoreError
from trainers.storage.lease import hold_lease
from trainers.tracking.progress import MetricTail
from trainers.tracking.run_directory import RunDirectory
from trainers.training.loop import TrainingError
from tuning.execution.stop_signal import StopSignal

DYING_SECONDS = 300.0  # that a process of a killed search may take to release its trial
POLL_SECONDS = 0.5  # between reads of what workers wrote

Report = Callable[[Mapping[str, Any]], None]


class WarmStartError(BerthaError):
    """A parent whose checkpoint is missing."""


@dataclass(frozen=True)
class TrialSpec:
    """Everything that the process of a trial needs.

    run: its run directory. parent: (run directory, tokens) of the checkpoint it starts from.
    """

    number: int
    recipe: Recipe
    cluster: ClusterSpec
    run: RunDirectory
    parent: tuple[RunDirectory, int] | None = None


def run_trial(config: Mapping[str, Any]) -> None:
    """Train the trial of `config["spec"]`: the function trainable, in a process of its own."""
    # A process is used again for the next trial, once this one's thread has ended.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    train_trial(config["spec"], ray.tune.report)


def train_trial(spec: TrialSpec, report: Report) -> None:
    """Train a trial; report each evaluation (tokens, value) and at last how it ended.

    Every report has the seconds since the start. ended: complete; failed, for a reason of this
    trial's; refused, for one that all trials share.
    """
    started = time.monotonic()

    def report_timed(facts: Mapping[str, Any]) -> None:
        report({**facts, "seconds": time.monotonic() - started})

    try:
        _fit(spec, report_timed)
    except WorkerError:  # it may pass: Tune tries again
        raise
    except TrainingError as error:
        report_timed({"ended": "failed", "reason": str(error)})
    except BerthaError as error:
        report_timed({"ended": "refused", "reason": str(error)})
    else:
        report_timed({"ended": "complete"})


def _fit(spec: TrialSpec, report: Report) -> None:
    spec.run.check_access()
    # The search has the right to its trials: it waits for a process of an earlier session to die,
    # and whoever trains this trial on a machine that the search has left, notices.
    with hold_lease(spec.run, DYING_SECONDS, take_over=True) as lease:
        _fit_held(replace(spec, run=replace(spec.run, lease=lease)), report)


def _fit_held(spec: TrialSpec, report: Report) -> None:
    stop_signal, tail, metric = StopSignal(spec.run), MetricTail(spec.run), spec.recipe.metric

    def report_written(last: bool = False) -> None:
        for row in tail.read_rows(last):
            # That of a head fitted before the first step is no result of the settings.
            is_told = row["kind"] == "evaluation" and row["step"] > 0
            if is_told and metric in row["metrics"]:
                report({"tokens": row["tokens"], "value": row["metrics"][metric]})

    def report_and_wait(metrics: Mapping[str, float]) -> None:
        report({"tokens": int(metrics["tokens"]), "value": metrics[metric]})
        stop_signal(metrics)

    report_written(last=True)  # an earlier search may have died before it heard
    if spec.parent is not None:
        copy_parent_checkpoint(spec.run, *spec.parent)
    if spec.cluster.num_workers:
        with _calling_repeatedly(report_written):
            fit(spec.recipe, spec.cluster, spec.run, True, False, stop_signal)
        report_written(last=True)
    else:
        fit(spec.recipe, spec.cluster, spec.run, True, False, report_and_wait)


def copy_parent_checkpoint(run: RunDirectory, parent: RunDirectory, tokens: int) -> None:
    """Give `run`, unless it has a checkpoint, the one that `parent` has at `tokens`.

    A checkpoint holds weights, moments and the position, and the learning rate is a function of the
    step, so a run with other settings of the optimizer may start from it.
    """
    if checkpoint.find_latest(run.checkpoints) is not None:
        return
    steps = [row["step"] for row in parent.published_rows("evaluation") if row["tokens"] == tokens]
    if not steps or not checkpoint.copy_from(run.checkpoints, parent.checkpoints, steps[-1]):
        raise WarmStartError(
            f"{parent.address}: its checkpoint at {tokens:,} tokens is gone or damaged"
        )


@contextmanager
def _calling_repeatedly(task: Callable[[], None]) -> Iterator[None]:
    """Call `task` now and then while the block runs; where a store fails, again later."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(POLL_SECONDS):
            with suppress(StoreError):
                task()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
