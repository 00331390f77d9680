"""GPTQ: round the weights of a linear layer so that their errors cancel on its real inputs.

Channels are rounded one after the other, and the error of each is compensated by the channels still
to come (GPTQ, Frantar et al. 2022, arXiv 2210.17323, section 3). Kept only if it beats rounding to
nearest on inputs that it was not fitted to.
"""

from collections.abc import Sequence

import numpy as np

from serving.optimize.calibration import ActivationStats
from serving.optimize.smoothquant import (
    ActivationQuantizer,
    QuantizedLinear,
    choose_quantizer,
    error_variance,
    output_error,
    round_to_nearest,
)

DAMPING = 0.01  # of the mean square of a channel, so that channels which hardly vary are safe
BLOCK = 64  # channels whose errors are spread over the rest at once
HELD_OUT_EVERY = 4  # one input in so many judges, the others fit


def quantize_layers(
    weights: Sequence[np.ndarray], stats: ActivationStats, num_levels: int
) -> list[QuantizedLinear]:
    """Quantize layers of `weights` [channels, outputs], which share their inputs, to int8."""
    quantizer = choose_quantizer(stats, weights, num_levels)
    return [_quantize_layer(weight, quantizer, stats.sample, num_levels) for weight in weights]


def _quantize_layer(
    weight: np.ndarray, quantizer: ActivationQuantizer, sample: np.ndarray, num_levels: int
) -> QuantizedLinear:
    held_out = np.arange(len(sample)) % HELD_OUT_EVERY == 0

    def variance(rounded: tuple[np.ndarray, np.ndarray]) -> float:
        return error_variance(output_error(weight, quantizer, rounded, sample[held_out]))

    rounded = round_to_nearest(weight, quantizer, num_levels)
    if not held_out.all():
        compensated = round_with_compensation(weight, quantizer, sample[~held_out], num_levels)
        if variance(compensated) <= variance(rounded):
            rounded = compensated
    mean_error = output_error(weight, quantizer, rounded, sample).mean(axis=0)
    bias = (quantizer.shift @ weight - mean_error).astype(np.float32)
    return QuantizedLinear(quantizer, *rounded, bias)


def round_with_compensation(
    weight: np.ndarray, quantizer: ActivationQuantizer, sample: np.ndarray, num_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Round weights as `round_to_nearest`, compensating the error of each channel by others."""
    _, scale = round_to_nearest(weight, quantizer, num_levels)
    inputs = quantizer.fake_quantize(sample).astype(np.float64)
    # The output error of weights off by d is d^T H d with H = X^T X: channels whose inputs are
    # correlated can undo each other's error. The optimal undoing of an error in channel i is row i
    # of the inverse of H restricted to the channels still free, over its diagonal element. The rows
    # of the Cholesky factor of the inverse are all of these rows at once, up to a scale that the
    # division by the factor's diagonal cancels.
    hessian = inputs.T @ inputs
    hessian[np.diag_indices_from(hessian)] += DAMPING * max(np.diag(hessian).mean(), 1e-12)
    order = np.argsort(-np.diag(hessian))  # channels that matter most while all others can help
    factor = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    remaining = (weight / quantizer.factor[:, None])[order].astype(np.float64)
    levels = np.zeros(weight.shape, dtype=np.int8)
    for start in range(0, len(remaining), BLOCK):
        end = min(start + BLOCK, len(remaining))
        errors = np.empty((end - start, remaining.shape[1]))
        for channel in range(start, end):
            rounded = np.clip(np.rint(remaining[channel] / scale), -num_levels, num_levels)
            levels[order[channel]] = rounded
            error = (remaining[channel] - rounded * scale) / factor[channel, channel]
            remaining[channel + 1 : end] -= np.outer(factor[channel, channel + 1 : end], error)
            errors[channel - start] = error
        # The channels after the block get the errors of all of it at once: one matrix product
        # instead of one update of the whole matrix a channel.
        remaining[end:] -= factor[start:end, end:].T @ errors
    return levels, scale
