"""What a search does next: asked for trials, told what became of them, every decision written down.

It first hands out the trials that a killed search left running, then new ones until as many as
were asked for have begun or the budget is used up, then the repetitions of the best. Knows no Ray:
`search.py` puts it under Ray Tune, and a benchmark under a table of recorded runs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.settings import SettingsError
from trainers.config.recipe import Recipe
from tuning.algorithms import pbt, repeats, sampler, scheduler
from tuning.algorithms.eval_schedule import Pace
from tuning.algorithms.pareto import rivals
from tuning.algorithms.trial import Look, State, Trial, searched
from tuning.space.scaling_rule import Prior
from tuning.space.space import Space, point_of, with_point, words
from tuning.store.config import Plan
from tuning.store.journal import Journal

Say = Callable[[str], None]
QUIET_SECONDS = 20  # after which an evaluation is worth a line


@dataclass(frozen=True)
class Terms:
    """What stays as it is during a search. slots: trials at once. seconds: the most that it may
    hold the cluster; None for as long as it takes.
    """

    plan: Plan
    space: Space
    prior: Prior
    pace: Pace
    slots: int
    seconds: float | None = None


class Director:
    """Decides; the journal remembers. refusal: why no trial can be trained, once that is known."""

    def __init__(self, terms: Terms, journal: Journal, say: Say = print) -> None:
        """Go on where the journal ends."""
        self.terms, self._journal, self._say = terms, journal, say
        self.refusal: str | None = None
        self._base = terms.plan.recipe.model_dump(mode="json")
        self._left = [trial for trial in journal.trials() if trial.state == "running"]
        self._begun: set[int] = set()
        self._said_at = 0.0

    @property
    def trials(self) -> list[Trial]:
        """All that are known, by number."""
        return self._journal.trials()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to begin; trials may still run."""
        return self.refusal is not None or (not self._running and self._wanted() is None)

    def next(self) -> Trial | None:
        """A trial to begin or to go on with; None while the next one waits for those that run."""
        if self.refusal is not None:
            return None
        while self._left:
            left = self._left.pop(0)
            if self._goes_on(left, left.seconds):
                self._begun.add(left.number)
                self._tell(_begun_line(left))
                return left
        while (trial := self._wanted()) is not None:
            self._journal.add(trial)
            try:
                self.recipe(trial)
            except SettingsError as error:
                self.ended(trial.number, "failed", 0.0, str(error))
                continue
            self._begun.add(trial.number)
            self._tell(_begun_line(trial))
            return trial
        return None

    def looked(self, number: int, look: Look, seconds: float) -> bool:
        """Whether trial `number` goes on after an evaluation. seconds: it has taken so far."""
        known = self.trials[number]
        if known.state != "running":
            return known.state == "complete"
        if look.tokens <= known.tokens:
            return True
        if not math.isfinite(look.score):
            self.ended(number, "failed", seconds, f"its score is {look.score}")
            return False
        trial = self._journal.look(number, look)
        self._journal.hold()
        if time.monotonic() - self._said_at > QUIET_SECONDS:
            self._tell(_look_line(trial, self._sign, self.terms.pace.total_tokens))
        return self._goes_on(trial, seconds)

    def ended(self, number: int, state: State, seconds: float, reason: str = "") -> None:
        """Trial `number` has ended so; told twice, the first time counts."""
        if self.trials[number].state != "running":
            return
        trial = self._journal.end(number, state, seconds, reason)
        self._begun.discard(number)
        self._journal.hold()
        self._tell(_ended_line(trial, self._sign))

    def refused(self, number: int, reason: str) -> None:
        """Trial `number` cannot be trained for a reason that all others share."""
        self.ended(number, "failed", 0.0, reason)
        self.refusal = reason

    def recipe(self, trial: Trial) -> Recipe:
        """What `trial` trains. Raises SettingsError for settings that do not go together."""
        recipe = with_point(self._base, {**trial.point, "seed": trial.seed}, "a trial")
        return self.terms.pace.paced(recipe)

    def _tell(self, line: str) -> None:
        self._said_at = time.monotonic()
        self._say(line)

    @property
    def held(self) -> float:
        """Seconds that the cluster was held."""
        return self._journal.held()

    @property
    def _running(self) -> bool:
        return bool(self._left) or bool(self._begun)

    @property
    def _sign(self) -> int:
        return self._journal.sign

    @property
    def members(self) -> int:
        """Of the population, where there is one."""
        return self.terms.plan.trials - 1 if self.terms.plan.sampler == "pbt" else 0

    def _goes_on(self, trial: Trial, seconds: float) -> bool:
        """Whether a trial as it stands goes on; if not, it has ended."""
        plan, pace, most = self.terms.plan, self.terms.pace, self.terms.seconds
        if trial.number == 0:
            return True
        if most is not None and self.held >= most:
            self.ended(trial.number, "stopped", seconds, "the budget is used up")
            return False
        if self.members:
            end = pbt.end_of(trial.number, self.members, pace.total_tokens)
            if trial.tokens < scheduler.NEAR * end:
                return True
            last = trial.number > self.members * (pbt.ROUNDS - 1)
            self.ended(trial.number, "complete" if last else "stopped", seconds)
            return False
        among = rivals(trial, self.trials) if plan.deployment else self.trials
        if scheduler.goes_on(plan.scheduler, trial, among, pace.rungs):
            return True
        self.ended(trial.number, "stopped", seconds)
        return False

    def _wanted(self) -> Trial | None:
        """The next trial that has not begun; None where there is none, or none yet."""
        known = self.trials
        begun = searched(known)
        if not any(trial.repeats is not None for trial in known):
            if len(begun) < self._most and self._affords(begun):
                trial = self._sampled(len(begun))
                if trial is not None:
                    return trial
            if any(trial.state == "running" for trial in begun):
                return None
        return self._repetition(known)

    def _sampled(self, number: int) -> Trial | None:
        terms, recipe = self.terms, self.terms.plan.recipe
        if number == 0:
            point = point_of(recipe, terms.space)
            return Trial(0, point, recipe.seed, searched=terms.prior.searched(point))
        if self.members:
            return pbt.member(terms.space, terms.prior, self.trials, self.members, recipe.seed)
        wanted = sampler.suggest(terms.plan.sampler, terms.space, self.trials, number, recipe.seed)
        if wanted is None:
            return None
        return Trial(number, terms.prior.settings(wanted), recipe.seed, searched=wanted)

    @property
    def _most(self) -> int:
        """Trials of the search; a member of a population is one in each round."""
        return 1 + self.members * pbt.ROUNDS if self.members else self.terms.plan.trials

    def _repetition(self, known: list[Trial]) -> Trial | None:
        seconds, recipe = self.terms.seconds, self.terms.plan.recipe
        if seconds is not None and self.held >= seconds:
            return None
        there = {(trial.repeats, trial.seed) for trial in known}
        for number, by in repeats.repetitions(known, self.terms.plan.seeds):
            if (number, recipe.seed + by) not in there:
                of = known[number]
                return Trial(
                    len(known), of.point, recipe.seed + by, repeats=number, searched=of.searched
                )
        return None

    def _affords(self, begun: list[Trial]) -> bool:
        """Whether another trial of the search can be paid, and the repetitions after it."""
        if self.terms.seconds is None or not begun:
            return True
        ended = [trial.seconds for trial in begun if trial.state != "running"]
        whole = [trial.seconds for trial in begun if trial.state == "complete"]
        another = sum(ended) / len(ended) if ended else 0.0
        repetitions = (repeats.FINALISTS + 1) * (self.terms.plan.seeds - 1) / self.terms.slots
        kept = repetitions * sum(whole) / len(whole) if whole else 0.0
        return self.held + another + kept <= self.terms.seconds


def _begun_line(trial: Trial) -> str:
    what = "the recipe's own settings" if trial.number == 0 else "begins"
    if trial.curve:
        what = f"goes on after {trial.tokens:,} tokens"
    elif trial.repeats is not None:
        what = f"repeats trial {trial.repeats} with seed {trial.seed}"
    return f"trial {trial.number:<3} {what}: {words(trial.point)}"


def _look_line(trial: Trial, sign: int, total_tokens: float) -> str:
    last = trial.curve[-1]
    return f"trial {trial.number:<3} {last.tokens / total_tokens:4.0%}  {sign * last.score:.4f}"


def _ended_line(trial: Trial, sign: int) -> str:
    score = "" if trial.score is None else f"  best {sign * trial.score:.4f}"
    reason = f": {trial.reason}" if trial.reason else ""
    return f"trial {trial.number:<3} {trial.state}{score}{reason}"
