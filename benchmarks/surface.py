"""A recorded surface: learning curves over a grid of learning rates and batch sizes, as a table.

Knows no search; `tune.py` plays searches over it.
"""

import csv
import functools
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.algorithms.trial import Look

Curve = tuple[Look, ...]


@dataclass(frozen=True)
class Surface:
    """Learning curves by (learning rate, batch size), all with as many looks."""

    curves: dict[tuple[float, int], Curve]

    @classmethod
    def read(cls, place: Path) -> "Surface":
        """The mean of the CSV files in a directory, one a seed; each as `curves_of` reads it."""
        seeds = [curves_of(path) for path in sorted(place.glob("*.csv"))]
        if not seeds or any(each.keys() != seeds[0].keys() for each in seeds):
            sys.exit(f"{place}: no tables, or not of one grid; `tune.py record` ends what it began")
        return cls({key: _mean([curves[key] for curves in seeds]) for key in seeds[0]})

    @functools.cached_property
    def rates(self) -> list[float]:
        """Learning rates of the grid, rising."""
        return sorted({rate for rate, _ in self.curves})

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Batch sizes of the grid, rising."""
        return sorted({size for _, size in self.curves})

    @property
    def looks(self) -> int:
        """Evaluations of a run."""
        return min(len(curve) for curve in self.curves.values())

    @property
    def whole(self) -> int:
        """Tokens of a whole run."""
        return max(curve[-1].tokens for curve in self.curves.values())

    @property
    def work(self) -> int:
        """Tokens of the grid."""
        return sum(curve[-1].tokens for curve in self.curves.values())

    @property
    def best(self) -> float:
        """The best score anywhere on the grid."""
        return max(look.score for curve in self.curves.values() for look in curve)

    def curve(self, rate: float, size: int) -> Iterator[Look]:
        """The curve at a learning rate within the grid's, or the nearest, and one of its sizes."""
        right = next((r for r in self.rates if r >= rate), self.rates[-1])
        left = max((r for r in self.rates if r <= rate), default=self.rates[0])
        share = 0.0 if left == right else math.log(rate / left) / math.log(right / left)
        pairs = zip(self.curves[left, size], self.curves[right, size], strict=False)
        for one, other in pairs:
            yield Look(one.tokens, one.score + share * (other.score - one.score))


def curves_of(path: Path) -> dict[tuple[float, int], Curve]:
    """The table in a CSV file: learning_rate, global_size, tokens, score."""
    curves: dict[tuple[float, int], list[Look]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (float(row["learning_rate"]), int(row["global_size"]))
            curves.setdefault(key, []).append(Look(int(row["tokens"]), float(row["score"])))
    return {key: tuple(curve) for key, curve in curves.items()}


def _mean(curves: Sequence[Curve]) -> Curve:
    return tuple(
        Look(
            round(statistics.fmean(look.tokens for look in looks)),
            statistics.fmean(look.score for look in looks),
        )
        for looks in zip(*curves, strict=True)
    )
