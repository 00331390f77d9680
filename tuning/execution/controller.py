"""The search controller: proposes trials, decides on evaluations, records every decision.

It first resumes the trials that a killed search left running, then starts new ones until as many as
configured have begun or the budget is used up, then the repeats of the best. `tuner.py` connects it
to Ray Tune, and a benchmark to a table of recorded runs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.costmodel.model_shape import ModelShape
from cluster.settings import SettingsError
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from tuning.algorithms import pbt, repeats, sampler, scheduler
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.algorithms.pareto import same_model_trials
from tuning.algorithms.trial import Trial, TrialEvaluation, TrialStatus, without_repeats
from tuning.execution.capacity import Capacity
from tuning.space.scaling_rule import ScalingRule
from tuning.space.space import Space, apply_point, extract_point, format_point
from tuning.store.config import SearchConfig
from tuning.store.journal import Journal

QUIET_SECONDS = 20  # without a line, after which an evaluation is worth one


@dataclass(frozen=True)
class PreparedSearch:
    """A validated search: its configuration and all that follows from it.

    shape: of the recipe's own model. max_seconds: that it may hold the cluster; None for as long as
    it takes.
    """

    config: SearchConfig
    cluster: ClusterSpec
    shape: ModelShape
    space: Space
    scaling_rule: ScalingRule
    schedule: EvalSchedule
    capacity: Capacity
    max_seconds: float | None = None


class SearchController:
    """Decides what to try and what to stop; the journal remembers.

    invalid_reason: why no trial can be trained, once that is known.
    """

    def __init__(
        self, prepared: PreparedSearch, journal: Journal, print_line: Callable[[str], None] = print
    ) -> None:
        """Continue where the journal ends."""
        self.prepared, self._journal, self._print_line = prepared, journal, print_line
        self.invalid_reason: str | None = None
        self._base = prepared.config.recipe.model_dump(mode="json")
        self._unfinished = [trial for trial in journal.trials() if trial.state == "running"]
        self._started: set[int] = set()
        self._printed_at = 0.0

    @property
    def trials(self) -> list[Trial]:
        """All trials so far, by number."""
        return self._journal.trials()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is running or left to start."""
        is_running = bool(self._unfinished) or bool(self._started)
        return self.invalid_reason is not None or (not is_running and self._propose_trial() is None)

    @property
    def held_seconds(self) -> float:
        """Seconds that the search has held the cluster."""
        return self._journal.held_seconds()

    def next_trial(
        self, trained_seconds: Callable[[Trial], float] = lambda trial: 0.0
    ) -> Trial | None:
        """Return a trial to start or to resume; None while the next one waits for running ones.

        trained_seconds: that an unfinished trial has taken so far.
        """
        if self.invalid_reason is not None:
            return None
        while self._unfinished:
            trial = self._unfinished.pop(0)
            # A search that was killed between an evaluation and its decision decides now.
            if self._should_continue(trial, max(trial.seconds, trained_seconds(trial))):
                return self._start(trial)
        while (proposed := self._propose_trial()) is not None:
            self._journal.add_trial(proposed)
            try:
                self.build_recipe(proposed)
            except SettingsError as error:
                self.on_end(proposed.number, "failed", 0.0, str(error))
                continue
            return self._start(proposed)
        return None

    def on_evaluation(self, number: int, evaluation: TrialEvaluation, seconds: float) -> bool:
        """Record an evaluation; return whether trial `number` continues.

        An evaluation may be reported again after a restart. seconds: the trial has taken so far.
        """
        known = self.trials[number]
        if known.state != "running":
            return known.state == "complete"
        if evaluation.tokens <= known.tokens:
            return True
        if not math.isfinite(evaluation.score):
            self.on_end(number, "failed", seconds, f"its score is {evaluation.score}")
            return False
        trial = self._journal.add_evaluation(number, evaluation)
        self._journal.record_held()
        if time.monotonic() - self._printed_at > QUIET_SECONDS:
            progress = evaluation.tokens / self.prepared.schedule.total_tokens
            self._print(trial, f"{progress:4.0%}  {self._journal.sign * evaluation.score:.4f}")
        return self._should_continue(trial, seconds)

    def on_end(self, number: int, state: TrialStatus, seconds: float, reason: str = "") -> None:
        """Record how trial `number` ended; the first call counts."""
        if self.trials[number].state != "running":
            return
        trial = self._journal.end_trial(number, state, seconds, reason)
        self._started.discard(number)
        self._journal.record_held()
        score = "" if trial.score is None else f"  best {self._journal.sign * trial.score:.4f}"
        self._print(trial, f"{state}{score}{f': {reason}' if reason else ''}")

    def on_invalid(self, number: int, reason: str) -> None:
        """End the search: trial `number` cannot be trained for a reason that all trials share."""
        self.on_end(number, "failed", 0.0, reason)
        self.invalid_reason = reason

    def build_recipe(self, trial: Trial) -> Recipe:
        """Return the recipe of a trial. Raises SettingsError if its settings contradict."""
        recipe = apply_point(self._base, {**trial.settings, "seed": trial.seed}, "a trial")
        return self.prepared.schedule.apply_to(recipe)

    def _start(self, trial: Trial) -> Trial:
        self._started.add(trial.number)
        what = "the recipe's own settings" if trial.number == 0 else "begins"
        if trial.curve:
            what = f"goes on after {trial.tokens:,} tokens"
        elif trial.repeats is not None:
            what = f"repeats trial {trial.repeats} with seed {trial.seed}"
        self._print(trial, f"{what}: {format_point(trial.settings)}")
        return trial

    def _print(self, trial: Trial, text: str) -> None:
        self._printed_at = time.monotonic()
        self._print_line(f"trial {trial.number:<3} {text}")

    @property
    def _is_budget_spent(self) -> bool:
        limit = self.prepared.max_seconds
        return limit is not None and self.held_seconds >= limit

    def _should_continue(self, trial: Trial, seconds: float) -> bool:
        """Return whether a running trial continues; if not, record its end."""
        config, schedule = self.prepared.config, self.prepared.schedule
        if trial.number == 0:
            return True
        if self._is_budget_spent:
            self.on_end(trial.number, "stopped", seconds, "the budget is used up")
            return False
        if size := config.population_size:
            end = pbt.end_tokens(trial.number, size, schedule.total_tokens)
            if trial.tokens < scheduler.RUNG_TOLERANCE * end:
                return True
            is_last_round = trial.number > size * (pbt.ROUNDS - 1)
            self.on_end(trial.number, "complete" if is_last_round else "stopped", seconds)
            return False
        rivals = same_model_trials(trial, self.trials) if config.deployment else self.trials
        if scheduler.should_continue(config.scheduler, trial, rivals, schedule.rungs):
            return True
        self.on_end(trial.number, "stopped", seconds)
        return False

    def _propose_trial(self) -> Trial | None:
        """Return the next trial that has not begun; None if there is none, or none yet."""
        config, trials = self.prepared.config, self.trials
        begun = without_repeats(trials)
        # Once repeats have begun, the search proper is over: unless it was made longer since.
        if len(begun) == len(trials) or config.has_more_trials:
            size = config.population_size
            max_trials = 1 + size * pbt.ROUNDS if size else config.trials
            if len(begun) < max_trials and self._within_budget(begun):
                trial = self._sample_trial(len(trials))
                if trial is not None:
                    return trial
            if any(trial.state == "running" for trial in begun):
                return None
        return self._next_repeat(trials)

    def _sample_trial(self, number: int) -> Trial | None:
        space, rule = self.prepared.space, self.prepared.scaling_rule
        config, seed = self.prepared.config, self.prepared.config.recipe.seed
        if number == 0:
            settings = extract_point(config.recipe, space)
            return Trial(0, settings, seed, search_point=rule.to_search_point(settings))
        if config.population_size:
            return pbt.next_member(space, rule, self.trials, config.population_size, seed)
        point = sampler.suggest_point(config.sampler, space, self.trials, number, seed)
        if point is None:
            return None
        return Trial(number, rule.to_settings(point), seed, search_point=point)

    def _next_repeat(self, trials: list[Trial]) -> Trial | None:
        if self._is_budget_spent:
            return None
        config = self.prepared.config
        begun = {(trial.repeats, trial.seed) for trial in trials}
        for number, offset in repeats.plan_repeats(trials, config.seeds):
            seed, first = config.recipe.seed + offset, trials[number]
            if (number, seed) not in begun:
                point = first.search_point
                return Trial(len(trials), first.settings, seed, repeats=number, search_point=point)
        return None

    def _within_budget(self, begun: list[Trial]) -> bool:
        """Return whether the budget pays for another trial, and for the repeats after it."""
        limit = self.prepared.max_seconds
        if limit is None or not begun:
            return True
        ended = [trial.seconds for trial in begun if trial.state != "running"]
        completed = [trial.seconds for trial in begun if trial.state == "complete"]
        another = sum(ended) / len(ended) if ended else 0.0
        num_repeats = (repeats.FINALISTS + 1) * (self.prepared.config.seeds - 1)
        mean_completed = sum(completed) / len(completed) if completed else 0.0
        reserved = num_repeats / self.prepared.capacity.slots * mean_completed
        return self.held_seconds + another + reserved <= limit
