"""Texts a second, replicas and dollars a million answers of a model on a device, for a target p95.

A replica answers batch after batch: a text waits for the batch before it, at most, and for its own,
so p95 is two batches; the largest batch within the target is taken. Queues are left room: replicas
run at UTILISATION of what they can. Knows no HTTP: what a network adds comes on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.costmodel.compute import Batch, Processor, forward
from cluster.costmodel.constants import CALIBRATED, STACKS, TORCH, Constants, Stack
from cluster.costmodel.model_shape import Shape
from cluster.hardware.types import Accelerator, Machine

UTILISATION = 0.7  # of a replica's rate, so that bursts do not grow queues
BATCHES = tuple(2**n for n in range(10))


@dataclass(frozen=True)
class Service:
    """What serving on a kind of machine comes to. batch: the largest within the target.

    texts_per_second: of one device, at UTILISATION. replicas: devices for the rate asked.
    dollars_per_million: on demand, whole machines; None where there is no price.
    """

    machine: Machine
    batch: int
    p95_seconds: float
    texts_per_second: float
    replicas: int
    machines: int
    dollars_per_hour: float | None
    dollars_per_million: float | None


def answer_seconds(
    shape: Shape,
    tokens: float,
    batch: int,
    accelerator: Accelerator,
    stack: Stack = TORCH,
    constants: Constants = CALIBRATED,
) -> float:
    """Seconds of one batch of texts of `tokens` each; Neuron devices answer on compiled engines."""
    if accelerator.kind == "neuron":
        stack = STACKS["neuron-engine"]
    together = Batch(batch, tokens, tokens, 0.0)
    processor = Processor(accelerator, accelerator.half_precision, stack, constants)
    return forward(shape, together, processor).total / constants.speed


def service(
    shape: Shape,
    tokens: float,
    machine: Machine,
    target_p95: float,
    rate: float,
    stack: Stack = TORCH,
    constants: Constants = CALIBRATED,
) -> Service | None:
    """Serving `rate` texts a second on `machine`s within `target_p95` seconds, or None."""
    best = None
    for batch in BATCHES:
        seconds = answer_seconds(shape, tokens, batch, machine.accelerator, stack, constants)
        if 2 * seconds <= target_p95:
            best = (batch, seconds)
    if best is None:
        return None
    batch, seconds = best
    a_device = UTILISATION * batch / seconds
    replicas = max(1, math.ceil(rate / a_device))
    machines = math.ceil(replicas / machine.count)
    hourly = None if machine.on_demand is None else machine.on_demand * machines
    served = min(rate, a_device * replicas)
    million = None if hourly is None else hourly / (served * 3600) * 1e6
    return Service(machine, batch, 2 * seconds, a_device, replicas, machines, hourly, million)
