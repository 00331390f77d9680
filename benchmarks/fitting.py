"""Fit the cost model's constants to published rows, and predict rows that were left out."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from published import PublishedRow

from cluster.costmodel.constants import Constants
from cluster.costmodel.layout import Layout
from cluster.costmodel.least_squares import FloatArray, least_squares
from cluster.costmodel.step_time import predict_step

# Start and prior of the fit. The prior has 1/20 of a row's weight: it decides only what rows do
# not.
START = Constants(
    flops_per_joule=0.5e12,
    wave=0.5,
    launch_seconds=3e-6,
    attention=0.5,
    shared_link=0.3,
    overlap=0.3,
    waiting=0.02,
    passes_optimised=20.0,
    passes_partly=35.0,
    passes_eager=60.0,
    passes_engine=12.0,
    systolic=0.6,
)
PROBED = ("speed", "embeddings", "fresh_seconds")  # fitted only by a probe
FREE = tuple(name for name in START.__dataclass_fields__ if name not in PROBED)
PRIOR_WEIGHT = 0.05


def predict_throughput(row: PublishedRow, constants: Constants) -> float:
    """Predict the sequences a second of a row."""
    layout = Layout(dp_replicate=row.topology.devices)
    seconds = predict_step(row.work, layout, row.topology, row.stack, constants).total
    return row.copies * row.work.sequences / seconds


def fit_constants(rows: Sequence[PublishedRow]) -> Constants:
    """Return the constants that explain `rows` best."""
    prior = np.array([math.log(getattr(START, name)) for name in FREE])

    def residuals(log_values: FloatArray) -> FloatArray:
        constants = _unpack_constants(log_values)
        ratios = [math.log(predict_throughput(row, constants) / row.throughput) for row in rows]
        return np.concatenate([ratios, (log_values - prior) * PRIOR_WEIGHT])

    return _unpack_constants(least_squares(residuals, prior))


def predict_left_out(rows: Sequence[PublishedRow]) -> list[float]:
    """Predict each row with constants fitted to the rows of all other accelerators.

    Leaving out only the row itself would not measure the error on new hardware: other rows of the
    same accelerator have the same peak, power limit and bandwidth, and would give it away.
    """
    constants = {
        name: fit_constants([row for row in rows if row.accelerator != name])
        for name in sorted({row.accelerator for row in rows})
    }
    return [predict_throughput(row, constants[row.accelerator]) for row in rows]


def _unpack_constants(log_values: FloatArray) -> Constants:
    values = {name: math.exp(value) for name, value in zip(FREE, log_values, strict=True)}
    return replace(START, **values)
