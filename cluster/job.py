"""What is to be trained, on which devices: all that a layout is chosen by. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.layout import Layout
from cluster.memory import Regime
from cluster.workload import Shape

# FLOPs a device computes while it moves a byte, inside a node and across nodes, unless told: of an
# A100, 312 TFLOP/s in bf16 of which half is reached, 300 GB/s of NVLink and 25 GB/s of network at
# 0.65 and 0.9 of their peaks (Calculon, systems/a100_80g.json).
FLOPS_A_BYTE = (800.0, 6900.0)


@dataclass(frozen=True)
class Job:
    """What is trained, on what.

    device_memory: bytes, None if unknown. global_batch_size: samples a step. max_length: tokens of
    the longest sample. token_budget: tokens computed at once. max_tp: 1 for a model whose layers
    cannot be divided. overhead_tokens: what one more micro-batch is worth. flops_a_byte: computed
    while a byte moves inside a node, and across. may_lower_budget: whether smaller micro-batches
    may be tried.
    """

    shape: Shape
    num_devices: int
    devices_per_node: int
    device_memory: float | None
    global_batch_size: int
    max_length: int
    token_budget: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention_dropout: bool = False
    masked: int | None = None
    max_tp: int = 10**9
    overhead_tokens: int = 0
    flops_a_byte: tuple[float, float] = FLOPS_A_BYTE
    may_lower_budget: bool = True

    def regime(self, layout: Layout, token_budget: int) -> Regime:
        """How a rank of `layout` trains with micro-batches of `token_budget`."""
        samples = -(-self.global_batch_size // layout.dp)
        sequences = max(1, min(samples, token_budget // self.max_length))
        return Regime(
            sequences,
            self.max_length,
            -(-samples // sequences),
            self.precision,
            self.optimizer,
            self.attention_dropout,
            self.masked,
        )
