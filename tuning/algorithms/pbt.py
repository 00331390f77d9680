"""Population-based training: settings that change while a run goes on.

For settings that are best when they change, as a learning rate is, the search is not for a value
but for a schedule (Jaderberg et al. 2017, arXiv 1711.09846). A population trains in rounds of equal
tokens. After each, the worst quarter take the checkpoint of one of the best quarter, and its
settings, each moved up or down by a fifth; the others go on as they were. A round of a member is a
trial of its own, whose parent is the trial it goes on from. Trial 0, the recipe's own, is no member
and trains in one piece. Pure.
"""

import random
from collections.abc import Sequence

from cluster.settings import SettingsError
from tuning.algorithms.sampler import seed_of, spread
from tuning.algorithms.trial import Trial
from tuning.space.scaling_rule import Prior
from tuning.space.space import Choices, Dimension, Point, Space, Value

ROUNDS = 4
QUARTER = 4
MOVE = 1.2
# What may change while a run goes on: the optimizer's numbers, and dropout. Anything else would
# change the model, or what a step means.
CHANGEABLE = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.eps",
    "optimizer.max_grad_norm",
    "model.dropout",
    "model.attention_dropout",
)


def check(space: Space) -> None:
    """Raise SettingsError where something is searched that cannot change while a run goes on."""
    for key in space:
        if key not in CHANGEABLE:
            raise SettingsError(
                f"--sampler pbt changes settings while a run goes on, but tune.{key} cannot "
                f"change; name ranges of {', '.join(CHANGEABLE[:4])}, ... alone"
            )


def round_of(number: int, members: int) -> int:
    """Which round, from 0, trial `number` belongs to; trial 0 to none: -1."""
    return (number - 1) // members


def end_of(number: int, members: int, total_tokens: float) -> float:
    """Tokens at which trial `number` ends."""
    if number == 0:
        return total_tokens
    return total_tokens * (round_of(number, members) + 1) / ROUNDS


def member(
    space: Space, prior: Prior, known: Sequence[Trial], members: int, seed: int
) -> Trial | None:
    """The next round of the next member; None when all are done, or the round before still runs.

    known: all trials of the search, by number.
    """
    number = len(known)
    this = round_of(number, members)
    if this >= ROUNDS:
        return None
    if this == 0:
        point = spread(space, number, seed)
        return Trial(number, prior.settings(point), seed, searched=point)
    before = [trial for trial in known if round_of(trial.number, members) == this - 1]
    if any(trial.state == "running" for trial in before):
        return None
    ranked = sorted((t for t in before if t.state != "failed" and t.curve), key=_last)
    if not ranked:
        return None
    drawn = random.Random(seed_of(seed, number, 0))
    few = max(1, len(ranked) // QUARTER)
    own = known[number - members]
    if own in ranked[few:]:
        return _onward(number, own, own.searched, prior, seed)
    parent = drawn.choice(ranked[-few:])
    point = {key: _moved(space[key], value, drawn) for key, value in parent.searched.items()}
    return _onward(number, parent, point, prior, seed)


def _onward(number: int, parent: Trial, point: Point, prior: Prior, seed: int) -> Trial:
    line = (parent.number, parent.tokens)
    return Trial(number, prior.settings(point), seed, parent=line, searched=point)


def _last(trial: Trial) -> float:
    return trial.curve[-1].score


def _moved(dimension: Dimension, value: Value, drawn: random.Random) -> Value:
    """The value a fifth up or down, or its neighbour among choices; never out of the range."""
    up = drawn.random() < 0.5
    if isinstance(dimension, Choices):
        place = dimension.values.index(value) + (1 if up else -1)
        return dimension.values[min(max(place, 0), len(dimension.values) - 1)]
    assert isinstance(value, (int, float))
    moved = value * MOVE if up else value / MOVE
    moved = min(max(moved, dimension.low), dimension.high)
    return round(moved) if dimension.whole else moved
