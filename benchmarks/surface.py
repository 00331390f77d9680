"""A recorded surface: learning curves over a grid of learning rates and batch sizes, as a table.

Knows no search; `tune.py` plays searches over it.
"""

import csv
import functools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.prior import RATE, SIZE
from tuning.trial import Look

Curve = tuple[Look, ...]


@dataclass(frozen=True)
class Surface:
    """Learning curves by (learning rate, batch size), all with as many looks."""

    curves: dict[tuple[float, int], Curve]

    @classmethod
    def read(cls, path: Path) -> "Surface":
        """The table in a CSV file: learning_rate, global_size, tokens, score."""
        curves: dict[tuple[float, int], list[Look]] = {}
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (float(row["learning_rate"]), int(row["global_size"]))
                curves.setdefault(key, []).append(Look(int(row["tokens"]), float(row["score"])))
        return cls({key: tuple(curve) for key, curve in curves.items()})

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


def table(runs: Sequence[Path], path: Path) -> None:
    """Write the mean curves of grid searches, whose trials all ran to their end, as a surface."""
    curves: dict[tuple[float, int], list[list[list[float]]]] = {}
    for run in runs:
        for point, curve in _grid(run):
            curves.setdefault(point, []).append(curve)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["learning_rate", "global_size", "tokens", "score"])
        for (rate, size), of_seeds in sorted(curves.items()):
            if len(of_seeds) != len(runs):
                sys.exit(f"learning rate {rate:g}, batch size {size}: not in every run")
            for looks in zip(*of_seeds, strict=False):
                tokens, score = (statistics.fmean(column) for column in zip(*looks, strict=True))
                writer.writerow([rate, size, round(tokens), f"{score:.6f}"])


def _grid(run: Path) -> Iterator[tuple[tuple[float, int], list[list[float]]]]:
    """(learning rate, batch size) and the curve of each run of a grid search."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    sign = -1 if result["lower_is_better"] else 1
    chosen = result["space"].keys() == {RATE, SIZE}
    if not chosen or any(trial["state"] != "complete" for trial in result["trials"]):
        sys.exit(f"{run}: not a grid of {RATE} and {SIZE} whose trials all ran to their end")
    rates, sizes = _choices(result["space"][RATE]), _choices(result["space"][SIZE])
    for trial in result["trials"]:
        rate, size = trial["settings"][RATE], trial["settings"][SIZE]
        if trial["repeats"] is None and rate in rates and size in sizes:
            yield (rate, size), [[tokens, sign * value] for tokens, value in trial["curve"]]


def _choices(words: str) -> list[float]:
    return [float(word) for word in words.removeprefix("one of ").split(", ")]
