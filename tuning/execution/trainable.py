"""One trial as Ray Tune runs it: a run of the one trainer, its evaluations told to Tune.

A trial on one device trains in this very process. One on several trains in workers of its own, and
this process reads their evaluations from the run directory. Either stands still after an evaluation
until the search has decided whether it goes on, and either begins with the run directory's newest
checkpoint, so whoever starts it again repeats no step that was saved.
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
from trainers.config.recipe import Recipe
from trainers.runtime.fit import fit
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training.loop import TrainingError
from tuning.execution.stop_signal import Gate
from tuning.execution.warm_start import inherit

HELD_SECONDS = 300  # that the last process of a killed search may take to let go of a trial
LOOK_SECONDS, FAR_LOOK_SECONDS = 0.5, 2.0  # between looks at what workers wrote: disk, store

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """What a trial is told. run: its run directory. parent: the run directory, and the tokens seen
    there, of the checkpoint it begins with.
    """

    number: int
    recipe: Recipe
    cluster: ClusterSpec
    run: RunDirectory
    parent: tuple[RunDirectory, int] | None = None


def carry_out(config: Mapping[str, Any]) -> None:
    """Train the trial of `config["order"]`; Tune calls this in a process of its own."""
    # A process is used again for the next trial, once this one's thread has ended.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    train(config["order"], ray.tune.report)


def train(order: Order, tell: Tell) -> None:
    """Train `order`, telling each evaluation and at last how it ended."""
    started = time.monotonic()

    def told(facts: Mapping[str, Any]) -> None:
        tell({**facts, "seconds": time.monotonic() - started})

    try:
        with _held(order.run):
            _fit(order, told)
    except TrainingError as error:
        told({"ended": "failed", "reason": str(error)})
    except BerthaError as error:
        told({"ended": "refused", "reason": str(error)})
    else:
        told({"ended": "complete"})


def _fit(order: Order, told: Tell) -> None:
    metric = order.recipe.metric

    def report(metrics: Mapping[str, float]) -> None:
        told({"tokens": int(metrics["tokens"]), "value": metrics[metric]})

    gate = Gate(order.run)

    def report_and_wait(metrics: Mapping[str, float]) -> None:
        report(metrics)
        gate(metrics)

    for metrics in evaluations(order.run):  # that were told to a search that was killed
        report(metrics)
    if order.parent is not None:
        inherit(order.run, *order.parent)
    if order.cluster.num_workers:
        with _watched(order, report):
            fit(order.recipe, order.cluster, order.run.address, True, False, gate)
    else:
        fit(order.recipe, order.cluster, order.run.address, True, False, report_and_wait)
    for metrics in evaluations(order.run):  # the last of workers, which nobody watches any more
        report(metrics)


def evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """The evaluations in a run directory, as the trainer reports them."""
    rows = run.published("evaluation")
    return [{**row["metrics"], "step": row["step"], "tokens": row["tokens"]} for row in rows]


@contextmanager
def _watched(order: Order, report: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Report what workers evaluate, as it comes, while the block runs."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        while not over.wait(FAR_LOOK_SECONDS if order.run.home else LOOK_SECONDS):
            for metrics in evaluations(order.run):
                if metrics["tokens"] > seen:
                    seen = metrics["tokens"]
                    report(metrics)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextmanager
def _held(run: RunDirectory) -> Iterator[None]:
    """Hold the run directory: a trial of a search that was killed may take a moment to die."""
    run.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.path / ".lock", timeout=HELD_SECONDS)
    try:
        with lock:
            yield
    except Timeout:
        raise RunError(
            f"{run.address}: another process has trained this trial for {HELD_SECONDS} seconds; "
            "end it"
        ) from None
