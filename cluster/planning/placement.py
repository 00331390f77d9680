"""A run on a given place: the layout that `layout: auto` would take there, and its speed.

Knows no prices.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.costmodel.constants import CALIBRATED, Constants
from cluster.costmodel.job import Job
from cluster.costmodel.layout import Layout
from cluster.costmodel.layout_search import fastest, weighed
from cluster.costmodel.microbatches import budget_of, overhead_of
from cluster.costmodel.step_time import Step
from cluster.hardware.types import Place
from cluster.planning.demand import Demand


@dataclass(frozen=True)
class Placed:
    """A layout on a place. token_budget: tokens, padding included, that a device takes at once.

    memory: bytes of the fullest device. precision: what `auto` comes to there.
    """

    layout: Layout
    token_budget: int
    precision: str
    memory: float
    step: Step


def place_on(place: Place, demand: Demand, constants: Constants = CALIBRATED) -> Placed | None:
    """The fastest of the layouts that fit; None where none does, or a device gets no sample."""
    job = job_of(place, demand, constants)
    chosen = fastest(weighed(job))
    if chosen is None:
        return None
    return Placed(chosen.layout, chosen.token_budget, job.precision, chosen.memory, chosen.step)


def job_of(place: Place, demand: Demand, constants: Constants = CALIBRATED) -> Job:
    """A run on a place."""
    kind = place.accelerator.kind
    return Job(
        shape=demand.shape,
        place=place,
        num_devices=place.devices,
        device_memory=place.accelerator.memory,
        global_batch_size=demand.global_batch,
        max_length=demand.max_length,
        token_budget=demand.token_budget or max(budget_of(kind), demand.max_length),
        precision=precision_on(place, demand),
        optimizer=demand.optimizer,
        attention_dropout=demand.attention_dropout,
        masked=demand.masked or None,
        may_lower_budget=demand.token_budget is None,
        lengths=demand.lengths,
        overhead=overhead_of(kind),
        evaluated=demand.evaluated,
        constants=constants,
    )


def precision_on(place: Place, demand: Demand) -> str:
    """The recipe's precision, or what mixed precision uses on the accelerator."""
    return place.accelerator.half_precision if demand.precision == "auto" else demand.precision
