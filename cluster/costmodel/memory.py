"""The most memory a device needs to train a model in a layout, in bytes, part by part.

The peak is the largest of four moments of a step: the loss, the backward of the last layer, the end
of a backward, and the optimizer's step. Once a backward has gone before, activations meet whole
gradients; in a step whose micro-batches are all in flight, these grow while activations go. What an
allocator loses between blocks, and what the device's libraries hold, is not counted: leave a tenth
free. What a step really takes, `python -m trainers --rehearse` plays through (docs/simulation.md).
Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from cluster.costmodel.activations import (
    FP32,
    Attention,
    MicroBatch,
    of_embeddings,
    of_head,
    of_layer,
    while_head,
    while_layer,
)
from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import Shape, stage_layers

BF16 = 2
MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "lamb": 2}


def optimizer_of(name: str, momentum: float) -> str:
    """A recipe's optimizer as MOMENTS has it: SGD with momentum keeps one, plain SGD none."""
    return "momentum" if name == "sgd" and momentum > 0 else name


def attention_of(dropout: float, kind: str, precision: str) -> Attention:
    """How runs attend on a `kind` of device; without dropout, as Device.fuses_attention says."""
    if dropout > 0:
        return "dropped"
    return "kept" if kind == "cpu" and precision == "bf16" else "fused"


@dataclass(frozen=True)
class Regime:
    """How a model is trained, whatever the layout.

    sequences x tokens: the largest micro-batch, padding included. num_micro_batches: a step's, on
    one data-parallel rank. precision: fp32, or bf16 autocast over fp32 weights. optimizer: a name
    of MOMENTS. masked: tokens of one sequence that a masked-lm head looks at; default: 15%.
    """

    sequences: int
    tokens: int
    num_micro_batches: int = 1
    precision: str = "fp32"
    optimizer: str = "adamw"
    attention: Attention = "fused"
    masked: int | None = None

    def micro_batch(self, shape: Shape) -> MicroBatch:
        """What a device computes at once."""
        of_one = shape.masked(self.tokens) if self.masked is None else self.masked
        return MicroBatch(
            self.sequences,
            self.tokens,
            self.sequences * of_one if shape.head == "masked-lm" else 0,
            FP32 if self.precision == "fp32" else BF16,
            self.attention,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device of a pipeline rank.

    casts: bf16 copies of weights that autocast keeps until backward. gathered: parameters that FSDP
    puts together, and their gradients before they are shared out again. buffers: what is exchanged,
    and dropout's tables. workspace: what the moment of the peak needs beside: loss, backward of a
    layer, adding up gradients of the words, or the optimizer.
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
        """The peak."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    @property
    def states(self) -> float:
        """Parameters, gradients and moments: what stays over the whole step."""
        return self.parameters + self.gradients + self.moments


def needs(shape: Shape, layout: Layout, regime: Regime) -> tuple[Memory, ...]:
    """The memory of a device of each pipeline rank, first to last, of a resolved layout."""
    stages = stage_layers(shape, layout.num_stages)
    return tuple(
        _of_rank(shape, layout, regime, stages[rank :: layout.pp], rank)
        for rank in range(layout.pp)
    )


def peak(shape: Shape, layout: Layout, regime: Regime) -> float:
    """Bytes on the fullest device."""
    return max(memory.total for memory in needs(shape, layout, regime))


def in_flight(layout: Layout, num_micro_batches: int, rank: int) -> float:
    """Micro-batches whose activations a pipeline rank holds at once, each over all its layers.

    1F1B: p - rank. Interleaved with v stages a rank: (2 (p - rank - 1) + (v - 1) p + 1) / v, which
    for the first rank is p (1 + (p - 1) / (p v)) (Narayanan et al. 2021, arXiv 2104.04473, 2.2;
    Korthikanti et al. 2022, arXiv 2205.05198, 4.2.3).
    """
    p, v = layout.pp, layout.stages_per_rank
    held = p - rank if v == 1 else (2 * (p - rank - 1) + (v - 1) * p + 1) / v
    return min(num_micro_batches, held)


def uses_fsdp(layout: Layout) -> bool:
    """Whether parameters are gathered to compute; ranks that are only copies use DDP instead."""
    return layout.dp > 1 and layout.dp_replicate != layout.world_size


def _of_rank(
    shape: Shape, layout: Layout, regime: Regime, stages: Iterable[range], rank: int
) -> Memory:
    layers = [layer for stage in stages for layer in stage]
    first, last = rank == 0, rank == layout.pp - 1
    batch = regime.micro_batch(shape)
    ends = _ends(shape, layout, first, last)
    layer = _layer(shape, layout)
    held = ends + len(layers) * layer
    states = FP32 * held / layout.dp_shard
    kept, inner, outer = _activations(shape, layout, batch, layers, first, last)
    flights = in_flight(layout, regime.num_micro_batches, rank)
    if not last:  # what is sent on stays until its gradient comes back
        kept += batch.size * shape.hidden_size * FP32
    casts, fsdp = 0.0, uses_fsdp(layout)
    if batch.width == BF16 and not fsdp:  # FSDP gathers in bf16 instead
        of_all = _casts(shape, layout, len(layers), last)
        # Recomputing layers casts again, and lets the copies go when the forward ends.
        casts = of_all if layout.recompute == "none" else _casts(shape, layout, 0, last)
        if layout.recompute != "none":
            again = _casts(shape, layout, 1, False)
            inner, outer = inner + again, max(outer + again, of_all)
    once = regime.num_micro_batches <= flights  # gradients come when activations go
    at_loss = Memory(
        parameters=states,
        gradients=0.0 if once else states,
        moments=states * MOMENTS[regime.optimizer],
        casts=flights * casts,
        gathered=_gathered(ends, 0, layer, batch.width, once) if fsdp else 0.0,
        activations=flights * kept,
        workspace=max(0.0, outer),
        buffers=_buffers(shape, layout, regime, held, first),
    )
    # A tied table's gradient of the head waits for that of the embeddings; FSDP counts it above.
    waits = first and last and shape.head == "masked-lm" and not (once or fsdp)
    in_layer = replace(
        at_loss,
        gradients=FP32 * ends * last / layout.dp_shard if once else states,
        gathered=_gathered(ends, 1, layer, batch.width, once) if fsdp else 0.0,
        workspace=max(0.0, inner + waits * _table(shape, layout, FP32, first, last) / 3),
    )
    at_end = replace(
        in_layer,
        gradients=states,
        casts=(flights - 1) * casts,
        activations=(flights - 1) * kept,
        gathered=batch.width * ends + FP32 * layer if fsdp else 0.0,
        workspace=_table(shape, layout, batch.width if fsdp else FP32, first, last),
    )
    in_step = replace(
        at_loss,
        gradients=states,
        casts=0.0,
        activations=0.0,
        workspace=states if regime.optimizer == "lamb" else 0.0,
    )
    return max((at_loss, in_layer, at_end, in_step), key=lambda memory: memory.total)


def _table(shape: Shape, layout: Layout, width: int, first: bool, last: bool) -> float:
    """Gradients of the words at the end of backward: a tied table's two, and their sum."""
    words = -(-shape.vocab_size // layout.tp) * shape.embedding_size
    if shape.head != "masked-lm" or not first:
        return 0.0
    return width * words * (3 if last else 1)


def _layer(shape: Shape, layout: Layout) -> float:
    """Parameters of one layer on a rank: matrices and column-parallel biases are divided."""
    if layout.tp == 1 or shape.head == "linear":
        return shape.layer_parameters
    ups = 2 if shape.gated else 1
    columns = (3 * shape.hidden_size + ups * shape.intermediate_size) * shape.biases
    divided = shape.layer_matrices + columns
    return divided / layout.tp + shape.layer_vectors - columns


def _ends(shape: Shape, layout: Layout, first: bool, last: bool) -> float:
    """Parameters of embeddings and head on a rank: what is as long as the vocabulary is divided."""
    words = -(-shape.vocab_size // layout.tp)
    away = shape.vocab_size - words
    before = shape.embedding_parameters - away * shape.embedding_size if first else 0
    after = shape.head_parameters if last else 0
    if last and shape.head == "masked-lm":
        after -= away
        if not first:  # the tied decoder's own copy of the table
            after += words * shape.embedding_size
    return before + after


def _activations(
    shape: Shape, layout: Layout, batch: MicroBatch, layers: list[int], first: bool, last: bool
) -> tuple[float, float, float]:
    """(kept, inner, outer): what one micro-batch keeps over these layers, and two peaks beyond it.

    inner: in the backward of the last whole layer, when the head and a layer that computed [CLS]
    alone have let go of theirs. outer: at the loss.
    """
    if shape.head == "linear":
        return batch.size * shape.hidden_size * FP32, 0.0, 0.0
    final = shape.num_layers - 1
    kept = sum(of_layer(shape, layout, batch, layer == final) for layer in layers)
    kept += of_embeddings(shape, batch) if first else 0.0
    head = of_head(shape, layout, batch) if last else 0.0
    freed, alone = head, final in layers and shape.reads_cls_alone
    if alone:
        freed += of_layer(shape, layout, batch, last=True)
    whole = [layer for layer in layers if not (alone and layer == final)]
    inner = while_layer(shape, layout, batch, last=False) - freed if whole else 0.0
    outer = while_head(shape, layout, batch) if last else 0.0
    return kept + head, inner, outer


def _casts(shape: Shape, layout: Layout, num_layers: int, last: bool) -> float:
    """Bytes of bf16 copies of the weights of linear layers; autocast keeps no sharded ones."""
    weights = num_layers * shape.layer_matrices / layout.tp
    if last and shape.head == "masked-lm":
        words = -(-shape.vocab_size // layout.tp)
        weights += shape.embedding_size * (words + shape.hidden_size)
    elif last:
        weights += shape.hidden_size * (shape.hidden_size + shape.num_labels)
    return BF16 * weights


def _gathered(ends: float, inside: int, layer: float, width: int, once: bool) -> float:
    """What FSDP2 holds whole at the loss, or `inside` the backward of a layer.

    Embeddings and head stay gathered from forward to backward, and their gradient in fp32, sent off
    by the micro-batch before, until a next one is sent. Inside a layer: its parameters, those of
    the next one, its gradient, the gradient of embeddings and head, and where gradients are bf16
    the fp32 copy in which a layer's are sent off.
    """
    sent = 0.0 if once else FP32 * ends
    copied = FP32 * layer if width == BF16 else 0.0
    return width * ends + sent + inside * (width * (ends + 3 * layer) + copied)


def _buffers(shape: Shape, layout: Layout, regime: Regime, held: float, first: bool) -> float:
    """Buckets of gradients in flight, and tables of dropout's hashes."""
    words = -(-shape.vocab_size // layout.tp) * shape.embedding_size
    buffers = 0.0
    if layout.dp > 1 and not uses_fsdp(layout):
        by_row = words if first and shape.head == "classification" else 0
        buffers += FP32 * (held - by_row)
    buffers += regime.tokens * shape.hidden_size * FP32 / 2
    if regime.attention == "dropped":
        buffers += shape.num_heads * regime.tokens**2 * FP32 / 2
    return buffers
