"""A trial as a value: its settings, how far it has come, and what it was worth.

Scores are the recipe's metric, negated where lower is better: higher is always better here. Tokens
are those of the texts trained on since the start of the run; they measure how far a trial has come,
so that trials of different batch size are compared alike. Knows no store and no Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tuning.space.space import Point

# running: or to be gone on with. complete: trained to its end. stopped: not worth going on.
# failed: it cannot be trained; `reason` says why.
State = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Look:
    """One evaluation: after how many tokens, and the score."""

    tokens: int
    score: float


@dataclass(frozen=True)
class Trial:
    """One run of the search. number: from 0, the recipe's own settings.

    repeats: the number of the trial that this one repeats with another seed. parent: (number,
    tokens) of the trial whose checkpoint this one goes on from. seconds: it has trained and
    evaluated so far.
    """

    number: int
    point: Point
    seed: int
    state: State = "running"
    curve: tuple[Look, ...] = ()
    repeats: int | None = None
    parent: tuple[int, int] | None = None
    reason: str = ""
    seconds: float = 0.0
    searched: Point = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The best so far, which is what the trial's checkpoint is kept for.

        Of a trial that went on from another's checkpoint, the last: its best may be its parent's.
        """
        if self.parent is not None and self.curve:
            return self.curve[-1].score
        return max((look.score for look in self.curve), default=None)

    @property
    def tokens(self) -> int:
        """Seen at the last evaluation."""
        return self.curve[-1].tokens if self.curve else 0

    def at(self, tokens: float) -> float:
        """The score at `tokens`: on the line between two evaluations, or the nearest's."""
        return interpolated(self.curve, tokens)


def interpolated(curve: Sequence[Look], tokens: float) -> float:
    """The score of a curve of at least one look at `tokens`."""
    before = [look for look in curve if look.tokens <= tokens]
    after = [look for look in curve if look.tokens > tokens]
    if not before or not after:
        return (before[-1:] or after[:1])[0].score
    (left, right) = before[-1], after[0]
    share = (tokens - left.tokens) / (right.tokens - left.tokens)
    return left.score + share * (right.score - left.score)


def searched(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are not repetitions, by number."""
    return [trial for trial in trials if trial.repeats is None]


def completed(trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the search that trained to their end, best first; ties to the earlier."""
    ended = [trial for trial in searched(trials) if trial.state == "complete" and trial.curve]
    return sorted(ended, key=lambda trial: -(trial.score or 0.0))
