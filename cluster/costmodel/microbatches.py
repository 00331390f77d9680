"""How a global batch will be cut into micro-batches, foretold from how its lengths are spread.

trainers/data/microbatch.py sorts samples by length and cuts them where padding and one more
micro-batch together cost least. Here are the expected number of pieces and the padding that is
left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# As trainers/distributed/device.py has them: a device's token budget unless the recipe says
# otherwise, and the tokens that one more micro-batch is worth.
TOKENS_AT_ONCE, CPU_TOKENS_AT_ONCE = 32768, 2048
OVERHEAD, CPU_OVERHEAD = 2048, 100
INTERVALS = 32  # of a histogram of lengths


def budget_of(kind: str) -> int:
    """Tokens that a `kind` of device takes at once."""
    return CPU_TOKENS_AT_ONCE if kind == "cpu" else TOKENS_AT_ONCE


def overhead_of(kind: str) -> int:
    """Tokens that one more micro-batch is worth on a `kind` of device."""
    return CPU_OVERHEAD if kind == "cpu" else OVERHEAD


@dataclass(frozen=True)
class Lengths:
    """Tokens of samples.

    mean: of a sample. spread: padding that is left, as a share of the tokens, times the number of
    pieces: W = (integral of sqrt(f))^2 / (2 mean) for lengths of density f, as intervals that lose
    least lie where sqrt(f) says (Panter and Dite 1951, Proc. IRE 39, 44-48, for another loss).
    0: all are equal; 1: anything from nothing to twice the mean.
    """

    mean: float
    spread: float = 0.0

    @property
    def attended(self) -> float:
        """Tokens that a mean token's sample has: E[s^2] / E[s], were they evenly spread."""
        return self.mean * (1 + self.spread**2 / 3)

    @classmethod
    def of(cls, values: np.ndarray) -> Lengths:
        """Of samples with so many tokens each, [n], by a histogram."""
        counts, edges = np.histogram(values, INTERVALS, (0, values.max() + 1))
        roots = np.sqrt(counts / len(values) * np.diff(edges)).sum()
        mean = float(values.mean())
        is_spread = values.min() < values.max()
        return cls(mean, float(roots**2 / (2 * mean)) if is_spread else 0.0)

    @classmethod
    def unknown(cls, mean: float, longest: float) -> Lengths:
        """Evenly spread about `mean`, as far as `longest` and 0 allow."""
        return cls(mean, max(0.0, min(1.0, (longest - mean) / mean)))


@dataclass(frozen=True)
class Cut:
    """count: pieces. padded: computed tokens for each one that is there."""

    count: int
    padded: float


def foretold(samples: int, lengths: Lengths, at_once: float, overhead: float) -> Cut:
    """The cut of `samples`, of which `at_once` fit.

    overhead: tokens that one more piece is worth. k pieces cost k overhead + W tokens / k, which is
    least at sqrt(W tokens / overhead). A piece of g samples pads g - 1 of them.
    """
    needed = max(1, math.ceil(samples / at_once - 1e-9))
    if not lengths.spread:
        return Cut(needed, 1.0)
    best = math.sqrt(lengths.spread * samples * lengths.mean / max(overhead, 1.0))
    count = min(samples, max(needed, round(best)))
    return Cut(count, 1.0 + lengths.spread * (1 / count - 1 / samples))
