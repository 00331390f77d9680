"""A read-only view of a search's journal, for the dashboard and reports.

Takes no lock and writes nothing, so it can read a search that is running.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cluster import spec
from cluster.errors import BerthaError
from cluster.spec import ClusterSpec
from trainers.tracking.run_directory import read_object
from tuning.algorithms.trial import Trial, TrialEvaluation, TrialStatus, without_repeats
from tuning.store.budget import Spend, estimate_next_improvement, is_perfect
from tuning.store.config import SearchConfig, load_search_config

JOURNAL = "study.journal"
RESULT = "result.json"  # there when a search has ended
STUDY = "search"
SESSION = "session "  # prefix of an attribute: its start time; the value: its latest time
STATES: dict[TrialStatus, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
STATUSES = {state: status for status, state in STATES.items()}
CREATE_STUDY = 0  # the first operation in Optuna's journal
RESULT_KEYS = {"metric", "winner", "verdict", "standings", "test", "trials", "spend"}
RESTORE_IT = "put back an older copy of it, or begin another search"
REQUIRED_FACTS = ("total_tokens", "slots")  # written whenever a search is opened


class JournalError(BerthaError):
    """A journal that cannot be written or read; the text says the way out."""


@dataclass(frozen=True)
class SearchSnapshot:
    """A search at one moment.

    trials: by number; optuna_trials: the same as Optuna stores them. held_seconds: how long the
    cluster was held up to the newest decision, at `last_decision` (seconds since 1970). slots:
    trials at once. total_tokens: of a whole trial.
    """

    run: Path
    config: SearchConfig
    cluster: ClusterSpec
    trials: tuple[Trial, ...]
    optuna_trials: tuple[FrozenTrial, ...]
    held_seconds: float
    last_decision: float
    slots: int
    total_tokens: float

    @property
    def metric(self) -> str:
        """The name of the metric that is optimized."""
        return self.config.recipe.metric

    @property
    def spent(self) -> Spend:
        """The cost of holding the cluster so far."""
        return Spend.for_seconds(self.held_seconds, self.cluster)

    @property
    def next_improvement(self) -> Spend | None:
        """The expected cost of an even chance of a better trial.

        None before a trial has ended, and where none can be better than the best of them.
        """
        scores = (trial.score for trial in self.trials)
        reached = [self.to_metric(score) for score in scores if score is not None]
        if any(is_perfect(self.metric, value) for value in reached):
            return None
        ended = [t.seconds for t in without_repeats(self.trials) if t.state != "running"]
        return estimate_next_improvement(ended, self.cluster, self.slots) if ended else None

    def to_metric(self, score: float) -> float:
        """Return a score as the metric it is."""
        return self.config.sign * score


class _ReadOnlyFile(JournalFileBackend):
    """A journal that another process writes."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raise JournalError."""
        raise JournalError("a search is changed by itself alone; its dashboard only shows it")


def open_readonly(run: Path) -> JournalStorage:
    """Open the journal of a search as an Optuna storage. Raises JournalError if there is none."""
    path = (run / JOURNAL).resolve()
    if not path.is_file():
        raise JournalError(f"{run}: holds no search ({JOURNAL} is not there)")
    return open_storage(_ReadOnlyFile(str(path)), path)


def open_storage(backend: JournalFileBackend, path: Path) -> JournalStorage:
    """Open a journal as an Optuna storage. Raises JournalError at a line that is damaged.

    The last line may be half written. Of any other, nobody knows what it said, and what follows
    builds on it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _check_lines(path)
    try:
        return JournalStorage(backend)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise JournalError(
            f"{path}: its lines contradict each other ({error!r}); {RESTORE_IT}"
        ) from None


def _check_lines(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if number == 1 and isinstance(entry, dict) and entry.get("op_code") != CREATE_STUDY:
                # Optuna would skip all that it does not understand, and begin anew.
                raise JournalError(f"{path}: its beginning is missing; {RESTORE_IT}")
            if not isinstance(entry, dict):
                raise JournalError(
                    f"{path}, line {number}: is no line of a journal; cut the file before it, and "
                    f"`bertha tune resume {path.parent}` repeats what it had decided since"
                )


def read_trials(storage: JournalStorage, study: int, sign: int, path: Path) -> list[Trial]:
    """Return all trials of a journal. Raises JournalError where one is damaged."""
    try:
        return [to_trial(each, sign) for each in storage.get_all_trials(study)]
    except (KeyError, TypeError, IndexError) as error:
        raise JournalError(f"{path}: a trial lacks {error}; {RESTORE_IT}") from None


def read_result(run: Path) -> dict[str, Any] | None:
    """Return the outcome of a search; None before it ends, or, with a warning, if damaged."""
    return read_object(run / RESULT, f"`bertha tune resume {run}` writes it again", _is_result)


def _is_result(value: dict[str, Any]) -> bool:
    return isinstance(value.get("trials"), list) and value.keys() >= RESULT_KEYS


def read_snapshot(run: Path, storage: JournalStorage | None = None) -> SearchSnapshot:
    """Read the search in `run` as it stands. storage: its own, if open already.

    Raises BerthaError if there is none, or its cluster file is gone.
    """
    storage = open_readonly(run) if storage is None else storage
    config = load_search_config(run)
    studies = {study.study_name: study for study in storage.get_all_studies()}
    study = studies.get(STUDY)
    attributes = {} if study is None else study.user_attrs
    if study is None or not all(name in attributes for name in REQUIRED_FACTS):
        raise JournalError(
            f"{run}: nothing is written down of this search yet, or by an older version; "
            f"`bertha tune resume {run}` writes it"
        )
    optuna_trials = tuple(storage.get_all_trials(study._study_id))
    return SearchSnapshot(
        run=run,
        config=config,
        cluster=spec.load_cluster_spec(config.cluster),
        trials=tuple(read_trials(storage, study._study_id, config.sign, run / JOURNAL)),
        optuna_trials=optuna_trials,
        held_seconds=sum_held_seconds(attributes),
        last_decision=max((until for _, until in _parse_sessions(attributes)), default=0.0),
        slots=int(attributes["slots"]),
        total_tokens=float(attributes["total_tokens"]),
    )


def sum_held_seconds(attributes: Mapping[str, Any]) -> float:
    """Return the seconds that the sessions in a study's attributes have held the cluster."""
    return sum(until - began for began, until in _parse_sessions(attributes))


def to_trial(optuna_trial: FrozenTrial, sign: int) -> Trial:
    """Convert a trial of the journal."""
    facts, values = optuna_trial.user_attrs, sorted(optuna_trial.intermediate_values.items())
    parent = facts["parent"]
    return Trial(
        number=optuna_trial.number,
        settings=optuna_trial.params,
        seed=facts["seed"],
        state=STATUSES[optuna_trial.state],
        curve=tuple(TrialEvaluation(tokens, sign * value) for tokens, value in values),
        repeats=facts["repeats"],
        parent=None if parent is None else (parent[0], parent[1]),
        reason=facts.get("reason", ""),
        seconds=facts.get("seconds", 0.0),
        search_point=facts["searched"],
    )


def _parse_sessions(attributes: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return when each session began, and until when it ran."""
    return [
        (float(key.removeprefix(SESSION)), float(until))
        for key, until in attributes.items()
        if key.startswith(SESSION)
    ]
