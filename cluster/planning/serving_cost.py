"""Price of serving a model at a rate of texts within a p95 latency, on each kind of machine.

A replica computes batch after batch: a text waits for at most the batch before it and for its own,
so p95 is two batches, and the largest batch within the target is taken. Network latency is not
included. Only devices that serving has engines for are offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.costmodel.compute import ComputeBatch, DeviceModel, predict_forward
from cluster.costmodel.constants import CALIBRATED, TORCH
from cluster.costmodel.model_shape import ModelShape
from cluster.hardware.types import Accelerator, Machine

SERVED = ("cpu", "cuda")  # kinds of the catalog that serving has engines for
UTILISATION = 0.7  # of a replica's throughput, so that bursts do not grow queues
BATCHES = tuple(2**n for n in range(10))


@dataclass(frozen=True)
class ServingCost:
    """Serving on one kind of machine. batch: the largest within the latency target.

    texts_per_second: of one device, at UTILISATION. replicas: devices for the whole rate.
    dollars_per_million: texts, on whole machines on demand; None where there is no price.
    """

    machine: Machine
    batch: int
    p95_seconds: float
    texts_per_second: float
    replicas: int
    machines: int
    dollars_per_hour: float | None
    dollars_per_million: float | None


def predict_batch_seconds(
    shape: ModelShape, tokens: float, batch: int, accelerator: Accelerator
) -> float:
    """Predict one batch of texts of `tokens` each."""
    device = DeviceModel(accelerator, accelerator.half_precision, TORCH, CALIBRATED)
    return predict_forward(shape, ComputeBatch(batch, tokens, tokens), device).total


def price_serving(
    shape: ModelShape, tokens: float, machine: Machine, target_p95: float, rate: float
) -> ServingCost | None:
    """Price `rate` texts/s within `target_p95` seconds.

    None where no batch is fast enough, or serving has no engine for the accelerator.
    """
    best = None
    if machine.accelerator.kind not in SERVED:
        return None
    for batch in BATCHES:
        seconds = predict_batch_seconds(shape, tokens, batch, machine.accelerator)
        if 2 * seconds <= target_p95:
            best = (batch, seconds)
    if best is None:
        return None
    batch, seconds = best
    per_device = UTILISATION * batch / seconds
    replicas = max(1, math.ceil(rate / per_device))
    machines = math.ceil(replicas / machine.count)
    hourly = None if machine.on_demand is None else machine.on_demand * machines
    served = min(rate, per_device * replicas)
    million = None if hourly is None else hourly / (served * 3600) * 1e6
    return ServingCost(machine, batch, 2 * seconds, per_device, replicas, machines, hourly, million)
