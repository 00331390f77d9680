"""What is tried next, what is stopped, who wins: pure functions of what is known."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from cluster.settings import SettingsError
from tuning.algorithms import pbt, repeats, sampler, scheduler
from tuning.algorithms.repeats import compare_finalists
from tuning.algorithms.sampler import suggest_point
from tuning.algorithms.trial import Trial, TrialEvaluation, TrialStatus
from tuning.space.scaling_rule import ScalingRule
from tuning.space.space import Choices, Point, Range, Space

RUNGS = (100.0, 200.0)
SPACE: Space = {"rate": Range(1e-5, 1e-1, log=True), "size": Choices((8, 16, 32))}


def trial(number: int, *scores: float, every: int = 100, state: TrialStatus = "running") -> Trial:
    curve = tuple(TrialEvaluation(every * (i + 1), score) for i, score in enumerate(scores))
    return Trial(number, {}, 0, state, curve)


def goes_on(kind: scheduler.Scheduler, new: Trial, *others: Trial) -> bool:
    return scheduler.should_continue(kind, new, [*others, new], RUNGS)


def test_a_curve_is_a_line_between_its_evaluations() -> None:
    curve = trial(1, 0.5, 0.7)
    assert curve.score_at(150) == pytest.approx(0.6)
    assert curve.score_at(50) == 0.5 and curve.score_at(999) == 0.7
    assert curve.score_at(200) == 0.7


def test_asha_keeps_the_best_third_and_always_the_best() -> None:
    known = [trial(n, 0.1 * n) for n in range(1, 6)]
    assert goes_on("asha", trial(9, 0.6), *known)
    assert goes_on("asha", trial(9, 0.45), *known)  # second of six
    assert not goes_on("asha", trial(9, 0.35), *known)
    assert goes_on("asha", trial(9, 0.0)), "the first to come goes on"
    assert not goes_on("asha", trial(9, 0.05), known[0])


def test_the_median_waits_for_others() -> None:
    known = [trial(n, 0.1 * n) for n in (1, 2, 3)]
    assert goes_on("median", trial(9, 0.0), *known[:2])
    assert not goes_on("median", trial(9, 0.15), *known)
    assert goes_on("median", trial(9, 0.2), *known)


def test_only_a_rung_that_was_just_reached_decides() -> None:
    better = trial(1, 0.9, 0.9, 0.9)
    assert not goes_on("asha", trial(9, 0.1), better)
    assert goes_on("asha", trial(9, 0.1, 0.1, 0.1), better), "no rung between 200 and 300"
    assert goes_on("asha", trial(9, 0.1, every=50), better), "before the first rung"
    assert not goes_on("asha", trial(9, 0.1, every=96), better), "nearly at the rung is at it"
    assert goes_on("none", trial(9, 0.1), better)


def test_the_recipes_own_trial_and_repetitions_are_never_stopped() -> None:
    better = trial(1, 0.9)
    assert goes_on("asha", trial(0, 0.1), better)
    assert goes_on("asha", Trial(9, {}, 1, curve=(TrialEvaluation(100, 0.1),), repeats=1), better)


def test_trials_are_compared_at_the_same_tokens_whatever_their_steps() -> None:
    """Two runs on one and the same curve, looked at elsewhere, are the same at the rung."""
    fine = Trial(1, {}, 0, curve=tuple(TrialEvaluation(20 * i, 0.01 * i) for i in range(1, 9)))
    coarse = Trial(9, {}, 0, curve=(TrialEvaluation(64, 0.032), TrialEvaluation(128, 0.064)))
    assert goes_on("asha", coarse, fine)
    ahead = Trial(1, {}, 0, curve=tuple(TrialEvaluation(20 * i, 0.0101 * i) for i in range(1, 9)))
    assert not goes_on("asha", coarse, ahead)
    # At its last evaluation, 28 tokens later, the coarse one is above what the other was at 100.
    assert coarse.curve[-1].score > ahead.score_at(100)


@pytest.mark.parametrize("kind", ["gp", "tpe", "random", "grid"])
def test_suggestions_are_new_inside_and_the_same_each_time(kind: sampler.Sampler) -> None:
    draw, known = random.Random(0), [Trial(0, {}, 0, search_point={"rate": 1e-3, "size": 16})]
    for number in range(1, 14):
        point = suggest_point(kind, SPACE, known, number, 7)
        assert point is not None and point == suggest_point(kind, SPACE, known, number, 7)
        assert all(SPACE[key].contains(point[key]) for key in SPACE)
        assert point not in [other.search_point for other in known]
        curve = (TrialEvaluation(10, draw.random()),)
        known.append(Trial(number, {}, 0, "complete", curve, search_point=point))
    if kind != "grid":
        assert point != suggest_point(kind, SPACE, known[:-1], 13, 8), "another seed, another point"


def test_a_grid_and_a_finite_space_end() -> None:
    finite: Space = {"size": Choices((8, 16)), "epochs": Range(1, 2, whole=True)}
    own = {"size": 8, "epochs": 1}
    for kind in ("grid", "random", "tpe", "gp"):
        known = [Trial(0, {}, 0, search_point=own)]
        while (point := suggest_point(kind, finite, known, len(known), 0)) is not None:
            known.append(
                Trial(len(known), {}, 0, "complete", (TrialEvaluation(1, 0.0),), search_point=point)
            )
        assert len(known) == 4, kind
    assert len(sampler.grid_points(SPACE)) == sampler.GRID_SIZE * 3


def test_spread_points_fill_the_space() -> None:
    shares = [
        math.log10(float(sampler.low_discrepancy_point(SPACE, n, 3)["rate"])) for n in range(1, 41)
    ]
    gaps = [b - a for a, b in zip(sorted(shares), sorted(shares)[1:], strict=False)]
    assert max(gaps) < 0.4, "40 points over four decades, and no hole of a tenth"
    sizes = [sampler.low_discrepancy_point(SPACE, n, 3)["size"] for n in range(1, 40)]
    assert all(11 <= sizes.count(size) <= 15 for size in (8, 16, 32))


def surface(point: Point) -> float:
    """Best at 1e-3 and 16."""
    rate, size = float(point["rate"] or 0), float(point["size"] or 0)
    return 1 - 0.1 * (math.log10(rate) + 3) ** 2 - 0.02 * abs(math.log2(size) - 4)


def best_of(kind: sampler.Sampler, seed: int) -> float:
    known = [
        Trial(
            0, {}, 0, "complete", (TrialEvaluation(9, 0.0),), search_point={"rate": 1e-5, "size": 8}
        )
    ]
    for number in range(1, 20):
        point = suggest_point(kind, SPACE, known, number, seed)
        assert point is not None
        evaluation = (TrialEvaluation(9, surface(point)),)
        known.append(Trial(number, {}, 0, "complete", evaluation, search_point=point))
    return max(trial.score or 0.0 for trial in known)


@pytest.mark.parametrize("kind", sampler.MODEL_BASED)
def test_it_learns(kind: sampler.Sampler) -> None:
    learned = statistics.median(best_of(kind, seed) for seed in range(9))
    drawn = statistics.median(best_of("random", seed) for seed in range(9))
    assert learned > drawn and learned > 0.985


def test_a_diverged_trial_is_no_worse_than_a_poor_one() -> None:
    """Whether the worst ended just below the median or at -1e9, the same is tried next."""

    def after(worst: float) -> Point | None:
        scores = (0.9, 0.8, worst, 0.85, worst, 0.82)
        points = [{"rate": 10.0 ** -(n + 1) / 2, "size": 16} for n in range(6)]
        known = [
            Trial(n, {}, 0, "complete", (TrialEvaluation(9, score),), search_point=point)
            for n, (score, point) in enumerate(zip(scores, points, strict=True))
        ]
        return suggest_point("gp", SPACE, known, 6, 0)

    assert after(0.79) == after(-1e9) != after(0.95)


def test_a_stopped_trial_counts_as_where_it_would_have_ended() -> None:
    ended = [trial(0, 0.5, 0.6, 0.8, state="complete"), trial(1, 0.4, 0.5, 0.6, state="complete")]
    assert sampler.expected_score(trial(2, 0.3, state="stopped"), ended) == pytest.approx(0.55)
    assert sampler.expected_score(trial(2, 0.3, state="stopped"), []) == 0.3
    assert sampler.expected_score(ended[0], ended) == 0.8
    assert sampler.expected_score(Trial(2, {}, 0, "failed"), ended) is None


@pytest.mark.parametrize("kind", sampler.MODEL_BASED)
def test_it_keeps_away_from_where_trials_were_stopped(kind: sampler.Sampler) -> None:
    """Stopped low and ended high tell the same story as if all had ended."""
    known = []
    for number in range(24):
        point = {"rate": 10 ** -(1.1 + 3.8 * (number * 0.618 % 1)), "size": 16}
        good = surface(point) > 0.9
        evaluations = (
            TrialEvaluation(10, surface(point) - 0.2),
            TrialEvaluation(20, surface(point)),
        )
        state: TrialStatus = "complete" if good else "stopped"
        known.append(
            Trial(
                number, {}, 0, state, evaluations if good else evaluations[:1], search_point=point
            )
        )
    points = [suggest_point(kind, SPACE, known, 24, seed) for seed in range(20)]
    near = [abs(math.log10(float(p["rate"] or 1)) + 3) < 1 for p in points if p is not None]
    assert sum(near) >= 15, "half of the space is near; chance would give ten"


def finished(number: int, seed: int, score: float, repeated: int | None = None) -> Trial:
    return Trial(number, {}, seed, "complete", (TrialEvaluation(9, score),), repeated)


def test_the_winner_is_named_by_fresh_seeds_alone() -> None:
    first = [finished(0, 0, 0.80), finished(1, 0, 0.90), finished(2, 0, 0.85), finished(3, 0, 0.1)]
    assert repeats.select_finalists(first) == [1, 2, 0]
    assert repeats.plan_repeats(first, 3) == [(n, by) for by in (1, 2) for n in (1, 2, 0)]
    alone = compare_finalists(first)
    assert (
        alone is not None
        and alone.winner == 1
        and alone.standard_error is None
        and not alone.is_significant
    )
    by_seed = {1: (0.80, 0.82), 2: (0.86, 0.88), 0: (0.81, 0.85)}
    repeated = [
        finished(4 + 3 * by + i, by + 1, by_seed[n][by], n)
        for by in (0, 1)
        for i, n in enumerate((1, 2, 0))
    ]
    found = compare_finalists([*first, *repeated])
    assert found is not None and found.winner == 2, "1 was only lucky with seed 0"
    assert found.margin == pytest.approx(0.04) and found.standard_error == pytest.approx(0.01)
    assert found.is_significant and not found.default_stands


def test_the_default_stands_when_nothing_is_better() -> None:
    found = compare_finalists([finished(0, 0, 0.9), finished(1, 0, 0.9)])
    assert found is not None and found.default_stands and "stand" in found.describe()
    assert compare_finalists([trial(0, 0.1)]) is None
    lost = compare_finalists([Trial(0, {}, 0, "failed"), finished(1, 0, 0.5)])
    assert lost is not None and lost.winner == 1 and lost.margin is None


def test_a_margin_within_the_spread_of_seeds_is_called_noise() -> None:
    known = [finished(0, 0, 0.5), finished(1, 0, 0.9)]
    for seed, own, other in ((1, 0.5, 0.6), (2, 0.6, 0.52), (3, 0.55, 0.58)):
        known.append(finished(len(known), seed, own, 0))
        known.append(finished(len(known), seed, other, 1))
    found = compare_finalists(known)
    assert found is not None and found.winner == 1 and not found.is_significant
    assert "noise" in found.describe()


def test_a_population_moves_the_worst_to_the_best() -> None:
    space: Space = {"optimizer.learning_rate": Range(1e-5, 1e-1, log=True)}
    rule, members = ScalingRule(None, "adamw"), 4
    pbt.check_mutable(space)
    known = [Trial(0, {}, 0, "complete", (TrialEvaluation(400, 0.5),))]
    while (new := pbt.next_member(space, rule, known, members, 3)) is not None:
        assert new == pbt.next_member(space, rule, known, members, 3)
        end = pbt.end_tokens(new.number, members, 400)
        score = float(new.search_point["optimizer.learning_rate"] or 0)
        known.append(replace(new, state="stopped", curve=(TrialEvaluation(round(end), score),)))
    assert len(known) == 1 + members * pbt.ROUNDS
    first, second = known[1:5], known[5:9]
    assert all(trial.parent is None for trial in first)
    ranked = sorted(first, key=lambda trial: trial.curve[-1].score)
    worst, best = ranked[0], ranked[-1]
    moved = second[worst.number - 1]
    assert moved.parent == (best.number, 100)
    ratio = (
        moved.search_point["optimizer.learning_rate"] / best.search_point["optimizer.learning_rate"]
    )
    assert ratio == pytest.approx(1.2) or ratio == pytest.approx(1 / 1.2)
    for before in ranked[1:]:
        after = second[before.number - 1]
        assert after.parent == (before.number, 100) and after.search_point == before.search_point


def test_a_round_waits_for_the_round_before() -> None:
    space: Space = {"model.dropout": Range(0.0, 0.5)}
    known = [Trial(0, {}, 0)]
    for _ in range(2):
        new = pbt.next_member(space, ScalingRule(None, "adamw"), known, 2, 0)
        assert new is not None
        known.append(new)
    assert pbt.next_member(space, ScalingRule(None, "adamw"), known, 2, 0) is None


def test_a_population_changes_only_what_can_change_in_a_run() -> None:
    with pytest.raises(SettingsError, match=r"tune.batch.global_size cannot change"):
        pbt.check_mutable({"batch.global_size": Choices((8, 16))})
