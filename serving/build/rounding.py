"""How a linear layer is computed in int8: one scale for its inputs, one a channel for its weights.

Outliers sit in a few channels of the inputs: each channel is divided by a factor that its weights
are multiplied with, so that both are easy to round (SmoothQuant, Xiao et al. 2023, arXiv
2211.10438, equation 4). How far that goes is chosen by what comes out of the layer. Weights keep 7
of 8 bits: a processor without VNNI adds pairs of products in 16 bits, which 8-bit weights overflow.
Pure; knows no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WEIGHT_LEVELS, INPUT_LEVELS = 63, 255
SMOOTHINGS = (0.6, 0.7, 0.8, 0.9)  # 1: the channels of the inputs become all alike


@dataclass(frozen=True)
class Seen:
    """The inputs of a layer on some texts: the least and greatest of each channel [channels], and
    a sample of them [n, channels].
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, num_sampled: int) -> "Seen":
        """Of inputs [n, channels], `num_sampled` of them evenly spread in the sample."""
        rows = np.unique(np.linspace(0, len(inputs) - 1, num_sampled).astype(int))
        return cls(inputs.min(axis=0), inputs.max(axis=0), inputs[rows])

    @classmethod
    def joined(cls, parts: "Sequence[Seen]") -> "Seen":
        """What was seen in any of `parts`."""
        return cls(
            np.min([part.low for part in parts], axis=0),
            np.max([part.high for part in parts], axis=0),
            np.concatenate([part.sample for part in parts]),
        )


@dataclass(frozen=True)
class Rounding:
    """How inputs are rounded: `round(x * factor / scale) + zero` in 0 .. 255.

    factor: [channels] float32, which the weights are divided by.
    """

    factor: np.ndarray
    scale: float
    zero: int

    def inputs(self, inputs: np.ndarray) -> np.ndarray:
        """What is left of inputs [.., channels] that were multiplied by the factor."""
        levels = np.rint(inputs * self.factor / self.scale) + self.zero
        kept: np.ndarray = (np.clip(levels, 0, INPUT_LEVELS) - self.zero) * self.scale
        return kept.astype(np.float32)

    def weight(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights [channels, outputs] as int8, and the scale [outputs] of each output."""
        smoothed = weight / self.factor[:, None]
        scale = np.maximum(np.abs(smoothed).max(axis=0), 1e-12) / WEIGHT_LEVELS
        return np.rint(smoothed / scale).astype(np.int8), scale.astype(np.float32)

    def error(self, inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """What rounding adds to the outputs [n, outputs] of inputs [n, channels]."""
        levels, scale = self.weight(weight)
        added: np.ndarray = self.inputs(inputs) @ (levels * scale) - inputs @ weight
        return added


def best(seen: Seen, weights: Sequence[np.ndarray]) -> Rounding:
    """The rounding of inputs as `seen`, that layers of `weights` [channels, outputs] share, whose
    outputs are nearest to the exact ones in the mean square, beside their mean.
    """
    return min(
        (_of(seen, weights, smoothing) for smoothing in SMOOTHINGS),
        key=lambda rounding: sum(
            float(rounding.error(seen.sample, weight).var(axis=0).sum()) for weight in weights
        ),
    )


def _of(seen: Seen, weights: Sequence[np.ndarray], smoothing: float) -> Rounding:
    largest = np.maximum(np.maximum(-seen.low, seen.high), 1e-5)
    of_weights = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    divisor = largest**smoothing / np.maximum(of_weights, 1e-5) ** (1 - smoothing)
    factor = (1 / divisor).astype(np.float32)
    low = min(0.0, float((seen.low * factor).min()))
    high = max(0.0, float((seen.high * factor).max()))
    scale = max(high - low, 1e-8) / INPUT_LEVELS
    return Rounding(factor, scale, round(-low / scale))
