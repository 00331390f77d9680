"""Robust nonlinear least squares: Levenberg-Marquardt with a Cauchy loss and numerical slopes.

For a handful of constants fitted to log ratios, so that SciPy need not be installed.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Scale of the Cauchy loss: a residual beyond it counts less and less. The first pass is nearly
# plain least squares, so that a start far from the optimum still has slopes to follow; the second
# counts measurements little that stay more than a tenth off.
OUTLIER_SCALES = (1.0, 0.1)
MAX_STEP = 0.5  # of a parameter's logarithm in a round: far-off slopes overshoot
TOLERANCE = 1e-4


def least_squares(
    residuals: Callable[[FloatArray], FloatArray], start: FloatArray, rounds: int = 20
) -> FloatArray:
    """Return the parameters near `start` of the least `residuals`, in `rounds` a pass at most."""
    for outlier in OUTLIER_SCALES:
        start = _minimize_loss(residuals, start, rounds, outlier)
    return start


def _minimize_loss(
    residuals: Callable[[FloatArray], FloatArray], at: FloatArray, rounds: int, outlier: float
) -> FloatArray:
    def loss(errors: FloatArray) -> float:
        return float(np.sum(outlier**2 * np.log1p((errors / outlier) ** 2)))

    damping, now = 1e-2, residuals(at)
    for _ in range(rounds):
        slopes = _numerical_jacobian(residuals, at, now)
        # Iteratively reweighted: the weight of a residual is the slope of the loss over its own.
        weighted = slopes * (1 / (1 + (now / outlier) ** 2))[:, None]
        curvature = weighted.T @ slopes
        damped = curvature + damping * np.diag(np.diag(curvature) + 1e-9)
        moved = at - np.clip(np.linalg.solve(damped, weighted.T @ now), -MAX_STEP, MAX_STEP)
        then = residuals(moved)
        gain = loss(now) - loss(then)
        if gain <= 0:  # overshot: damp more, towards a short step down the gradient
            damping *= 5
            continue
        at, now, damping = moved, then, damping / 3
        if gain < TOLERANCE * outlier**2:
            break
    return at


def _numerical_jacobian(
    residuals: Callable[[FloatArray], FloatArray], at: FloatArray, now: FloatArray
) -> FloatArray:
    """Return the slope of each residual with each parameter, [residuals, parameters]."""
    nudge = 1e-3
    moved = at + nudge * np.eye(len(at))
    return np.stack([(residuals(each) - now) / nudge for each in moved], axis=1)
