"""Seconds of a training step of any model, layout and topology, term by term.

Compute is three forwards (backward is twice a forward) plus recomputation. Tensor-parallel ranks
all-reduce hidden states in each layer; pipeline ranks wait while the pipeline fills; copies
all-reduce gradients once a step; FSDP gathers weights for each micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

from cluster.costmodel.collectives import all_gather_seconds, all_reduce_seconds, send_seconds
from cluster.costmodel.compute import (
    WEIGHT_BYTES,
    ComputeBatch,
    DeviceModel,
    ForwardTime,
    predict_forward,
)
from cluster.costmodel.constants import CALIBRATED, NEVER_HIDDEN, TORCH, Constants, Stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import uses_fsdp
from cluster.costmodel.microbatches import count_micro_batches
from cluster.costmodel.model_shape import ModelShape
from cluster.hardware.types import Topology

# Bytes an optimizer reads and writes for each fp32 weight: weight and gradient in, weight out; each
# moment in and out; LAMB writes its update and reads it with the weight twice more, for the norms.
OPTIMIZER_BYTES = {"sgd": 12, "momentum": 20, "adam": 28, "adamw": 28, "lamb": 44}
# Shares of a forward's (matmuls and attention, memory traffic) that backward recomputes.
RECOMPUTED = {"none": (0.0, 0.0), "selective": (0.0, 1.0), "full": (1.0, 1.0)}


@dataclass(frozen=True)
class StepWork:
    """What a step computes, independent of hardware.

    sequences: of the global batch. micro_batch: most sequences that a device computes at once.
    tokens, attended_tokens, masked_tokens: of a sequence as in ComputeBatch.
    eval_ratio: sequences evaluated for each one trained on. trains: False for a forward alone.
    spread: of lengths, as in microbatches.py.
    """

    shape: ModelShape
    sequences: int
    micro_batch: float
    tokens: float
    attended_tokens: float
    masked_tokens: float = 0.0
    precision: str = "bf16"
    optimizer: str = "adamw"
    eval_ratio: float = 0.0
    trains: bool = True
    spread: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, term by term.

    products: matmuls. exchanges: communication that no computation hides. waiting: for the slowest
    device.
    """

    products: float
    attention: float
    traffic: float
    launches: float
    recomputed: float
    optimizer: float
    exchanges: float
    bubble: float
    waiting: float
    evaluation: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    @property
    def busy(self) -> float:
        """Share of the step that a device computes."""
        idle = self.exchanges + self.bubble + self.waiting
        return 1 - idle / self.total


def predict_step(
    work: StepWork,
    layout: Layout,
    topology: Topology,
    stack: Stack = TORCH,
    constants: Constants = CALIBRATED,
) -> StepTime:
    """Predict a step of `work` in a resolved `layout` on `topology`.

    The slowest rank decides: the one with the most sequences. The accelerator's figures must be
    known (see Accelerator.missing).
    """
    case = _Case(work, layout, topology, stack, constants)
    once, count = case.forward_time, case.num_micro_batches
    times = count * (3 if work.trains else 1)
    products, traffic = RECOMPUTED[layout.recompute]
    recomputed = count * (products * (once.products + once.attention) + traffic * once.traffic)
    computing = times * once.total + recomputed
    # 1F1B: a rank idles while the first micro-batch comes down the p - 1 ranks before it, and while
    # the last gradient comes back: p - 1 micro-batches of m. Interleaving v stages a rank makes
    # each hop 1 / v as long: (p - 1) / (m v) of the computing (Narayanan et al. 2021, arXiv
    # 2104.04473, 2.2).
    bubble = computing * (layout.pp - 1) / count / layout.stages_per_rank
    optimizer = _optimizer_seconds(case) if work.trains else 0.0
    exchanges = _gradient_seconds(case) + _hidden_state_seconds(case) if work.trains else 0.0
    steady = computing + bubble + optimizer + exchanges
    waiting = steady * constants.waiting * math.log2(max(1, layout.world_size))
    slower = 1 / constants.speed  # of the device alone: the network is as fast as ever
    return StepTime(
        products=times * once.products * slower,
        attention=times * once.attention * slower,
        traffic=times * once.traffic * slower,
        launches=times * once.launches * slower,
        recomputed=recomputed * slower,
        optimizer=optimizer * slower,
        exchanges=exchanges,
        bubble=bubble * slower,
        waiting=waiting * slower,
        evaluation=count * once.total * work.eval_ratio * slower,
    )


@dataclass(frozen=True)
class _Case:
    """The input of a step's terms, and what several of them need."""

    work: StepWork
    layout: Layout
    topology: Topology
    stack: Stack
    constants: Constants

    @property
    def device(self) -> DeviceModel:
        accelerator = self.topology.accelerator
        return DeviceModel(accelerator, self.work.precision, self.stack, self.constants)

    @property
    def sequences_per_rank(self) -> int:
        return -(-self.work.sequences // self.layout.dp)

    @property
    def num_micro_batches(self) -> int:
        return count_micro_batches(self.sequences_per_rank, self.work.micro_batch)

    @cached_property
    def batch(self) -> ComputeBatch:
        """The mean micro-batch."""
        work = self.work
        return ComputeBatch(
            self.sequences_per_rank / self.num_micro_batches,
            work.tokens,
            work.attended_tokens,
            work.masked_tokens,
            fresh=min(1.0, work.spread),
        )

    @cached_property
    def forward_time(self) -> ForwardTime:
        """Of one micro-batch through the layers of a rank."""
        layout = self.layout
        return predict_forward(self.work.shape, self.batch, self.device, layout.tp, 1 / layout.pp)

    @property
    def rank_parameters(self) -> float:
        """Parameters of a rank before FSDP shards them."""
        return self.work.shape.num_parameters / (self.layout.tp * self.layout.pp)

    @property
    def travel_bytes(self) -> int:
        """Bytes of a weight or a hidden state in a collective."""
        return WEIGHT_BYTES[self.work.precision]


def _optimizer_seconds(case: _Case) -> float:
    """Return the seconds of streaming weights, gradients and moments through memory."""
    parameters = case.rank_parameters / case.layout.dp_shard
    if case.stack.sharded:
        parameters /= case.topology.devices_per_node
    return parameters * OPTIMIZER_BYTES[case.work.optimizer] / case.device.memory_bandwidth


def _gradient_seconds(case: _Case) -> float:
    """Return the seconds of data-parallel communication that no computation hides."""
    layout, topology, constants = case.layout, case.topology, case.constants
    gradient = case.stack.gradient_bytes if case.travel_bytes < 4 else 4
    inner, seconds = layout.tp, 0.0
    if uses_fsdp(layout):
        inner *= layout.dp_shard
        # Each micro-batch gathers weights in forward and in backward, and scatters fp32 gradients.
        num_bytes = (case.travel_bytes * case.rank_parameters, 4 * case.rank_parameters)
        weights, gradients = (all_gather_seconds(n, topology, inner, constants) for n in num_bytes)
        seconds += case.num_micro_batches * (2 * weights + gradients)
    copies = layout.dp // layout.dp_shard
    if copies > 1:
        sent, shape = case.rank_parameters / layout.dp_shard, case.work.shape
        if not uses_fsdp(layout) and shape.head == "classification":
            sent -= shape.vocab_size * shape.embedding_size / layout.tp  # only looked-up rows
        seconds += all_reduce_seconds(gradient * sent, topology, copies, constants, stride=inner)
    # Gradients travel behind the last backward, for a share `overlap` of it; the first bucket waits
    # for its layers, so some of it is never hidden.
    backward = 2 * case.forward_time.total
    return seconds - min(seconds * (1 - NEVER_HIDDEN), constants.overlap * backward)


def _hidden_state_seconds(case: _Case) -> float:
    """Return the seconds that tensor and pipeline parallelism wait for hidden states.

    4 all-reduces a layer, 6 with full recomputation; a pipeline sends fp32 forward and back.
    """
    layout, topology, constants = case.layout, case.topology, case.constants
    numbers = case.batch.num_tokens * case.work.shape.hidden_size
    seconds = 0.0
    if layout.tp > 1:
        sums = (6 if layout.recompute == "full" else 4) * case.work.shape.num_layers / layout.pp
        one = all_reduce_seconds(case.travel_bytes * numbers, topology, layout.tp, constants)
        seconds += case.num_micro_batches * sums * one
    if layout.pp > 1:
        one = send_seconds(4 * numbers, topology, topology.nodes > 1, constants)
        seconds += 2 * case.num_micro_batches * one
    return seconds
