"""Every decision of a search, one line each: Optuna's journal at `RUN/study.journal`.

Each line is on the disk before the search continues, so a search that is killed at any moment
resumes with all it had decided; a half-written last line is dropped when the journal is opened
again. The dashboard reads the same file (`reader.py`). One process writes it: the holder of the
lease (`lease.py`).
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning.algorithms.trial import Trial, TrialEvaluation, TrialStatus
from tuning.space.space import Choices, Dimension, Point, Space, Value
from tuning.store.reader import (
    JOURNAL,
    SESSION,
    STATES,
    STUDY,
    JournalError,
    open_storage,
    read_trials,
    sum_held_seconds,
)

METRIC_NAMES = "study:metric_names"  # where `optuna.Study.set_metric_names` stores them


class _ObservedFile(JournalFileBackend):
    """A journal file that calls functions before and after every line."""

    def __init__(
        self, path: Path, before_append: Callable[[], None], after_append: Callable[[], None]
    ) -> None:
        # The lock of a process that was killed while it wrote is taken over after three seconds.
        super().__init__(str(path), JournalFileSymlinkLock(str(path), grace_period=3))
        self._before_append, self._after_append = before_append, after_append

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, between the two calls. Raises JournalError where the disk does not take it."""
        self._before_append()
        size = os.path.getsize(self._file_path)
        try:
            super().append_logs(logs)
        except OSError as error:
            # Not half a line, after which the next one would be unreadable, too.
            with contextlib.suppress(OSError):
                os.truncate(self._file_path, size)
            raise JournalError(
                f"{self._file_path}: cannot be written: {error.strerror or error}; make room, then "
                "resume the search"
            ) from None
        self._after_append()


class Journal:
    """The journal of one search, open for writing. Metrics are stored as they are, not as scores.

    settings_space: what the settings of runs lie in. default: the recipe's own settings. sign: 1 if
    a higher metric is better, -1 if a lower one is. before_append, after_append: called before and
    after each line. Raises JournalError if it is damaged, or the directory cannot be written.
    """

    def __init__(
        self,
        run: Path,
        settings_space: Space,
        default: Point,
        sign: int,
        before_append: Callable[[], None] = lambda: None,
        after_append: Callable[[], None] = lambda: None,
    ) -> None:
        self.sign = sign
        self._distributions = {
            key: _to_distribution(dimension, default[key])
            for key, dimension in settings_space.items()
        }
        path = (run / JOURNAL).resolve()
        try:
            _drop_partial_line(path)
        except OSError as error:
            raise JournalError(f"{run}: cannot be written: {error}") from None
        self._storage = open_storage(_ObservedFile(path, before_append, after_append), path)
        studies = {study.study_name: study._study_id for study in self._storage.get_all_studies()}
        if STUDY not in studies:
            direction = StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE
            studies[STUDY] = self._storage.create_new_study([direction], STUDY)
        self._study = studies[STUDY]
        self._trials = read_trials(self._storage, self._study, sign, path)
        self._held_before = sum_held_seconds(self._storage.get_study_user_attrs(self._study))
        self._began = time.time()

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        return list(self._trials)

    def add_trial(self, trial: Trial) -> None:
        """Record a trial that is about to start. Its number is the next one."""
        assert trial.number == len(self._trials) and trial.state == "running"
        # A setting that the recipe leaves open, null, is no value of a range, and left out.
        settings = {
            key: value
            for key, value in trial.settings.items()
            if value is not None or _has_null(self._distributions[key])
        }
        self._storage.create_new_trial(
            self._study,
            FrozenTrial(
                number=-1,
                trial_id=-1,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=datetime.now(tz=UTC),
                datetime_complete=None,
                params=settings,
                distributions={key: self._distributions[key] for key in settings},
                user_attrs={
                    "seed": trial.seed,
                    "repeats": trial.repeats,
                    "parent": trial.parent,
                    "searched": trial.search_point,
                },
                system_attrs={},
                intermediate_values={},
            ),
        )
        self._trials.append(trial)

    def add_evaluation(self, number: int, evaluation: TrialEvaluation) -> Trial:
        """Record an evaluation, unless it is there already; return the trial with it."""
        trial = self._trials[number]
        if evaluation.tokens > trial.tokens:
            self._storage.set_trial_intermediate_value(
                self._trial_id(number), evaluation.tokens, self.sign * evaluation.score
            )
            trial = replace(trial, curve=(*trial.curve, evaluation))
            self._trials[number] = trial
        return trial

    def end_trial(self, number: int, state: TrialStatus, seconds: float, reason: str = "") -> Trial:
        """Record how a trial ended; return it."""
        trial = replace(self._trials[number], state=state, seconds=seconds, reason=reason)
        trial_id = self._trial_id(number)
        self._storage.set_trial_user_attr(trial_id, "seconds", seconds)
        if reason:
            self._storage.set_trial_user_attr(trial_id, "reason", reason)
        score = trial.score if state != "failed" else None
        values = None if score is None else [self.sign * score]
        self._storage.set_trial_state_values(trial_id, STATES[state], values)
        self._trials[number] = trial
        return trial

    def held_seconds(self) -> float:
        """Return the seconds that all sessions, this one included, have held the cluster."""
        return self._held_before + time.time() - self._began

    def record_held(self) -> None:
        """Record that the cluster is held until now."""
        self._storage.set_study_user_attr(self._study, f"{SESSION}{self._began}", time.time())

    def note_facts(self, facts: Mapping[str, Any]) -> None:
        """Record facts of the whole search, for readers of the journal."""
        known = self._storage.get_study_user_attrs(self._study)
        for key, value in facts.items():
            if known.get(key) != value:
                self._storage.set_study_user_attr(self._study, key, value)

    def set_metric_name(self, metric: str) -> None:
        """Record the name of the metric, for Optuna's dashboard."""
        known = self._storage.get_study_system_attrs(self._study)
        if known.get(METRIC_NAMES) != [metric]:
            self._storage.set_study_system_attr(self._study, METRIC_NAMES, [metric])

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, number)


def _has_null(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution) and None in distribution.choices


def _drop_partial_line(path: Path) -> None:
    """Truncate what a killed process left of a last line."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        if end < size:
            file.truncate(end)


def _to_distribution(dimension: Dimension, default: Value) -> BaseDistribution:
    """Convert a dimension to Optuna's, widened to include the recipe's own value."""
    if isinstance(dimension, Choices):
        return CategoricalDistribution(tuple(dict.fromkeys((*dimension.values, default))))
    default = default if isinstance(default, (int, float)) else dimension.low
    low, high = min(dimension.low, default), max(dimension.high, default)
    log = dimension.log and low > 0
    if dimension.whole and default == int(default):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)
