"""How far a run was from done: whether its loss was still falling, and what to change then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.recipe import Recipe

LEAST_STEPS = 10  # for anything to be said of them
LAST_PART = 0.2  # of the steps, compared with as many before
LEAST_FALL = 0.02  # of the loss
LEAST_ERRORS = 2.0  # standard errors of the difference


@dataclass(frozen=True)
class Training:
    """How a run went: the rows of metrics.jsonl, and where it ended.

    address: of the run. candidate: what the tested weights are called. thresholds: tuned on
    `tuned_rows` validation rows, as was the temperature, which divides the logits. average: what
    came of `checkpoints.average`, as in result.json.
    """

    recipe: Recipe
    address: str
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    stopped_early: bool = False
    thresholds: Mapping[str, float] | None = None
    tuned_rows: int = 0
    candidate: str = "fine-tuned"
    temperature: float = 1.0
    average: Mapping[str, Any] | None = None


def is_loss_falling(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether the loss was still falling when a run ended.

    steps, evaluations: rows of metrics.jsonl. The training loss of the last fifth of the steps is
    lower than that of the fifth before, beyond its scatter, and the last evaluation has the lowest
    validation loss, where there are some: else the run had begun to learn by heart.
    """
    held_out = [row["metrics"]["loss"] for row in evaluations if "loss" in row["metrics"]]
    if len(held_out) > 1 and held_out[-1] > min(held_out):
        return False
    losses = np.array([row["loss"] for row in steps], dtype=np.float64)
    if len(losses) < LEAST_STEPS or not np.isfinite(losses).all():
        return False
    count = max(3, int(len(losses) * LAST_PART))
    before, last = losses[-2 * count : -count], losses[-count:]
    fall = before.mean() - last.mean()
    error = np.sqrt(before.var(ddof=1) / len(before) + last.var(ddof=1) / len(last))
    return bool(fall > LEAST_FALL * abs(before.mean()) and fall > LEAST_ERRORS * error)


def advise_longer_run(recipe: Recipe, stopped_early: bool, as_setting: bool = False) -> str:
    """Say which setting makes a run longer; as_setting: as `key=value`."""
    stopping = recipe.stopping
    if stopped_early and stopping.patience is not None:
        key, value = "stopping.patience", stopping.patience + 2
        now: object = stopping.patience
    elif stopping.max_steps is not None:
        key, value, now = "stopping.max_steps", 3 * stopping.max_steps, stopping.max_steps
    else:
        key, value, now = "stopping.epochs", 3 * recipe.epochs, recipe.epochs
    return f"{key}={value}" if as_setting else f"raise {key} from {now} to {value}"
