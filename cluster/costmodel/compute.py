"""Seconds that one device computes: products of matrices, attention, memory traffic, launches.

A roofline (Williams et al. 2009) with a third roof, power: a device computes no faster than its
watts pay for. Knows nothing of layouts and of exchanges (planning/cost.py) and no torch.
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
from cluster.costmodel.model_shape import Shape
from cluster.hardware.types import Accelerator

TILE = 128  # rows and columns of a product that a multiprocessor computes at once (CUTLASS)
SPLIT_K = 1024  # beyond this depth a product of few tiles is split along it
# Bytes of an element outside of products. FP8 recipes keep the residual stream in 16 bits and what
# enters a product in 8; autocast keeps norms, softmax and residuals in 32 bits.
WIDTHS = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.5, "int8": 1.0}
AUTOCAST_WIDTH = 3.0
WEIGHT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class Forward:
    """Seconds of a forward pass on one device, by what they are spent on."""

    products: float
    attention: float
    traffic: float
    launches: float

    @property
    def total(self) -> float:
        """Launches that a program issues itself run ahead of the device: the longer one counts."""
        return self.products + self.attention + self.traffic + self.launches


@dataclass(frozen=True)
class Batch:
    """What a device computes at once.

    sequences x tokens: as computed; the mean where sequences are not padded. attended: tokens that
    a token attends to: the mean over tokens, E[s^2] / E[s] where lengths differ. masked: tokens of
    a sequence that a masked-lm head looks at. fresh: share of batches whose shape is none of those
    before, about as large as lengths are spread.
    """

    sequences: float
    tokens: float
    attended: float
    masked: float = 0.0
    fresh: float = 0.0

    @property
    def size(self) -> float:
        """All tokens."""
        return self.sequences * self.tokens


def sustained(accelerator: Accelerator, precision: str, constants: Constants) -> float:
    """FLOP/s of a large product of matrices: what the units or the watts allow, the lesser.

    Units: SUSTAINED of the peak. Watts: power times FLOPs a joule, which falls with the energy that
    the process needs for an operation. Plain fp32 runs outside of matrix units and meets no such
    limit. Raises KeyError for a precision that the accelerator does not have: check first.
    """
    peak = accelerator.peak(precision)
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
class Processor:
    """An accelerator as some software uses it, in a precision that it has."""

    accelerator: Accelerator
    precision: str
    stack: Stack
    constants: Constants

    @cached_property
    def rate(self) -> float:
        """FLOP/s of large products of matrices."""
        return sustained(self.accelerator, self.precision, self.constants)

    @cached_property
    def rate_of_scores(self) -> float:
        """FLOP/s of the attention core, which stays in 16 bits where products are in integers."""
        rate = self.rate
        if self.precision == "int8":
            halves = self.accelerator.half_precision
            rate = min(rate, sustained(self.accelerator, halves, self.constants))
        return rate * self.constants.attention

    @property
    def memory(self) -> float:
        """Bytes/s of large transfers."""
        return (self.accelerator.memory_rate or math.inf) * MEMORY_SHARE

    @property
    def width(self) -> float:
        """Bytes of an element outside of products."""
        width = WIDTHS[self.precision]
        return AUTOCAST_WIDTH if width == 2.0 and not self.stack.narrow else width


def forward(
    shape: Shape, batch: Batch, processor: Processor, tp: int = 1, share: float = 1.0
) -> Forward:
    """Seconds of a forward pass of `batch` through a `share` of the model, over `tp` devices.

    A classifier's last layer counts for what it computes ([CLS] alone); embeddings and head are
    counted in proportion to the layers.
    """
    stack, constants = processor.stack, processor.constants
    layers = share * _whole_layers(shape, batch)
    products = layers * _products(shape, batch, processor, tp)
    products += share * batch.sequences * _ends_flops(shape, batch) / processor.rate / tp
    scores = 4 * batch.size * batch.attended * shape.hidden_size / tp
    attention = layers * scores / processor.rate_of_scores
    traffic = 0.0
    if not stack.on_chip:
        moved = _bytes(shape, batch, processor, tp)
        traffic = (layers + share * constants.embeddings) * moved / processor.memory
        weights = layers * shape.layer_matrices * WEIGHT_BYTES[processor.precision] / tp
        unhidden = weights / processor.memory - (products + attention + traffic)
        traffic += max(0.0, unhidden)  # a small batch waits for the weights
    launched = layers * stack.kernels * constants.launch_seconds
    launched += batch.fresh * constants.fresh_seconds  # once: layers are alike
    if not stack.captured:  # a program launches ahead of the device
        launched = max(0.0, launched - (products + attention + traffic))
    return Forward(products, attention, traffic, launched)


def _products(shape: Shape, batch: Batch, processor: Processor, tp: int) -> float:
    """One layer's products: FLOPs, and a lost share of a wave of tiles for each product.

    The last wave of tiles fills the multiprocessors only in part (NVIDIA, "Matrix Multiplication
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
    flops = sum(2 * batch.size * n * k for n, k in sizes)
    units = processor.accelerator.units or 0
    lost = processor.constants.wave * units * TILE * TILE
    flops += sum(lost * 2 * min(k, SPLIT_K) for _, k in sizes)
    return flops / processor.rate


def _ends_flops(shape: Shape, batch: Batch) -> float:
    """Of one sequence, in embeddings and head."""
    before = shape.embedding_flops(1) * batch.tokens
    if shape.head != "masked-lm":
        return before + shape.head_flops()
    return before + batch.masked * shape.head_flops(1)


def _whole_layers(shape: Shape, batch: Batch) -> float:
    """Layers, the last one of a classifier counting for its share of the work."""
    if not shape.reads_cls_alone:
        return float(shape.num_layers)
    tokens = max(1, round(batch.tokens))
    return shape.num_layers - 1 + shape.layer_flops(tokens, 1) / shape.layer_flops(tokens)


def _bytes(shape: Shape, batch: Batch, processor: Processor, tp: int) -> float:
    """Bytes read and written in one layer outside of products.

    Norms and residuals are whole on every rank of a tensor-parallel group: half of the passes.
    """
    passes = getattr(processor.constants, processor.stack.passes) * (0.5 + 0.5 / tp)
    moved = passes * batch.size * shape.hidden_size
    if not processor.stack.fused_attention:
        moved += SCORE_PASSES * batch.size * batch.attended * shape.num_heads / tp
    return float(moved * processor.width)
