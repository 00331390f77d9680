"""Seconds of a training step of any model, layout and place, term by term.

Compute is three forwards (backward is twice a forward), and what is computed again. Layers of tp
ranks add up their hidden states; pipeline ranks wait while the pipe fills; copies add up gradients
once a step; shards gather weights for each micro-batch. Knows no torch, no prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

from cluster.costmodel.collectives import across, all_reduce, gather, send
from cluster.costmodel.compute import WEIGHT_BYTES, Batch, Forward, Processor, forward
from cluster.costmodel.constants import CALIBRATED, NEVER_HIDDEN, TORCH, Constants, Stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import uses_fsdp
from cluster.costmodel.microbatches import Cut, Lengths, foretold
from cluster.costmodel.model_shape import Shape
from cluster.hardware.types import Place

# Bytes an optimizer reads and writes for each fp32 weight: weight and gradient in, weight out; each
# moment in and out; LAMB writes its update and reads it with the weight twice more, for the norms.
OPTIMIZER_BYTES = {"sgd": 12, "momentum": 20, "adam": 28, "adamw": 28, "lamb": 44}
# Forward FLOPs that `selective` computes again are none; its traffic is a forward's.
RECOMPUTED = {"none": (0.0, 0.0), "selective": (0.0, 1.0), "full": (1.0, 1.0)}


@dataclass(frozen=True)
class Work:
    """What a step computes, wherever.

    sequences: of the global batch. micro_batch: sequences that a device takes at once, at most.
    tokens, attended, masked: as in planning/compute.py's Batch, padding that a cut leaves not
    counted. evaluated: sequences that are evaluated for each one trained on. trains: else a forward
    alone. spread: of lengths; overhead: tokens that one more micro-batch is worth (cutting.py).
    """

    shape: Shape
    sequences: int
    micro_batch: float
    tokens: float
    attended: float
    masked: float = 0.0
    precision: str = "bf16"
    optimizer: str = "adamw"
    evaluated: float = 0.0
    trains: bool = True
    spread: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class Step:
    """Seconds of a step by what they are spent on.

    exchanges: what no computation hides. waiting: for the slowest device. A probe's speed is in.
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
        """Of the step."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    @property
    def busy(self) -> float:
        """Share of the step in which a device computes."""
        idle = self.exchanges + self.bubble + self.waiting
        return 1 - idle / self.total


def step(
    work: Work,
    layout: Layout,
    place: Place,
    stack: Stack = TORCH,
    constants: Constants = CALIBRATED,
) -> Step:
    """Seconds of a step of `work` in a resolved `layout` on `place`.

    Bubble: (p - 1) / (m v) of the computing (Narayanan et al. 2021, arXiv 2104.04473, 2.2). A rank
    has the most sequences that any has. Figures of `place` must be known: see Accelerator.missing.
    """
    case = _Case(work, layout, place, stack, constants)
    once, count = case.once, case.count
    times = count * (3 if work.trains else 1)
    products, traffic = RECOMPUTED[layout.recompute]
    again = count * (products * (once.products + once.attention) + traffic * once.traffic)
    computing = times * once.total + again
    bubble = computing * (layout.pp - 1) / count / layout.stages_per_rank
    updating = _optimizer(case) if work.trains else 0.0
    exchanged = _gradients(case) + _states(case) if work.trains else 0.0
    steady = computing + bubble + updating + exchanged
    waiting = steady * constants.waiting * math.log2(max(1, layout.world_size))
    slower = 1 / constants.speed
    return Step(
        products=times * once.products * slower,
        attention=times * once.attention * slower,
        traffic=times * once.traffic * slower,
        launches=times * once.launches * slower,
        recomputed=again * slower,
        optimizer=updating * slower,
        exchanges=exchanged,
        bubble=bubble * slower,
        waiting=waiting * slower,
        evaluation=count * once.total * work.evaluated * slower,
    )


@dataclass(frozen=True)
class _Case:
    """All that a step's terms depend on, and what several of them need."""

    work: Work
    layout: Layout
    place: Place
    stack: Stack
    constants: Constants

    @property
    def processor(self) -> Processor:
        return Processor(self.place.accelerator, self.work.precision, self.stack, self.constants)

    @property
    def a_rank(self) -> int:
        """Sequences of a data-parallel rank."""
        return -(-self.work.sequences // self.layout.dp)

    @cached_property
    def cut(self) -> Cut:
        """Of a rank's sequences."""
        work = self.work
        lengths = Lengths(work.tokens, work.spread)
        return foretold(self.a_rank, lengths, work.micro_batch, work.overhead)

    @property
    def count(self) -> int:
        """Micro-batches of a rank."""
        return self.cut.count

    @cached_property
    def batch(self) -> Batch:
        """A micro-batch."""
        work, padded = self.work, self.cut.padded
        return Batch(
            self.a_rank / self.count,
            work.tokens * padded,
            work.attended * padded,
            work.masked,
            fresh=min(1.0, work.spread),
        )

    @cached_property
    def once(self) -> Forward:
        """A forward pass of a micro-batch through a rank's layers."""
        layout = self.layout
        return forward(self.work.shape, self.batch, self.processor, layout.tp, 1 / layout.pp)

    @property
    def held(self) -> float:
        """Parameters of a rank before shards."""
        return self.work.shape.num_parameters / (self.layout.tp * self.layout.pp)

    @property
    def width(self) -> int:
        """Bytes of a weight or a hidden number as it travels."""
        return WEIGHT_BYTES[self.work.precision]


def _optimizer(case: _Case) -> float:
    """The update is a stream through memory."""
    held = case.held / case.layout.dp_shard
    if case.stack.sharded:
        held /= case.place.devices_per_node
    return held * OPTIMIZER_BYTES[case.work.optimizer] / case.processor.memory


def _gradients(case: _Case) -> float:
    """Seconds that data-parallel ranks exchange and nothing hides.

    Copies add up gradients once a step; shards gather weights twice and scatter gradients once for
    each micro-batch. As much as `overlap` of the last backward hides it, but for the first bucket.
    """
    layout, place, constants = case.layout, case.place, case.constants
    gradient = case.stack.gradient_bytes if case.width < 4 else 4
    inner, seconds = layout.tp, 0.0
    if uses_fsdp(layout):
        inner *= layout.dp_shard
        weights = 2 * gather(case.width * case.held, place, inner, constants)
        seconds += case.count * (weights + gather(4 * case.held, place, inner, constants))
    copies = layout.dp // layout.dp_shard
    if copies > 1:
        sent, shape = case.held / layout.dp_shard, case.work.shape
        if not uses_fsdp(layout) and shape.head == "classification":
            sent -= shape.vocab_size * shape.embedding_size / layout.tp  # looked-up rows alone
        seconds += across(gradient * sent, place, copies, inner, constants)
    backward = 2 * case.once.total
    return seconds - min(seconds * (1 - NEVER_HIDDEN), constants.overlap * backward)


def _states(case: _Case) -> float:
    """Seconds that tensor and pipeline parallelism wait for hidden states.

    4 all-reduces a layer, 6 with full recompute; a pipeline sends fp32 to and fro.
    """
    layout, place, constants = case.layout, case.place, case.constants
    numbers = case.batch.size * case.work.shape.hidden_size
    seconds = 0.0
    if layout.tp > 1:
        sums = (6 if layout.recompute == "full" else 4) * case.work.shape.num_layers / layout.pp
        seconds += case.count * sums * all_reduce(case.width * numbers, place, layout.tp, constants)
    if layout.pp > 1:
        leaves = place.nodes > 1
        seconds += 2 * case.count * send(4 * numbers, place, leaves, constants)
    return seconds
