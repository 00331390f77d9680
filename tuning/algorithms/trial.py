"""A trial as a value: its settings, its learning curve and its status.

Scores are the recipe's metric, negated where lower is better: higher is always better here.
Progress is counted in tokens trained on, so trials of different batch sizes compare alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tuning.space.space import Point

# running: or to be resumed. complete: trained to its end. stopped: by the scheduler or the budget.
# failed: cannot be trained; `reason` says why.
TrialStatus = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class TrialEvaluation:
    """The score of a trial after `tokens`."""

    tokens: int
    score: float


@dataclass(frozen=True)
class Trial:
    """One run of the search.

    number: from 0, the recipe's own settings. settings: of the run; search_point: the same as the
    sampler sees them, before the scaling rule. repeats: the number of the trial that this one
    repeats with another seed. parent: (number, tokens) of the trial whose checkpoint it starts
    from. seconds: trained and evaluated so far.
    """

    number: int
    settings: Point
    seed: int
    state: TrialStatus = "running"
    curve: tuple[TrialEvaluation, ...] = ()
    repeats: int | None = None
    parent: tuple[int, int] | None = None
    reason: str = ""
    seconds: float = 0.0
    search_point: Point = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The best score so far, which is that of the checkpoint that is kept.

        For a trial with a parent, the last score: the best may be the parent's.
        """
        if self.parent is not None and self.curve:
            return self.curve[-1].score
        return max((evaluation.score for evaluation in self.curve), default=None)

    @property
    def tokens(self) -> int:
        """Tokens trained on at the last evaluation."""
        return self.curve[-1].tokens if self.curve else 0

    def score_at(self, tokens: float) -> float:
        """Return the score at `tokens`, interpolated linearly; beyond the curve, its end."""
        before = [each for each in self.curve if each.tokens <= tokens]
        after = [each for each in self.curve if each.tokens > tokens]
        if not before or not after:
            return (before[-1:] or after[:1])[0].score
        left, right = before[-1], after[0]
        share = (tokens - left.tokens) / (right.tokens - left.tokens)
        return left.score + share * (right.score - left.score)


def without_repeats(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that are not repeats with another seed, by number."""
    return [trial for trial in trials if trial.repeats is None]


def rank_completed(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that trained to their end, best first, without repeats; ties by number."""
    ended = [
        trial for trial in without_repeats(trials) if trial.state == "complete" and trial.curve
    ]
    return sorted(ended, key=lambda trial: -(trial.score or 0.0))
