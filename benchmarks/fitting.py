"""Fitting the cost model's constants to published rows, and predicting rows never seen.

A weak prior holds what the rows do not tell. Knows no files.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from published import Row

from cluster.costmodel.constants import Constants
from cluster.costmodel.layout import Layout
from cluster.costmodel.least_squares import Numbers, least_squares
from cluster.costmodel.step_time import step

# Where fitting begins, and where the prior pulls, by a twentieth of what a row pulls.
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
PROBED = ("speed", "embeddings", "fresh_seconds")  # what a probe tells, and no published row
FREE = tuple(name for name in START.__dataclass_fields__ if name not in PROBED)
PRIOR = 0.05


def predicted(row: Row, constants: Constants) -> float:
    """Sequences a second."""
    layout = Layout(dp_replicate=row.place.devices)
    seconds = step(row.work, layout, row.place, row.stack, constants).total
    return row.copies * row.work.sequences / seconds


def fitted(rows: Sequence[Row]) -> Constants:
    """The constants that explain `rows` best."""
    prior = np.array([math.log(getattr(START, name)) for name in FREE])

    def errors(at: Numbers) -> Numbers:
        constants = _constants(at)
        ratios = [math.log(predicted(row, constants) / row.seen) for row in rows]
        return np.concatenate([ratios, (at - prior) * PRIOR])

    return _constants(least_squares(errors, prior))


def left_out(rows: Sequence[Row]) -> list[float]:
    """Predictions of `rows`, each with constants fitted without any row of its accelerator."""
    constants = {
        name: fitted([row for row in rows if row.accelerator != name])
        for name in sorted({row.accelerator for row in rows})
    }
    return [predicted(row, constants[row.accelerator]) for row in rows]


def _constants(at: Numbers) -> Constants:
    values = {name: math.exp(value) for name, value in zip(FREE, at, strict=True)}
    return replace(START, **values)
