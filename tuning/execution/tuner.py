"""A search under Ray Tune: trials are runs of the one trainer, side by side.

Tune places them, starts them again when they die, and passes on what they tell; what to try and
what to stop is the director's. A search that was killed goes on from its journal, and each trial
from its own newest checkpoint.
"""

import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers.config.recipe import lower_is_better
from trainers.distributed.device import DEVICES
from trainers.runtime.environment import environment
from trainers.runtime.fit import connect, resources
from trainers.storage.directory import Directory
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms import repeats
from tuning.algorithms.pareto import candidates
from tuning.algorithms.trial import Look, completed
from tuning.execution import hparams, stop_signal
from tuning.execution.capacity import Capacity
from tuning.execution.clock import Clock
from tuning.execution.controller import Director
from tuning.execution.trainable import Order, carry_out

# What the process that watches a trial's workers reserves: something, for Tune reserves no nothing,
# and no part of a core, for the workers may need them all.
WATCHER = {"memory": 2**20}
# Without Tune's own loggers and tables, which say what the journal says.
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
NO_LIMIT = -1  # of trials, to Tune; the director says when there are enough


class SearchError(BerthaError):
    """A search that cannot go on; the text says why and the way out."""


class Search:
    """One session of a search. run: its directory. cluster: all of it."""

    def __init__(
        self, director: Director, capacity: Capacity, cluster: ClusterSpec, run: Directory
    ) -> None:
        self.director, self.capacity, self.cluster = director, capacity, cluster
        self._run = Directory(run.path.resolve(), run.home)  # trials run in other directories
        self.clock, self._tidied = Clock(), set[int]()

    def directory(self, number: int) -> RunDirectory:
        """The run directory of a trial."""
        return RunDirectory.at(f"{self._run.address}/trials/{number:04d}", self.cluster.cache)

    def go(self) -> None:
        """Run trials until the director wants no more.

        Raises SearchError when no trial can be trained, the cluster cannot carry one, or somebody
        interrupts.
        """
        if self.director.is_finished:
            return
        # The devices of a trial whose process died are freed by way of the dashboard.
        several = self.capacity.devices > 1
        connect(self.cluster.at(max(1, self.cluster.num_workers)), dashboard=several)
        per_trial, slots = self._resources()
        self.clock = Clock()
        name = f"attempt-{time.time_ns()}"
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        with environment(QUIET):
            Tuner(
                ray.tune.with_resources(carry_out, per_trial),
                tune_config=TuneConfig(
                    search_alg=_Suggestions(self),
                    scheduler=_Decisions(self),
                    num_samples=NO_LIMIT,
                    max_concurrent_trials=slots,
                    reuse_actors=self.capacity.devices == 1,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(self._run.path / "ray"),
                    failure_config=FailureConfig(max_failures=self.cluster.metadata.max_failures),
                    verbose=0,
                ),
            ).fit()
        if self.director.refusal is not None:
            raise SearchError(self.director.refusal)
        if not self.director.is_finished:
            raise SearchError(
                f"interrupted; `python -m tuning resume {self._run.address}` goes on with it"
            )

    def begin(self) -> Order | None:
        """What the next trial is told; None where there is none now."""
        trial = self.director.next()
        if trial is None:
            return None
        parent = (
            None if trial.parent is None else (self.directory(trial.parent[0]), trial.parent[1])
        )
        return Order(
            trial.number,
            self.director.recipe(trial),
            self.capacity.cluster(self.cluster),
            self.directory(trial.number),
            parent,
        )

    def told(self, identity: str, number: int, facts: dict[str, Any]) -> None:
        """Trial `number` told something: an evaluation, which waits for a verdict, or its end."""
        seconds = float(facts["seconds"])
        self.clock.ran(identity, seconds)
        seconds = max(seconds, trained_seconds(self.directory(number)))
        if "ended" not in facts:
            sign = -1 if lower_is_better(self.director.terms.plan.recipe.metric) else 1
            look = Look(int(facts["tokens"]), sign * float(facts["value"]))
            goes_on = self.director.looked(number, look, seconds)
            stop_signal.decide(self.directory(number), look.tokens, goes_on)
            return
        if facts["ended"] == "refused":
            self.director.refused(number, facts["reason"])
        else:
            self.director.ended(number, facts["ended"], seconds, facts.get("reason", ""))
            self._compare(number)
        self.tidy()

    def _compare(self, number: int) -> None:
        """Let TensorBoard compare an ended trial with others."""
        trial, recipe = self.director.trials[number], self.director.terms.plan.recipe
        if trial.score is not None:
            sign = -1 if lower_is_better(recipe.metric) else 1
            run = self.directory(number)
            hparams.write(run.path, trial.point, recipe.metric, sign * trial.score)
            run.publish("tensorboard")

    def lost(self, number: int) -> None:
        """The process of trial `number` died more often than the cluster's max_failures allows."""
        times = self.cluster.metadata.max_failures + 1
        reason = f"its process died {times} times; see {self.directory(number).address}"
        self.director.ended(number, "failed", 0.0, reason)

    def tidy(self) -> None:
        """Delete the checkpoints of trials that cannot win any more."""
        trials = self.director.trials
        keep = {trial.number for trial in completed(trials)[: repeats.FINALISTS]} | {0}
        if self.director.terms.plan.deployment:
            keep |= set(candidates(trials))
        # What the next round of a population may go on from.
        keep |= set(range(len(trials) - 2 * self.director.members, len(trials)))
        for trial in trials:
            if trial.state != "running" and trial.number not in keep | self._tidied:
                self.directory(trial.number).forget_checkpoints()
                self._tidied.add(trial.number)

    def _resources(self) -> tuple[PlacementGroupFactory, int]:
        """What Tune reserves for a trial, and how many trials there is room for.

        Workers of a trial of several devices reserve theirs themselves.
        """
        part = self.capacity.cluster(self.cluster).at(self.capacity.devices)
        device = DEVICES[part.metadata.accelerator]
        each = resources(part, device)
        seen = ray.cluster_resources().get(device.resource, 0.0)
        room = int(seen / each[device.resource] / self.capacity.devices + 1e-9)
        if not room:
            raise SearchError(
                f"cluster {self.cluster.name}: a trial needs {self.capacity.devices} "
                f"{device.resource}, {seen:g} seen by Ray; mend metadata.devices_per_node or the "
                "nodes' resources"
            )
        slots = min(room, self.capacity.slots)
        alone = self.capacity.devices == 1
        return PlacementGroupFactory([each if alone else WATCHER]), slots


def trained_seconds(run: RunDirectory) -> float:
    """What a trial has trained and evaluated, in all processes that had a part in it."""
    return sum(float(row.get("seconds", 0.0)) for row in run.published())


class _Suggestions(Searcher):  # type: ignore[misc]
    """Tune asks for settings; the director has whole trials."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps copies to restore from; a search goes on from its journal instead."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's order; None to be asked again, FINISHED for the end."""
        order = self._search.begin()
        if order is not None:
            self._numbers[trial_id] = order.number
            return {"order": order}
        return str(Searcher.FINISHED) if self._search.director.is_finished else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Only of a trial whose process died too often; others tell themselves how they ended."""
        if error:
            self._search.lost(self._numbers[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """The journal knows all; Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """The journal knows all."""


class _Decisions(FIFOScheduler):  # type: ignore[misc]
    """Tune asks after each evaluation; the director decides."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps copies to restore from; a search goes on from its journal instead."""
        return {}

    def on_trial_result(self, controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Always CONTINUE: a trial is told by the director, and ends itself; see `gate.py`."""
        order: Order = trial.config["order"]
        attempt = f"{trial.trial_id} {trial.num_failures}"
        self._search.told(attempt, order.number, result)
        return str(self.CONTINUE)
