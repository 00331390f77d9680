"""How the inputs of a linear layer become whole numbers: one scale for all of its channels.

Each channel is moved to the middle of its range and divided by a factor that its weights are
multiplied with, so that no channel wastes the numbers of another and both are easy to round
(SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4; Outlier Suppression+, Wei et al. 2023,
arXiv 2304.09145, for the shift). How far that goes is chosen by what comes out of the layer. Pure;
knows no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.optimize.calibration import Seen

INPUT_LEVELS = 255
SMOOTHINGS = (0.7, 0.8, 0.9, 1.0)  # 1: the channels of the inputs become all alike
NUM_TRIED = 1024  # of the sample, that smoothings are compared on


@dataclass(frozen=True)
class Rounding:
    """How inputs are rounded: `round((x - shift) * factor / scale) + zero` in 0 .. 255.

    shift, factor: [channels] float32; the weights are divided by the factor.
    """

    shift: np.ndarray
    factor: np.ndarray
    scale: float
    zero: int

    def inputs(self, inputs: np.ndarray) -> np.ndarray:
        """What is left of inputs [.., channels] that were shifted and multiplied."""
        levels = np.rint((inputs - self.shift) * (self.factor / self.scale)) + self.zero
        kept: np.ndarray = (np.clip(levels, 0, INPUT_LEVELS) - self.zero) * self.scale
        return kept.astype(np.float32)


@dataclass(frozen=True)
class Product:
    """A linear layer in int8: its inputs rounded, times levels [channels, outputs] of a scale
    [outputs] each, plus a bias [outputs], which makes up for the shift and for the mean that
    rounding adds; the layer's own bias comes on top.
    """

    rounding: Rounding
    levels: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """What comes out for inputs [.., channels]: [.., outputs]."""
        product: np.ndarray = self.rounding.inputs(inputs) @ (self.levels * self.scale) + self.bias
        return product


def nearest(
    weight: np.ndarray, rounding: Rounding, num_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [channels, outputs] as int8 in -num_levels .. num_levels, and a scale [outputs]."""
    smoothed = weight / rounding.factor[:, None]
    scale = np.maximum(np.abs(smoothed).max(axis=0), 1e-12) / num_levels
    return np.rint(smoothed / scale).astype(np.int8), scale.astype(np.float32)


def error(
    weight: np.ndarray, rounding: Rounding, rounded: tuple[np.ndarray, np.ndarray], x: np.ndarray
) -> np.ndarray:
    """What rounding adds to the outputs [n, outputs] of inputs `x` [n, channels], beside the shift.

    rounded: levels and scale of the weights.
    """
    levels, scale = rounded
    added: np.ndarray = rounding.inputs(x) @ (levels * scale) - (x - rounding.shift) @ weight
    return added


def spread(error: np.ndarray) -> float:
    """The mean square of an error beside its mean, over all outputs."""
    return float(error.var(axis=0).sum())


def best(seen: Seen, weights: Sequence[np.ndarray], num_levels: int) -> Rounding:
    """The rounding of inputs as `seen`, that layers of `weights` [channels, outputs] share, whose
    outputs are nearest to the exact ones in the mean square, beside their mean.
    """
    some = seen.sample[:: max(1, len(seen.sample) // NUM_TRIED)]

    def spread_of(rounding: Rounding) -> float:
        return sum(
            spread(error(weight, rounding, nearest(weight, rounding, num_levels), some))
            for weight in weights
        )

    return min((_of(seen, weights, smoothing) for smoothing in SMOOTHINGS), key=spread_of)


def _of(seen: Seen, weights: Sequence[np.ndarray], smoothing: float) -> Rounding:
    shift = ((seen.low + seen.high) / 2).astype(np.float32)
    largest = np.maximum((seen.high - seen.low) / 2, 1e-5)
    of_weights = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    divisor = largest**smoothing / np.maximum(of_weights, 1e-5) ** (1 - smoothing)
    factor = (1 / divisor).astype(np.float32)
    low = min(0.0, float(((seen.low - shift) * factor).min()))
    high = max(0.0, float(((seen.high - shift) * factor).max()))
    scale = max(high - low, 1e-8) / INPUT_LEVELS
    return Rounding(shift, factor, scale, round(-low / scale))
