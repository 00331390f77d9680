"""What is to be trained, on which devices: all that a layout is chosen by. Knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.costmodel.constants import CALIBRATED, STACKS, TORCH, Constants, Stack
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import Regime, attention_of
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import Shape
from cluster.costmodel.step_time import Step, Work, step
from cluster.hardware.types import Place


@dataclass(frozen=True)
class Job:
    """What is trained, on what.

    place: how the devices stand; num_devices: how many of them there are. device_memory: bytes,
    None if unknown. global_batch_size: samples a step. max_length: tokens of the longest sample.
    token_budget: tokens, padding included, that a device takes at once; may_lower_budget: whether
    fewer may be tried. lengths: of samples; None: all as long as can be. masked: tokens of a sample
    that a masked-lm head looks at. max_tp: 1 for a model whose layers cannot be divided. evaluated:
    samples evaluated for each one trained on.
    """

    shape: Shape
    place: Place
    num_devices: int
    device_memory: float | None
    global_batch_size: int
    max_length: int
    token_budget: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention_dropout: bool = False
    masked: float | None = None
    max_tp: int = 10**9
    may_lower_budget: bool = True
    lengths: Lengths | None = None
    overhead: float = 0.0
    evaluated: float = 0.0
    constants: Constants = CALIBRATED
    stack: Stack = TORCH

    @property
    def devices_per_node(self) -> int:
        """Neighbours."""
        return self.place.devices_per_node

    def regime(self, layout: Layout, token_budget: int) -> Regime:
        """How a rank of `layout` trains with micro-batches of `token_budget`."""
        samples = -(-self.global_batch_size // layout.dp)
        sequences = max(1, min(samples, token_budget // self.max_length))
        return Regime(
            sequences,
            self.max_length,
            -(-samples // sequences),
            "fp32" if self.precision in ("fp32", "tf32") else "bf16",
            self.optimizer,
            attention_of(self.attention_dropout, self.place.accelerator.kind, self.precision),
            None if self.masked is None else math.ceil(self.masked) or None,
        )

    def work(self, token_budget: int) -> Work:
        """What a step computes with micro-batches of `token_budget`."""
        lengths = self.lengths or Lengths(self.max_length)
        return Work(
            self.shape,
            self.global_batch_size,
            max(1.0, token_budget / lengths.mean),
            lengths.mean,
            lengths.attended,
            self.masked or 0.0,
            self._rated,
            self.optimizer,
            self.evaluated,
            spread=lengths.spread,
            overhead=self.overhead,
        )

    def step(self, layout: Layout, token_budget: int) -> Step:
        """Seconds of a step in a resolved `layout`, by the cost model."""
        unfused = self.attention_dropout and self.stack == TORCH
        stack = STACKS["torch-unfused"] if unfused else self.stack
        return step(self.work(token_budget), layout, self.place, stack, self.constants)

    @property
    def _rated(self) -> str:
        """The precision, or the fast one where only that one's rate is known."""
        accelerator = self.place.accelerator
        known = accelerator.peak(self.precision) is not None
        return self.precision if known else accelerator.half_precision
