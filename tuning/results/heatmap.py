"""The best score at each learning rate and batch size that was tried: a table of cells. Pure.

Batch sizes are as they were tried; learning rates are put in rows, even in their logarithm, where
there are many. Trials that were stopped, or still run, count with where they are expected to end.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuning.algorithms.sampler import expected
from tuning.algorithms.trial import Trial, completed, searched
from tuning.space.scaling_rule import RATE, SIZE

ROWS = 8  # of more learning rates than that


@dataclass(frozen=True)
class HeatMap:
    """rates: the middle of each row, rising. sizes: of each column, rising. scores: [rows, columns]
    with NaN where nothing was tried.
    """

    rates: tuple[float, ...]
    sizes: tuple[float, ...]
    scores: np.ndarray


def heat_map(trials: Sequence[Trial]) -> HeatMap | None:
    """The cells of a search; None where not both are searched, or no trial has a score."""
    points = _points(trials)
    if not points:
        return None
    edges = _edges(sorted({rate for rate, _, _ in points}))
    sizes = sorted({size for _, size, _ in points})
    scores = np.full((len(edges) - 1, len(sizes)), np.nan)
    for rate, size, score in points:
        row = sum(rate >= edge for edge in edges[1:-1])
        at = row, sizes.index(size)
        scores[at] = np.nanmax([scores[at], score])
    rates = tuple(math.sqrt(low * high) for low, high in itertools.pairwise(edges))
    return HeatMap(rates, tuple(sizes), scores)


def _points(trials: Sequence[Trial]) -> list[tuple[float, float, float]]:
    """(learning rate, batch size, score at the end) of each trial that has one."""
    ended = completed(trials)
    found = []
    for trial in searched(trials):
        rate, size = trial.point.get(RATE), trial.point.get(SIZE)
        score = expected(trial, ended)
        if isinstance(rate, (int, float)) and isinstance(size, (int, float)) and score is not None:
            found.append((float(rate), float(size), score))
    return found


def _edges(rates: Sequence[float]) -> list[float]:
    """Where rows end: between neighbours where they are few, else evenly. rates: rising."""
    logs = [math.log(rate) for rate in rates]
    if len(rates) == 1:
        return [rates[0] / 2, rates[0] * 2]
    if len(rates) > ROWS:
        return [float(edge) for edge in np.geomspace(rates[0], rates[-1], ROWS + 1)]
    inner = [(one + other) / 2 for one, other in itertools.pairwise(logs)]
    ends = 2 * logs[0] - inner[0], 2 * logs[-1] - inner[-1]
    return [math.exp(edge) for edge in (ends[0], *inner, ends[1])]
