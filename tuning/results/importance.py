"""How much each setting mattered, and how sure that is.

PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255, algorithm 1), as Optuna computes it: how much
rarer the values of the best trials are than those of all. Trials that were stopped count with the
score at which they would have ended (`sampler.expected`), for those that trained to their end are
few and all of them good. A handful of trials says little, so each share comes with the interval
that it keeps when trials are drawn again, with replacement. Knows no page.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from tuning.algorithms.sampler import expected
from tuning.algorithms.trial import completed, searched
from tuning.store.reader import Snapshot

FEWEST = 6  # trials; of fewer, nothing is said
BEST = 5  # trials that count as the best, the fewest that PED-ANOVA should have
DRAWN = 20  # times
OUTSIDE = 1  # of those, at each end, that the interval leaves out: it holds nine in ten


@dataclass(frozen=True)
class Importance:
    """The share of a setting in what made trials good, of 1, and the interval of nine in ten."""

    key: str
    share: float
    low: float
    high: float


def importances(snapshot: Snapshot) -> list[Importance]:
    """Of each setting, the most important first; none of a search with too few trials."""
    ended = completed(snapshot.trials)
    scored = [
        (snapshot.kept[trial.number], score)
        for trial in searched(snapshot.trials)
        if trial.state != "failed" and (score := expected(trial, ended)) is not None
    ]
    if len(scored) < FEWEST:
        return []
    shares = _shares(scored)
    drawn = random.Random(0)
    again = [_shares(drawn.choices(scored, k=len(scored))) for _ in range(DRAWN)]
    found = []
    for key, share in shares.items():
        spread = sorted(each.get(key, 0.0) for each in again)
        found.append(Importance(key, share, spread[OUTSIDE], spread[-1 - OUTSIDE]))
    return sorted(found, key=lambda each: -each.share)


def _shares(scored: Sequence[tuple[FrozenTrial, float]]) -> dict[str, float]:
    """The importance of each setting for `scored` trials, all together 1."""
    study = optuna.create_study(direction="maximize")
    for kept, score in scored:
        study.add_trial(
            optuna.create_trial(params=kept.params, distributions=kept.distributions, value=score)
        )
    if len({score for _, score in scored}) == 1:
        return dict.fromkeys(scored[0][0].params, 0.0)
    quantile = min(0.5, max(0.1, BEST / len(scored)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a share of few trials is not exact, we say ourselves
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        return dict(get_param_importances(study, evaluator=evaluator))


def words(found: Importance) -> str:
    """A share with its interval, for a person."""
    return f"{found.share:.0%} ({found.low:.0%} to {found.high:.0%})"
