"""A search on Ray Tune: trials are runs of the trainer, side by side.

Tune places trials, restarts those that die, and passes on their reports; the controller decides
what to try and what to stop. A search that was killed resumes from its journal, and each trial from
its own newest checkpoint.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from torch.utils.tensorboard import SummaryWriter

from cluster.errors import BerthaError
from cluster.local_ray import temporary_env
from trainers.distributed.device import DEVICES
from trainers.runtime.ray_trainer import init_ray, resources_per_worker
from trainers.storage.directory import SyncedDirectory
from trainers.tracking.metric_rows import parse_rows
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms import repeats
from tuning.algorithms.pareto import best_of_each_model
from tuning.algorithms.trial import TrialEvaluation, rank_completed
from tuning.execution import stop_signal
from tuning.execution.controller import SearchController
from tuning.execution.trainable import TrialSpec, run_trial

# The process that relays its workers' evaluations must reserve something, since Tune rejects an
# empty placement group, but no part of a core, since the workers may need them all.
RELAY_RESOURCES = {"memory": 2**20}
# Without Tune's own loggers and tables, which repeat the journal.
QUIET_ENV = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
NO_LIMIT = -1  # of trials, to Tune; the controller says when there are enough


class SearchError(BerthaError):
    """A search that cannot go on; the text says why and the way out."""


class SlotClock:
    """Measures how long slots stood empty between trials: the cost of placing them."""

    def __init__(self) -> None:
        self.began = time.time()
        self.last_start = 0.0
        self.spans: dict[str, tuple[float, float]] = {}

    def record_run(self, attempt: str, seconds: float) -> None:
        """Record that an attempt at a trial has run for `seconds` until now."""
        now = time.time()
        self.spans[attempt] = (now - seconds, now)
        self.last_start = max(self.last_start, now - seconds)

    def overhead_share(self, slots: int) -> float | None:
        """Return the time that slots stood empty, as a share of the time trials ran in them.

        Until the last trial began: afterwards there is nothing to fill them with.
        """
        end = self.last_start
        busy = sum(max(0.0, min(until, end) - since) for since, until in self.spans.values())
        return slots * (end - self.began) / busy - 1 if busy else None


class TrainedSeconds:
    """Sums the seconds in a trial's metrics.jsonl, of all processes that trained or evaluated it.

    Asked after every evaluation, so it parses only the rows that are new since the last time.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._parsed, self._total = run, b"", 0.0

    def update(self) -> float:
        """Return the sum over all complete rows."""
        data = self._run.read_file(self._run.metrics_path.name) or b""
        data = data[: data.rfind(b"\n") + 1]
        if not data.startswith(self._parsed):  # a restart rewrote the file, without lost steps
            self._parsed, self._total = b"", 0.0
        for row in parse_rows(data[len(self._parsed) :]):
            seconds = row.get("seconds", 0.0)
            self._total += seconds if isinstance(seconds, (int, float)) else 0.0
        self._parsed = data
        return self._total


class Search:
    """One session of a search in the directory `run`.

    check_lease: raises LeaseError where another process has taken the search over; called before
    files of trials are changed.
    """

    def __init__(
        self,
        controller: SearchController,
        run: SyncedDirectory,
        check_lease: Callable[[], None] = lambda: None,
    ) -> None:
        self.controller, self.prepared = controller, controller.prepared
        self.check_lease = check_lease
        self._run = SyncedDirectory(run.path.resolve(), run.home)  # trials change the directory
        self.clock = SlotClock()
        self._error: BerthaError | None = None
        self._trained: dict[int, TrainedSeconds] = {}
        self._cleaned: set[int] = set()

    def trial_directory(self, number: int) -> RunDirectory:
        """Return the run directory of a trial."""
        address = f"{self._run.address}/trials/{number:04d}"
        return RunDirectory.from_address(address, self.prepared.cluster.cache_dir)

    def run(self) -> None:
        """Run trials until the controller is finished.

        Raises SearchError if no trial can be trained, the cluster cannot hold one, or the user
        interrupts.
        """
        if self.controller.is_finished:
            return
        cluster, devices = self.prepared.cluster, self.prepared.capacity.devices
        # Ray frees the workers of a trial whose process died only where its dashboard runs.
        init_ray(cluster.with_workers(max(1, cluster.num_workers)), dashboard=devices > 1)
        per_trial, slots = self._trial_resources()
        self.clock = SlotClock()
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        with temporary_env(QUIET_ENV), self._raising_own_errors():
            Tuner(
                ray.tune.with_resources(run_trial, per_trial),
                tune_config=TuneConfig(
                    search_alg=_ControllerSearcher(self),
                    scheduler=_ControllerScheduler(self),
                    num_samples=NO_LIMIT,
                    max_concurrent_trials=slots,
                    reuse_actors=devices == 1,
                ),
                run_config=RunConfig(
                    name=f"attempt-{time.time_ns()}",
                    storage_path=str(self._run.path / "ray"),
                    failure_config=FailureConfig(max_failures=cluster.metadata.max_failures),
                    verbose=0,
                ),
            ).fit()
        if self.controller.invalid_reason is not None:
            raise SearchError(self.controller.invalid_reason)
        if not self.controller.is_finished:
            raise SearchError(
                f"interrupted; `bertha tune resume {self._run.address}` goes on with it"
            )

    @contextmanager
    def _raising_own_errors(self) -> Iterator[None]:
        """Raise what stopped the search, where Tune raises it as the text of a traceback."""
        try:
            yield
        except TuneError as error:
            raise (self._error or error) from None

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep an error of this search that Tune would turn into text."""
        try:
            yield
        except BerthaError as error:
            self._error = error
            raise

    def next_spec(self) -> TrialSpec | None:
        """Return the next trial to run; None if there is none now."""
        trial = self.controller.next_trial(
            lambda trial: TrainedSeconds(self.trial_directory(trial.number)).update()
        )
        if trial is None:
            return None
        parent = trial.parent and (self.trial_directory(trial.parent[0]), trial.parent[1])
        return TrialSpec(
            trial.number,
            self.controller.build_recipe(trial),
            self.prepared.capacity.trial_cluster(self.prepared.cluster),
            self.trial_directory(trial.number),
            parent,
        )

    def on_report(self, attempt: str, number: int, facts: dict[str, Any]) -> None:
        """Handle a report of trial `number`: an evaluation, which it waits on, or its end."""
        self.check_lease()
        run = self.trial_directory(number)
        self.clock.record_run(attempt, float(facts["seconds"]))
        trained = self._trained.setdefault(number, TrainedSeconds(run)).update()
        seconds = max(float(facts["seconds"]), trained)
        if "ended" not in facts:
            score = self.prepared.config.sign * float(facts["value"])
            evaluation = TrialEvaluation(int(facts["tokens"]), score)
            goes_on = self.controller.on_evaluation(number, evaluation, seconds)
            stop_signal.write_decision(run, evaluation.tokens, goes_on)
            return
        if facts["ended"] == "refused":
            self.controller.on_invalid(number, facts["reason"])
        else:
            self.controller.on_end(number, facts["ended"], seconds, facts.get("reason", ""))
            self._write_hparams(number)
        del self._trained[number]
        self.delete_stale_checkpoints()

    def on_crash(self, number: int) -> None:
        """End trial `number`: its process died more often than the cluster's max_failures."""
        times = self.prepared.cluster.metadata.max_failures + 1
        reason = f"its process died {times} times; see {self.trial_directory(number).address}"
        self.controller.on_end(number, "failed", 0.0, reason)

    def delete_stale_checkpoints(self) -> None:
        """Delete the checkpoints of trials that cannot win any more."""
        trials, config = self.controller.trials, self.prepared.config
        keep = {trial.number for trial in rank_completed(trials)[: repeats.FINALISTS]} | {0}
        if config.deployment:
            keep |= set(best_of_each_model(trials))
        # The next round of a population may start from these.
        keep |= set(range(len(trials) - 2 * config.population_size, len(trials)))
        for trial in trials:
            if trial.state != "running" and trial.number not in keep | self._cleaned:
                self.trial_directory(trial.number).delete_checkpoints()
                self._cleaned.add(trial.number)

    def _write_hparams(self, number: int) -> None:
        """Write an ended trial's settings and best metric for TensorBoard's HParams."""
        trial, config = self.controller.trials[number], self.prepared.config
        if trial.score is None or "tensorboard" not in config.recipe.tracking:
            return
        run = self.trial_directory(number)
        settings = {key: value for key, value in trial.settings.items() if value is not None}
        best = {f"best/{config.recipe.metric}": config.sign * trial.score}
        with SummaryWriter(str(run.path / "tensorboard")) as events:
            events.add_hparams(settings, best, run_name=".")
        run.publish_files("tensorboard")

    def _trial_resources(self) -> tuple[PlacementGroupFactory, int]:
        """Return what Tune reserves for a trial, and how many trials there is room for.

        The workers of a trial on several devices reserve theirs themselves.
        """
        cluster, capacity = self.prepared.cluster, self.prepared.capacity
        part = capacity.trial_cluster(cluster).with_workers(capacity.devices)
        device = DEVICES[part.device_kind]
        per_device = resources_per_worker(part, device)
        seen = ray.cluster_resources().get(device.resource, 0.0)
        room = int(seen / per_device[device.resource] / capacity.devices + 1e-9)
        if not room:
            raise SearchError(
                f"cluster {cluster.name}: a trial needs {capacity.devices} {device.resource}, "
                f"{seen:g} seen by Ray; fix metadata.devices_per_node or the nodes' resources"
            )
        bundle = per_device if capacity.devices == 1 else RELAY_RESOURCES
        return PlacementGroupFactory([bundle]), min(room, capacity.slots)


class _ControllerSearcher(Searcher):  # type: ignore[misc]
    """Tune's interface to what is tried next: whole trials, from the controller."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune stores copies to restore from, but a search has its journal."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial; None to be asked again, FINISHED at the end."""
        with self._search.keeping_errors():
            spec = self._search.next_spec()
        if spec is not None:
            self._numbers[trial_id] = spec.number
            return {"spec": spec}
        return str(Searcher.FINISHED) if self._search.controller.is_finished else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Handle only trials whose process died too often; others report their own end."""
        if error:
            with self._search.keeping_errors():
                self._search.on_crash(self._numbers[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Write the empty file that Tune expects; the journal has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; the journal has everything."""


class _ControllerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune's interface to what is stopped: passes reports to the controller."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune stores copies to restore from, but a search has its journal."""
        return {}

    def on_trial_result(self, controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Return CONTINUE, whatever the controller decides.

        STOP would kill the trial's process and orphan its workers. The decision reaches the trial
        by way of its run directory, and the trial ends itself: see `stop_signal.py`.
        """
        spec: TrialSpec = trial.config["spec"]
        attempt = f"{trial.trial_id} {trial.num_failures}"
        with self._search.keeping_errors():
            self._search.on_report(attempt, spec.number, result)
        return str(self.CONTINUE)
