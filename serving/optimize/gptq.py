"""Weights in int8 whose errors make up for one another on the inputs that a layer really gets.

The weights of one channel after the other are rounded, and what that does to the outputs is taken
out of the channels that are still to come (GPTQ, Frantar et al. 2022, arXiv 2210.17323, section 3).
Kept only where it is better on inputs that it was not made from. Pure; knows no graph.
"""

from collections.abc import Sequence

import numpy as np

from serving.optimize.calibration import Seen
from serving.optimize.smoothquant import Product, Rounding, best, error, nearest, spread

DAMPING = 0.01  # of the mean square of a channel, so that channels which hardly vary are safe
BLOCK = 64  # channels whose errors are spread over the rest at once
JUDGED = 4  # every so manieth input judges


def products(weights: Sequence[np.ndarray], seen: Seen, num_levels: int) -> list[Product]:
    """Layers of `weights` [channels, outputs], which share the inputs that were `seen`, in int8."""
    rounding = best(seen, weights, num_levels)
    return [_product(weight, rounding, seen.sample, num_levels) for weight in weights]


def _product(
    weight: np.ndarray, rounding: Rounding, sample: np.ndarray, num_levels: int
) -> Product:
    judges = np.arange(len(sample)) % JUDGED == 0
    plain = nearest(weight, rounding, num_levels)
    rounded = plain
    if not judges.all():
        rounded = compensated(weight, rounding, sample[~judges], num_levels)
    here = sample[judges]
    if spread(error(weight, rounding, rounded, here)) > spread(
        error(weight, rounding, plain, here)
    ):
        rounded = plain
    mean = error(weight, rounding, rounded, sample).mean(axis=0)
    bias = (rounding.shift @ weight - mean).astype(np.float32)
    return Product(rounding, *rounded, bias)


def compensated(
    weight: np.ndarray, rounding: Rounding, sample: np.ndarray, num_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, the errors of some channels made up for by others."""
    _, scale = nearest(weight, rounding, num_levels)
    rows = rounding.inputs(sample).astype(np.float64)
    squares = rows.T @ rows
    squares[np.diag_indices_from(squares)] += DAMPING * max(np.diag(squares).mean(), 1e-12)
    order = np.argsort(-np.diag(squares))  # the channels that matter most while all can make up
    factor = np.linalg.cholesky(np.linalg.inv(squares[np.ix_(order, order)])).T
    left = (weight / rounding.factor[:, None])[order].astype(np.float64)
    levels = np.zeros(weight.shape, dtype=np.int8)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]))
        for channel in range(start, end):
            rounded = np.clip(np.rint(left[channel] / scale), -num_levels, num_levels)
            levels[order[channel]] = rounded
            missed = (left[channel] - rounded * scale) / factor[channel, channel]
            left[channel + 1 : end] -= np.outer(factor[channel, channel + 1 : end], missed)
            errors[channel - start] = missed
        left[end:] -= factor[start:end, end:].T @ errors
    return levels, scale
