"""Peak memory of a device that trains a model in a layout, in bytes, part by part.

The peak is the largest of four moments of a step: the loss, the backward of the last layer, the end
of a backward, and the optimizer's step. After a first backward, activations meet whole gradients;
in a step whose micro-batches are all in flight, gradients grow while activations are freed.
Fragmentation and the device's libraries are not counted: leave a tenth free. What a step really
takes, `bertha train --rehearse` plays through (docs/simulation.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from cluster.costmodel.activations import (
    FP32,
    Attention,
    MicroBatchShape,
    embedding_bytes,
    head_bytes,
    head_workspace,
    layer_bytes,
    layer_workspace,
)
from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import ModelShape, split_into_stages

BF16 = 2
MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "lamb": 2}


def moment_kind(name: str, momentum: float) -> str:
    """Return a recipe's optimizer as a key of MOMENTS, where plain SGD keeps none."""
    return "momentum" if name == "sgd" and momentum > 0 else name


def attention_storage(dropout: float, kind: str, precision: str) -> Attention:
    """Return what attention stores on a `kind` of device; see Device.fuses_attention."""
    if dropout > 0:
        return "dropped"
    return "kept" if kind == "cpu" and precision == "bf16" else "fused"


@dataclass(frozen=True)
class TrainingSetup:
    """How one data-parallel rank trains.

    sequences x tokens: the largest micro-batch. num_micro_batches: of a step.
    precision: fp32, or bf16 autocast over fp32 weights. optimizer: a key of MOMENTS. masked: tokens
    of one sequence that a masked-lm head predicts; default: 15%. slots: as in MicroBatchShape.
    """

    sequences: int
    tokens: int
    num_micro_batches: int = 1
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention: Attention = "fused"
    masked: int | None = None
    slots: int = 0

    def micro_batch_shape(self, shape: ModelShape) -> MicroBatchShape:
        """Return the largest micro-batch."""
        of_one = shape.count_masked(self.tokens) if self.masked is None else self.masked
        return MicroBatchShape(
            self.sequences,
            self.tokens,
            self.sequences * of_one if shape.head == "masked-lm" else 0,
            FP32 if self.precision == "fp32" else BF16,
            self.attention,
            self.slots,
        )


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on one device of a pipeline rank.

    casts: bf16 copies of weights that autocast keeps until backward. gathered: parameters that FSDP
    gathers, and their gradients before they are scattered. buffers: of communication, and dropout's
    tables. workspace: what the moment of the peak needs besides: the loss, the backward of a layer,
    the sum of the word embeddings' gradients, or the optimizer.
    """

    parameters: float
    gradients: float
    moments: float
    casts: float
    gathered: float
    activations: float
    workspace: float
    buffers: float

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    @property
    def states(self) -> float:
        """Parameters, gradients and moments."""
        return self.parameters + self.gradients + self.moments


def memory_by_rank(
    shape: ModelShape, layout: Layout, setup: TrainingSetup
) -> tuple[MemoryBreakdown, ...]:
    """Return the memory of a device of each pipeline rank, first to last, of a resolved layout."""
    stages = split_into_stages(shape, layout.num_stages)
    return tuple(
        _rank_memory(shape, layout, setup, stages[rank :: layout.pp], rank)
        for rank in range(layout.pp)
    )


def peak_memory(shape: ModelShape, layout: Layout, setup: TrainingSetup) -> float:
    """Return the bytes on the fullest device."""
    return max(memory.total for memory in memory_by_rank(shape, layout, setup))


def micro_batches_in_flight(layout: Layout, num_micro_batches: int, rank: int) -> float:
    """Return the micro-batches, over all its layers, whose activations a pipeline rank holds.

    For the first rank of an interleaved pipeline this is p (1 + (p - 1) / (p v)) (Narayanan et al.
    2021, arXiv 2104.04473, 2.2; Korthikanti et al. 2022, arXiv 2205.05198, 4.2.3).
    """
    p, v = layout.pp, layout.stages_per_rank
    # 1F1B: a rank runs one forward for each rank after it before its first backward. Interleaved,
    # it warms up for 2 (p - rank - 1) stage passes and all but the last of its v stages, p
    # micro-batches each; a pass is 1 / v of its layers.
    count = p - rank if v == 1 else (2 * (p - rank - 1) + (v - 1) * p + 1) / v
    return min(num_micro_batches, count)


def uses_fsdp(layout: Layout) -> bool:
    """Return whether parameters are sharded; ranks that are only copies use DDP instead."""
    return layout.dp > 1 and layout.dp_replicate != layout.world_size


def _rank_memory(
    shape: ModelShape, layout: Layout, setup: TrainingSetup, stages: Iterable[range], rank: int
) -> MemoryBreakdown:
    layers = [layer for stage in stages for layer in stage]
    first, last = rank == 0, rank == layout.pp - 1
    batch = setup.micro_batch_shape(shape)
    ends = _end_parameters(shape, layout, first, last)
    layer = _layer_parameters(shape, layout)
    parameters = ends + len(layers) * layer
    states = FP32 * parameters / layout.dp_shard
    kept, inner, outer = _activation_bytes(shape, layout, batch, layers, first, last)
    flights = micro_batches_in_flight(layout, setup.num_micro_batches, rank)
    if not last:  # a sent output stays until its gradient comes back
        kept += batch.num_tokens * shape.hidden_size * FP32
    casts, fsdp = 0.0, uses_fsdp(layout)
    if batch.width == BF16 and not fsdp:  # FSDP gathers in bf16 instead
        of_all = _cast_bytes(shape, layout, len(layers), last)
        # Recomputed layers cast again, and free the copies when the forward ends.
        casts = of_all if layout.recompute == "none" else _cast_bytes(shape, layout, 0, last)
        if layout.recompute != "none":
            again = _cast_bytes(shape, layout, 1, False)
            inner, outer = inner + again, max(outer + again, of_all)
    once = setup.num_micro_batches <= flights  # gradients grow while activations are freed
    at_loss = MemoryBreakdown(
        parameters=states,
        gradients=0.0 if once else states,
        moments=states * MOMENTS[setup.optimizer],
        casts=flights * casts,
        gathered=_gathered_bytes(ends, 0, layer, batch.width, once) if fsdp else 0.0,
        activations=flights * kept,
        workspace=max(0.0, outer),
        buffers=_buffer_bytes(shape, layout, setup, parameters, first),
    )
    # A tied table's gradient of the head waits for that of the embeddings; FSDP counts it above.
    waits = first and last and shape.head == "masked-lm" and not (once or fsdp)
    in_layer = replace(
        at_loss,
        gradients=FP32 * ends * last / layout.dp_shard if once else states,
        gathered=_gathered_bytes(ends, 1, layer, batch.width, once) if fsdp else 0.0,
        workspace=max(0.0, inner + waits * _word_gradients(shape, layout, FP32, first, last) / 3),
    )
    at_end = replace(
        in_layer,
        gradients=states,
        casts=(flights - 1) * casts,
        activations=(flights - 1) * kept,
        gathered=batch.width * ends + FP32 * layer if fsdp else 0.0,
        workspace=_word_gradients(shape, layout, batch.width if fsdp else FP32, first, last),
    )
    in_step = replace(
        at_loss,
        gradients=states,
        casts=0.0,
        activations=0.0,
        workspace=states if setup.optimizer == "lamb" else 0.0,
    )
    return max((at_loss, in_layer, at_end, in_step), key=lambda memory: memory.total)


def _word_gradients(
    shape: ModelShape, layout: Layout, width: int, first: bool, last: bool
) -> float:
    """Return the word embeddings' gradients after backward: of a tied table two, and their sum."""
    words = -(-shape.vocab_size // layout.tp) * shape.embedding_size
    if shape.head != "masked-lm" or not first:
        return 0.0
    return width * words * (3 if last else 1)


def _layer_parameters(shape: ModelShape, layout: Layout) -> float:
    """Count one layer's parameters on a rank: matrices and column-parallel biases are divided."""
    if layout.tp == 1 or shape.head == "linear":
        return shape.layer_parameters
    ups = 2 if shape.gated else 1
    columns = (3 * shape.hidden_size + ups * shape.intermediate_size) * shape.biases
    divided = shape.layer_matrices + columns
    return divided / layout.tp + shape.layer_vectors - columns


def _end_parameters(shape: ModelShape, layout: Layout, first: bool, last: bool) -> float:
    """Count the parameters of embeddings and head on a rank: the vocabulary is divided."""
    words = -(-shape.vocab_size // layout.tp)
    away = shape.vocab_size - words
    before = shape.embedding_parameters - away * shape.embedding_size if first else 0
    after = shape.head_parameters if last else 0
    if last and shape.head == "masked-lm":
        after -= away
        if not first:  # the tied decoder's own copy of the table
            after += words * shape.embedding_size
    return before + after


def _activation_bytes(
    shape: ModelShape,
    layout: Layout,
    batch: MicroBatchShape,
    layers: list[int],
    first: bool,
    last: bool,
) -> tuple[float, float, float]:
    """Return (kept, inner, outer): what a micro-batch keeps of these layers, two peaks above it.

    inner: in the backward of the last whole layer, when activations of the head and of a layer that
    computed only [CLS] are freed already. outer: at the loss.
    """
    if shape.head == "linear":
        return batch.num_tokens * shape.hidden_size * FP32, 0.0, 0.0
    final = shape.num_layers - 1
    kept = sum(layer_bytes(shape, layout, batch, layer == final) for layer in layers)
    kept += embedding_bytes(shape, batch) if first else 0.0
    head = head_bytes(shape, layout, batch) if last else 0.0
    freed, alone = head, final in layers and shape.reads_cls_alone
    if alone:
        freed += layer_bytes(shape, layout, batch, last=True)
    whole = [layer for layer in layers if not (alone and layer == final)]
    inner = layer_workspace(shape, layout, batch, last=False) - freed if whole else 0.0
    outer = head_workspace(shape, layout, batch) if last else 0.0
    return kept + head, inner, outer


def _cast_bytes(shape: ModelShape, layout: Layout, num_layers: int, last: bool) -> float:
    """Return the bytes of autocast's bf16 copies of the weights of linear layers."""
    weights = num_layers * shape.layer_matrices / layout.tp
    if last and shape.head == "masked-lm":
        words = -(-shape.vocab_size // layout.tp)
        weights += shape.embedding_size * (words + shape.hidden_size)
    elif last:
        weights += shape.hidden_size * (shape.hidden_size + shape.num_labels)
    return BF16 * weights


def _gathered_bytes(ends: float, inside: int, layer: float, width: int, once: bool) -> float:
    """Return what FSDP2 holds unsharded at the loss, or `inside` the backward of a layer.

    Embeddings and head stay gathered from forward to backward, and their fp32 gradient, reduced by
    the micro-batch before, until the next is reduced. Inside a layer: its parameters, those of the
    next one, its gradient, the gradient of embeddings and head, and where gradients are bf16 the
    fp32 copy in which a layer's are reduced.
    """
    sent = 0.0 if once else FP32 * ends
    copied = FP32 * layer if width == BF16 else 0.0
    return width * ends + sent + inside * (width * (ends + 3 * layer) + copied)


def _buffer_bytes(
    shape: ModelShape, layout: Layout, setup: TrainingSetup, parameters: float, first: bool
) -> float:
    """Return DDP's buckets of gradients, and the hashes of dropout: of positions and of tokens."""
    words = -(-shape.vocab_size // layout.tp) * shape.embedding_size
    buffers = 0.0
    if layout.dp > 1 and not uses_fsdp(layout):
        by_row = words if first and shape.head == "classification" else 0
        buffers += FP32 * (parameters - by_row)
    buffers += setup.tokens * (1 + setup.sequences) * shape.hidden_size * FP32 / 2
    if setup.attention == "dropped":
        buffers += shape.num_heads * setup.tokens**2 * FP32 / 2
    return buffers
