"""The settings that a recipe leaves `auto`: learning rate, batch size and passes over the rows.

They follow from the number of training rows and the width of the model: what a few hundred rows
lack is not rows but optimizer steps. The learning rate is the best of the recorded surface of the
demo, two seeds of 28 runs of a model 384 wide (`benchmarks/data/surface-reviews`); it grows with
the square root of the batch (see `tuning/space/scaling_rule.py`), and falls with the square of the
width, which gives BERT-base and BERT-large their published rates (Devlin et al. 2019, appendix
A.3).
"""

import math
from dataclasses import dataclass
from typing import Any

from trainers.config.recipe import AUTO, Recipe

SMALL_BATCH, LARGE_BATCH = 16, 32
SMALL_ROWS = 2000  # below, batches are small: more steps from the same rows
# Chosen, not measured on a grid yet (`benchmarks/first_hour.py --surface` records one). 24 steps,
# as 300 rows had with batches of 32 and three epochs, left classes that were never predicted.
STEPS_NEEDED, STEPS_WARNED = 240, 60
LEAST_EPOCHS, MOST_EPOCHS = 3, 20
RATE, WIDTH = 1.2e-4, 384  # at SMALL_BATCH, of a pretrained model so wide
SCRATCH_RATE = 5e-4  # of a model that starts from random weights; customary, not measured
LARGEST_GROWTH = 8.0  # of the rate with the batch
AUTO_KEYS = ("batch.global_size", "optimizer.learning_rate", "stopping.epochs")


@dataclass(frozen=True)
class ChosenSettings:
    """What `auto` became, and of how many optimizer steps the run is.

    rows: training samples; None where they are unknown, and then many.
    """

    recipe: Recipe
    values: dict[str, int | float]
    rows: int | None

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None where the rows are unknown and no setting says it."""
        recipe, limit = self.recipe, self.recipe.stopping.max_steps
        if self.rows is None:
            return limit
        steps = -(-self.rows // recipe.global_batch_size) * recipe.epochs
        return steps if limit is None else min(steps, limit)

    def to_lines(self) -> tuple[str, ...]:
        """Describe what was chosen, and warn, for a person; () where there is nothing to say."""
        chosen = ", ".join(f"{key} = {value:g}" for key, value in self.values.items())
        lines = [f"settings  chosen for these rows: {chosen}"] if chosen else []
        return (*lines, *([f"warning   {self.warning}"] if self.warning else []))

    @property
    def warning(self) -> str:
        """Why the run is too short to learn, and the setting to change; "" where it is not."""
        steps, recipe = self.num_steps, self.recipe
        pretrained = recipe.model.name not in ("random", "linear")
        if steps is None or steps >= STEPS_WARNED or not pretrained:
            return ""
        if recipe.stopping.max_steps == steps:
            way_out = f"raise stopping.max_steps to {STEPS_NEEDED}"
        else:
            wanted = _epochs_for(self.rows or 1, recipe.global_batch_size)
            way_out = f"set stopping.epochs={max(wanted, recipe.epochs + 1)}, or leave it auto"
        return f"{steps} optimizer steps are too few to learn from: {way_out}"


def choose_settings(recipe: Recipe, rows: int | None, hidden_size: int) -> ChosenSettings:
    """Replace what `recipe` leaves `auto` by numbers; what it states stays.

    rows: training samples, None for many. hidden_size: of the model; 0 of a linear one.
    """
    values: dict[str, int | float] = {}
    is_small = rows is not None and rows < SMALL_ROWS
    size = SMALL_BATCH if is_small else LARGE_BATCH
    if recipe.batch.global_size == AUTO:
        values["batch.global_size"] = size
    else:
        size = recipe.global_batch_size
    if recipe.optimizer.learning_rate == AUTO:
        values["optimizer.learning_rate"] = _learning_rate(recipe, size, hidden_size)
    if recipe.stopping.epochs == AUTO:
        values["stopping.epochs"] = LEAST_EPOCHS if rows is None else _epochs_for(rows, size)
    return ChosenSettings(apply_values(recipe, values), values, rows)


def stated_settings(recipe: Recipe) -> dict[str, int | float]:
    """Return the numbers of a recipe in which nothing is `auto` any more, by key."""
    values = recipe.global_batch_size, recipe.learning_rate, recipe.epochs
    return dict(zip(AUTO_KEYS, values, strict=True))


def apply_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """Return `recipe` with numbers for what it leaves `auto`; other keys are ignored."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if key in AUTO_KEYS and getattr(getattr(recipe, group), name) == AUTO:
            groups.setdefault(group, {})[name] = value
    changed = {
        group: getattr(recipe, group).model_copy(update=update) for group, update in groups.items()
    }
    return recipe.model_copy(update=changed)


def _learning_rate(recipe: Recipe, size: int, hidden_size: int) -> float:
    if recipe.optimizer.name == "sgd" or not hidden_size:
        return 0.1  # of standardised numbers; there is no customary one
    base = SCRATCH_RATE if recipe.model.name == "random" else RATE
    growth = min(LARGEST_GROWTH, math.sqrt(size / SMALL_BATCH))
    return float(f"{base * growth * min(1.0, WIDTH / hidden_size) ** 2:.1e}")


def _epochs_for(rows: int, size: int) -> int:
    """Return so many passes over `rows` that there are STEPS_NEEDED steps, within bounds."""
    wanted = math.ceil(STEPS_NEEDED / math.ceil(rows / size))
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
