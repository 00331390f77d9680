"""Constants that explain measurements: robust least squares on the logarithm of a ratio.

By Levenberg and Marquardt with slopes by differences; a measurement far off counts little (Cauchy
loss), at first less so, that the beginning need not be near. For a handful of constants, so that
no solver need be installed. Knows no hardware.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

OUTLIERS = (1.0, 0.1)  # a logarithm this far off begins to count less: first, and then
LONGEST = 0.5  # a constant's logarithm moves at most so far in a round
DONE = 1e-4


def least_squares(errors: Callable[[Numbers], Numbers], at: Numbers, rounds: int = 20) -> Numbers:
    """The point near `at` where `errors` are least, after at most `rounds` of each kind."""
    for outlier in OUTLIERS:
        at = _descend(errors, at, rounds, outlier)
    return at


def _descend(
    errors: Callable[[Numbers], Numbers], at: Numbers, rounds: int, outlier: float
) -> Numbers:
    def loss(errors: Numbers) -> float:
        return float(np.sum(outlier**2 * np.log1p((errors / outlier) ** 2)))

    damping, now = 1e-2, errors(at)
    for _ in range(rounds):
        slopes = _slopes(errors, at, now)
        weighed = slopes * (1 / (1 + (now / outlier) ** 2))[:, None]
        curvature = weighed.T @ slopes
        damped = curvature + damping * np.diag(np.diag(curvature) + 1e-9)
        moved = at - np.clip(np.linalg.solve(damped, weighed.T @ now), -LONGEST, LONGEST)
        then = errors(moved)
        gained = loss(now) - loss(then)
        if gained <= 0:
            damping *= 5
            continue
        at, now, damping = moved, then, damping / 3
        if gained < DONE * outlier**2:
            break
    return at


def _slopes(errors: Callable[[Numbers], Numbers], at: Numbers, now: Numbers) -> Numbers:
    """The change of each error [errors, constants] with each constant."""
    nudge = 1e-3
    moved = at + nudge * np.eye(len(at))
    return np.stack([(errors(each) - now) / nudge for each in moved], axis=1)
