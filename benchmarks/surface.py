"""A recorded surface: learning curves over a grid of learning rates and batch sizes."""

import csv
import functools
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.algorithms.trial import TrialEvaluation

Curve = tuple[TrialEvaluation, ...]


@dataclass(frozen=True)
class Surface:
    """Learning curves by (learning rate, batch size), all with as many evaluations."""

    curves: dict[tuple[float, int], Curve]

    @classmethod
    def from_directory(cls, directory: Path) -> "Surface":
        """Read the mean of the CSV files in a directory, one a seed.

        Exits if there are none, or their grids differ.
        """
        seeds = [read_curves(path) for path in sorted(directory.glob("*.csv"))]
        if not seeds or any(each.keys() != seeds[0].keys() for each in seeds):
            sys.exit(
                f"{directory}: no tables, or not of one grid; run `tune.py record` to complete them"
            )
        return cls({key: _mean_curve([curves[key] for curves in seeds]) for key in seeds[0]})

    @functools.cached_property
    def rates(self) -> list[float]:
        """Learning rates of the grid, ascending."""
        return sorted({rate for rate, _ in self.curves})

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Batch sizes of the grid, ascending."""
        return sorted({size for _, size in self.curves})

    @property
    def num_evals(self) -> int:
        """Evaluations of a run."""
        return min(len(curve) for curve in self.curves.values())

    @property
    def run_tokens(self) -> int:
        """Tokens of a whole run."""
        return max(curve[-1].tokens for curve in self.curves.values())

    @property
    def total_tokens(self) -> int:
        """Tokens of the grid."""
        return sum(curve[-1].tokens for curve in self.curves.values())

    @property
    def best(self) -> float:
        """Best score anywhere on the grid."""
        return max(evaluation.score for curve in self.curves.values() for evaluation in curve)

    def curve_at(self, rate: float, size: int) -> Iterator[TrialEvaluation]:
        """Interpolate the curve at a learning rate, clipped to the grid's, and one of its sizes."""
        right = next((r for r in self.rates if r >= rate), self.rates[-1])
        left = max((r for r in self.rates if r <= rate), default=self.rates[0])
        share = 0.0 if left == right else math.log(rate / left) / math.log(right / left)
        pairs = zip(self.curves[left, size], self.curves[right, size], strict=False)
        for one, other in pairs:
            yield TrialEvaluation(one.tokens, one.score + share * (other.score - one.score))


def read_curves(path: Path) -> dict[tuple[float, int], Curve]:
    """Read a CSV file of learning_rate, global_size, tokens and score."""
    curves: dict[tuple[float, int], list[TrialEvaluation]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (float(row["learning_rate"]), int(row["global_size"]))
            curves.setdefault(key, []).append(
                TrialEvaluation(int(row["tokens"]), float(row["score"]))
            )
    return {key: tuple(curve) for key, curve in curves.items()}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    return tuple(
        TrialEvaluation(
            round(statistics.fmean(evaluation.tokens for evaluation in evaluations)),
            statistics.fmean(evaluation.score for evaluation in evaluations),
        )
        for evaluations in zip(*curves, strict=True)
    )
