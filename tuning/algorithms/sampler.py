"""Which settings are tried next: a pure function of what is known, so that a search that was
killed goes on as it would have.

Trial 0 is the recipe's own. Then come

gp      STARTUP points a dimension spread evenly (by Roberts' R sequence: generalised golden
        ratios), then Optuna's Gaussian process, where it expects most improvement (Snoek et al.
        2012, arXiv 1206.2944; Ament et al. 2023, arXiv 2310.20708)
tpe     the same, then Optuna's multivariate tree-structured Parzen estimator (Bergstra et al.
        2011; Falkner et al. 2018, arXiv 1807.01774, section 3.2), which costs less to ask where
        there are hundreds of trials
random  points drawn evenly
grid    every combination of choices, with GRID values of each range
pbt     see `population.py`

The first two learn from every trial, whatever its state. One that was stopped, or still runs,
counts with its score at its last evaluation plus what completed trials gained from there to their
end, in the median: a guess of where it would have ended, so that a trial stopped early for good
reason counts as poor and one that is ahead counts as good. A failed trial, and a running one
without an evaluation, counts as the worst. To the Gaussian process all below the median are as good
as the median: how far a run diverged would else drown what sets the good ones apart. Points are as
searched (`prior.py`).
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

from tuning.algorithms.trial import Trial, completed, searched
from tuning.space.space import Choices, Dimension, Point, Range, Space, Value

Sampler = Literal["gp", "tpe", "random", "grid", "pbt"]
LEARNING = ("gp", "tpe")
GRID = 5
STARTUP = 2
ATTEMPTS = 50  # at a point that was not tried yet
ASKED = 3  # of them by who learns, and may insist; then one is drawn


def suggest(
    sampler: Sampler, space: Space, trials: Sequence[Trial], number: int, seed: int
) -> Point | None:
    """The point of trial `number` (from 1), as searched; None where every point has been tried.

    trials: all that are known, with their points as searched.
    """
    known, learns = searched(trials), sampler in LEARNING
    startup = STARTUP * len(space)
    if sampler == "grid":
        return next((point for point in grid(space) if not _tried(point, known)), None)
    for attempt in range(ATTEMPTS):
        drawn = random.Random(seed_of(seed, number, attempt))
        if learns and not attempt and number <= startup:
            point = spread(space, number, seed)
        elif learns and number > startup and attempt < ASKED:
            point = _estimated(sampler, space, known, drawn.getrandbits(32))
        else:
            point = {key: dimension.at(drawn.random()) for key, dimension in space.items()}
        if not _tried(point, known):
            return point
    return next((point for point in grid(space, finite=True) if not _tried(point, known)), None)


def grid(space: Space, finite: bool = False) -> list[Point]:
    """Every combination of choices, with GRID values of each range.

    finite: nothing where the space has a range that never ends.
    """
    axes: list[list[Value]] = []
    for dimension in space.values():
        if isinstance(dimension, Choices):
            axes.append(list(dimension.values))
        elif dimension.whole and (finite or dimension.high - dimension.low < GRID):
            axes.append(list(range(int(dimension.low), int(dimension.high) + 1)))
        elif finite:
            return []
        else:
            shares = [index / (GRID - 1) for index in range(GRID)]
            axes.append(list(dict.fromkeys(_between(dimension, share) for share in shares)))
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def spread(space: Space, number: int, seed: int) -> Point:
    """Point `number` of a sequence that fills `space` evenly, wherever it is cut off.

    Roberts' R sequence: the share of dimension i is the fraction of number / phi^i, phi the root of
    x^(d+1) = x + 1.
    """
    drawn, ratio = random.Random(seed_of(seed, 0, 0)), _golden(len(space))
    return {
        key: dimension.at((drawn.random() + number * ratio**-index) % 1)
        for index, (key, dimension) in enumerate(space.items(), start=1)
    }


def expected(trial: Trial, ended: Sequence[Trial]) -> float | None:
    """Where `trial` would have ended, judged by those that did; None where nothing is known."""
    if not trial.curve or trial.state == "failed":
        return None
    if trial.state == "complete":
        return trial.score
    gains = [(other.score or 0.0) - other.at(trial.tokens) for other in ended]
    return trial.at(trial.tokens) + (statistics.median(gains) if gains else 0.0)


def _estimated(sampler: Sampler, space: Space, known: Sequence[Trial], seed: int) -> Point:
    """What a sampler that learns suggests after `known`."""
    ended = completed(known)
    guesses = [expected(trial, ended) for trial in known]
    worst = min((score for score in guesses if score is not None), default=0.0)
    scores = [worst if score is None else score for score in guesses]
    least = statistics.median(scores) if sampler == "gp" else worst
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    study = _empty_study(sampler, seed)
    for trial, score in zip(known, scores, strict=True):
        if not all(dimension.holds(trial.searched.get(key)) for key, dimension in space.items()):
            continue  # the recipe's own trial, where it lies outside what is searched
        coordinates = {key: _coordinate(space[key], trial.searched[key]) for key in space}
        study.add_trial(
            optuna.create_trial(
                params=coordinates,
                distributions=distributions,
                value=max(score, least),
            )
        )
    asked = study.ask(distributions)
    return {key: _value(space[key], asked.params[key]) for key in space}


def _empty_study(sampler: Sampler, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        asked: optuna.samplers.BaseSampler = (
            optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
            if sampler == "gp"
            else optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=0)
        )
    return optuna.create_study(direction="maximize", sampler=asked)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Range):
        if dimension.whole:
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.are_ordered and len(dimension.values) > 1:
        return IntDistribution(0, len(dimension.values) - 1)
    return CategoricalDistribution(range(len(dimension.values)))


def _coordinate(dimension: Dimension, value: Value) -> Value:
    """What a sampler sees of a value: choices by their place, so that neighbours are near."""
    return dimension.values.index(value) if isinstance(dimension, Choices) else value


def _value(dimension: Dimension, coordinate: Value) -> Value:
    if isinstance(dimension, Choices):
        assert isinstance(coordinate, int)
        return dimension.values[coordinate]
    return coordinate


def _between(dimension: Range, share: float) -> Value:
    """The value at `share` of the way, the very ends at 0 and 1."""
    low, high = dimension.low, dimension.high
    value = low * (high / low) ** share if dimension.log else low + share * (high - low)
    value = {0.0: low, 1.0: high}.get(share, value)
    return round(value) if dimension.whole else value


def _tried(point: Point, known: Sequence[Trial]) -> bool:
    return any(_alike(point, trial.searched) for trial in known)


def _alike(one: Point, other: Point) -> bool:
    return all(_same(value, other.get(key)) for key, value in one.items())


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def seed_of(*parts: int) -> int:
    """A seed for these numbers and no others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


@functools.cache
def _golden(dimensions: int) -> float:
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    return ratio
