"""Who wins: the best trials and the recipe's own, trained again with other seeds.

The score that made a trial one of the best is the luckiest of many, so it counts for choosing the
finalists and no further: the winner is named by the mean over the other seeds alone, which all
finalists share and nobody chose. Ties go to the recipe's own settings. Pure.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuning.algorithms.trial import Trial, completed

FINALISTS = 2  # beside the recipe's own
SURE = 2.0  # standard errors that a margin must exceed to be called more than noise


@dataclass(frozen=True)
class Standing:
    """What a finalist came to. scores: by seed, the search's own left out where there are others.

    spread: their standard deviation; None for one.
    """

    number: int
    scores: dict[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """The finalists, best first, and the margin of the first over the recipe's own settings.

    error: standard error of the margin, from the differences seed by seed; None for one seed.
    """

    standings: tuple[Standing, ...]
    margin: float | None
    error: float | None

    @property
    def winner(self) -> int:
        """The number of the trial that won."""
        return self.standings[0].number

    @property
    def default_stands(self) -> bool:
        """Whether nothing better than the recipe's own settings was found."""
        return self.winner == 0

    @property
    def is_sure(self) -> bool:
        """Whether the margin is more than what seeds alone may do."""
        known = self.margin is not None and self.error is not None
        return known and self.margin > SURE * self.error  # type: ignore[operator]

    def words(self) -> str:
        """The verdict in a sentence."""
        if self.default_stands:
            return "the recipe's own settings stand: nothing better was found"
        if self.margin is None:
            return f"trial {self.winner} wins; the recipe's own settings did not train to their end"
        won = f"trial {self.winner} wins by {self.margin:.4f} over the recipe's own settings"
        if self.error is None:
            return f"{won}; with one seed nobody knows how much of that is luck"
        noise = "" if self.is_sure else ", which may be noise"
        return f"{won} (standard error {self.error:.4f}){noise}"


def finalists(trials: Sequence[Trial]) -> list[int]:
    """The numbers of the trials to be repeated: the best, and the recipe's own."""
    ended = completed(trials)
    best = [trial.number for trial in ended[:FINALISTS]]
    return best + [0] * (0 not in best and any(trial.number == 0 for trial in ended))


def repetitions(trials: Sequence[Trial], seeds: int) -> list[tuple[int, int]]:
    """(number, how many times seeds were moved on) of each repetition, seed by seed."""
    return [(number, by) for by in range(1, seeds) for number in finalists(trials)]


def verdict(trials: Sequence[Trial]) -> Verdict | None:
    """Who won; None where no trial trained to its end.

    Only seeds that every finalist completed count; where there are none, the search's own does.
    """
    numbers = finalists(trials)
    if not numbers:
        return None
    own = {number: {trials[number].seed: _score(trials[number])} for number in numbers}
    fresh = {
        number: {t.seed: _score(t) for t in trials if t.repeats == number and t.state == "complete"}
        for number in numbers
    }
    shared = set.intersection(*(set(scores) for scores in fresh.values()))
    counted = {n: {s: fresh[n][s] for s in sorted(shared)} for n in numbers} if shared else own
    standings = [Standing(number, scores) for number, scores in counted.items()]
    standings.sort(key=lambda standing: (-standing.mean, standing.number != 0))
    margin, error = _margin(standings)
    return Verdict(tuple(standings), margin, error)


def _margin(standings: Sequence[Standing]) -> tuple[float | None, float | None]:
    first = standings[0].scores
    default = next((standing.scores for standing in standings if standing.number == 0), None)
    if default is None:
        return None, None
    by_seed = [score - default[seed] for seed, score in first.items()]
    if len(by_seed) < 2:
        return by_seed[0], None
    return statistics.fmean(by_seed), statistics.stdev(by_seed) / math.sqrt(len(by_seed))


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score
