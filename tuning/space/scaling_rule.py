"""The scaling rule: search the learning rate at a reference batch size.

The best learning rate grows with the batch: linearly for SGD (Goyal et al. 2017, arXiv 1706.02677,
section 2.1), with the square root for Adam and its kin (Malladi et al. 2022, arXiv 2205.10782,
section 5; You et al. 2020, arXiv 1904.00962, for LAMB). Searched directly, the two settings are
correlated: the good region is a narrow diagonal, and a trial at one batch size says little about
another. So the sampler sees, beside the batch size, not the learning rate but

    rate at the reference = learning rate / (batch size / reference batch size) ^ power,

with the recipe's own batch size as the reference, and what it learns at one batch size holds for
all. A recipe's range of learning rates is then a range of the rate at the reference. Where the rule
is wrong, nothing is lost: both numbers are still searched. `--no-scaling-rule` turns it off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuning.space.space import Point, Range, Space

RATE, SIZE, NAME = "optimizer.learning_rate", "batch.global_size", "optimizer.name"


@dataclass(frozen=True)
class ScalingRule:
    """Maps points as searched to the settings of runs, and back.

    reference: the recipe's batch size; None where points are the settings themselves. optimizer:
    the recipe's, for points that name none.
    """

    reference: int | None
    optimizer: str

    @classmethod
    def for_space(cls, space: Space, size: int, optimizer: str, enabled: bool) -> "ScalingRule":
        """Return the rule, active if enabled and both learning rate and batch size are searched."""
        is_joint = isinstance(space.get(RATE), Range) and SIZE in space
        return cls(size if enabled and is_joint else None, optimizer)

    def to_settings(self, search_point: Point) -> Point:
        """Return the settings of the run for a point as searched."""
        return self._rescale(search_point, 1)

    def to_search_point(self, settings: Point) -> Point:
        """Return the point as searched for the settings of a run."""
        return self._rescale(settings, -1)

    def rate_factor(self, point: Mapping[str, object]) -> float:
        """Return learning rate / rate at the reference for the batch size in `point`."""
        if self.reference is None:
            return 1.0
        size, optimizer = point[SIZE], point.get(NAME, self.optimizer)
        assert isinstance(size, (int, float))
        return float((size / self.reference) ** (1.0 if optimizer == "sgd" else 0.5))

    def settings_space(self, space: Space) -> Space:
        """Return the space that the settings of runs lie in: `space`, its learning rates scaled."""
        rates = space.get(RATE)
        if self.reference is None or not isinstance(rates, Range):
            return space
        names = space[NAME].bounds if NAME in space else (self.optimizer,)
        factors = [
            self.rate_factor({SIZE: size, NAME: name})
            for size in space[SIZE].bounds
            for name in names
        ]
        wider = replace(rates, low=rates.low * min(factors), high=rates.high * max(factors))
        return {**space, RATE: wider}

    def _rescale(self, point: Point, power: int) -> Point:
        if self.reference is None:
            return point
        rate = point[RATE]
        assert isinstance(rate, (int, float))
        return {**point, RATE: rate * self.rate_factor(point) ** power}
