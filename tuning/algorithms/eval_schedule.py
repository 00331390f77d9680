"""When trials are evaluated: after equal shares of their samples, whatever the batch size.

Trials whose training is long against an evaluation are evaluated more often; in all, evaluation
costs about a tenth of training, or a little more where four evaluations already cost that.
"""

import math
from dataclasses import dataclass

from trainers.config.recipe import Recipe
from tuning.space.space import apply_point

EVAL_COUNTS = (16, 8, 4)  # evaluations of a run: the most that MAX_EVAL_SHARE allows, at least 4
MAX_EVAL_SHARE = 0.1  # of the work of training
EVAL_COST = 1 / 3  # of a training sample: forward alone, and backward costs twice as much as that


@dataclass(frozen=True)
class EvalSchedule:
    """The evaluations of every trial of a search.

    reference: the recipe of trial 0, which defines `total_tokens` and rungs. train_samples,
    train_tokens: of all training rows. num_evals: of a whole run.
    """

    reference: Recipe
    train_samples: int
    train_tokens: int
    num_evals: int
    validation_samples: int = 0

    @classmethod
    def for_recipe(
        cls, reference: Recipe, train_samples: int, train_tokens: int, validation_samples: int
    ) -> "EvalSchedule":
        """Return the schedule with the most evaluations that `MAX_EVAL_SHARE` allows."""
        share = validation_samples * EVAL_COST / _total_samples(reference, train_samples)
        num_evals = next((n for n in EVAL_COUNTS if n * share <= MAX_EVAL_SHARE), EVAL_COUNTS[-1])
        return cls(reference, train_samples, train_tokens, num_evals, validation_samples)

    @property
    def total_samples(self) -> int:
        """Samples that the reference trains on."""
        return _total_samples(self.reference, self.train_samples)

    @property
    def total_tokens(self) -> float:
        """Tokens that the reference trains on."""
        return self.total_samples * self.train_tokens / self.train_samples

    @property
    def rungs(self) -> tuple[float, ...]:
        """Tokens at which trials are compared: the total, halved down to the first evaluation."""
        halvings = int(math.log2(self.num_evals))
        return tuple(self.total_tokens / 2**by for by in range(halvings, 0, -1))

    def apply_to(self, recipe: Recipe) -> Recipe:
        """Return `recipe` evaluated on this schedule.

        Its patience, counted in evaluations, lasts for as many samples as before. max_steps
        becomes the reference's number of samples: a larger batch is no larger budget.
        """
        size = recipe.global_batch_size
        point: dict[str, int] = {"checkpoints.keep": 1}
        if recipe.stopping.max_steps is not None:
            steps = recipe.stopping.max_steps * self.reference.global_batch_size / size
            point["stopping.max_steps"] = max(1, round(steps))
            recipe = apply_point(recipe.model_dump(mode="json"), point)
        steps_per_epoch = math.ceil(self.train_samples / size)
        samples = _total_samples(recipe, self.train_samples)
        every_steps = max(1, round(samples / (self.num_evals * size)))
        every_steps = min(every_steps, steps_per_epoch * recipe.epochs)
        point["evaluation.every_steps"] = every_steps
        if recipe.stopping.patience is not None:
            steps_before = self.reference.evaluation.every_steps
            samples_before = (
                self.train_samples
                if steps_before is None
                else steps_before * self.reference.global_batch_size
            )
            patience = recipe.stopping.patience * samples_before / (every_steps * size)
            point["stopping.patience"] = max(1, math.ceil(patience))
        return apply_point(recipe.model_dump(mode="json"), point)


def _total_samples(recipe: Recipe, train_samples: int) -> int:
    samples = train_samples * recipe.epochs
    if recipe.stopping.max_steps is not None:
        samples = min(samples, recipe.stopping.max_steps * recipe.global_batch_size)
    return samples
