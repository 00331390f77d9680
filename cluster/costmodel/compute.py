"""Seconds of a forward pass on one device: matmuls, attention, memory traffic, kernel launches.

A roofline (Williams et al. 2009) with a third roof, power: a device computes no faster than its
power limit allows. Layouts and collectives are step_time.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from cluster.costmodel.constants import (
    ENERGY_OF_PRECISION,
    MEMORY_SHARE,
    SCORE_PASSES,
    SUSTAINED,
    Constants,
    Stack,
)
from cluster.costmodel.model_shape import ModelShape
from cluster.hardware.types import Accelerator

TILE = 128  # rows and columns of a matmul that a multidevice computes at once (CUTLASS)
SPLIT_K = 1024  # a matmul of few tiles that is deeper is split along its depth
# Bytes of an element outside of matmuls. FP8 recipes keep the residual stream in 16 bits and what
# enters a matmul in 8; autocast keeps norms, softmax and residuals in 32 bits.
WIDTHS = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.5, "int8": 1.0}
AUTOCAST_WIDTH = 3.0
WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class ForwardTime:
    """Seconds of a forward pass on one device, term by term."""

    products: float
    attention: float
    traffic: float
    launches: float

    @property
    def total(self) -> float:
        """The sum of all terms."""
        return self.products + self.attention + self.traffic + self.launches


@dataclass(frozen=True)
class ComputeBatch:
    """The mean micro-batch of a device.

    sequences x tokens: as computed, padding included where there is any. attended: tokens that a
    token attends to, the mean over tokens: E[s^2] / E[s] where lengths differ. masked: tokens of a
    sequence that a masked-lm head predicts. fresh: share of micro-batches of a shape not met
    before.
    """

    sequences: float
    tokens: float
    attended: float
    masked: float = 0.0
    fresh: float = 0.0

    @property
    def num_tokens(self) -> float:
        """All tokens, padding included."""
        return self.sequences * self.tokens


def sustained_flops(accelerator: Accelerator, precision: str, constants: Constants) -> float:
    """Return the FLOP/s of a large matmul: the lesser of what units and power limit allow.

    Units: SUSTAINED of the peak. Power: watts times FLOPs a joule, which falls with the energy of
    an operation in the chip's process. Plain fp32 runs outside of matrix units and never meets the
    power limit. Raises KeyError for a precision that the accelerator does not have.
    """
    peak = accelerator.peak_flops(precision)
    if peak is None:
        raise KeyError(f"{accelerator.name} has no {precision}")
    rate = SUSTAINED * peak
    if accelerator.kind == "neuron":
        rate *= constants.systolic
    energy = accelerator.relative_energy
    if accelerator.watts and energy and precision in ENERGY_OF_PRECISION:
        a_joule = constants.flops_per_joule / energy / ENERGY_OF_PRECISION[precision]
        rate = min(rate, accelerator.watts * a_joule)
    return rate


@dataclass(frozen=True)
class DeviceModel:
    """An accelerator as a software stack uses it, in one precision."""

    accelerator: Accelerator
    precision: str
    stack: Stack
    constants: Constants

    @cached_property
    def matmul_flops(self) -> float:
        """FLOP/s of large matmuls."""
        return sustained_flops(self.accelerator, self.precision, self.constants)

    @cached_property
    def attention_flops(self) -> float:
        """FLOP/s of the attention core, which stays in 16 bits where matmuls are in integers."""
        rate = self.matmul_flops
        if self.precision == "int8":
            halves = self.accelerator.half_precision
            rate = min(rate, sustained_flops(self.accelerator, halves, self.constants))
        return rate * self.constants.attention

    @property
    def memory_bandwidth(self) -> float:
        """Bytes/s of large transfers."""
        return (self.accelerator.memory_rate or math.inf) * MEMORY_SHARE

    @property
    def element_bytes(self) -> float:
        """Bytes of an element outside of matmuls."""
        width = WIDTHS[self.precision]
        return AUTOCAST_WIDTH if width == 2.0 and not self.stack.narrow else width


def predict_forward(
    shape: ModelShape, batch: ComputeBatch, device: DeviceModel, tp: int = 1, share: float = 1.0
) -> ForwardTime:
    """Predict a forward pass of `batch` through a `share` of the model, over `tp` devices.

    A classifier's last layer counts for what it computes ([CLS] alone); embeddings and head are
    counted in proportion to the layers.
    """
    stack, constants = device.stack, device.constants
    layers = share * _effective_layers(shape, batch)
    products = layers * _matmul_seconds(shape, batch, device, tp)
    ends = share * batch.sequences * _end_flops(shape, batch)
    products += ends / device.matmul_flops / tp
    scores = 4 * batch.num_tokens * batch.attended * shape.hidden_size / tp
    attention = layers * scores / device.attention_flops
    traffic = 0.0
    if not stack.on_chip:
        moved = _layer_traffic(shape, batch, device, tp)
        traffic = (layers + share * constants.embeddings) * moved / device.memory_bandwidth
        weights = layers * shape.layer_matrices * WEIGHT_BYTES[device.precision] / tp
        unhidden = weights / device.memory_bandwidth - (products + attention + traffic)
        traffic += max(0.0, unhidden)  # a small batch waits for the weights
    launched = layers * stack.kernels * constants.launch_seconds
    launched += (
        batch.fresh * constants.fresh_seconds
    )  # once for all layers: they have the same shapes
    if not stack.captured:  # launched one by one, ahead of the device: hidden while it computes
        launched = max(0.0, launched - (products + attention + traffic))
    return ForwardTime(products, attention, traffic, launched)


def _matmul_seconds(shape: ModelShape, batch: ComputeBatch, device: DeviceModel, tp: int) -> float:
    """Return the seconds of one layer's matmuls, each with a lost share of a wave of tiles.

    The last wave of tiles fills the multidevices only in part (NVIDIA, "Matrix Multiplication
    Background User's Guide", wave quantization); `wave` is what that costs on average.
    """
    hidden, wide = shape.hidden_size, shape.intermediate_size
    ups = 2 if shape.gated else 1
    sizes = (
        (3 * hidden / tp, hidden),
        (hidden, hidden / tp),
        (ups * wide / tp, hidden),
        (hidden, wide / tp),
    )
    flops = sum(2 * batch.num_tokens * n * k for n, k in sizes)
    units = device.accelerator.units or 0
    lost = device.constants.wave * units * TILE * TILE
    flops += sum(lost * 2 * min(k, SPLIT_K) for _, k in sizes)
    return flops / device.matmul_flops


def _end_flops(shape: ModelShape, batch: ComputeBatch) -> float:
    """Return the FLOPs of one sequence in embeddings and head."""
    before = shape.embedding_flops(1) * batch.tokens
    if shape.head != "masked-lm":
        return before + shape.head_flops()
    return before + batch.masked * shape.head_flops(1)


def _effective_layers(shape: ModelShape, batch: ComputeBatch) -> float:
    """Count layers, the last one of a classifier for its share of the work."""
    if not shape.reads_cls_alone:
        return float(shape.num_layers)
    tokens = max(1, round(batch.tokens))
    return shape.num_layers - 1 + shape.layer_flops(tokens, 1) / shape.layer_flops(tokens)


def _layer_traffic(shape: ModelShape, batch: ComputeBatch, device: DeviceModel, tp: int) -> float:
    """Return the bytes read and written in one layer outside of matmuls.

    Norms and residuals are whole on every rank of a tensor-parallel group: half of the passes.
    """
    passes = getattr(device.constants, device.stack.passes) * (0.5 + 0.5 / tp)
    moved = passes * batch.num_tokens * shape.hidden_size
    if not device.stack.fused_attention:
        moved += SCORE_PASSES * batch.num_tokens * batch.attended * shape.num_heads / tp
    return float(moved * device.element_bytes)
