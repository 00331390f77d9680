"""The fastest layout of a run on a given place, by the cost model, of those that fit in memory.

A short list is tried instead of every layout (cluster/choice.py weighs those when a run starts):
whole copies first, then shards, then recomputation; layers are divided only where nothing else
fits. Knows no prices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.calibration import CALIBRATED, STACKS, TORCH, Constants
from cluster.choice import FREE, RECOMPUTES
from cluster.cost import Step, Work, step
from cluster.demand import Demand
from cluster.hardware import Place
from cluster.layout import Layout
from cluster.memory import Regime, peak
from cluster.overhead import COMPLEXITY

TOKENS_AT_ONCE = 32768  # a device's token budget unless the recipe says otherwise


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
    for layouts in (_whole(place, demand), _divided(place, demand)):
        fitting = (_fitting(place, demand, layout, constants) for layout in layouts)
        found = [placed for each in fitting for placed in each]
        if found:
            return min(found, key=_seconds)
    return None


def work_of(place: Place, demand: Demand, token_budget: int) -> Work:
    """What a step computes on a place with micro-batches of `token_budget`."""
    return Work(
        demand.shape,
        demand.global_batch,
        max(1.0, token_budget / demand.computed_tokens),
        demand.computed_tokens,
        demand.attended,
        demand.masked,
        precision_on(place, demand),
        demand.optimizer,
        demand.evaluated,
    )


def precision_on(place: Place, demand: Demand) -> str:
    """The recipe's precision, or what mixed precision uses on the accelerator."""
    return place.accelerator.half_precision if demand.precision == "auto" else demand.precision


def _seconds(placed: Placed) -> float:
    """Of a step, with a little for each kind of parallelism that no formula counts."""
    layout = placed.layout
    kinds = (layout.dp_shard > 1) + (layout.tp > 1) + (layout.pp > 1)
    return placed.step.total * (1 + COMPLEXITY * kinds)


def _fitting(
    place: Place, demand: Demand, layout: Layout, constants: Constants
) -> Iterator[Placed]:
    """The layout with the largest micro-batch that fits, if one does."""
    assert place.accelerator.memory is not None
    precision = precision_on(place, demand)
    room = place.accelerator.memory * (1 - FREE)
    samples = -(-demand.global_batch // layout.dp)
    budget = demand.token_budget or max(TOKENS_AT_ONCE, demand.max_length)
    while budget >= demand.max_length:
        sequences = max(1, min(samples, budget // demand.max_length))
        regime = Regime(
            sequences,
            demand.max_length,
            -(-samples // sequences),
            "fp32" if precision in ("fp32", "tf32") else "bf16",
            demand.optimizer,
            demand.attention_dropout,
            math.ceil(demand.masked) or None,
        )
        memory = peak(demand.shape, layout, regime)
        if memory <= room:
            stack = STACKS["torch-unfused"] if demand.attention_dropout else TORCH
            work = work_of(place, demand, budget)
            yield Placed(
                layout, budget, precision, memory, step(work, layout, place, stack, constants)
            )
            return
        if demand.token_budget is not None:
            return
        budget //= 2


def _whole(place: Place, demand: Demand) -> Iterator[Layout]:
    """Layouts of whole layers: copies, shards in a node, shards over all; recomputed as need be."""
    devices = place.devices
    if demand.global_batch < devices:
        return
    shards = dict.fromkeys((1, min(devices, place.devices_per_node), devices))
    for dp_shard in shards:
        for recompute in RECOMPUTES:
            layout = Layout(
                dp_replicate=devices // dp_shard, dp_shard=dp_shard, recompute=recompute
            )
            yield layout


def _divided(place: Place, demand: Demand) -> Iterator[Layout]:
    """Layers divided by tp inside a node and by pp, the rest shards."""
    shape, devices = demand.shape, place.devices
    for tp in _powers(place.devices_per_node):
        if place.devices_per_node % tp or shape.num_heads % tp:
            continue
        for pp in _powers(min(shape.num_layers, devices // tp)):
            shards = devices // tp // pp
            if tp * pp > 1 and tp * pp * shards == devices and shards <= demand.global_batch:
                yield Layout(
                    dp_replicate=1, dp_shard=shards, pp=pp, tp=tp,
                    sequence_parallel=tp > 1, recompute="full",
                )  # fmt: skip


def _powers(most: int) -> Iterator[int]:
    degree = 1
    while degree <= most:
        yield degree
        degree *= 2
