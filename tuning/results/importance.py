"""How much each setting mattered, and how certain that is.

PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255, algorithm 1), as Optuna computes it: how much
rarer the values of the best trials are than those of all. Trials that were stopped count with their
expected final score, since those that trained to their end are few and all of them good. A handful
of trials says little, so each share comes with the interval of its bootstrap.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from tuning.algorithms.sampler import expected_score
from tuning.algorithms.trial import rank_completed, without_repeats
from tuning.store.reader import SearchSnapshot

MIN_TRIALS = 6
NUM_BEST = 5  # trials that count as the best, the fewest that PED-ANOVA should have
RESAMPLES = 20
OUTSIDE = 1  # resamples at each end that the interval leaves out: it holds nine in ten


@dataclass(frozen=True)
class Importance:
    """The share, of 1, of a setting in what made trials good, and its interval of nine in ten."""

    key: str
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.0%} ({self.low:.0%} to {self.high:.0%})"


def compute_importances(snapshot: SearchSnapshot) -> list[Importance]:
    """Return the importance of each setting, highest first; [] for fewer than MIN_TRIALS."""
    completed = rank_completed(snapshot.trials)
    scored = [
        (snapshot.optuna_trials[trial.number], score)
        for trial in without_repeats(snapshot.trials)
        if trial.state != "failed" and (score := expected_score(trial, completed)) is not None
    ]
    if len(scored) < MIN_TRIALS:
        return []
    shares = _ped_anova(scored)
    rng = random.Random(0)
    resampled = [_ped_anova(rng.choices(scored, k=len(scored))) for _ in range(RESAMPLES)]
    importances = []
    for key, share in shares.items():
        ordered = sorted(each.get(key, 0.0) for each in resampled)
        importances.append(Importance(key, share, ordered[OUTSIDE], ordered[-1 - OUTSIDE]))
    return sorted(importances, key=lambda each: -each.share)


def _ped_anova(scored: Sequence[tuple[FrozenTrial, float]]) -> dict[str, float]:
    """Return the importance of each setting for `scored` trials, all together 1."""
    study = optuna.create_study(direction="maximize")
    for trial, score in scored:
        study.add_trial(
            optuna.create_trial(params=trial.params, distributions=trial.distributions, value=score)
        )
    if len({score for _, score in scored}) == 1:
        return dict.fromkeys(scored[0][0].params, 0.0)
    quantile = min(0.5, max(0.1, NUM_BEST / len(scored)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a share of few trials is inexact: we give intervals
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        return dict(get_param_importances(study, evaluator=evaluator))
