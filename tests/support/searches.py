"""A search over a made-up surface, without Ray and without a model."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config import recipe as recipes
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.algorithms.trial import Trial, TrialEvaluation
from tuning.execution.capacity import Capacity
from tuning.execution.controller import PreparedSearch, SearchController
from tuning.space.scaling_rule import RATE, SIZE, ScalingRule
from tuning.space.space import Choices, Range, Space, extract_point
from tuning.store.config import SearchConfig
from tuning.store.journal import Journal

RECIPE = recipes.parse_recipe(
    {
        "model": {"name": "package:all-minilm-l6-v2"},
        "data": {"source": "data.csv"},
        "batch": {"global_size": 16, "max_length": 64},
        "optimizer": {"learning_rate": 1e-5},
        "stopping": {"epochs": 2, "patience": 2},
    }
)
SPACE: Space = {RATE: Range(1e-6, 1e-2, log=True), SIZE: Choices((8, 16, 32))}
CLUSTER = ClusterSpec("here", "local", 1, ClusterMetadata())
SHAPE = ModelShape(384, 12, 12, 1536, 30522, 512, 2, 384, "classification")
SCHEDULE = EvalSchedule.for_recipe(
    RECIPE, train_samples=1000, train_tokens=20_000, validation_samples=100
)


def prepared_search(space: Space = SPACE, **asked: Any) -> PreparedSearch:
    config = SearchConfig(recipe=RECIPE, cluster="local.yaml", **{"trials": 12, **asked})
    rule = ScalingRule.for_space(space, 16, "adamw", config.scaling_rule)
    return PreparedSearch(config, CLUSTER, SHAPE, space, rule, SCHEDULE, Capacity(1, 1))


def open_journal(
    run: Path,
    prepared: PreparedSearch,
    sign: int = 1,
    before_append: Callable[[], None] = lambda: None,
    after_append: Callable[[], None] = lambda: None,
) -> Journal:
    return Journal(
        run,
        prepared.scaling_rule.settings_space(prepared.space),
        extract_point(RECIPE, prepared.space),
        sign,
        before_append,
        after_append,
    )


def final_score(trial: Trial) -> float:
    """The F1 a trial ends at: best at a rate of 3e-4, and seeds differ a little."""
    rate = float(trial.search_point[RATE] or 0)
    return 0.9 - 0.05 * (math.log10(rate) + 3.5) ** 2 + 0.001 * trial.seed


class ProcessKilled(Exception):
    """The moment at which the whole process would be gone."""


@dataclass
class FakeCluster:
    """Trains what a controller hands out, one after another, up to `max_evals` evaluations."""

    controller: SearchController
    max_evals: int = 10**9
    num_evals: int = 0

    def run(self) -> None:
        while (trial := self.controller.next_trial(lambda t: len(t.curve))) is not None:
            self._train(trial)

    def _train(self, trial: Trial) -> None:
        num_evals, total = SCHEDULE.num_evals, SCHEDULE.total_tokens
        for index in range(1, num_evals + 1):
            tokens = round(total * index / num_evals)
            if tokens <= max(trial.tokens, trial.parent[1] if trial.parent else 0):
                continue
            if self.num_evals == self.max_evals:
                raise ProcessKilled
            self.num_evals += 1
            score = final_score(trial) * (1 - 0.3 * (1 - index / num_evals))
            if not self.controller.on_evaluation(
                trial.number, TrialEvaluation(tokens, score), float(index)
            ):
                return
        self.controller.on_end(trial.number, "complete", float(num_evals))


def as_dicts(trials: list[Trial]) -> list[dict[str, Any]]:
    """Trials as plain values."""
    return [vars(trial) for trial in trials]


def write_search(run: Path, prepared: PreparedSearch, max_evals: int = 10**9) -> list[Trial]:
    """Search until the end, or for so many evaluations, and leave the files of it in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    prepared.config.save(run)
    kept = open_journal(run, prepared)
    kept.set_metric_name("f1")
    kept.note_facts(
        {"total_tokens": prepared.schedule.total_tokens, "slots": prepared.capacity.slots}
    )
    with suppress(ProcessKilled):
        FakeCluster(SearchController(prepared, kept, lambda line: None), max_evals).run()
    return kept.trials()
