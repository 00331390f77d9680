"""SmoothQuant: quantize the inputs of a linear layer to 8 bits, one scale for all channels.

Each channel is divided by a factor that its weights are multiplied with, so that no channel wastes
the levels of another and both are easy to round (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438,
equation 4). Before that, each channel is shifted to the middle of its range (Outlier Suppression+,
Wei et al. 2023, arXiv 2304.09145). The strength of the smoothing is chosen by the error of the
layer's outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.optimize.calibration import ActivationStats

INPUT_LEVELS = 255
SMOOTHINGS = (0.7, 0.8, 0.9, 1.0)  # 1: the channels of the inputs become all alike
NUM_TRIED = 1024  # of the sample, that smoothings are compared on


@dataclass(frozen=True)
class ActivationQuantizer:
    """Quantize inputs: `round((x - shift) * factor / scale) + zero_point` in 0 .. 255.

    shift, factor: [channels] float32; the weights are divided by the factor.
    """

    shift: np.ndarray
    factor: np.ndarray
    scale: float
    zero_point: int

    def fake_quantize(self, inputs: np.ndarray) -> np.ndarray:
        """Shift, multiply, quantize and dequantize inputs [.., channels]."""
        levels = np.rint((inputs - self.shift) * (self.factor / self.scale)) + self.zero_point
        kept: np.ndarray = (np.clip(levels, 0, INPUT_LEVELS) - self.zero_point) * self.scale
        return kept.astype(np.float32)


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear layer in int8: quantized inputs times weights, plus a bias.

    levels: [channels, outputs] int8. scale: [outputs], of the weights. bias: [outputs], which
    undoes the shift of the inputs and the mean error of rounding; the layer's own bias is added on
    top.
    """

    quantizer: ActivationQuantizer
    levels: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def compute_outputs(self, inputs: np.ndarray) -> np.ndarray:
        """Return outputs [.., outputs] for inputs [.., channels]."""
        weight = self.levels * self.scale
        outputs: np.ndarray = self.quantizer.fake_quantize(inputs) @ weight + self.bias
        return outputs


def round_to_nearest(
    weight: np.ndarray, quantizer: ActivationQuantizer, num_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Round weights [channels, outputs] to int8 in -num_levels .. num_levels, scale [outputs]."""
    smoothed = weight / quantizer.factor[:, None]
    scale = np.maximum(np.abs(smoothed).max(axis=0), 1e-12) / num_levels
    return np.rint(smoothed / scale).astype(np.int8), scale.astype(np.float32)


def output_error(
    weight: np.ndarray,
    quantizer: ActivationQuantizer,
    rounded: tuple[np.ndarray, np.ndarray],
    inputs: np.ndarray,
) -> np.ndarray:
    """Return the error [n, outputs] of the outputs for `inputs` [n, channels], the shift undone.

    rounded: levels and scale of the weights.
    """
    levels, scale = rounded
    exact = (inputs - quantizer.shift) @ weight
    error: np.ndarray = quantizer.fake_quantize(inputs) @ (levels * scale) - exact
    return error


def error_variance(error: np.ndarray) -> float:
    """Return the variance of an error [n, outputs], summed over outputs.

    The mean is left out: the bias of a `QuantizedLinear` takes it back.
    """
    return float(error.var(axis=0).sum())


def choose_quantizer(
    stats: ActivationStats, weights: Sequence[np.ndarray], num_levels: int
) -> ActivationQuantizer:
    """Choose the smoothing with the least output error, for layers that share their inputs.

    weights: [channels, outputs] of each layer.
    """
    inputs = stats.sample[:: max(1, len(stats.sample) // NUM_TRIED)]

    def total_variance(quantizer: ActivationQuantizer) -> float:
        return sum(
            error_variance(
                output_error(
                    weight, quantizer, round_to_nearest(weight, quantizer, num_levels), inputs
                )
            )
            for weight in weights
        )

    quantizers = (_make_quantizer(stats, weights, smoothing) for smoothing in SMOOTHINGS)
    return min(quantizers, key=total_variance)


def _make_quantizer(
    stats: ActivationStats, weights: Sequence[np.ndarray], smoothing: float
) -> ActivationQuantizer:
    # All channels share 256 levels. A channel that lives around 20 +- 1 would spend them on the
    # way from 0 to 20; moved to the middle of its range it needs 2 units of width. The shift is
    # exact, because (x - shift) @ W + shift @ W = x @ W: the second term goes into the bias.
    shift = ((stats.low + stats.high) / 2).astype(np.float32)
    largest = np.maximum((stats.high - stats.low) / 2, 1e-5)
    largest_weight = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    divisor = largest**smoothing / np.maximum(largest_weight, 1e-5) ** (1 - smoothing)
    factor = (1 / divisor).astype(np.float32)
    low = min(0.0, float(((stats.low - shift) * factor).min()))
    high = max(0.0, float(((stats.high - shift) * factor).max()))
    scale = max(high - low, 1e-8) / INPUT_LEVELS
    return ActivationQuantizer(shift, factor, scale, round(-low / scale))
