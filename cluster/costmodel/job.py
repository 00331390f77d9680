"""A model, a batch and devices: the input of the layout search."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.costmodel.constants import CALIBRATED, STACKS, TORCH, Constants, Stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import TrainingSetup, attention_storage
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.step_time import StepTime, StepWork, predict_step
from cluster.hardware.types import Topology


@dataclass(frozen=True)
class TrainingJob:
    """What is trained on which devices.

    device_memory: bytes, None if unknown. global_batch_size: samples a step. max_length: tokens of
    the longest sample. token_budget: tokens that a device computes at once; may_lower_budget: the
    search may try fewer; may_raise_budget: as many as the memory holds. lengths: of samples; None:
    all of max_length. masked_tokens: of a sample, predicted by a masked-lm head. eval_ratio:
    samples evaluated for each one trained on.
    """

    shape: ModelShape
    topology: Topology
    num_devices: int
    device_memory: float | None
    global_batch_size: int
    max_length: int
    token_budget: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention_dropout: bool = False
    masked_tokens: float | None = None
    may_lower_budget: bool = True
    may_raise_budget: bool = False
    lengths: Lengths | None = None
    eval_ratio: float = 0.0
    constants: Constants = CALIBRATED
    stack: Stack = TORCH

    @property
    def devices_per_node(self) -> int:
        """Devices of one node."""
        return self.topology.devices_per_node

    def training_setup(self, layout: Layout, token_budget: int) -> TrainingSetup:
        """Return how a rank of `layout` trains with micro-batches of `token_budget`."""
        samples = -(-self.global_batch_size // layout.dp)
        sequences = max(1, min(samples, token_budget // self.max_length))
        return TrainingSetup(
            sequences,
            self.max_length,
            -(-samples // sequences),
            "fp32" if self.precision in ("fp32", "tf32") else "bf16",
            self.optimizer,
            attention_storage(
                self.attention_dropout, self.topology.accelerator.kind, self.precision
            ),
            None if self.masked_tokens is None else math.ceil(self.masked_tokens) or None,
        )

    def step_work(self, token_budget: int) -> StepWork:
        """Return what a step computes with micro-batches of `token_budget`."""
        lengths = self.lengths or Lengths(self.max_length)
        return StepWork(
            self.shape,
            self.global_batch_size,
            max(1.0, token_budget / lengths.mean),
            lengths.mean,
            lengths.attended,
            self.masked_tokens or 0.0,
            self._rated_precision,
            self.optimizer,
            self.eval_ratio,
            spread=lengths.spread,
        )

    def predict_step(self, layout: Layout, token_budget: int) -> StepTime:
        """Predict the seconds of a step in a resolved `layout`."""
        stack = self.stack
        if self.attention_dropout and stack == STACKS.get(stack.name):
            stack = STACKS.get(f"{stack.name}-unfused", stack)
        return predict_step(
            self.step_work(token_budget), layout, self.topology, stack, self.constants
        )

    @property
    def _rated_precision(self) -> str:
        """The precision, or the fast one where only that one's FLOP/s are known."""
        accelerator = self.topology.accelerator
        known = accelerator.peak_flops(self.precision) is not None
        return self.precision if known else accelerator.half_precision
