"""Predicted micro-batches that a global batch is cut into, from the lengths of its samples.

trainers/data/microbatch.py cuts as few as the token budget allows, of texts laid end to end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TOKEN_BUDGETS = {"cpu": 2048, "neuron": 16384, "tpu": 16384}  # of other devices 32768


def default_token_budget(kind: str) -> int:
    """Return the tokens a `kind` of device computes at once, unless the recipe says."""
    return TOKEN_BUDGETS.get(kind, 32768)


@dataclass(frozen=True)
class Lengths:
    """Distribution of the tokens of samples, as if uniform about their mean.

    spread: half the width of the distribution over its mean. 0 where all lengths are equal, 1 where
    they are uniform from 0 to twice the mean.
    """

    mean: float
    spread: float = 0.0

    @property
    def attended(self) -> float:
        """Tokens that a mean token attends to: E[s^2] / E[s]."""
        return self.mean * (1 + self.spread**2 / 3)

    @classmethod
    def from_samples(cls, values: np.ndarray) -> Lengths:
        """Return the uniform distribution of the same mean and variance as tokens [n]."""
        mean = float(values.mean())
        return cls(mean, math.sqrt(3 * float(values.var())) / mean)

    @classmethod
    def assume_even(cls, mean: float, longest: float) -> Lengths:
        """Assume lengths uniform about `mean`, as widely as `longest` and 0 allow."""
        return cls(mean, max(0.0, min(1.0, (longest - mean) / mean)))


def count_micro_batches(samples: int, at_once: float) -> int:
    """Return the micro-batches of `samples`, of which at most `at_once` fit into one."""
    return max(1, math.ceil(samples / at_once - 1e-9))
