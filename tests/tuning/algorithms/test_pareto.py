"""What could be deployed: who competes with whom, and who is on the front."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.searches import SCHEDULE, prepared_search, write_search
from tuning.algorithms import scheduler
from tuning.algorithms.pareto import (
    DeploymentOption,
    best_of_each_model,
    estimate_p95_seconds,
    model_settings,
    pareto_front,
    price_in_usd,
    same_model_trials,
)
from tuning.algorithms.trial import Trial, TrialEvaluation, without_repeats
from tuning.space.scaling_rule import RATE
from tuning.space.space import Choices, Range, Space

SMALL, LARGE = "[0, 2]", None
SPACE: Space = {RATE: Range(1e-6, 1e-2, log=True), "model.layers": Choices((LARGE, SMALL))}


def trial(number: int, score: float, **point: str | float | None) -> Trial:
    point = {key.replace("__", "."): value for key, value in point.items()}
    return Trial(number, dict(point), 0, "complete", (TrialEvaluation(100, score),))


TRIALS = [
    trial(0, 0.90, model__layers=LARGE, model__dropout=0.1),
    trial(1, 0.93, model__layers=LARGE, model__dropout=0.3),
    trial(2, 0.80, model__layers=SMALL, model__dropout=0.1),
    replace(trial(3, 0.99, model__layers=SMALL), state="stopped"),
]


def test_dropout_makes_no_other_model() -> None:
    assert (
        model_settings(TRIALS[0].settings)
        == model_settings(TRIALS[1].settings)
        != model_settings(TRIALS[2].settings)
    )
    assert [other.number for other in same_model_trials(TRIALS[2], TRIALS)] == [2, 3]


def test_the_best_of_each_model_is_a_candidate() -> None:
    assert best_of_each_model(TRIALS) == [1, 2], "one that was stopped has no bundle"
    assert best_of_each_model(TRIALS, winner=0) == [0, 2], "the winner stands for its model"


def test_a_small_model_is_not_stopped_for_being_worse_than_a_large() -> None:
    rung = SCHEDULE.rungs[0]
    large = [
        Trial(n, {"model.layers": LARGE}, 0, "running", (TrialEvaluation(int(rung), 0.9),))
        for n in range(1, 4)
    ]
    small = Trial(4, {"model.layers": SMALL}, 0, "running", (TrialEvaluation(int(rung), 0.5),))
    known = [*large, small]
    assert not scheduler.should_continue("asha", small, known, SCHEDULE.rungs)
    assert scheduler.should_continue("asha", small, same_model_trials(small, known), SCHEDULE.rungs)


def test_a_search_for_deployment_completes_trials_of_each_model(tmp_path: Path) -> None:
    found = write_search(tmp_path, prepared_search(SPACE, deployment=True, trials=16, seeds=1))
    ended = {
        trial.settings["model.layers"]
        for trial in without_repeats(found)
        if trial.state == "complete"
    }
    assert ended == {LARGE, SMALL}


def variant(metric: float, p95: float, cost: float, refused: str = "") -> DeploymentOption:
    return DeploymentOption(0, "engine", metric, p95, cost, refused=refused)


def test_the_front_holds_what_nothing_beats() -> None:
    good, fast, cheap = variant(0.9, 0.1, 100.0), variant(0.8, 0.01, 50.0), variant(0.7, 0.02, 10.0)
    worse = variant(0.79, 0.02, 60.0)
    refused = variant(0.95, 0.001, 1.0, refused="refused: under 99.5%")
    assert pareto_front([worse, cheap, refused, fast, good], sign=1) == [good, fast, cheap]
    assert pareto_front([good, good], sign=1) == [good, good], "equals do not beat each other"


def test_lower_metrics_are_better_where_they_are() -> None:
    low, high = variant(0.1, 0.1, 10.0), variant(0.2, 0.1, 10.0)
    assert pareto_front([low, high], sign=-1) == [low] and pareto_front([low, high], sign=1) == [
        high
    ]


def test_latency_and_price_follow_from_what_was_measured() -> None:
    assert estimate_p95_seconds(batch_tokens=256, length=64, texts_per_second=100.0) == 2 * 4 / 100
    assert estimate_p95_seconds(batch_tokens=256, length=512, texts_per_second=10.0) == 2 / 10, (
        "one at least"
    )
    priced = ClusterSpec("priced", "aws", 1, ClusterMetadata(price_usd_per_hour=7.0))
    assert price_in_usd(3600.0, priced, cores=2) == pytest.approx(7.0 / 2 / 0.7)
    assert price_in_usd(3600.0, ClusterSpec("here", "local", 1, ClusterMetadata())) is None
