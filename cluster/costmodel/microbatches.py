"""Predicted number and padding of the micro-batches that a global batch is cut into.

trainers/data/microbatch.py sorts samples by length and cuts them where padding and the overhead of
one more micro-batch together cost least; here the result is predicted from the mean and the spread
of lengths alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TOKEN_BUDGETS = {"cpu": 2048, "neuron": 16384, "tpu": 16384}  # of other devices 32768
HISTOGRAM_BINS = 32


def default_token_budget(kind: str) -> int:
    """Return the padded tokens a `kind` of device computes at once, unless the recipe says."""
    return TOKEN_BUDGETS.get(kind, 32768)


def micro_batch_overhead(kind: str) -> int:
    """Return the tokens whose computing costs as much as launching one more micro-batch."""
    return 100 if kind == "cpu" else 2048


@dataclass(frozen=True)
class Lengths:
    """Distribution of the tokens of samples.

    spread: W such that k micro-batches of sorted samples pad W / k of the tokens. For lengths of
    density f, W = (integral of sqrt(f))^2 / (2 mean): the bin edges that pad least lie densest
    where sqrt(f) is large (Panter and Dite 1951, Proc. IRE 39, 44-48, for squared error). 0 where
    all lengths are equal, 1 where they are uniform from 0 to twice the mean.
    """

    mean: float
    spread: float = 0.0

    @property
    def attended(self) -> float:
        """Tokens that a mean token attends to: E[s^2] / E[s] of uniform lengths."""
        return self.mean * (1 + self.spread**2 / 3)

    @classmethod
    def from_samples(cls, values: np.ndarray) -> Lengths:
        """Estimate from the tokens of each sample, [n], by a histogram."""
        counts, edges = np.histogram(values, HISTOGRAM_BINS, (0, values.max() + 1))
        roots = np.sqrt(counts / len(values) * np.diff(edges)).sum()
        mean = float(values.mean())
        is_spread = values.min() < values.max()
        return cls(mean, float(roots**2 / (2 * mean)) if is_spread else 0.0)

    @classmethod
    def assume_even(cls, mean: float, longest: float) -> Lengths:
        """Assume lengths uniform about `mean`, as widely as `longest` and 0 allow."""
        return cls(mean, max(0.0, min(1.0, (longest - mean) / mean)))


@dataclass(frozen=True)
class PredictedCut:
    """count: micro-batches. padded: computed tokens over real ones."""

    count: int
    padded: float


def predict_cut(samples: int, lengths: Lengths, at_once: float, overhead: float) -> PredictedCut:
    """Predict the cut of `samples`, of which at most `at_once` fit a micro-batch.

    overhead: tokens that one more micro-batch is worth.
    """
    needed = max(1, math.ceil(samples / at_once - 1e-9))
    if not lengths.spread:
        return PredictedCut(needed, 1.0)
    # k micro-batches cost k * overhead for their launches and W * tokens / k for padding; the sum
    # is least at k = sqrt(W * tokens / overhead). The token budget may need more of them.
    best = math.sqrt(lengths.spread * samples * lengths.mean / max(overhead, 1.0))
    count = min(samples, max(needed, round(best)))
    # The longest sample of a micro-batch is not padded: g samples pad as W / k * (g - 1) / g.
    return PredictedCut(count, 1.0 + lengths.spread * (1 / count - 1 / samples))
