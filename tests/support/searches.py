"""A search over a made-up surface, without Ray and without a model."""

import math
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.config import recipe as recipes
from tuning.algorithms.eval_schedule import Pace
from tuning.algorithms.trial import Look, Trial
from tuning.execution.controller import Director, Terms
from tuning.space.scaling_rule import RATE, SIZE, Prior
from tuning.space.space import Choices, Range, Space, point_of
from tuning.store.config import Plan
from tuning.store.journal import Journal

RECIPE = recipes.parse(
    {
        "model": {"name": "package:all-minilm-l6-v2"},
        "data": {"source": "data.csv"},
        "batch": {"global_size": 16, "max_length": 64},
        "optimizer": {"learning_rate": 1e-5},
        "stopping": {"epochs": 2, "patience": 2},
    }
)
SPACE: Space = {RATE: Range(1e-6, 1e-2, log=True), SIZE: Choices((8, 16, 32))}
PACE = Pace.of(RECIPE, train_samples=1000, train_tokens=20_000, validation_samples=100)


def terms(space: Space = SPACE, **asked: Any) -> Terms:
    plan = Plan(recipe=RECIPE, cluster="local.yaml", **{"trials": 12, **asked})
    prior = Prior.of(space, 16, "adamw", plan.scaling_rule)
    return Terms(plan, space, prior, PACE, slots=1)


def journal(
    run: Path, of: Terms, sign: int = 1, written: Callable[[], None] = lambda: None
) -> Journal:
    return Journal(run, of.prior.shown(of.space), point_of(RECIPE, of.space), sign, written)


def final(trial: Trial) -> float:
    """The F1 a trial ends at: best at a rate of 3e-4, and seeds differ a little."""
    rate = float(trial.searched[RATE] or 0)
    return 0.9 - 0.05 * (math.log10(rate) + 3.5) ** 2 + 0.001 * trial.seed


class Killed(Exception):
    """The moment at which the whole process would be gone."""


@dataclass
class Machine:
    """Trains what a director hands out, one after another, up to `moments` evaluations."""

    director: Director
    moments: int = 10**9
    done: int = 0

    def go(self) -> None:
        while (trial := self.director.next()) is not None:
            self._train(trial)

    def _train(self, trial: Trial) -> None:
        looks, total = PACE.looks, PACE.total_tokens
        for look in range(1, looks + 1):
            tokens = round(total * look / looks)
            if tokens <= max(trial.tokens, trial.parent[1] if trial.parent else 0):
                continue
            if self.done == self.moments:
                raise Killed
            self.done += 1
            score = final(trial) * (1 - 0.3 * (1 - look / looks))
            if not self.director.looked(trial.number, Look(tokens, score), float(look)):
                return
        self.director.ended(trial.number, "complete", float(looks))


def told(trials: list[Trial]) -> list[dict[str, Any]]:
    """Trials as plain values."""
    return [vars(trial) for trial in trials]


def write_search(run: Path, of: Terms, moments: int = 10**9) -> list[Trial]:
    """Search until the end, or for so many evaluations, and leave the files of it in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    of.plan.save(run)
    with closing(journal(run, of)) as kept:
        kept.measures("f1")
        kept.note({"total_tokens": of.pace.total_tokens, "slots": of.slots})
        with suppress(Killed):
            Machine(Director(of, kept, lambda line: None), moments).go()
        return kept.trials()
