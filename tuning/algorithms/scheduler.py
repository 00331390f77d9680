"""Schedulers: which trials are stopped early.

Trials are compared at rungs, after the same number of tokens, by scores interpolated on their
curves. ASHA as published counts steps or epochs; a step of a large batch is more work than one of a
small batch, so counting steps would compare trials that have seen different amounts of data. The
recipe's own trial and repeats are never stopped.

asha    continue in the best third of the trials that reached the rung so far, or as the best of all
        (Li et al. 2020, arXiv 1810.05934, algorithm 2, in the variant that stops trials and never
        promotes paused ones, so no trial waits for others)
median  continue unless below the median of the other trials at the rung (Golovin et al. 2017,
        Vizier, section 3.2.2), once there are three
none    always continue
"""

import statistics
from collections.abc import Sequence
from typing import Literal

from tuning.algorithms.trial import Trial, without_repeats

Scheduler = Literal["asha", "median", "none"]
REDUCTION_FACTOR = 3  # ASHA continues one trial in so many
MIN_OTHERS = 3  # trials at a rung before the median rule applies
# Evaluations come at whole steps, so one just before a rung counts as having reached it.
RUNG_TOLERANCE = 0.95


def should_continue(
    scheduler: Scheduler, trial: Trial, trials: Sequence[Trial], rungs: Sequence[float]
) -> bool:
    """Return whether `trial`, which was just evaluated, is worth continuing.

    trials: all of the search, with or without `trial`. rungs: tokens, rising.
    """
    rung = _newly_reached_rung(trial, rungs)
    if scheduler == "none" or trial.number == 0 or trial.repeats is not None or rung is None:
        return True
    others = [
        other.score_at(rung)
        for other in without_repeats(trials)
        if other.number != trial.number and other.curve and other.tokens >= RUNG_TOLERANCE * rung
    ]
    score = trial.score_at(rung)
    if scheduler == "median":
        return len(others) < MIN_OTHERS or score >= statistics.median(others)
    num_better = sum(other > score for other in others)
    return num_better < max(1, (len(others) + 1) // REDUCTION_FACTOR)


def _newly_reached_rung(trial: Trial, rungs: Sequence[float]) -> float | None:
    """Return the highest rung that the last evaluation reached and the one before it had not."""
    before = trial.curve[-2].tokens if len(trial.curve) > 1 else 0
    reached = [rung for rung in rungs if before < RUNG_TOLERANCE * rung <= trial.tokens]
    return max(reached, default=None)
