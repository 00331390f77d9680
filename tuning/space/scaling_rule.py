"""The scaling rule: learning rate and batch size are searched as one thing and another.

The best learning rate grows with the batch: linearly for SGD (Goyal et al. 2017, arXiv 1706.02677,
section 2.1), with the square root for Adam and its kin (Malladi et al. 2022, arXiv 2205.10782,
section 5; You et al. 2020, arXiv 1904.00962, for LAMB). So what is searched beside the batch size
is not the learning rate itself but the rate at the recipe's own batch size,

    rate at the reference = learning rate / (batch size / reference batch size) ^ power,

and what is learned at one batch size tells about all others. The range of the learning rate is then
that of the rate at the reference. It is a prior, not a law: where it is wrong, the search still
sees both numbers. `--no-scaling-rule` searches the learning rate itself. Knows no sampler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuning.space.space import Point, Range, Space

RATE, SIZE, NAME = "optimizer.learning_rate", "batch.global_size", "optimizer.name"


@dataclass(frozen=True)
class Prior:
    """How a point as it is searched becomes the settings of a run, and back.

    reference: the recipe's own batch size. optimizer: the recipe's own. None for reference: points
    are settings.
    """

    reference: int | None
    optimizer: str

    @classmethod
    def of(cls, space: Space, size: int, optimizer: str, wanted: bool) -> "Prior":
        """The rule where it is wanted, and both learning rate and batch size are searched."""
        joint = isinstance(space.get(RATE), Range) and SIZE in space
        return cls(size if wanted and joint else None, optimizer)

    def settings(self, searched: Point) -> Point:
        """The settings of a run for a point as it is searched."""
        return self._scaled(searched, 1)

    def searched(self, settings: Point) -> Point:
        """The point as it is searched, for the settings of a run."""
        return self._scaled(settings, -1)

    def factor(self, point: Mapping[str, object]) -> float:
        """How much more learning rate than at the reference the batch size of `point` is given."""
        if self.reference is None:
            return 1.0
        size, optimizer = point[SIZE], point.get(NAME, self.optimizer)
        assert isinstance(size, (int, float))
        return float((size / self.reference) ** (1.0 if optimizer == "sgd" else 0.5))

    def shown(self, space: Space) -> Space:
        """The space of the settings of runs: learning rates as they come out."""
        rates = space.get(RATE)
        if self.reference is None or not isinstance(rates, Range):
            return space
        names = space[NAME].ends if NAME in space else (self.optimizer,)
        factors = [
            self.factor({SIZE: size, NAME: name}) for size in space[SIZE].ends for name in names
        ]
        wider = replace(rates, low=rates.low * min(factors), high=rates.high * max(factors))
        return {**space, RATE: wider}

    def _scaled(self, point: Point, direction: int) -> Point:
        if self.reference is None:
            return point
        rate = point[RATE]
        assert isinstance(rate, (int, float))
        return {**point, RATE: rate * self.factor(point) ** direction}
