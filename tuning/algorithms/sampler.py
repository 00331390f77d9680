"""Samplers: which settings are tried next.

Trial 0 is the recipe's own. Then come

gp      STARTUP points a dimension spread evenly (by Roberts' R sequence: generalised golden
        ratios), then Optuna's Gaussian process, at the most expected improvement (Snoek et al.
        2012, arXiv 1206.2944; Ament et al. 2023, arXiv 2310.20708)
tpe     the same, then Optuna's multivariate tree-structured Parzen estimator (Bergstra et al.
        2011; Falkner et al. 2018, arXiv 1807.01774, section 3.2), which is cheaper to ask where
        there are hundreds of trials
random  uniform points
grid    every combination of choices, with GRID_SIZE values of each range
pbt     see `pbt.py`

gp and tpe learn from every trial, whatever its state. One that was stopped, or still runs, counts
with its last score plus what completed trials gained from there to their end, in the median: an
estimate of its final score, so that a trial stopped early for good reason counts as poor and one
that is ahead counts as good. A failed trial, and a running one without an evaluation, counts as the
worst. Points are search points, before the scaling rule (`scaling_rule.py`).
"""

import functools
import hashlib
import itertools
import math
import random
import statistics
import warnings
from collections.abc import Sequence
from typing import Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuning.algorithms.trial import Trial, rank_completed, without_repeats
from tuning.space.space import Choices, Dimension, Point, Range, Space, Value

Sampler = Literal["gp", "tpe", "random", "grid", "pbt"]
MODEL_BASED = ("gp", "tpe")
GRID_SIZE = 5
STARTUP = 2
ATTEMPTS = 50  # at a point that was not tried yet
MODEL_ATTEMPTS = 3  # of those by gp or tpe, which may insist on one point; the others are uniform


def suggest_point(
    sampler: Sampler, space: Space, trials: Sequence[Trial], number: int, seed: int
) -> Point | None:
    """Return the search point of trial `number` (from 1), or None if every point was tried."""
    trials, learns = without_repeats(trials), sampler in MODEL_BASED
    startup = STARTUP * len(space)
    if sampler == "grid":
        return _first_untried(grid_points(space), trials)
    for attempt in range(ATTEMPTS):
        rng = random.Random(derive_seed(seed, number, attempt))
        if learns and not attempt and number <= startup:
            point = low_discrepancy_point(space, number, seed)
        elif learns and number > startup and attempt < MODEL_ATTEMPTS:
            point = _ask_optuna(sampler, space, trials, rng.getrandbits(32))
        else:
            point = {key: dimension.value_at(rng.random()) for key, dimension in space.items()}
        if _first_untried([point], trials) is not None:
            return point
    return _first_untried(grid_points(space, finite=True), trials)


def grid_points(space: Space, finite: bool = False) -> list[Point]:
    """Return every combination of choices, with GRID_SIZE values of each range.

    finite: every value of integer ranges instead; nothing if the space has a continuous range.
    """
    axes: list[list[Value]] = []
    for dimension in space.values():
        if isinstance(dimension, Choices):
            axes.append(list(dimension.values))
        elif dimension.whole and (finite or dimension.high - dimension.low < GRID_SIZE):
            axes.append(list(range(int(dimension.low), int(dimension.high) + 1)))
        elif finite:
            return []
        else:
            shares = [index / (GRID_SIZE - 1) for index in range(GRID_SIZE)]
            axes.append(list(dict.fromkeys(_grid_value(dimension, share) for share in shares)))
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def low_discrepancy_point(space: Space, number: int, seed: int) -> Point:
    """Return point `number` of a sequence that fills `space` evenly, wherever it is cut off.

    Roberts' R sequence: the share of dimension i is the fraction of number / phi^i, phi the root of
    x^(d+1) = x + 1.
    """
    rng, ratio = random.Random(derive_seed(seed, 0, 0)), _golden_ratio(len(space))
    return {
        key: dimension.value_at((rng.random() + number * ratio**-index) % 1)
        for index, (key, dimension) in enumerate(space.items(), start=1)
    }


def expected_score(trial: Trial, completed: Sequence[Trial]) -> float | None:
    """Estimate the final score of `trial` by those that completed; None if nothing is known."""
    if not trial.curve or trial.state == "failed":
        return None
    if trial.state == "complete":
        return trial.score
    gains = [(other.score or 0.0) - other.score_at(trial.tokens) for other in completed]
    return trial.score_at(trial.tokens) + (statistics.median(gains) if gains else 0.0)


def derive_seed(*parts: int) -> int:
    """Return a seed for these numbers and no others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _ask_optuna(sampler: Sampler, space: Space, trials: Sequence[Trial], seed: int) -> Point:
    completed = rank_completed(trials)
    estimates = [expected_score(trial, completed) for trial in trials]
    worst = min((score for score in estimates if score is not None), default=0.0)
    scores = [worst if score is None else score for score in estimates]
    # A Gaussian process fits all scores with one length scale and one variance. A run that diverged
    # scores far below the rest, and fitting that cliff flattens the differences among good trials
    # to nothing. Clipped at the median, a poor trial still says "not here", which is all that the
    # sampler needs of it. TPE only ranks, so it needs no clipping.
    floor = statistics.median(scores) if sampler == "gp" else worst
    distributions = {key: _to_distribution(dimension) for key, dimension in space.items()}
    study = _new_study(sampler, seed)
    for trial, score in zip(trials, scores, strict=True):
        if not all(space[key].contains(trial.search_point.get(key)) for key in space):
            continue  # the recipe's own trial, where it lies outside the space
        coordinates = {key: _to_coordinate(space[key], trial.search_point[key]) for key in space}
        study.add_trial(
            optuna.create_trial(
                params=coordinates, distributions=distributions, value=max(score, floor)
            )
        )
    asked = study.ask(distributions)
    return {key: _from_coordinate(space[key], asked.params[key]) for key in space}


def _new_study(sampler: Sampler, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna_sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
            if sampler == "gp"
            else optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=0)
        )
    return optuna.create_study(direction="maximize", sampler=optuna_sampler)


def _to_distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Range):
        if dimension.whole:
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.is_ordered and len(dimension.values) > 1:
        return IntDistribution(0, len(dimension.values) - 1)
    return CategoricalDistribution(range(len(dimension.values)))


def _to_coordinate(dimension: Dimension, value: Value) -> Value:
    """Return what Optuna sees of a value: choices by their index, so that neighbours are near."""
    return dimension.values.index(value) if isinstance(dimension, Choices) else value


def _from_coordinate(dimension: Dimension, coordinate: Value) -> Value:
    if isinstance(dimension, Choices):
        assert isinstance(coordinate, int)
        return dimension.values[coordinate]
    return coordinate


def _grid_value(dimension: Range, share: float) -> Value:
    """Return the value at `share` of the way, exactly the bounds at 0 and 1."""
    low, high = dimension.low, dimension.high
    value = low * (high / low) ** share if dimension.log else low + share * (high - low)
    value = {0.0: low, 1.0: high}.get(share, value)
    return round(value) if dimension.whole else value


def _first_untried(points: Sequence[Point], trials: Sequence[Trial]) -> Point | None:
    def is_tried(point: Point) -> bool:
        return any(
            all(_is_same(value, trial.search_point.get(key)) for key, value in point.items())
            for trial in trials
        )

    return next((point for point in points if not is_tried(point)), None)


def _is_same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


@functools.cache
def _golden_ratio(dimensions: int) -> float:
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    return ratio
