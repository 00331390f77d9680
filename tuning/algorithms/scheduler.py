"""Which trials are worth going on with: a pure function of what is known.

Trials are compared at rungs, after the same number of tokens, at a score read off their curves on
the line between the evaluations before and after the rung: the number of steps, which depends on
the batch size, plays no part. The recipe's own trial and repetitions are never stopped.

asha    goes on where the score is among the best third of those that came to the rung so far, at
        least the best one (Li et al. 2020, arXiv 1810.05934, algorithm 2, in the form that stops
        and never promotes; nobody waits for anybody)
median  goes on where the score is not below the median of the others' at the rung (Golovin et al.
        2017, Vizier, section 3.2.2), once there are three
none    goes on
"""

import statistics
from collections.abc import Sequence
from typing import Literal

from tuning.algorithms.trial import Trial, searched

Scheduler = Literal["asha", "median", "none"]
REDUCTION = 3  # one in so many goes on
OTHERS = 3  # that the median waits for
NEAR = 0.95  # of a rung: evaluations come at whole steps, and one just before it will do


def goes_on(
    scheduler: Scheduler, trial: Trial, trials: Sequence[Trial], rungs: Sequence[float]
) -> bool:
    """Whether `trial`, which was just evaluated, is worth going on with.

    trials: all of the search, `trial` among them or not. rungs: tokens, rising.
    """
    rung = _just_reached(trial, rungs)
    if scheduler == "none" or trial.number == 0 or trial.repeats is not None or rung is None:
        return True
    others = [
        other.at(rung)
        for other in searched(trials)
        if other.number != trial.number and other.curve and other.tokens >= NEAR * rung
    ]
    score = trial.at(rung)
    if scheduler == "median":
        return len(others) < OTHERS or score >= statistics.median(others)
    better = sum(other > score for other in others)
    return better < max(1, (len(others) + 1) // REDUCTION)


def _just_reached(trial: Trial, rungs: Sequence[float]) -> float | None:
    """The highest rung that the newest evaluation reached and the one before it had not."""
    before = trial.curve[-2].tokens if len(trial.curve) > 1 else 0
    reached = [rung for rung in rungs if before < NEAR * rung <= trial.tokens]
    return max(reached, default=None)
