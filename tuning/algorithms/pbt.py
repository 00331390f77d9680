"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846).

Settings such as the learning rate are best when they change during a run, so a population searches
for a schedule instead of a value. Members train in rounds of equal tokens. After each, the worst
quarter copy the checkpoint of a member of the best quarter, with its settings, each moved up or
down by a fifth; the others continue as they were. A round of a member is a trial of its own, whose
parent is the trial it continues. Trial 0, the recipe's own, is no member and trains in one piece.
"""

import random
from collections.abc import Sequence

from cluster.settings import SettingsError
from tuning.algorithms.sampler import derive_seed, low_discrepancy_point
from tuning.algorithms.trial import Trial
from tuning.space.scaling_rule import ScalingRule
from tuning.space.space import Choices, Dimension, Space, Value

ROUNDS = 4
QUARTILE = 4  # one member in so many is replaced, and one in so many is copied
PERTURBATION = 1.2
# Settings that may change during a run: the optimizer's numbers, and dropout. Anything else would
# change the model, or what a step means.
MUTABLE_KEYS = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.eps",
    "optimizer.max_grad_norm",
    "model.dropout",
    "model.attention_dropout",
)


def check_mutable(space: Space) -> None:
    """Raise SettingsError if a searched setting cannot change during a run."""
    for key in space:
        if key not in MUTABLE_KEYS:
            raise SettingsError(
                f"--sampler pbt changes settings while a run goes on, but tune.{key} cannot "
                f"change; name ranges of {', '.join(MUTABLE_KEYS[:4])}, ... alone"
            )


def round_index(number: int, population_size: int) -> int:
    """Return the round, from 0, of trial `number`; -1 for trial 0, which belongs to none."""
    return (number - 1) // population_size


def end_tokens(number: int, population_size: int, total_tokens: float) -> float:
    """Return the tokens at which trial `number` ends."""
    if number == 0:
        return total_tokens
    return total_tokens * (round_index(number, population_size) + 1) / ROUNDS


def next_member(
    space: Space, rule: ScalingRule, trials: Sequence[Trial], population_size: int, seed: int
) -> Trial | None:
    """Return the next round of the next member.

    None if all rounds are done, or the round before still runs. trials: all of the search, by
    number.
    """
    number = len(trials)
    this_round = round_index(number, population_size)
    if this_round >= ROUNDS:
        return None
    if this_round == 0:
        point = low_discrepancy_point(space, number, seed)
        return Trial(number, rule.to_settings(point), seed, search_point=point)
    before = [t for t in trials if round_index(t.number, population_size) == this_round - 1]
    if any(trial.state == "running" for trial in before):
        return None
    ranked = sorted(
        (trial for trial in before if trial.state != "failed" and trial.curve),
        key=lambda trial: trial.curve[-1].score,
    )
    if not ranked:
        return None
    rng = random.Random(derive_seed(seed, number, 0))
    quarter = max(1, len(ranked) // QUARTILE)
    parent = trials[number - population_size]
    point = parent.search_point
    if parent not in ranked[quarter:]:
        parent = rng.choice(ranked[-quarter:])
        point = {k: _perturb(space[k], value, rng) for k, value in parent.search_point.items()}
    origin = (parent.number, parent.tokens)
    return Trial(number, rule.to_settings(point), seed, parent=origin, search_point=point)


def _perturb(dimension: Dimension, value: Value, rng: random.Random) -> Value:
    """Move a value a fifth up or down, or to a neighbouring choice, within its bounds."""
    up = rng.random() < 0.5
    if isinstance(dimension, Choices):
        index = dimension.values.index(value) + (1 if up else -1)
        return dimension.values[min(max(index, 0), len(dimension.values) - 1)]
    assert isinstance(value, (int, float))
    moved = value * PERTURBATION if up else value / PERTURBATION
    moved = min(max(moved, dimension.low), dimension.high)
    return round(moved) if dimension.whole else moved
