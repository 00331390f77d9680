"""The scale of a regression: learned with mean 0 and deviation 1, told in its own unit.

A fresh head answers near 0, and prices near 100,000 are out of its reach for thousands of steps.
The bundle's last layer has the scale folded in, so whoever loads it gets the user's unit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import PreparedDataset


def describe_targets(recipe: Recipe, data: PreparedDataset) -> dict[str, float]:
    """Return mean, deviation, low and high of a regression's training targets; {} for others."""
    if recipe.task != "regression" or not len(data.train):
        return {}
    targets = np.asarray(data.train.targets, dtype=np.float64)
    return {
        "mean": float(targets.mean()),
        "deviation": float(targets.std()),
        "low": float(targets.min()),
        "high": float(targets.max()),
    }


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of the training targets, in the user's unit."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def for_recipe(cls, recipe: Recipe, data: PreparedDataset) -> "TargetScale":
        """Return the scale of the training rows; 0 and 1 where the recipe has none."""
        if recipe.task != "regression" or not recipe.data.standardize or not len(data.train):
            return cls()
        targets = np.asarray(data.train.targets, dtype=np.float64)
        return cls(float(targets.mean()), float(targets.std()) or 1.0)

    def standardize(self, targets: Tensor) -> Tensor:
        """Return targets as they are learned."""
        return targets if self == TargetScale() else (targets - self.mean) / self.deviation

    def restore(self, outputs: Tensor) -> Tensor:
        """Return outputs of the model in the user's unit."""
        return outputs if self == TargetScale() else outputs * self.deviation + self.mean

    @torch.no_grad()
    def unfold_from(self, layer: nn.Linear) -> None:
        """Scale a last layer that gives the user's unit, so that its outputs need `restore`."""
        layer.weight.div_(self.deviation)
        if layer.bias is not None:
            layer.bias.sub_(self.mean).div_(self.deviation)

    def fold_into(
        self, tensors: Iterable[tuple[str, Tensor]], layer: str
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors with those of the last layer scaled: its outputs need no `restore`."""
        if self == TargetScale():
            yield from tensors
            return
        for name, tensor in tensors:
            if name == f"{layer}.weight":
                yield name, tensor * self.deviation
            elif name == f"{layer}.bias":
                yield name, tensor * self.deviation + self.mean
            else:
                yield name, tensor
