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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray.tune
from filelock import FileLock, Timeout

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers.checkpoint import checkpoint
from trainers.config.recipe import Recipe
from trainers.runtime.fit import fit
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training.loop import TrainingError
from tuning.execution.stop_signal import StopSignal

LOCK_SECONDS = 300  # that the last process of a killed search may take to release a trial
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.5, 2.0  # between reads of what workers wrote: disk, store

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
        with _locked(spec.run):
            _fit(spec, report_timed)
    except TrainingError as error:
        report_timed({"ended": "failed", "reason": str(error)})
    except BerthaError as error:
        report_timed({"ended": "refused", "reason": str(error)})
    else:
        report_timed({"ended": "complete"})


def _fit(spec: TrialSpec, report: Report) -> None:
    stop_signal, address = StopSignal(spec.run), spec.run.address

    def report_evaluation(metrics: Mapping[str, float]) -> None:
        report({"tokens": int(metrics["tokens"]), "value": metrics[spec.recipe.metric]})

    def report_and_wait(metrics: Mapping[str, float]) -> None:
        report_evaluation(metrics)
        stop_signal(metrics)

    for metrics in read_evaluations(spec.run):  # an earlier search may have died before it heard
        report_evaluation(metrics)
    if spec.parent is not None:
        copy_parent_checkpoint(spec.run, *spec.parent)
    if spec.cluster.num_workers:
        with _relaying_evaluations(spec, report_evaluation):
            fit(spec.recipe, spec.cluster, address, True, False, stop_signal)
    else:
        fit(spec.recipe, spec.cluster, address, True, False, report_and_wait)
    for metrics in read_evaluations(spec.run):  # the workers' last, which nothing relays any more
        report_evaluation(metrics)


def read_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the evaluations in a run directory, as the trainer reports them."""
    rows = run.published_rows("evaluation")
    return [{**row["metrics"], "step": row["step"], "tokens": row["tokens"]} for row in rows]


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
def _relaying_evaluations(
    spec: TrialSpec, report: Callable[[Mapping[str, float]], None]
) -> Iterator[None]:
    """Report what workers evaluate while the block runs."""
    done = threading.Event()

    def relay() -> None:
        reported = 0
        while not done.wait(REMOTE_POLL_SECONDS if spec.run.home else POLL_SECONDS):
            for metrics in read_evaluations(spec.run):
                if metrics["tokens"] > reported:
                    reported = metrics["tokens"]
                    report(metrics)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Lock the run directory: a trial of a search that was killed may take a moment to die."""
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.path / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise RunError(
            f"{run.address}: another process has trained this trial for {LOCK_SECONDS} seconds; "
            "end it"
        ) from None
