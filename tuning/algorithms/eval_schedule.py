"""When trials are looked at: after equal shares of the work, whatever their batch size.

A run's work is counted in samples, so that trials with small and large batches, which take many and
few steps, are evaluated after the same share of it. Trials that are long against their evaluation
are looked at more often; in all, looking costs about a tenth of training, or a little more where
there are just four looks. Knows no Ray.
"""

import math
from dataclasses import dataclass

from trainers.config.recipe import Recipe
from tuning.space.space import with_point

LOOKS = (16, 8, 4)  # evaluations of a run; the last number is the least
SHARE = 0.1  # of the work that evaluation may be
# A sample that is evaluated is computed forward; one that is trained on, forward and backward,
# which is twice as much again.
EVALUATED = 1 / 3


@dataclass(frozen=True)
class Pace:
    """The rhythm of a search.

    reference: the recipe's own, trial 0, by which `total_tokens` and rungs are counted. samples and
    tokens: of all training rows. looks: evaluations of a whole run, on so many validation samples.
    """

    reference: Recipe
    train_samples: int
    train_tokens: int
    looks: int
    validation_samples: int = 0

    @classmethod
    def of(
        cls, reference: Recipe, train_samples: int, train_tokens: int, validation_samples: int
    ) -> "Pace":
        """As many looks as a tenth of the training work pays, at least the fewest."""
        once = validation_samples * EVALUATED / _samples(reference, train_samples)
        looks = next((looks for looks in LOOKS if looks * once <= SHARE), LOOKS[-1])
        return cls(reference, train_samples, train_tokens, looks, validation_samples)

    @property
    def total_samples(self) -> int:
        """That the recipe's own settings train on."""
        return _samples(self.reference, self.train_samples)

    @property
    def total_tokens(self) -> float:
        """That the recipe's own settings train on."""
        return self.total_samples * self.train_tokens / self.train_samples

    @property
    def rungs(self) -> tuple[float, ...]:
        """Tokens at which trials are compared: halves of the whole, down to the first look."""
        halvings = int(math.log2(self.looks))
        return tuple(self.total_tokens / 2**by for by in range(halvings, 0, -1))

    def paced(self, recipe: Recipe) -> Recipe:
        """`recipe` looked at so often; nothing that it computes changes.

        Its patience, counted in evaluations, lasts for as many samples as before. A number of
        steps to end at is the reference's number of samples: a larger batch is no larger budget.
        """
        size = recipe.batch.global_size
        point: dict[str, int] = {"checkpoints.keep": 1}
        if recipe.stopping.max_steps is not None:
            steps = recipe.stopping.max_steps * self.reference.batch.global_size / size
            point["stopping.max_steps"] = max(1, round(steps))
            recipe = with_point(recipe.model_dump(mode="json"), point)
        epoch = math.ceil(self.train_samples / size)
        before = self.reference.evaluation.every_steps
        waited = self.train_samples if before is None else before * self.reference.batch.global_size
        samples = _samples(recipe, self.train_samples)
        every = max(1, round(samples / (self.looks * size)))
        every = min(every, epoch * recipe.stopping.epochs)
        point["evaluation.every_steps"] = every
        if recipe.stopping.patience is not None:
            patience = recipe.stopping.patience * waited / (every * size)
            point["stopping.patience"] = max(1, math.ceil(patience))
        return with_point(recipe.model_dump(mode="json"), point)


def _samples(recipe: Recipe, train_samples: int) -> int:
    samples = train_samples * recipe.stopping.epochs
    if recipe.stopping.max_steps is not None:
        samples = min(samples, recipe.stopping.max_steps * recipe.batch.global_size)
    return samples
