"""Every decision of a search, one line each: Optuna's journal at `RUN/study.journal`.

Each line is on the disk before the search goes on, so a search that is killed at any moment knows
all it had decided; a line that was half written is taken back when the journal is opened again. The
same file is what the dashboard reads (`reading.py`). One process writes it: the one that holds
`RUN/lock`.

Of a search in a store, where there is no appending, the file is copied there whole after every line
(`holder.py`). Knows no Ray.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning.algorithms.trial import Look, State, Trial
from tuning.space.space import Choices, Dimension, Point, Space, Value
from tuning.store.reader import JOURNAL, SESSION, STATES, STUDY, JournalError, held, trial_of

METRIC_NAMES = "study:metric_names"  # where `optuna.Study.set_metric_names` keeps them


class _Told(JournalFileBackend):
    """A journal that tells of every line that was written."""

    def __init__(self, path: Path, written: Callable[[], None]) -> None:
        # The lock of a process that was killed while it wrote is taken over after three seconds.
        super().__init__(str(path), JournalFileSymlinkLock(str(path), grace_period=3))
        self._written = written

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, and tell."""
        super().append_logs(logs)
        self._written()


class Journal:
    """The store of one search. sign: 1 where a higher metric is better, -1 where a lower one is.

    shown: the space of the settings of runs; default: the recipe's own values. written: called
    after each line. Raises JournalError where another process holds the search, or the directory
    cannot be written.
    """

    def __init__(
        self,
        run: Path,
        shown: Space,
        default: Point,
        sign: int,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.sign = sign
        self._distributions = {key: _distribution(d, default[key]) for key, d in shown.items()}
        path = (run / JOURNAL).resolve()
        self._lock = FileLock(run / "lock", blocking=False)
        try:
            self._lock.acquire()
            _take_back_half_a_line(path)
        except Timeout:
            raise JournalError(f"{run}: another process goes on with this search") from None
        except OSError as error:
            raise JournalError(f"{run}: cannot be written: {error}") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = JournalStorage(_Told(path, written))
        studies = {study.study_name: study._study_id for study in self._storage.get_all_studies()}
        if STUDY not in studies:
            direction = StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE
            studies[STUDY] = self._storage.create_new_study([direction], STUDY)
        self._study = studies[STUDY]
        kept = self._storage.get_all_trials(self._study)
        self._trials = [trial_of(trial, sign) for trial in kept]
        self._before = held(self._storage.get_study_user_attrs(self._study))
        self._began = time.time()

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return list(self._trials)

    def add(self, trial: Trial) -> None:
        """Write down a trial that is about to start. Its number is the next one."""
        assert trial.number == len(self._trials) and trial.state == "running"
        # A setting that the recipe leaves to us, null, is no point on a range.
        known = self._distributions
        shown = {k: v for k, v in trial.point.items() if v is not None or _has_null(known[k])}
        facts = {
            "seed": trial.seed,
            "repeats": trial.repeats,
            "parent": trial.parent,
            "searched": trial.searched,
        }
        self._storage.create_new_trial(
            self._study,
            FrozenTrial(
                number=-1,
                trial_id=-1,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=_now(),
                datetime_complete=None,
                params=shown,
                distributions={key: self._distributions[key] for key in shown},
                user_attrs=facts,
                system_attrs={},
                intermediate_values={},
            ),
        )
        self._trials.append(trial)

    def look(self, number: int, look: Look) -> Trial:
        """Write down an evaluation; the trial with it. One that is there already is left out."""
        trial = self._trials[number]
        if look.tokens > trial.tokens:
            self._storage.set_trial_intermediate_value(
                self._id(number), look.tokens, self.sign * look.score
            )
            trial = replace(trial, curve=(*trial.curve, look))
            self._trials[number] = trial
        return trial

    def end(self, number: int, state: State, seconds: float, reason: str = "") -> Trial:
        """Write down how a trial ended."""
        trial = replace(self._trials[number], state=state, seconds=seconds, reason=reason)
        identity = self._id(number)
        self._storage.set_trial_user_attr(identity, "seconds", seconds)
        if reason:
            self._storage.set_trial_user_attr(identity, "reason", reason)
        score = trial.score if state != "failed" else None
        values = None if score is None else [self.sign * score]
        self._storage.set_trial_state_values(identity, STATES[state], values)
        self._trials[number] = trial
        return trial

    def held(self) -> float:
        """Seconds that earlier sessions, and this one to now, have held the cluster."""
        return self._before + time.time() - self._began

    def hold(self) -> None:
        """Write down that the cluster is held until now."""
        self._storage.set_study_user_attr(self._study, f"{SESSION}{self._began}", time.time())

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write down facts of the whole search, for who reads the journal alone."""
        known = self._storage.get_study_user_attrs(self._study)
        for key, value in facts.items():
            if known.get(key) != value:
                self._storage.set_study_user_attr(self._study, key, value)

    def measures(self, metric: str) -> None:
        """Write down what scores are called."""
        known = self._storage.get_study_system_attrs(self._study)
        if known.get(METRIC_NAMES) != [metric]:
            self._storage.set_study_system_attr(self._study, METRIC_NAMES, [metric])

    def close(self) -> None:
        """Let another process go on."""
        self._lock.release()

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, number)


def _has_null(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution) and None in distribution.choices


def _take_back_half_a_line(path: Path) -> None:
    """Cut off what a kill left of a last line."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)


def _distribution(dimension: Dimension, default: Value) -> BaseDistribution:
    """The range as Optuna's, with the recipe's own value in it."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(tuple(dict.fromkeys((*dimension.values, default))))
    default = default if isinstance(default, (int, float)) else dimension.low
    low, high = min(dimension.low, default), max(dimension.high, default)
    log = dimension.log and low > 0
    if dimension.whole and default == int(default):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _now() -> datetime:
    return datetime.now(tz=UTC)
