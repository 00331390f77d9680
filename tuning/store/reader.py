"""A search as it stands, read from its journal by whoever does not hold it: pages, reports.

Takes no lock and writes nothing, so it may look at a search that runs. Knows no Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cluster import spec
from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from tuning.algorithms.trial import Look, State, Trial, searched
from tuning.store import config as plans
from tuning.store.budget import Spend, next_improvement
from tuning.store.config import Plan

JOURNAL = "study.journal"
RESULT = "result.json"  # there when a search has ended
STUDY = "search"
SESSION = "session "  # before the time at which one began; its value: until when it went on
STATES: dict[State, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
NAMES = {kept: state for state, kept in STATES.items()}
NOTED = ("total_tokens", "slots")  # facts that a journal is given whenever a search is opened


class JournalError(BerthaError):
    """A search that cannot be written down or read; the text says the way out."""


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment. trials: by number. kept: the same as Optuna has them.

    sign: 1 where a higher metric is better, -1 where a lower one is. held_seconds: that the cluster
    was held, to the newest decision, at `heard` (seconds since 1970). slots: trials at once.
    total_tokens: of a whole trial.
    """

    run: Path
    plan: Plan
    cluster: ClusterSpec
    trials: tuple[Trial, ...]
    kept: tuple[FrozenTrial, ...]
    sign: int
    held_seconds: float
    heard: float
    slots: int
    total_tokens: float

    @property
    def metric(self) -> str:
        """The name of what is searched for."""
        return self.plan.recipe.metric

    @property
    def spent(self) -> Spend:
        """What holding the cluster has cost so far."""
        return Spend.of(self.held_seconds, self.cluster)

    @property
    def next_improvement(self) -> Spend | None:
        """What an even chance of a better trial is expected to cost; None before one has ended."""
        ended = [t.seconds for t in searched(self.trials) if t.state != "running"]
        return next_improvement(ended, self.cluster, self.slots) if ended else None

    def shown(self, score: float) -> float:
        """A score as the metric that it is."""
        return self.sign * score


class _ReadOnlyFile(JournalFileBackend):
    """A journal that somebody else writes."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises JournalError."""
        raise JournalError("a search is changed by itself alone; its dashboard only shows it")


def storage(run: Path) -> JournalStorage:
    """The journal of a search for Optuna and its friends, to be read.

    Raises JournalError where there is none.
    """
    path = (run / JOURNAL).resolve()
    if not path.is_file():
        raise JournalError(f"{run}: holds no search ({JOURNAL} is not there)")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return JournalStorage(_ReadOnlyFile(str(path)))


def read(run: Path, kept_in: JournalStorage | None = None) -> Snapshot:
    """The search in `run` as it stands. kept_in: its storage, where that is open already.

    Raises BerthaError where there is none, or its cluster file is gone.
    """
    kept_in = storage(run) if kept_in is None else kept_in
    plan = plans.load(run)
    names = {each.study_name: each for each in kept_in.get_all_studies()}
    study = names.get(STUDY)
    attributes = {} if study is None else study.user_attrs
    if study is None or not all(name in attributes for name in NOTED):
        raise JournalError(
            f"{run}: nothing is written down of this search yet, or by an older version; "
            f"`python -m tuning resume {run}` writes it"
        )
    kept = tuple(kept_in.get_all_trials(study._study_id))
    sign = 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1
    return Snapshot(
        run=run,
        plan=plan,
        cluster=spec.load(plan.cluster),
        trials=tuple(trial_of(each, sign) for each in kept),
        kept=kept,
        sign=sign,
        held_seconds=held(attributes),
        heard=max((float(until) for _, until in _sessions(attributes)), default=0.0),
        slots=int(attributes["slots"]),
        total_tokens=float(attributes["total_tokens"]),
    )


def held(attributes: Mapping[str, Any]) -> float:
    """Seconds that the sessions in a study's attributes have held the cluster."""
    return sum(until - began for began, until in _sessions(attributes))


def trial_of(kept: FrozenTrial, sign: int) -> Trial:
    """A trial as it was written down."""
    facts, looks = kept.user_attrs, sorted(kept.intermediate_values.items())
    parent = facts["parent"]
    return Trial(
        number=kept.number,
        point=kept.params,
        seed=facts["seed"],
        state=NAMES[kept.state],
        curve=tuple(Look(tokens, sign * value) for tokens, value in looks),
        repeats=facts["repeats"],
        parent=None if parent is None else (parent[0], parent[1]),
        reason=facts.get("reason", ""),
        seconds=facts.get("seconds", 0.0),
        searched=facts["searched"],
    )


def _sessions(attributes: Mapping[str, Any]) -> list[tuple[float, float]]:
    """When each session began, and until when it went on."""
    return [
        (float(key.removeprefix(SESSION)), float(until))
        for key, until in attributes.items()
        if key.startswith(SESSION)
    ]
