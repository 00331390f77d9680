"""The final comparison: the best trials and the recipe's own, repeated with other seeds.

The score that made a trial one of the best is the luckiest of many, so it selects the finalists and
counts no further. The winner has the best mean over the other seeds alone, which all finalists
share and nothing selected. Ties go to the recipe's own settings.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuning.algorithms.trial import Trial, rank_completed

FINALISTS = 2  # beside the recipe's own
SIGNIFICANCE = 2.0  # standard errors that a margin must exceed to be called more than noise


@dataclass(frozen=True)
class FinalistScore:
    """The scores of a finalist by seed, without the search's own seed where there are others."""

    number: int
    scores: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """The finalists, best first, and the margin of the first over the recipe's own settings.

    standard_error: of the margin, from the differences seed by seed; None for one seed.
    """

    finalists: tuple[FinalistScore, ...]
    margin: float | None
    standard_error: float | None

    @property
    def winner(self) -> int:
        """The number of the trial that won."""
        return self.finalists[0].number

    @property
    def default_stands(self) -> bool:
        """Whether nothing better than the recipe's own settings was found."""
        return self.winner == 0

    @property
    def is_significant(self) -> bool:
        """Whether the margin is larger than seeds alone explain."""
        known = self.margin is not None and self.standard_error is not None
        return known and self.margin > SIGNIFICANCE * self.standard_error  # type: ignore[operator]

    def describe(self) -> str:
        """Say the verdict in a sentence."""
        if self.default_stands:
            return "the recipe's own settings stand: nothing better was found"
        if self.margin is None:
            return f"trial {self.winner} wins; the recipe's own settings did not train to their end"
        won = f"trial {self.winner} wins by {self.margin:.4f} over the recipe's own settings"
        if self.standard_error is None:
            return f"{won}; with one seed nobody knows how much of that is luck"
        noise = "" if self.is_significant else ", which may be noise"
        return f"{won} (standard error {self.standard_error:.4f}){noise}"


def select_finalists(trials: Sequence[Trial]) -> list[int]:
    """Return the numbers of the trials to repeat: the best, and the recipe's own."""
    ended = rank_completed(trials)
    best = [trial.number for trial in ended[:FINALISTS]]
    return best + [0] * (0 not in best and any(trial.number == 0 for trial in ended))


def plan_repeats(trials: Sequence[Trial], seeds: int) -> list[tuple[int, int]]:
    """Return (number, offset of the seed) of each repeat, seed by seed."""
    return [(number, by) for by in range(1, seeds) for number in select_finalists(trials)]


def compare_finalists(trials: Sequence[Trial]) -> Verdict | None:
    """Return who won, or None if no trial trained to its end.

    Only seeds that every finalist completed count; if there are none, the search's own does.
    """
    numbers = select_finalists(trials)
    if not numbers:
        return None
    own = {number: {trials[number].seed: _final_score(trials[number])} for number in numbers}
    repeated = {
        number: {
            trial.seed: _final_score(trial)
            for trial in trials
            if trial.repeats == number and trial.state == "complete"
        }
        for number in numbers
    }
    shared = set.intersection(*(set(scores) for scores in repeated.values()))
    counted = {n: {s: repeated[n][s] for s in sorted(shared)} for n in numbers} if shared else own
    finalists = [FinalistScore(number, scores) for number, scores in counted.items()]
    finalists.sort(key=lambda finalist: (-finalist.mean, finalist.number != 0))
    return Verdict(tuple(finalists), *_margin_over_default(finalists))


def _margin_over_default(finalists: Sequence[FinalistScore]) -> tuple[float | None, float | None]:
    """Return the margin of the first finalist and its standard error."""
    default = next((finalist.scores for finalist in finalists if finalist.number == 0), None)
    if default is None:
        return None, None
    by_seed = [score - default[seed] for seed, score in finalists[0].scores.items()]
    if len(by_seed) < 2:
        return by_seed[0], None
    return statistics.fmean(by_seed), statistics.stdev(by_seed) / math.sqrt(len(by_seed))


def _final_score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score
